"""Data that stay in their file: the same samples, and no more memory than a batch takes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from scoresde import VP, ScoreModel
from scoresde.data import Dataset, Scaling, from_tensors, load
from scoresde.nn import MLP
from scoresde.train import train

RNG = np.random.default_rng(0)


def in_file(data: torch.Tensor, path: Path) -> bool:
    """Whether a tensor's memory is that of the file's mapping, as the system tells it."""
    first = data.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= first < high:
            return line.endswith(str(path))
    return False


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (RNG.integers(0, 256, (50, 3, 4, 4), dtype=np.uint8), {}),
        (RNG.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8), {"channels": "last"}),
        (RNG.integers(0, 256, (50, 6), dtype=np.uint8), {"levels": 256}),
        (RNG.normal(3.0, 2.0, (50, 4)).astype(np.float32), {}),
        (RNG.normal(3.0, 2.0, (50, 1, 8)), {"scaling": "channel"}),
        (RNG.normal(0.0, 2.0, (50, 1, 8)).astype(np.float16), {}),
    ],
    ids=lambda value: f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_a_mapped_file_gives_the_samples_of_a_loaded_one(
    array: np.ndarray[Any, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    loaded, mapped = load(path, **options), load(path, mapped=True, **options)
    assert mapped.mapped and not loaded.mapped and in_file(mapped.data, path) and not in_file(loaded.data, path)
    assert mapped.scaling == loaded.scaling and "; mapped" in str(mapped)
    for where in ([3, 3, -1], slice(None), np.arange(50) % 2 == 0):
        assert torch.equal(mapped[where]["x"], loaded[where]["x"])
    part = mapped.subset(slice(10, 20))
    assert part.mapped and in_file(part.data, path) and torch.equal(part[:]["x"], loaded[10:20]["x"])
    assert not mapped.subset([1, 2]).mapped


def test_training_on_a_mapped_file_is_training_on_its_numbers(tmp_path: Path) -> None:
    """And they are read ahead, by a thread."""
    np.save(tmp_path / "x.npy", RNG.normal(size=(64, 2)).astype(np.float32))

    def losses(mapped: bool) -> list[float]:
        torch.manual_seed(0)
        run = train(
            ScoreModel(MLP(2, 8, 1), VP(), "edm"),
            load(tmp_path / "x.npy", mapped=mapped),
            steps=5,
            batch_size=24,
            progress=False,
        )
        return [record.loss for record in run]

    assert losses(True) == losses(False)


def test_ones_own_mapping_is_taken_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(64, 3)).astype(np.float32))
    array = np.load(tmp_path / "x.npy", mmap_mode="r+")
    data = from_tensors(torch.from_numpy(array), mapped=True)
    assert data.mapped and in_file(data.data, tmp_path / "x.npy")


SCRIPT = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from scoresde.data import load
from scoresde.train import train
from scoresde import ScoreModel, VP
from scoresde.nn import MLP
path, rows = sys.argv[1], int(sys.argv[2])
array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, 4096))  # sparse: no disk is filled
array[:100] = np.arange(4096) % 256
del array
used = next(line for line in open("/proc/self/status") if line.startswith("VmData:")).split()[1]
resource.setrlimit(resource.RLIMIT_DATA, (int(used) * 1024 + 200 * 2**20,) * 2)  # of which a mapped file takes none
data = load(path, mapped=True, levels=256)
model = ScoreModel(MLP(4096, 8, 1), VP(), "edm")
for record in train(model, data, steps=3, batch_size=8, progress=False):
    pass
print("trained on", len(data))
"""


