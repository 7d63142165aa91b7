"""Data sets: the map to model units and back, batches, files, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from scoresde.data import (
    Dataset,
    Scaling,
    from_tensors,
    load,
    load_array,
    load_folder,
    load_parquet,
    random_flip,
    reader_of,
    reads,
)
from scoresde.data.readers import READERS


def images(count: int = 6, shape: tuple[int, ...] = (3, 4, 5), levels: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, levels, (count, *shape), generator=generator).to(torch.uint8)


# -- scaling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256, 1024])
def test_levels_fill_the_unit_range_in_steps_of_one_bin(levels: int) -> None:
    scaling = Scaling.to_unit_range(levels)
    data = torch.arange(levels)
    x = scaling.to_model(data)
    assert x[0] == -1 and x[-1] == 1
    # float32 numbers of size up to 1 are spaced by at most 2^-24, so a difference is right to 2^-23
    assert torch.allclose(x.diff(), torch.tensor(scaling.bin_width), rtol=0, atol=2.0**-23)
    assert torch.equal(scaling.to_data(x).round().long(), data)


def test_pictures_keep_their_levels_and_spread_over_bytes() -> None:
    data = torch.arange(256)
    scaling = Scaling.to_unit_range(256)
    assert torch.equal(scaling.to_uint8(scaling.to_model(data)), data.to(torch.uint8))
    # beyond the range is clamped; half a bin away rounds to the level itself
    assert scaling.to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    digits = Scaling.to_unit_range(17)
    # level k of 17 is k/16 of white
    expected = [round(k * 255 / 16) for k in range(17)]
    assert digits.to_uint8(digits.to_model(torch.arange(17))).tolist() == expected


def test_continuous_data_are_standardised_and_come_back() -> None:
    data = torch.randn(100, 7, generator=torch.Generator().manual_seed(1)) * 3 + 5
    dataset = from_tensors(data)
    x = dataset[:]["x"]
    # the mean of 700 float32 numbers of size 1: rounding of each is below 1e-7
    assert abs(x.double().mean().item()) < 1e-6
    assert abs(x.double().std(correction=0).item() - 1) < 1e-6
    # numbers of size up to 15 come back to a few roundings of float32 (6e-8 relative each)
    assert torch.allclose(dataset.scaling.to_data(x), data, rtol=1e-6, atol=1e-6)
    assert dataset.scaling.bin_width is None
    with pytest.raises(ValueError, match="black and white"):
        dataset.scaling.to_uint8(x)


def test_scaling_survives_json() -> None:
    for scaling in (Scaling(0.1, 0.3), Scaling.to_unit_range(17)):
        assert Scaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.0), "scale > 0"),
        ((0.0, -1.0), "scale > 0"),
        ((float("nan"), 1.0), "finite"),
        ((0.0, 1.0, 1), "levels"),
        ((0.0, 1.0, 2.5), "levels"),
    ],
)
def test_bad_scalings_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Scaling(*arguments)


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_bytes_become_floats_in_the_unit_range() -> None:
    data = images()
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    dataset = from_tensors(data, label)
    batch = dataset.batch([4, 1])
    assert batch["x"].dtype == torch.float32 and batch["label"].dtype == torch.int64
    assert torch.equal(batch["x"], (data[[4, 1]].float() - 127.5) / 127.5)
    assert batch["label"].tolist() == [1, 1]
    assert dataset.event_shape == (3, 4, 5) and len(dataset) == 6
    assert dataset.num_classes == 3 and dataset.class_names == ("0", "1", "2")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_levels_are_told_for_any_dtype(dtype: torch.dtype) -> None:
    data = images(levels=17)
    assert torch.equal(from_tensors(data.to(dtype), levels=17)[:]["x"], data.float() / 8 - 1)


def test_a_scaling_of_ones_own_is_used() -> None:
    data = torch.rand(5, 2)
    dataset = from_tensors(data, scaling=Scaling(0.5, 0.5))
    assert torch.equal(dataset[:]["x"], (data - 0.5) / 0.5)


def test_half_precision_data_are_served_in_float32() -> None:
    assert from_tensors(torch.rand(5, 2).half())[:]["x"].dtype == torch.float32


def test_items_slices_and_loaders_agree_with_batches() -> None:
    dataset = from_tensors(images(), torch.arange(6))
    whole = dataset.batch(range(6))
    for name, value in whole.items():
        assert torch.equal(dataset[:][name], value)
        assert torch.equal(torch.stack([dataset[i][name] for i in range(6)]), value)
        assert torch.equal(torch.cat([b[name] for b in DataLoader(dataset, batch_size=4)]), value)
        assert torch.equal(dataset[-1][name], value[-1])
        assert torch.equal(dataset[1:3][name], value[1:3])
        assert torch.equal(dataset[torch.tensor([5, 0])][name], value[[5, 0]])
    with pytest.raises(IndexError, match="6"):
        dataset[6]


def indexed() -> Dataset:
    """Ten samples, alternately of two classes."""
    return from_tensors(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2)


places = st.lists(st.integers(-10, 9), max_size=6)
masks = st.lists(st.booleans(), min_size=10, max_size=10)
ends = st.none() | st.integers(-12, 12)
several = st.one_of(
    places,
    places.map(tuple),
    places.map(lambda rows: torch.tensor(rows, dtype=torch.int64)),
    places.map(lambda rows: torch.tensor(rows, dtype=torch.int16)),
    places.map(lambda rows: np.array(rows, dtype=np.int32)),
    places.map(lambda rows: [np.int64(row) for row in rows]),
    places.map(lambda rows: [torch.tensor(row) for row in rows]),
    places.map(lambda rows: np.array([row % 10 for row in rows], dtype=np.uint8)),
    masks,
    masks.map(torch.tensor),
    masks.map(np.array),
    masks.map(lambda rows: [np.bool_(row) for row in rows]),
    st.builds(range, st.integers(0, 9), st.integers(0, 10), st.integers(1, 3)),
    st.builds(slice, ends, ends, st.none() | st.integers(-3, 3).filter(bool)),
    st.builds(lambda start, stop: slice(np.int64(start), torch.tensor(stop)), st.integers(-9, 9), st.integers(-9, 9)),
)


@given(several)
@settings(max_examples=300, deadline=None)
def test_samples_are_indexed_as_numpy_does_it(index: Any) -> None:
    dataset = indexed()
    if isinstance(index, slice):
        plain: Any = slice(*(None if part is None else int(part) for part in (index.start, index.stop, index.step)))
    else:
        plain = np.asarray(index, dtype=np.asarray(index).dtype if len(index) else np.int64)
    expected = np.arange(10)[plain]
    batches = [dataset.batch(index)] if isinstance(index, tuple) else [dataset.batch(index), dataset[index]]
    if len(expected):
        part = dataset.subset(index)
        assert part.label is not None and len(part) == len(expected)
        batches.append(part[:])
    else:
        with pytest.raises(ValueError, match="empty"):
            dataset.subset(index)
    for batch in batches:
        assert torch.equal(batch["x"], dataset[:]["x"][torch.from_numpy(expected.copy())])
        assert torch.equal(batch["label"], torch.from_numpy(expected % 2))


@given(st.integers(-10, 9), st.sampled_from([int, np.int64, np.int8, torch.tensor, np.array]))
def test_one_number_is_one_sample(place: int, kind: Any) -> None:
    dataset = indexed()
    assert torch.equal(dataset[kind(place)]["x"], dataset[:]["x"][place])
    for method in (dataset.batch, dataset.subset):
        with pytest.raises(TypeError, match=r"write \[\d\]"):
            method(kind(place))


def test_the_subset_of_a_class_holds_that_class() -> None:
    dataset = indexed()
    assert dataset.label is not None
    ones = dataset.subset(dataset.label == 1)
    assert torch.equal(ones.data, dataset.data[1::2]) and bool((ones[:]["label"] == 1).all())
    kept = dataset.subset(slice(2, 5))
    assert kept.data.data_ptr() == dataset.data[2:].data_ptr()  # what a slice cuts out is not copied


def test_what_nonzero_and_where_answer_for_one_axis_is_an_index() -> None:
    dataset = indexed()
    assert dataset.label is not None
    ones = dataset.label == 1
    for places in (torch.where(ones), ones.nonzero(as_tuple=True), np.nonzero(ones.numpy())):
        assert torch.equal(dataset.subset(places).data, dataset.data[ones])  # type: ignore[arg-type]
        for batch in (dataset[places], dataset.batch(places)):  # type: ignore[index, arg-type]
            assert torch.equal(batch["x"], dataset[ones]["x"])


@pytest.mark.parametrize(
    ("error", "message", "index"),
    [
        (IndexError, "sample 10 of a data set of 10: expected -10 to 9", 10),
        (IndexError, "sample -11 ", np.int64(-11)),
        (IndexError, "sample 10 ", [0, 10]),
        (IndexError, "sample 10 ", torch.tensor([10])),
        (IndexError, "sample 10 ", range(9, 12)),
        (IndexError, "sample 1180591620717411303424 ", 2**70),
        (IndexError, "64 bits", [2**70]),
        (IndexError, "mask of 2 for a data set of 10", [True, False]),
        (IndexError, "mask of 11", torch.ones(11, dtype=torch.bool)),
        (IndexError, "one axis", torch.zeros(2, 2, dtype=torch.int64)),
        (IndexError, "one axis", np.ones((10, 2), dtype=bool)),
        (IndexError, "nested", [[1]]),
        (TypeError, "cannot be True", True),
        (TypeError, "torch.bool", torch.tensor(True)),
        (TypeError, r"\[True, 1\]", [True, 1]),
        (TypeError, "cannot be 1.0", 1.0),
        (TypeError, "convert by .long()", torch.tensor([1.0])),
        (TypeError, "float64", np.array([1.0])),
        (TypeError, r"\[0.5\]", [0.5]),
        (TypeError, "complex64", torch.zeros(1, dtype=torch.complex64)),
        (TypeError, r"call .bool\(\) or .long\(\)", torch.ones(10, dtype=torch.uint8)),
        (TypeError, "cannot be 'label'", "label"),
        (TypeError, "cannot be b'1'", b"1"),
        (TypeError, "cannot be None", None),
        (TypeError, "cannot be Ellipsis", ...),
        (TypeError, "set", {1}),
        (TypeError, "a part of .* must be a whole number", slice("a")),
        (TypeError, "a part of .* must be a whole number", slice(0.5, 2)),
        (ValueError, "step 0", slice(0, 3, 0)),
    ],
    ids=str,
)
def test_what_is_no_index_is_refused(error: type[Exception], message: str, index: Any) -> None:
    dataset = indexed()
    for method in (dataset.__getitem__, dataset.batch, dataset.subset):
        with pytest.raises(error, match=message):
            method(index)
    with pytest.raises(TypeError, match="several axes"):
        dataset[1, 2]


def test_a_subset_keeps_scaling_and_classes() -> None:
    dataset = from_tensors(torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
    part = dataset.subset([0, 3])
    assert part.scaling == dataset.scaling and part.num_classes == 3
    assert torch.equal(part[:]["x"], dataset[[0, 3]]["x"])
    assert torch.equal(dataset.subset(slice(2))[:]["x"], dataset[:2]["x"])
    with pytest.raises(ValueError, match="empty"):
        dataset.subset([])


def test_flip_mirrors_the_samples_with_small_uniforms() -> None:
    x = images().float()
    u = torch.tensor([0.0, 0.49, 0.5, 0.9, 0.1, 0.99])
    flipped = random_flip(x, u)
    for i, value in enumerate(u):
        assert torch.equal(flipped[i], x[i].flip(-1) if value < 0.5 else x[i])
    with pytest.raises(ValueError, match="one uniform per sample"):
        random_flip(x, u[:3])


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "torch.Tensor", lambda: from_tensors(np.zeros((3, 2)))),  # type: ignore[arg-type]
        (TypeError, "complex64", lambda: from_tensors(torch.zeros(3, 2, dtype=torch.complex64))),
        (ValueError, "at least one sample", lambda: from_tensors(torch.zeros(0, 2))),
        (ValueError, "at least one sample", lambda: from_tensors(torch.zeros(3))),
        (ValueError, r"2 values .* samples \[1, 2\]", lambda: from_tensors(_with_nan())),
        (ValueError, "constant", lambda: from_tensors(torch.full((4, 3), 0.1))),
        (ValueError, "Give levels", lambda: from_tensors(torch.arange(6).reshape(3, 2))),
        (ValueError, r"outside 0 ... 15", lambda: from_tensors(images(levels=17) + 1, levels=16)),
        (ValueError, "fractions", lambda: from_tensors(torch.full((3, 2), 0.5), levels=17)),
        (ValueError, "contradicts", lambda: from_tensors(images(), levels=4, scaling=Scaling.to_unit_range(5))),
        (TypeError, "label.long()", lambda: from_tensors(images(), torch.zeros(6))),
        (TypeError, "torch.Tensor", lambda: from_tensors(images(), [0] * 6)),  # type: ignore[arg-type]
        (ValueError, r"\(6,\)", lambda: from_tensors(images(), torch.zeros(5, dtype=torch.int64))),
        (ValueError, r"\[0, 3\)", lambda: from_tensors(images(), torch.arange(6), num_classes=3)),
        (ValueError, "drop those samples", lambda: from_tensors(images(), torch.arange(6) - 1)),
        (ValueError, r"\[0, 2\)", lambda: from_tensors(images(), torch.arange(6), class_names=["a", "b"])),
        (
            ValueError,
            r"got \['a', 'b'\] for num_classes=3",
            lambda: from_tensors(images(), torch.arange(6), num_classes=3, class_names=["a", "b"]),
        ),
        (ValueError, "no labels", lambda: from_tensors(images(), num_classes=3)),
    ],
)
def test_bad_tensors_are_refused(error: type[Exception], message: str, build: Callable[[], Dataset]) -> None:
    with pytest.raises(error, match=message):
        build()


# -- conditions --------------------------------------------------------------------------------------------------------


def told() -> dict[str, Tensor]:
    return {
        "caption": torch.arange(12, dtype=torch.int32).reshape(6, 2),
        "low": torch.rand(6, 1, 2, 2, dtype=torch.float64),
        "size": torch.arange(6).bfloat16(),
    }


def test_conditions_are_handed_out_with_their_samples() -> None:
    given = told()
    dataset = from_tensors(images(), torch.arange(6), conditions=given)
    batch = dataset.batch([4, 1])
    assert list(batch) == ["x", "label", "caption", "low", "size"]
    kinds = {"caption": torch.int64, "low": torch.float32, "size": torch.float32}
    for name, dtype in kinds.items():
        assert batch[name].dtype == dtype
        assert torch.equal(batch[name], given[name].to(dtype)[[4, 1]])
        assert torch.equal(dataset[1][name], batch[name][1])
        assert torch.equal(torch.cat([b[name] for b in DataLoader(dataset, batch_size=4)])[[4, 1]], batch[name])
        assert torch.equal(dataset.subset([0, 4, 1])[1:][name], batch[name])
        assert torch.equal(dataset.subset(slice(1, 5)).conditions[name], dataset.conditions[name][1:5])
    assert "caption (2,), low (1, 2, 2), size ()" in repr(dataset)
    assert from_tensors(images()).conditions == {} and list(from_tensors(images())[:]) == ["x"]


def test_conditions_are_kept_apart_from_what_is_changed_outside() -> None:
    given = told()
    dataset = from_tensors(images(), conditions=given)
    del given["low"]
    assert set(dataset.conditions) == set(told())


def test_nan_in_a_whole_row_or_token_is_kept() -> None:
    nan, size, low, text = math.nan, torch.rand(6, 2), torch.rand(6, 1, 2, 2), torch.rand(6, 3, 4)
    size[1], low[2], text[3, 1:], text[4] = nan, nan, nan, nan
    age = torch.tensor([1.0, nan, 2.0, nan, nan, 3.0])
    given = {"age": age, "size": size, "low": low, "text": text, "none": torch.zeros(6, 0, 4)}
    batch = from_tensors(images(), conditions=given).batch(slice(None))
    for name, value in given.items():
        torch.testing.assert_close(batch[name], value, rtol=0, atol=0, equal_nan=True)


def spoilt(*shape: int, number: float = math.nan) -> Tensor:
    """Zeros but for one number of the second sample."""
    value = torch.zeros(shape)
    value[1].view(-1)[-1] = number
    return value


def test_any_keyword_of_a_network_is_a_name() -> None:
    """Those of options of guidance and of training, and "label" where there are no class numbers by that name."""
    names = ("t", "label", "model", "scale", "null", "negative", "interval", "rescale", "parallel", "norm", "data")
    dataset = from_tensors(images(), conditions={name: torch.full((6, 2), float(i)) for i, name in enumerate(names)})
    assert list(dataset.batch([2])) == ["x", *names] and dataset.num_classes is None
    assert all(bool((dataset[3][name] == i).all()) for i, name in enumerate(names))
    assert list(dataset.subset([1, 2])[:]) == ["x", *names]
    with pytest.raises(ValueError, match="label is given twice"):
        from_tensors(images(), torch.arange(6), conditions={"label": torch.zeros(6)})


@pytest.mark.parametrize(
    ("error", "message", "conditions"),
    [
        (TypeError, "must be a mapping by name", [torch.zeros(6)]),
        (TypeError, "torch.Tensor", {"a": [0.0] * 6}),
        (TypeError, r"a mask converts by \.float\(\)", {"mask": torch.ones(6, dtype=torch.bool)}),
        (TypeError, "complex64", {"a": torch.zeros(6, dtype=torch.complex64)}),
        (TypeError, r"'low' is uint8.*to_unit_range\(256\)", {"low": images()}),
        (ValueError, r"\(6, ...\), got shape \(5, 2\)", {"a": torch.zeros(5, 2)}),
        (ValueError, r"\(6, ...\), got shape \(\)", {"a": torch.tensor(1.0)}),
        (
            ValueError,
            r"'a' holds infinite values, first in samples \[2\].*Repair or drop",
            {"a": 1e300 * torch.eye(6).double()[2]},
        ),
        (
            ValueError,
            r"'a' holds NaN in part of a row, .*samples \[1\].*not given.*float\(.nan.\)",
            {"a": spoilt(6, 3)},
        ),
        (ValueError, r"'a' holds NaN in part of a row, .*samples \[1\]", {"a": spoilt(6, 2, 3, 2)}),
        (ValueError, r"'a' holds NaN in part of a token, .*samples \[1\].*padding", {"a": spoilt(6, 4, 3)}),
        (ValueError, r"'a' holds infinite values, .*samples \[1\]", {"a": spoilt(6, 4, 3, number=-math.inf)}),
        (ValueError, "must not be 'x'", {"x": torch.zeros(6)}),
        (ValueError, "must not be 'c', which is the network's own argument", {"c": torch.zeros(6)}),
        (ValueError, "must be a word, an identifier.*got 'low res'", {"low res": torch.zeros(6)}),
    ],
)
def test_bad_conditions_are_refused(error: type[Exception], message: str, conditions: Any) -> None:
    with pytest.raises(error, match=message):
        from_tensors(images(), conditions=conditions)


def _with_nan() -> Tensor:
    data = torch.zeros(4, 2)
    data[1, 0], data[2, 1] = float("nan"), float("inf")
    return data


# -- files -------------------------------------------------------------------------------------------------------------


def write_folder(root: Path, data: Tensor, label: Tensor, names: list[str]) -> Path:
    """One PNG (lossless) for each image, in the folder of its class; file names in the order of the data."""
    from PIL import Image

    for i, (image, k) in enumerate(zip(data, label.tolist(), strict=True)):
        (root / names[k]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()).save(root / names[k] / f"{i:03d}.png")
    return root


def write_parquet(path: Path, data: Tensor, label: list[int | None] | None, names: list[str] | None) -> Path:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rows = []
    for image in data:
        buffer = io.BytesIO()
        Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": "x.png"})
    columns: dict[str, Any] = {"img": rows} if label is None else {"img": rows, "label": label}
    table = pa.table(columns)
    if names is not None:
        features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_gives_the_same_data_set(tmp_path: Path, channels: int) -> None:
    data, label, names = images(shape=(channels, 4, 5)), torch.tensor([0, 0, 1, 1, 2, 2]), ["ant", "bee", "cow"]
    expected = from_tensors(data, label, class_names=names)
    np.save(tmp_path / "x.npy", data.numpy())
    np.save(tmp_path / "last.npy", data.movedim(1, -1).numpy())
    np.save(tmp_path / "y.npy", label.numpy())
    np.savez(tmp_path / "both.npz", images=data.numpy(), y=label.numpy())
    write_folder(tmp_path / "folder", data, label, names)
    write_parquet(tmp_path / "set.parquet", data, label.tolist(), names)
    loaded = [
        load(tmp_path / "x.npy", label=tmp_path / "y.npy", class_names=names),
        load(tmp_path / "last.npy", label=tmp_path / "y.npy", class_names=names, channels="last"),
        load(tmp_path / "both.npz", class_names=names),
        load(tmp_path / "folder"),
        load(str(tmp_path / "set.parquet")),
    ]
    for dataset in loaded:
        assert torch.equal(dataset[:]["x"], expected[:]["x"])
        assert dataset.label is not None and torch.equal(dataset.label, label)
        assert dataset.class_names == tuple(names) and dataset.scaling == expected.scaling


def test_classes_are_sorted_by_name_and_may_be_missing(tmp_path: Path) -> None:
    data, label = images(), torch.tensor([1, 1, 1, 0, 0, 0])
    write_folder(tmp_path / "classes", data, label, ["zebra", "ape"])
    dataset = load(tmp_path / "classes")
    # folder "ape" holds the images of index 1, and sorts first
    assert dataset.class_names == ("ape", "zebra") and dataset.label is not None
    assert dataset.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(dataset.data, data)

    write_folder(tmp_path / "flat", data, torch.zeros(6, dtype=torch.int64), ["."])
    (tmp_path / "flat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "flat" / "notes.txt").write_text("no image")
    flat = load(tmp_path / "flat")
    assert flat.label is None and torch.equal(flat.data, data)

    with pytest.warns(UserWarning, match="numbered from 0 on"):
        unnamed = load(write_parquet(tmp_path / "unnamed.parquet", data, [0, 1, 3, 0, 1, 3], None))
    assert unnamed.class_names == ("0", "1", "3")
    assert load(write_parquet(tmp_path / "unlabelled.parquet", data, None, None)).label is None


def test_a_channel_axis_is_put_in(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(shape=(4, 5)).numpy())
    assert load(tmp_path / "x.npy").event_shape == (4, 5)
    assert load(tmp_path / "x.npy", channels="none").event_shape == (1, 4, 5)


def test_numbers_of_any_width_and_byte_order_load(tmp_path: Path) -> None:
    data = images(levels=17).numpy()
    for dtype in (np.uint16, np.int32, ">i4", np.float64, ">f8", np.float16):
        np.save(tmp_path / "x.npy", data.astype(dtype))
        assert torch.equal(load(tmp_path / "x.npy", levels=17).data, torch.from_numpy(data))


def test_mode_converts_all_images(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (5, 4), 100).save(tmp_path / "a.png")
    Image.new("RGB", (5, 4), (100, 100, 100)).save(tmp_path / "b.png")
    Image.new("RGBA", (5, 4), (100, 100, 100, 50)).save(tmp_path / "c.png")
    for mode, channels in (("L", 1), ("RGB", 3)):
        data = load(tmp_path, mode=mode).data
        # grey 100 is RGB (100, 100, 100), whose luma is 100 again
        assert data.shape == (3, channels, 4, 5) and bool((data == 100).all())


def test_hidden_folders_inside_a_class_are_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, images(), torch.tensor([0, 0, 0, 1, 1, 1]), ["ant", "bee"])
    (tmp_path / "ant" / ".cache").mkdir()
    (tmp_path / "ant" / "more").mkdir()
    (tmp_path / "ant" / ".cache" / "000.png").write_bytes(b"no image")
    (tmp_path / "ant" / "000.png").rename(tmp_path / "ant" / "more" / "000.png")
    label = load(tmp_path).label
    assert label is not None and label.tolist() == [0, 0, 0, 1, 1, 1]


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    turned = Image.fromarray(np.rot90(pixels))  # lies on its left side, as a camera held upright stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to show"
    turned.save(tmp_path / "a.png", exif=exif)
    assert load(tmp_path).data[0, 0].tolist() == pixels.tolist()


def test_wide_unsigned_integers_are_levels_and_labels_too() -> None:
    data = torch.tensor([[0, 4], [3, 1]])
    for dtype in (torch.uint16, torch.uint32):
        dataset = from_tensors(data.to(dtype), torch.tensor([1, 0]).to(dtype), levels=5)
        assert torch.equal(dataset.data, data.to(torch.uint8))
        assert dataset.label is not None and dataset.label.tolist() == [1, 0]


def test_the_reader_of_a_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("A.NPY", "b.npz", "c.Parquet", "d.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.npy").mkdir()
    assert reader_of("~/A.NPY") is reader_of(tmp_path / "b.npz") is load_array
    assert reader_of("~/c.Parquet") is load_parquet and reader_of("~/e.npy") is load_folder
    with pytest.raises(ValueError, match=r"\.csv"):
        reader_of("~/d.csv")
    with pytest.raises(FileNotFoundError, match=r"f\.npy"):
        reader_of("~/f.npy")


def test_a_reader_of_ones_own_is_found_by_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in (".csv", ".txt"):  # what is entered below is gone after the test
        monkeypatch.setitem(READERS, ending, load_array)

    @reads(".csv", ".txt")
    def load_csv(path: Path, *, delimiter: str = ",") -> Dataset:
        return from_tensors(torch.from_numpy(np.loadtxt(path, delimiter=delimiter)), scaling=Scaling(0.0, 1.0))

    (tmp_path / "a.CSV").write_text("1;2\n3;4\n")
    assert reader_of(tmp_path / "a.CSV") is load_csv
    assert load(tmp_path / "a.CSV", delimiter=";")[:]["x"].tolist() == [[1, 2], [3, 4]]
    (tmp_path / "b.zip").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"a folder .* one of \.bin, \.csv, \.npy, \.npz, \.parquet, \.txt, got '\.zip'"
    ):
        load(tmp_path / "b.zip")


def test_damaged_pages_are_named_and_the_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    path = write_parquet(tmp_path / "set.parquet", images(), [0, 1, 2, 0, 1, 2], None)
    pq.write_table(pq.read_table(path), path, write_page_checksum=True, compression="none")
    files: list[Any] = []

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            files.append(self)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    load(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IHDR") + 5] ^= 255  # inside the first picture
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.parquet is damaged behind row 0"):
        load(path)
    assert len(files) == 2 and all(file.closed for file in files)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder with one of each thing that cannot be loaded."""
    from PIL import Image

    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.nan]]))
    np.save(tmp_path / "good.npy", images().numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:200])
    np.savez(tmp_path / "names.npz", pictures=np.zeros((3, 2)))
    np.savez(tmp_path / "twice.npz", x=np.zeros((3, 2)), images=np.zeros((3, 2)))
    np.savez(tmp_path / "labelled.npz", x=images().numpy(), label=np.arange(6))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "labelled.npz").read_bytes()[:300])
    np.savez_compressed(tmp_path / "spoilt.npz", x=np.arange(60.0).reshape(6, 10))
    spoilt = bytearray((tmp_path / "spoilt.npz").read_bytes())
    start = 30 + int.from_bytes(spoilt[26:28], "little") + int.from_bytes(spoilt[28:30], "little")
    spoilt[start : start + 4] = b"\xff" * 4  # the start of the compressed bytes, behind the header of the member
    (tmp_path / "spoilt.npz").write_bytes(spoilt)
    np.save(tmp_path / "flat.npy", np.arange(5.0))
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.parquet").write_bytes(b"junk")

    def picture(path: str, mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> Path:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(tmp_path / path)
        return tmp_path / path

    picture("sizes/a.png")
    picture("sizes/b.png", size=(4, 5))
    picture("modes/a.png")
    picture("modes/b.png", "L")
    picture("palette/a.png", "P")
    picture("deep/a.png", "I;16")
    picture("beside/a.png")
    picture("beside/class/b.png")
    picture("hollow/full/a.png")
    (tmp_path / "hollow" / "vacant").mkdir()
    whole = picture("cut/a.png", size=(64, 64))
    whole.write_bytes(whole.read_bytes()[:-40])
    picture("text/a.png")
    (tmp_path / "text" / "b.jpg").write_text("no image")
    (tmp_path / "sets").mkdir()
    write_parquet(tmp_path / "sets" / "train.parquet", images(), None, None)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("absent.npy", {}, FileNotFoundError, "absent.npy"),
        ("objects.npy", {}, ValueError, "Python objects"),
        ("text.npy", {}, TypeError, "<U1"),
        ("nan.npy", {}, ValueError, "NaN"),
        ("cut.npy", {}, ValueError, "cut short"),
        ("cut.npz", {}, ValueError, "cut short"),
        ("spoilt.npz", {}, ValueError, "cut short"),
        ("flat.npy", {"channels": "last"}, ValueError, r"shape \(5,\).*channels last"),
        ("names.npz", {}, ValueError, r"\['pictures'\]"),
        ("twice.npz", {}, ValueError, "x and images"),
        ("labelled.npz", {"label": "good.npy"}, ValueError, "labels of its own"),
        ("good.npy", {"channels": "middle"}, ValueError, "'first', 'last' or 'none'"),
        ("good.npy", {"mode": "RGB"}, TypeError, "mode"),
        ("model.pt", {}, ValueError, "pickles"),
        ("x.csv", {}, ValueError, r"\.csv"),
        ("empty", {}, ValueError, "no images"),
        ("sets", {}, ValueError, "pass one of them"),
        ("sizes", {}, ValueError, r"a\.png is 5x4.*b\.png is 4x5"),
        ("modes", {}, ValueError, r"a\.png is RGB.*b\.png is L.*mode="),
        ("palette", {}, ValueError, r"a\.png has mode P.*mode='RGB'"),
        ("deep", {"mode": "L"}, ValueError, r"I;16.*losing its range"),
        ("modes", {"mode": "CMYK"}, ValueError, "CMYK"),
        ("beside", {}, ValueError, r"a\.png.*beside folders.*class"),
        ("hollow", {}, ValueError, "vacant"),
        ("cut", {}, ValueError, r"cannot read the image .*a\.png"),
        ("text", {}, ValueError, r"cannot read the image .*b\.jpg"),
        ("junk.parquet", {}, ValueError, "not a readable Parquet file"),
    ],
)
def test_bad_files_are_refused(
    bad: Path, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "label" in options:
        options = {"label": bad / options["label"]}
    with pytest.raises(error, match=message):
        load(bad / name, **options)


def test_bad_columns_are_refused_and_those_found_are_listed(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "set.parquet"

    def write(**columns: Any) -> None:
        pq.write_table(pa.table(columns), path)

    struct = [{"bytes": b"junk"}]
    write(picture=struct, label=[0])
    with pytest.raises(ValueError, match=r"'picture' \(struct.*'label' \(int64\)"):
        load(path)
    with pytest.raises(ValueError, match="no column 'kind' for label_column"):
        load_parquet(path, image_column="picture", label_column="kind")
    write(image=[1], label=[0])
    with pytest.raises(ValueError, match=r"'image' .* is int64; expected a struct"):
        load(path)
    write(image=struct, label=["cat"])
    with pytest.raises(ValueError, match=r"'label' .* is string; expected integer"):
        load(path)
    write(image=struct, img=struct)
    with pytest.raises(ValueError, match="image and img"):
        load(path)
    write(image=struct)
    with pytest.raises(ValueError, match="cannot read the image row 0"):
        load(path)
    write(image=pa.array([], type=pa.struct([("bytes", pa.binary())])))
    with pytest.raises(ValueError, match="no rows"):
        load(path)
    write(image=pa.array([{"bytes": None}], type=pa.struct([("bytes", pa.binary())])))
    with pytest.raises(ValueError, match=r"row 0 .* has no image bytes"):
        load(path)

    write_parquet(path, images(), [0, 1, None, 1, 0, 1], None)
    with pytest.raises(ValueError, match=r"row 2 .* has no label"):
        load(path)
    write_parquet(path, images(), [0, 1, 5, 1, 0, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        load(path)
    write_parquet(path, images(), [0, 1, -1, 1, 0, 1], None)
    with pytest.raises(ValueError, match="drop those samples"):
        load(path)


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = write_parquet(tmp_path / "set.parquet", images(), [0, 1, 2, 0, 1, 2], None)
    pq.write_table(pq.read_table(path).rename_columns(["picture", "kind"]), path)
    dataset = load(path, image_column="picture", label_column="kind")
    assert dataset.label is not None and dataset.label.tolist() == [0, 1, 2, 0, 1, 2]


# -- optional packages -------------------------------------------------------------------------------------------------


def test_optional_packages_are_imported_only_when_used() -> None:
    code = (
        "import sys, scoresde.data, scoresde.train\n"
        "loaded = {'accelerate', 'safetensors', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_its_extra(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in (bad / "sizes", bad / "junk.parquet"):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "scoresde\[train\]"'):
            load(path)
