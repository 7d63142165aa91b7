"""Files that are there whole or not at all, folders that can be written, and packages that are missing."""

from __future__ import annotations

import importlib
import json
import os
from functools import partial
from pathlib import Path

import pytest

from scoresde.extras import needs
from scoresde.files import make_writable, read_format, refusing, replacing, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "samples.npy"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as partial:
            assert partial.suffix == path.suffix and partial.parent == path.parent
            partial.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert names(tmp_path) == ["samples.npy"]


def test_a_failure_leaves_the_file_of_before(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"at": tmp_path, "values": [1, 2]})
    with pytest.raises(RuntimeError, match="inside"), replacing(path) as partial:
        partial.write_text("half of")
        raise RuntimeError("inside")
    with pytest.raises(TypeError):
        write_json(path, {("no", "key"): 1})  # type: ignore[dict-item]
    assert json.loads(path.read_text()) == {"at": str(tmp_path), "values": [1, 2]}
    assert names(tmp_path) == ["report.json"]
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert names(tmp_path) == ["report.json"]


def test_two_processes_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last to end is what stays, whole; neither takes the other's."""
    path = tmp_path / "cache.json"
    with replacing(path) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with replacing(path) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine" and names(tmp_path) == ["cache.json"]


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sampler.json"
    read = partial(
        read_format, path, refusing(path), format="a sampler", version=3, what="fine sampler", mend="make another"
    )
    with pytest.raises(FileNotFoundError):
        read()
    write_json(path, {"format": "a sampler", "version": 3, "values": [0.1]})
    assert read() == {"format": "a sampler", "version": 3, "values": [0.1]}
    bad: list[tuple[bytes, str]] = [
        (b'{"format": "a sampler", "ver', r"sampler\.json: the file is not JSON \(.*\); make another\."),
        (b"", r"sampler\.json: the file is not JSON"),
        (b"\x80\x02ck", r"sampler\.json: the file is not JSON \(.*utf-8.*\); make another\."),
        (b"[1, 2]", r"sampler\.json: the file must be a JSON object, got \[1, 2\]; make another"),
        (b"{}", r"sampler\.json: the file holds no fine sampler: its \"format\" should be 'a sampler'; make another\."),
        (b'{"version": 3}', r"sampler\.json: the file holds no fine sampler"),
        (b'{"format": "another", "version": 3}', r"sampler\.json: the file holds no fine sampler"),
        (
            b'{"format": "a sampler"}',
            r"sampler\.json: the file has version None of the format, this library reads 3; make",
        ),
        (b'{"format": "a sampler", "version": 2}', r"has version 2 of the format, this library reads 3; make another"),
    ]
    for content, match in bad:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            read()


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_writable(folder) == folder == make_writable(folder) and folder.is_dir()
    assert names(folder) == []
    (tmp_path / "file").write_text("in the way")
    for bad in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot write into .*Choose a folder that you may write"):
            make_writable(bad)


def test_a_missing_package_is_named_with_what_brings_it() -> None:
    message = r"package 'absent_one'.*pip install \"scoresde\[train\]\""
    with pytest.raises(ModuleNotFoundError, match=message), needs("train"):
        importlib.import_module("absent_one")
