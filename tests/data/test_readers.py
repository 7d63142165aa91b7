"""Readers of folders and Parquet: nothing is left out without a word."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import encoded, frames, parquet

from scoresde.data import Dataset, from_tensors, load, load_array, load_folder, reads
from scoresde.data.images import read_images
from scoresde.data.readers import READERS, existing


def album(root: Path, *names: str) -> Path:
    """A good picture at each of the places."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded("PNG"))
    return root


def quietly(path: Path, **options: Any) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(path, **options)


# -- what cannot be read -----------------------------------------------------------------------------------------------


def test_all_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    album(tmp_path, "a.png", "c.png", "e.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "d.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)b\.png: its content.*d\.png: it is empty.*skip_bad=True"):
        load(tmp_path)
    for i in range(60):
        (tmp_path / f"f{i:02d}.png").write_bytes(b"no image")
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert str(caught.value).count("cannot read the image") == 20 and "\n..." in str(caught.value)


def test_bad_images_are_left_out_where_this_is_asked_for_and_are_counted(tmp_path: Path) -> None:
    album(tmp_path, "ant/a.png", "ant/b.png", "bee/a.png", "cow/a.png", "cow/b.png")
    good = load(tmp_path)
    bad = {"ant/a0.png": b"", "bee/z.png": b"text", "cow/a0.png": encoded("PNG")[:40], "cow/g.gif": frames("GIF")}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning) as caught:
        dataset = load(tmp_path, skip_bad=True)
    (warning,) = caught
    assert "4 of 9 images and folders" in str(warning.message) and warning.filename == __file__
    assert [name for name, _ in dataset.skipped] == sorted(str(tmp_path / name) for name in bad)
    assert dict(dataset.skipped)[str(tmp_path / "ant" / "a0.png")] == "it is empty"
    assert dataset.label is not None and good.label is not None
    assert dataset.label.tolist() == good.label.tolist() and (dataset.data == good.data).all()
    assert "left out 4: " in str(dataset) and dataset.subset([0]).skipped == dataset.skipped


def test_a_class_of_which_nothing_is_left_is_none(tmp_path: Path) -> None:
    album(tmp_path, "ant/a.png", "cow/a.png")
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "a.png").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        load(tmp_path)
    with pytest.warns(UserWarning, match="2 of 4"):
        dataset = load(tmp_path, skip_bad=True)
    assert dataset.class_names == ("ant", "cow") and dataset.label is not None and dataset.label.tolist() == [0, 1]
    assert [Path(name).name for name, _ in dataset.skipped] == ["a.png", "empty"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="No image can be read"):
        load(tmp_path, skip_bad=True)


