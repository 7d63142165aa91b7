"""Two processes are one: moments gathered by Accelerate, and `scoresde evaluate` under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launch import launched

from scoresde.cli import evaluate
from scoresde.metrics import RunningMoments, frechet_of_moments

N = 53


def points(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(N, 3)) * [1, 2, 3] + [0, 5, 0]


def moments(x: np.ndarray[Any, Any]) -> RunningMoments:
    found = RunningMoments()
    for batch in torch.from_numpy(x).split(10):
        found.update(batch)
    return found


def evaluated(folder: Path, out: Path) -> dict[str, Any]:
    return evaluate.main(
        evaluate.EvaluateConfig(
            samples=folder / "samples.npy", data=folder / "data.npy", training=folder / "training.npy", out=out,
            splits=3, permutations=19, features=("pixels", "learned"), features_steps=4, cpu=True, permute_all=True,
            figures=("energy", "frechet", "precision-recall", "classifier"),
        )
    )  # fmt: skip


def work(folder: Path) -> None:
    """What each of the two processes does."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    found = [moments(points(seed)[rank::2]).gathered(accelerator.gather) for seed in (0, 1)]  # 27 samples and 26
    report = evaluated(folder, folder / "two")
    mine = {"count": found[0].count, "frechet": frechet_of_moments(*found), "figures": report["figures"]}
    (folder / f"{rank}.json").write_text(json.dumps(mine))


def test_two_processes_are_one(tmp_path: Path) -> None:
    for seed, name in enumerate(("samples", "data", "training")):
        np.save(tmp_path / f"{name}.npy", points(seed))
    said = launched(2, __file__, str(tmp_path))
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    whole = frechet_of_moments(moments(points(0)), moments(points(1)))
    assert one["count"] == N and one["frechet"] == pytest.approx(whole, rel=1e-10)  # sums in another order
    alone = evaluated(tmp_path, tmp_path / "one")["figures"]
    assert one["figures"].keys() == alone.keys() and len(alone) > 10
    for name, figure in alone.items():
        assert one["figures"][name].pop("features") == figure.pop("features")
        # float32 features of other batches: rounding; a share of 26 may not move at all
        assert one["figures"][name] == pytest.approx(figure, rel=1e-4, abs=1e-6), name
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["figures"].keys() == alone.keys() and ["report.json and samples.png" in out for out, _ in said] == [
        True,
        False,
    ]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
