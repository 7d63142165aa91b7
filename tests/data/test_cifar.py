"""CIFAR's binary version: files written here record by record, as the format is published."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.data import load, load_cifar, reader_of

# Files of a few pictures cannot have all classes.
pytestmark = pytest.mark.filterwarnings("ignore:classes without a sample")

RANDOM = np.random.default_rng(0)


def record(labels: list[int], picture: np.ndarray) -> bytes:
    """The label bytes, then all red, all green and all blue pixels, row by row; picture is (32, 32, 3)."""
    planes = b"".join(
        bytes([int(picture[row, column, colour])]) for colour in range(3) for row in range(32) for column in range(32)
    )
    return bytes(labels) + planes


def pictures(count: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def ten(folder: Path, batches: dict[str, list[int]]) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    shown = []
    for name, labels in batches.items():
        seen = pictures(len(labels))
        (folder / name).write_bytes(b"".join(record([k], x) for k, x in zip(labels, seen, strict=True)))
        shown.append(seen)
    return np.concatenate(shown)


def test_a_folder_is_its_training_files_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    shown = ten(tmp_path, {"data_batch_1.bin": [3, 9], "data_batch_2.bin": [0], "data_batch_10.bin": [7]})
    ten(tmp_path, {"test_batch.bin": [5]})
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (tmp_path / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    dataset = load(tmp_path)
    batch = dataset[:]
    assert reader_of(tmp_path) is load_cifar
    assert torch.equal(dataset.scaling.to_uint8(batch["x"]), torch.from_numpy(shown).permute(0, 3, 1, 2))
    assert batch["label"].tolist() == [3, 9, 0, 7]
    assert dataset.num_classes == 10 and list(dataset.class_names or []) == names
    assert "CIFAR-10, data_batch_1.bin" in str(dataset) and "test_batch" not in str(dataset)
    held = load(tmp_path / "test_batch.bin")
    assert held[:]["label"].tolist() == [5] and list(held.class_names or []) == names


@pytest.mark.parametrize(
    ("labels", "expected", "count"), [(None, [17, 99], 100), ("fine", [17, 99], 100), ("coarse", [4, 0], 20)]
)
def test_cifar100_has_two_labels(tmp_path: Path, labels: str | None, expected: list[int], count: int) -> None:
    shown = pictures(2)
    (tmp_path / "train.bin").write_bytes(record([4, 17], shown[0]) + record([0, 99], shown[1]))
    dataset = load(tmp_path) if labels is None else load(tmp_path, labels=labels)
    assert dataset[:]["label"].tolist() == expected and dataset.num_classes == count
    assert torch.equal(dataset.scaling.to_uint8(dataset[:]["x"]), torch.from_numpy(shown).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "first"), [("train.bin", 2), ("data_batch_1.bin", 1)])
def test_a_size_that_both_formats_divide_is_told_by_the_name(tmp_path: Path, name: str, first: int) -> None:
    """3073 records of CIFAR-100 and 3074 of CIFAR-10 take the same bytes."""
    content = np.zeros(3073 * 3074, np.uint8)
    (tmp_path / name).write_bytes(content.tobytes())
    dataset = load(tmp_path)
    assert len(dataset) == 3073 * 3074 // (first + 3072) and dataset.num_classes == (10 if first == 1 else 100)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    ten(tmp_path, {"data_batch_1.bin": [3, 9]})
    whole = (tmp_path / "data_batch_1.bin").read_bytes()
    for name, content, message in (
        ("short.bin", whole[:-1], "whole number of records"),
        ("empty.bin", b"", "whole number of records"),
        ("other.bin", b"\xff" * 3073, "label 255 in record 0"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    with pytest.raises(ValueError, match="leave it out"):
        load(tmp_path, labels="fine")
    with pytest.raises(ValueError, match="labels must be"):
        load(tmp_path, labels="middle")
    (tmp_path / "train.bin").write_bytes(record([1, 2], pictures(1)[0]))
    with pytest.raises(ValueError, match="mixes"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no training files"):
        load_cifar(tmp_path.parent)
    with pytest.raises(FileNotFoundError):
        load_cifar(tmp_path / "none.bin")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data_batch_1.bin")
    with pytest.raises(ValueError, match="images"):  # no training file: an ordinary folder, and no images in it
        load(tmp_path)
    with pytest.raises(ValueError, match="FIFO"):
        load(tmp_path / "data_batch_1.bin")
    (tmp_path / "batches.meta.txt").write_text("a b")  # not ten names: none