def _denied(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The folder cannot be listed, not even by root."""
    real: Callable[..., Any] = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("denied", ["bee", "ant/deep", "."])
def test_a_folder_that_cannot_be_listed_is_an_error_or_is_named(
    denied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album(tmp_path, "ant/a.png", "ant/b.png", "ant/deep/c.png", "bee/a.png", "cow/a.png")
    assert len(load(tmp_path)) == 5
    _denied(monkeypatch, tmp_path / denied)
    with pytest.raises(ValueError, match="cannot be listed: Permission denied"):
        load(tmp_path)
    if denied == ".":
        return
    with pytest.warns(UserWarning, match="cannot be listed"):
        dataset = load(tmp_path, skip_bad=True)
    assert len(dataset) == 4 and [name for name, _ in dataset.skipped] == [str(tmp_path / denied)]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read all")
def test_a_folder_and_a_file_without_permission(tmp_path: Path) -> None:
    album(tmp_path, "ant/a.png", "bee/a.png", "cow/a.png")
    (tmp_path / "bee").chmod(0)
    (tmp_path / "cow" / "a.png").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"(?s)bee.*Permission denied.*cow.*Permission denied"):
            load(tmp_path)
    finally:
        (tmp_path / "bee").chmod(0o700)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_files_of_several_frames_need_a_word(format: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(frames(format, 3))
    with pytest.raises(ValueError, match=r"a\.png: it holds 3 frames; pass frames='first'"):
        load(tmp_path, mode="RGB")
    dataset = quietly(tmp_path, mode="RGB", frames="first")
    assert dataset.event_shape == (3, 4, 5) and int(dataset.data.max()) <= 1  # the first is black, the others redder
    path = parquet(tmp_path / "a.parquet", image=[{"bytes": frames(format, 3)}])
    with pytest.raises(ValueError, match=r"row 0 .* 3 frames"):
        load(path, mode="RGB")
    assert len(load(path, mode="RGB", frames="first")) == 1
    for wrong in ("all", 1, True):
        with pytest.raises(ValueError, match="frames must be one of 'first'"):
            load(path, frames=wrong)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_to_be_numbers(mode: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    for given in (None, "L", "RGB"):
        with pytest.raises(ValueError, match=rf"a\.tif has mode {mode}.* load the numbers as \.npy"):
            load(tmp_path, mode=given)


def test_one_frame_of_a_format_with_several_is_one_image(tmp_path: Path) -> None:
    for format in ("GIF", "TIFF", "WEBP"):
        (tmp_path / "a.png").write_bytes(encoded(format))
        assert len(quietly(tmp_path, mode="RGB")) == 1


def test_rows_that_cannot_be_read_are_left_out_where_this_is_asked_for(tmp_path: Path) -> None:
    good = encoded("PNG")
    rows: list[Any] = [{"bytes": good}, {"bytes": None}, None, {"bytes": b"text"}, {"bytes": good}, {"bytes": good}]
    path = parquet(tmp_path / "a.parquet", image=rows, label=[0, 0, 1, 1, 1, None])
    with pytest.raises(ValueError, match=r"(?s)row 1 .*no image bytes.*row 2 .*row 3 .*none of PNG.*row 5 .*no label"):
        load(path)
    with pytest.warns(UserWarning, match="4 of 6 rows"):
        dataset = load(path, skip_bad=True)
    assert dataset.label is not None and dataset.label.tolist() == [0, 1]
    assert [name.split(" of")[0] for name, _ in dataset.skipped] == ["row 1", "row 2", "row 3", "row 5"]
    path = parquet(tmp_path / "b.parquet", image=[{"bytes": good}] * 300, label=[i % 3 for i in range(300)])
    label = load(path).label  # more rows than are read at once
    assert label is not None and label.tolist() == [i % 3 for i in range(300)]


def test_images_that_another_program_told_pillow_to_fill_up_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    album(tmp_path, "a.png")
    quietly(tmp_path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.warns(UserWarning, match="LOAD_TRUNCATED_IMAGES"):
        load(tmp_path)


# -- what is passed over -----------------------------------------------------------------------------------------------


def test_files_that_do_not_end_as_images_do_are_listed(tmp_path: Path) -> None:
    album(tmp_path, "a.png", "b.PNG", "c.jfif")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = quietly(tmp_path)
    assert len(dataset) == 3 and "passed over 1: notes.txt" in str(dataset)
    album(tmp_path, "d.heic", "e", ".hidden.png")
    with pytest.warns(UserWarning, match=r"passed over, 2: d\.heic, e\."):
        dataset = load(tmp_path)
    assert "passed over 3: d.heic, e, notes.txt" in str(dataset) and "1 hidden files" in str(dataset)
    only = tmp_path / "only"
    album(only, "a.heic")
    with pytest.raises(ValueError, match=r"no images .*It holds other files, 1: a\.heic"):
        load(only)


def test_what_sub_folders_were_taken_for_is_told(tmp_path: Path) -> None:
    album(tmp_path, "ant/a.png", "ant/more/b.png", "bee/a.png")
    dataset = quietly(tmp_path)
    assert dataset.label is not None and dataset.label.tolist() == [0, 0, 1]
    assert "2 classes (ant, bee)" in str(dataset) and "sub-folders are classes" in str(dataset)
    assert "1 images in folders inside a class folder belong to that class" in str(dataset)
    assert "no sub-folders, so no labels" in str(load(tmp_path / "bee"))
    unlabelled = quietly(tmp_path, classes="none")
    assert len(unlabelled) == 3 and unlabelled.label is None and "no labels" in str(unlabelled)


def test_images_beside_folders_need_a_word(tmp_path: Path) -> None:
    album(tmp_path, "a.png", "ant/a.png", "ant/b.png")
    for options in ({}, {"classes": "folders"}):
        with pytest.raises(ValueError, match=r"a\.png, \.\.\.\) beside folders \(ant.*classes='none'"):
            load(tmp_path, **options)
    assert len(quietly(tmp_path, classes="none")) == 3
    (tmp_path / "a.png").unlink()
    assert quietly(tmp_path, classes="folders").num_classes == 1
    with pytest.raises(ValueError, match=r"holds images .* and no folders"):
        load(tmp_path / "ant", classes="folders")
    with pytest.raises(ValueError, match="classes must be one of 'folders', 'none'"):
        load_folder(tmp_path, classes="names")  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val"), ("training",), ("train", "validation", "test")])
def test_parts_of_a_data_set_are_no_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    album(tmp_path, *(f"{name}/{kind}/a.png" for name in names for kind in ("cat", "dog")))
    with pytest.raises(ValueError, match=r"parts of a data set, not classes\. Load one of them.*classes='folders'"):
        load(tmp_path)
    assert quietly(tmp_path / names[0]).class_names == ("cat", "dog")
    assert quietly(tmp_path, classes="folders").num_classes == len(names)
    assert len(quietly(tmp_path, classes="none")) == 2 * len(names)
    album(tmp_path, "car/a.png")
    assert quietly(tmp_path).num_classes == len(names) + 1  # "train" is a vehicle there


# -- options, paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["skip_bad", "follow_links"])
@pytest.mark.parametrize("value", ["no", 1, None, np.ones(2, bool)])
def test_flags_are_true_or_false(option: str, value: Any, tmp_path: Path) -> None:
    album(tmp_path, "a.png")
    with pytest.raises(TypeError, match=f"{option} must be True or False"):
        load(tmp_path, **{option: value})


def test_an_option_of_another_reader_is_named_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    with pytest.raises(TypeError, match=r"read by load_array, which has no option 'skip_bad'; it has label, channels"):
        load(tmp_path / "x.npy", skip_bad=True)
    monkeypatch.setitem(READERS, ".any", load_folder)  # what is entered below is gone after the test

    @reads(".any")
    def load_any(path: Path, **options: Any) -> Dataset:
        assert options == {"whatever": 3}
        return from_tensors(torch.arange(6.0).reshape(3, 2))

    (tmp_path / "a.any").write_bytes(b"")
    assert len(load(tmp_path / "a.any", whatever=3)) == 3


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        (3, TypeError, "path must be the path of a file or folder"),
        (None, TypeError, "got None"),
        (b"x", TypeError, "path must be the path"),
        (["x.npy"], TypeError, "path must be the path"),
        ("nowhere.npy", FileNotFoundError, r"no data at nowhere\.npy"),
        ("a\0b.npy", ValueError, "cannot be looked at"),
        ("x" * 5000, ValueError, "cannot be looked at"),
        ("~nobody-of-that-name/x.npy", ValueError, "cannot be looked at"),
        (Path(__file__) / "x.npy", FileNotFoundError, "no data at"),
    ],
)
def test_paths_that_lead_nowhere(path: Any, error: type[Exception], match: str) -> None:
    for function in (load, existing):
        with pytest.raises(error, match=match):
            function(path)


def test_read_images_tells_which_were_kept() -> None:
    sources = [("a", encoded("PNG")), ("b", b"text"), ("c", encoded("BMP"))]
    read = read_images(sources, 3, "L", skip_bad=True)
    assert read.images.shape == (2, 1, 5, 7) and read.kept == [0, 2]
    assert [name for name, _ in read.skipped] == ["b"]
    assert (read.images[0] == read.images[1]).all()


@pytest.mark.skipif(os.name != "posix", reason="names of other systems")
def test_names_from_outside_cannot_speak_to_a_terminal(tmp_path: Path) -> None:
    name = "a\x1b[2Jb\n" + os.fsdecode(b"\xff")
    album(tmp_path, f"{name}/a.png", f"{'x' * 250}/a.png", f"{name}.txt")
    told = str(quietly(tmp_path))
    assert told.isprintable() and told.encode() and r"a\x1b[2Jb\n\udcff" in told and "x" * 150 not in told


def test_no_path_is_not_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (load, load_array):
        with pytest.raises(ValueError, match="path must be the path of a file or folder, got ''"):
            read("")