def test_a_file_larger_than_the_memory_there_is_is_trained_on(tmp_path: Path) -> None:
    """A process that may take 200 MB more of memory trains on 512 MB; loading that is refused by the system."""

    def run(mapped: bool) -> subprocess.CompletedProcess[str]:
        text = SCRIPT.replace("mapped=True", f"mapped={mapped}")
        return subprocess.run(
            [sys.executable, "-c", text, str(tmp_path / "x.npy"), str(2**17)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    done = run(True)
    assert done.stdout == f"trained on {2**17}\n", done.stderr
    refused = run(False)
    assert refused.returncode and "emory" in refused.stderr


@pytest.mark.parametrize(
    ("array", "options", "match"),
    [
        (np.asfortranarray(RNG.normal(size=(5, 4))), {}, "Fortran's order"),
        (np.arange(20, dtype=np.uint16).reshape(5, 4), {"levels": 20}, "holds uint16.*write int64 to map it"),
        (np.arange(20.0).astype(">f4").reshape(5, 4), {}, r"holds >f4.*write float32 to map it"),
        (np.arange(20).reshape(5, 4), {"levels": 20}, r"levels=20 are stored in torch.uint8"),
        (np.arange(20.0).reshape(5, 4), {"levels": 20}, r"levels=20 are stored in torch.uint8"),
        (np.array([["a", "b"]]), {}, "holds an array of <U1"),
        (np.full((5, 4), np.nan), {}, "must be finite, but holds 20"),
        (np.zeros((0, 4)), {}, "at least one sample"),
    ],
    ids=range(8),
)
def test_what_would_have_to_be_converted_is_refused(
    array: np.ndarray[Any, Any], options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises((ValueError, TypeError), match=match):
        load(tmp_path / "x.npy", mapped=True, **options)


def test_archives_and_damaged_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"an archive, which cannot be mapped: write x alone by numpy\.save"):
        load(tmp_path / "x.npz", mapped=True)
    np.save(tmp_path / "x.npy", np.zeros((300, 2)))
    short = (tmp_path / "x.npy").read_bytes()[:-8]
    (tmp_path / "x.npy").write_bytes(short)
    with pytest.raises(ValueError, match="its header says shape"):
        load(tmp_path / "x.npy", mapped=True)


# -- pictures, decoded once --------------------------------------------------------------------------------------------


def encoded(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue() if i >= 0 else b"broken"


def parquet(path: Path, which: list[int]) -> Path:
    rows = [{"bytes": encoded(i), "path": None} for i in which]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": pa.array([abs(i) % 3 for i in which])}), path)
    return path


def folder(path: Path, which: list[int]) -> Path:
    for k, i in enumerate(which):
        (path / "abc"[k % 3]).mkdir(parents=True, exist_ok=True)
        (path / "abc"[k % 3] / f"{k}.png").write_bytes(encoded(i))
    return path


def the_same(one: Dataset, other: Dataset) -> bool:
    assert one.label is not None and other.label is not None
    told = (one.class_names, one.scaling, one.skipped) == (other.class_names, other.scaling, other.skipped)
    return told and torch.equal(one.data, other.data) and torch.equal(one.label, other.label)


@pytest.mark.parametrize("make", [parquet, folder])
@pytest.mark.filterwarnings("ignore:.*cannot be read and were left out")
def test_pictures_are_decoded_once(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = make(tmp_path / "source.parquet", [1, 2, 3, -4, 5, 6, 7]), tmp_path / "x.npy"
    first = load(source, decoded=out, skip_bad=True)
    assert the_same(first, load(source, skip_bad=True)) and len(first.skipped) == 1 and len(first) == 6
    assert first.mapped and in_file(first.data, out) and f"decoded into {out}" in str(first)
    assert torch.equal(torch.from_numpy(np.load(out)), first.data)  # NumPy reads it as well
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)  # nothing is decoded again
        assert the_same(load(source, decoded=out, skip_bad=True), first)
        again = load(out, mapped=True, label=tmp_path / "x-label.npy", class_names=first.class_names, channels="first")
        assert the_same(again, first) or again.skipped == ()
    with pytest.raises(ValueError, match="with other options"):
        load(source, decoded=out, skip_bad=True, mode="L")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.parquet", "x-label.npy", "x.json", "x.npy"]


def test_decoded_files_that_belong_to_something_else_are_refused(tmp_path: Path) -> None:
    source, out = parquet(tmp_path / "a.parquet", [1, 2, 3]), tmp_path / "x.npy"
    with pytest.raises(ValueError, match=r"must be the name of an \.npy file, got 'x\.bin'"):
        load(source, decoded="x.bin")
    np.save(out, np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npy is there already.*choose another name"):
        load(source, decoded=out)
    out.unlink()
    load(source, decoded=out)
    parquet(source, [4, 5, 6])
    with pytest.raises(ValueError, match="from files that have changed since"):
        load(source, decoded=out)
    told = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps({**told, "format": "another"}))
    with pytest.raises(ValueError, match=r"x\.json"):
        load(source, decoded=out)


def test_what_fails_leaves_no_file(tmp_path: Path) -> None:
    source = parquet(tmp_path / "a.parquet", [1, -2, 3])
    with pytest.raises(ValueError, match="cannot read the image row 1"):
        load(source, decoded=tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_the_scaling_of_a_mapped_table_is_found_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a piece, to the rounding of a float64 sum."""
    array = RNG.normal([3.0, -2.0, 1e3], [1.0, 5.0, 100.0], (1000, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    monkeypatch.setattr("scoresde.data.statistics._PIECE", 64)
    scaling = load(tmp_path / "x.npy", mapped=True).scaling
    assert isinstance(scaling, Scaling) and isinstance(scaling.shift, torch.Tensor)
    wide = array.astype(np.float64)
    assert np.allclose(scaling.shift, wide.mean(0), rtol=1e-12) and np.allclose(scaling.scale, wide.std(0), rtol=1e-12)
