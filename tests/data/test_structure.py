"""Axes, classes and folders: understood where there is one way to understand them, asked for or told where not."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoresde.data import Dataset, Scaling, from_tensors, load, load_array
from scoresde.data.labels import MOST_CLASSES
from scoresde.data.structure import in_words


def numbers(*shape: int, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 17, shape).astype(dtype)


def told(path: Path, array: np.ndarray[Any, Any], **options: Any) -> list[Dataset | ValueError]:
    """What each of the ways in makes of an array: two kinds of file, and the tensor itself."""
    np.save(path / "x.npy", array)
    np.savez(path / "x.npz", x=array)
    ways = (
        lambda: load_array(path / "x.npy", **options),
        lambda: load_array(path / "x.npz", **options),
        lambda: from_tensors(torch.from_numpy(array), **options),
    )
    found: list[Dataset | ValueError] = []
    for way in ways:
        try:
            found.append(way())
        except ValueError as error:
            found.append(error)
    return found


# -- axes --------------------------------------------------------------------------------------------------------------

# Shapes of N = 6 samples, and what they could be beside (N, C, ...).
ASKED = [
    ((6, 32, 32, 3), np.uint8, "last"),
    ((6, 32, 32, 3), np.float32, "last"),
    ((6, 32, 32, 1), np.uint8, "last"),
    ((6, 32, 48, 4), np.uint8, "last"),
    ((6, 48, 32, 2), np.float64, "last"),
    ((6, 28, 28), np.uint8, "none"),
    ((6, 28, 28), np.float32, "none"),
    ((6, 28, 32), np.float32, "none"),
    ((6, 28, 20), np.int64, "none"),
    ((6, 5, 500), np.uint8, "none"),
    ((6, 100, 6), np.float32, "last"),
    ((6, 100, 2), np.float32, "last"),
    ((6, 4, 4, 3), np.uint8, "last"),
    ((6, 16, 16, 16), np.float32, "none"),
    ((6, 16, 16, 16), np.uint8, "none"),
    ((6, 16, 24, 24), np.uint8, "none"),
    ((6, 32, 32, 16), np.float32, "last"),
    ((6, 8, 8, 8, 1), np.float32, "last"),
]
TAKEN = [
    (6, 7),
    (6, 1, 28, 28),
    (6, 3, 32, 32),
    (6, 4, 8, 8),
    (6, 2, 100),
    (6, 1, 7),
    (6, 1, 4, 4),
    (6, 3, 8, 9, 10),
    (6, 3, 2, 2),
]


@pytest.mark.parametrize(("shape", "dtype", "other"), ASKED)
def test_shapes_that_could_be_two_things_are_asked_for(
    shape: tuple[int, ...], dtype: Any, other: str, tmp_path: Path
) -> None:
    array = numbers(*shape, dtype=dtype)
    levels = {"levels": 17} if array.dtype.kind in "iu" else {}
    for error in told(tmp_path, array, **levels):
        assert isinstance(error, ValueError) and str(shape) in str(error)
        assert "channels: " in str(error) and f"'{other}' for" in str(error) and "'first' for" in str(error)
    # and what is said explicitly is done
    moved = {"first": array, "last": np.moveaxis(array, -1, 1), "none": array[:, None]}
    for channels, expected in moved.items():
        for dataset in told(tmp_path, array, channels=channels, **levels):
            assert isinstance(dataset, Dataset) and np.array_equal(dataset.data.numpy(), expected)


@pytest.mark.parametrize("shape", TAKEN)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_shapes_that_are_one_thing_are_taken_as_they_are(shape: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    array = numbers(*shape, dtype=dtype)
    for dataset in told(tmp_path, array, **({} if dtype == np.float32 else {"levels": 17})):
        assert isinstance(dataset, Dataset) and np.array_equal(dataset.data.numpy(), array)


@pytest.mark.parametrize("shape", [(6, 12, 1000), (6, 16, 8, 8), (6, 16, 8, 12)])
def test_floating_signals_and_latents_of_many_channels_are_taken(shape: tuple[int, ...], tmp_path: Path) -> None:
    for dataset in told(tmp_path, numbers(*shape, dtype=np.float32)):
        assert isinstance(dataset, Dataset) and dataset.event_shape == shape[1:]
        assert f"of {shape[1]} channels" in str(dataset)


@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 4), st.sampled_from([torch.uint8, torch.float32]))
def test_pictures_are_never_taken_for_something_else(height: int, width: int, colours: int, dtype: torch.dtype) -> None:
    """Whatever their size: with the channels second they are taken, with none or the channels last they are asked for.

    Without channels, floating pictures at least four times as wide as high are signals by the documented rule.
    """
    count = 2
    first = torch.arange(count * colours * height * width).remainder(251).reshape(count, colours, height, width)
    assert from_tensors(first.to(dtype)).event_shape == (colours, height, width)
    with pytest.raises(ValueError, match="'last' for"):
        from_tensors(first.movedim(1, -1).contiguous().to(dtype))
    if dtype == torch.uint8 or width < 4 * height:
        with pytest.raises(ValueError, match="'none' for"):
            from_tensors(first[:, 0].to(dtype))


@pytest.mark.parametrize("channels", ["First", "hwc", 1, True, ["first"], ""])
def test_other_words_for_channels_are_refused(channels: Any, tmp_path: Path) -> None:
    for error in told(tmp_path, numbers(6, 3, 8, 8), channels=channels):
        assert isinstance(error, ValueError) and "'first', 'last' or 'none'" in str(error)


def test_single_numbers_need_a_word(tmp_path: Path) -> None:
    for error in told(tmp_path, numbers(6, dtype=np.float32)):
        assert isinstance(error, ValueError) and "at least one sample" in str(error)
    for dataset in told(tmp_path, numbers(6, dtype=np.float32), channels="none"):
        assert isinstance(dataset, Dataset) and dataset.event_shape == (1,)
    for error in told(tmp_path, np.array(1.0), channels="none"):
        assert isinstance(error, ValueError) and "shape ()" in str(error)


# -- classes -----------------------------------------------------------------------------------------------------------

X = torch.arange(12.0).reshape(6, 2)


def labelled(label: list[int] | Tensor, **options: Any) -> Dataset:
    return from_tensors(X, torch.as_tensor(label), **options)


@pytest.mark.parametrize(
    ("label", "numbered", "names"),
    [
        ([1, 2, 3, 1, 2, 3], [0, 1, 2, 0, 1, 2], ("1", "2", "3")),
        ([5, 70000, 200000, 5, 5, 70000], [0, 1, 2, 0, 0, 1], ("5", "70000", "200000")),
        ([10**9, 0, 0, 0, 0, 10**9], [1, 0, 0, 0, 0, 1], ("0", "1000000000")),
        ([2**62] * 6, [0] * 6, (str(2**62),)),
        ([0, 2, 0, 2, 0, 2], [0, 1, 0, 1, 0, 1], ("0", "2")),
    ],
)
def test_values_that_occur_are_the_classes_and_this_is_said_once(
    label: list[int], numbered: list[int], names: tuple[str, ...]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = labelled(label)
    assert dataset.label is not None and dataset.label.tolist() == numbered and dataset.class_names == names
    (warning,) = caught
    assert "numbered from 0 on" in str(warning.message) and "num_classes" in str(warning.message)
    assert warning.filename == __file__  # points at who called


def test_class_numbers_stay_and_nothing_is_said_of_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label in ([0, 1, 2, 0, 1, 2], [2, 1, 0, 0, 0, 0], [0] * 6):
            dataset = labelled(label)
            assert dataset.label is not None and dataset.label.tolist() == label
            assert dataset.class_names == tuple(map(str, range(max(label) + 1)))
        assert labelled([0, 1, 2, 0, 1, 2], class_names=["a", "b", "c"]).num_classes == 3


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"num_classes": 10}, "8: 0, 2, 4, 5, 6, ..."),
        ({"num_classes": np.int64(4)}, "2: 0, 2."),
        ({"class_names": ["ant", "bee", "cow", "dog"]}, "2: 0 (ant), 2 (cow)."),
    ],
)
def test_classes_that_are_counted_keep_their_numbers_and_those_without_samples_are_named(
    options: dict[str, Any], absent: str
) -> None:
    with pytest.warns(UserWarning) as caught:
        dataset = labelled([1, 3, 1, 3, 1, 3], **options)
    assert dataset.label is not None and dataset.label.tolist() == [1, 3, 1, 3, 1, 3]
    assert f"classes without a sample, of which nothing can be learnt, {absent}" in str(caught[0].message)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "num_classes must be a whole number from 1 to 100000", {"num_classes": 10**9}),
        (ValueError, "num_classes must be a whole number from 1 to 100000", {"num_classes": 0}),
        (TypeError, "num_classes must be a whole number", {"num_classes": True}),
        (TypeError, "num_classes must be a whole number", {"num_classes": 3.0}),
        (TypeError, "class_names must be a sequence of names", {"class_names": "abc"}),
        (TypeError, "class_names must be a sequence", {"class_names": 3}),
        (ValueError, "from 1 to 100000 names, got 0", {"class_names": []}),
        (ValueError, "from 1 to 100000 names", {"class_names": range(MOST_CLASSES + 1)}),
        (ValueError, r"lie in \[0, 3\)", {"num_classes": 3, "label": torch.tensor([0, 1, 2, 3, 0, 0])}),
        (ValueError, "drop those samples", {"label": torch.tensor([0, 1, -1, 0, 0, 0])}),
        (TypeError, "use torch.as_tensor", {"label": np.arange(6)}),
        (TypeError, "use torch.as_tensor", {"label": [0, 1, 0, 1, 0, 1]}),
        (TypeError, "use torch.as_tensor", {"label": "abcdef"}),
        (TypeError, "torch.bool", {"label": torch.ones(6, dtype=torch.bool)}),
        (ValueError, r"\(6, 1\)", {"label": torch.zeros(6, 1).long()}),
    ],
)
def test_bad_classes_are_refused(error: type[Exception], match: str, options: dict[str, Any]) -> None:
    given = {"label": torch.tensor([0, 1, 2, 0, 1, 2]), **options}
    with pytest.raises(error, match=match):
        from_tensors(X, given.pop("label"), **given)


def test_more_classes_than_a_network_has_vectors_are_refused() -> None:
    count = MOST_CLASSES + 1
    data = torch.arange(2.0 * count).reshape(count, 2)
    with pytest.raises(ValueError, match="100001 different values; at most 100000"):
        from_tensors(data, torch.arange(count))
    assert from_tensors(data[1:], torch.arange(count - 1)).num_classes == MOST_CLASSES


def test_labels_of_files_are_numbered_and_told_how_to_keep(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X.numpy(), label=np.array([5, 70000, 200000, 5, 5, 70000]))
    with pytest.warns(UserWarning, match="5, 70000, 200000"):
        dataset = load(tmp_path / "x.npz")
    assert dataset.num_classes == 3 and "3 classes (5, 70000, 200000)" in str(dataset)
    with pytest.raises(ValueError, match=r"lie in \[0, 10\)"):
        load(tmp_path / "x.npz", num_classes=10)


# -- what was understood -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ((8,), "vectors of 8 numbers"),
        ((1, 8, 6), "grey images of 8x6"),
        ((3, 8, 6), "RGB images of 8x6"),
        ((4, 8, 6), "images of 4 channels, 8x6"),
        ((1, 100), "signals of 1 channel, length 100"),
        ((12, 100), "signals of 12 channels, length 100"),
        ((1, 4, 5, 6), "volumes of 1 channel, 4x5x6"),
        ((2, 2, 2, 2, 2), "samples of 2 channels, 2x2x2x2"),
    ],
)
def test_shapes_in_words(event: tuple[int, ...], words: str) -> None:
    assert in_words(event) == words


def test_a_data_set_says_what_it_was_understood_to_be(tmp_path: Path) -> None:
    digits = torch.from_numpy(numbers(6, 1, 8, 8))
    dataset = from_tensors(digits, torch.arange(6) % 3, levels=17)
    assert str(dataset) == "6 grey images of 8x8, 3 classes (0, 1, 2), 17 levels to [-1, 1]"
    size = {"size": torch.zeros(6, 2)}
    assert str(from_tensors(digits, levels=17, conditions=size)).endswith("8x8, size (2,), 17 levels to [-1, 1]")
    assert str(from_tensors(X, scaling=Scaling(0.0, 2.0))).startswith("6 vectors of 2 numbers, Scaling(")
    np.save(tmp_path / "x.npy", numbers(6, 8, 8, 3))
    dataset = load(tmp_path / "x.npy", channels="last")
    assert str(dataset) == (f"6 RGB images of 8x8, 256 levels to [-1, 1]; from {tmp_path / 'x.npy'}; channels last")
    assert dataset.skipped == () and from_tensors(X).source is None
    for other in (dataset.subset([0, 1, 2, 3, 4, 5]), pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert str(other) == str(dataset)
