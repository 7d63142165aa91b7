"""Samples drawn by several processes are those of one, to the last bit: a table of sets, each drawn by one process and
by two, which are started once and go through all of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launched, made_once
from torch import Tensor

from scoresde.cli.main import main as command
from scoresde.data import Scaling, from_tensors
from scoresde.guidance import classifier_free
from scoresde.models import ScoreModel
from scoresde.nn import MLP, UNet
from scoresde.noise import BrownianNoise, PerSampleNoise
from scoresde.sampling import sample
from scoresde.sde import VP
from scoresde.solvers import DDIM, AdaptiveODE, EulerMaruyama, Heun
from scoresde.train import SharedSamples, sample_sharded, save
from scoresde.train.shared_sampling import several_processes

LABELS = torch.arange(30) % 3


def weighted(net: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def model() -> ScoreModel:
    return ScoreModel(weighted(MLP(2, width=8, depth=1, num_classes=3)), VP(), "v", sigma_data=1.0)


def pictures() -> ScoreModel:
    net = UNet(1, width=8, multipliers=(1, 2), blocks=1, attention_levels=(-1,), num_classes=3)
    return ScoreModel(weighted(net), VP(), "v", sigma_data=1.0)


def drawn(score: Any, count: int, *, event: tuple[int, ...] = (2,), **options: Any) -> Callable[[], SharedSamples]:
    return lambda: sample_sharded(score, (count, *event), cpu=True, **{"steps": 4, "batch_size": 4, **options})


def fails(rows: slice) -> Any:
    if rows.start == 4:  # the second batch, which is process 1's
        raise KeyError("no such label")
    return model().bind(label=LABELS[rows])


def lost(rows: slice) -> Any:
    """Of whose samples the second batch's first one is NaN."""
    made = model()
    bad = 4 if rows.start == 4 else -1

    def net(x: Tensor, c: Tensor) -> Tensor:
        shift = torch.zeros(len(x), 1)
        shift[:1] = float("nan") if bad >= 0 else 0.0
        return made.net(x, c, label=LABELS[rows]) + shift

    return ScoreModel(net, VP(), "v", sigma_data=1.0)


CASES: dict[str, Callable[[], Any]] = {
    "eight": drawn(lambda rows: model().bind(label=LABELS[rows]), 8),
    "a score for all": drawn(model().bind(label=1), 10, seed=3),
    "seven": drawn(lambda rows: model().bind(label=LABELS[rows]), 7),
    "one": drawn(model().bind(label=1), 1),
    "fewer batches than processes": drawn(model().bind(label=1), 3, batch_size=4),
    "guided, with noise": drawn(
        lambda rows: classifier_free(model(), {"label": LABELS[rows]}, 3.0), 11, solver=EulerMaruyama(), eta=1.0
    ),
    "along one path": drawn(
        model().bind(label=1), 6, solver=EulerMaruyama(), noise=lambda first: BrownianNoise(1, 1.0, first=first)
    ),
    "pictures": drawn(
        lambda rows: classifier_free(pictures(), {"label": LABELS[rows]}, 2.0), 6, event=(1, 8, 8), steps=2
    ),
    "half precision": drawn(model().bind(label=1), 6, dtype=torch.bfloat16),
    "float64": drawn(model().double().bind(label=1), 6, dtype=torch.float64),
    "steps of its own": drawn(model().bind(label=1), 7, solver=AdaptiveODE(rtol=1e-2, atol=1e-2)),
    "an error in one": drawn(fails, 10),
    "a sample that is lost": drawn(lost, 10),
}


def outcome(name: str) -> dict[str, Any]:
    try:
        found = CASES[name]()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"x": found.x, "finite": found.finite, "nfe": found.nfe, "rows": [(r.start, r.stop) for r in found.rows]}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    assert several_processes()
    found = {name: outcome(name) for name in CASES}
    command(sampling(folder, "many"))
    torch.save(found, folder / f"{rank}.pt")


def sampling(folder: Path, name: str) -> list[str]:
    out = ["--checkpoint", str(folder / "model"), "--out", str(folder / name), "--cpu", "--no-ema", "--samples", "7"]
    return ["sample", *out, "--batch-size", "2", "--steps", "3", "--guidance", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two processes answered: 0.pt and 1.pt; and what `scoresde sample` wrote, in many."""
    return made_once(tmp_path_factory, "sharded", by_two_processes)


def by_two_processes(folder: Path) -> None:
    dataset = from_tensors(torch.zeros(3, 2), torch.arange(3), scaling=Scaling(0.0, 1.0))
    save(folder / "model", model(), step=1, dataset=dataset)
    said = launched(2, __file__, str(folder))
    assert "7 samples" in said[0].out and said[1].out == ""  # the main process alone talks


@pytest.mark.parametrize("name", CASES)
def test_two_processes_draw_what_one_draws(name: str, folder: Path) -> None:
    alone = outcome(name)
    zero, one = (torch.load(folder / f"{rank}.pt")[name] for rank in (0, 1))
    if "error" in alone:
        assert alone == {"error": "KeyError", "message": "'no such label'"} == one
        assert zero["error"] == "RuntimeError" and "process 1 failed" in zero["message"]
        return
    assert one["x"] is None and one["finite"] is None
    same = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}  # to the last bit: the same batches on the same CPU
    torch.testing.assert_close(zero["x"], alone["x"], **same)
    assert torch.equal(zero["finite"], alone["finite"])
    assert max(zero["nfe"], one["nfe"]) == alone["nfe"]
    assert sorted(zero["rows"] + one["rows"]) == sorted(alone["rows"])
    assert bool(alone["finite"].all()) == (name != "a sample that is lost")


def test_the_batch_size_changes_roundings_alone() -> None:
    """float32: some matrix product orders its sums by the number of its rows, and four steps hand that on."""
    sets = [drawn(lambda r: pictures().bind(label=LABELS[r]), 6, event=(1, 8, 8), batch_size=n)().x for n in (1, 4, 6)]
    for other in sets[1:]:
        torch.testing.assert_close(sets[0], other, rtol=1e-5, atol=1e-5)


def test_the_set_is_that_of_sample_and_any_part_of_it() -> None:
    score = model().bind(label=1)
    whole = sample(score, (4, 2), solver=Heun(), steps=4, seed=5).x
    assert torch.equal(whole, drawn(score, 4, solver=Heun(), seed=5)().x)
    longer = drawn(score, 9, solver=Heun(), seed=5)().x
    assert longer is not None and torch.equal(whole, longer[:4])
    rest = sample(score, (4, 2), solver=Heun(), steps=4, noise=PerSampleNoise(5, first=4)).x
    assert torch.equal(rest, longer[4:8])


def test_the_command_line_writes_the_same_files(folder: Path) -> None:
    command(sampling(folder, "one"))
    one, many = folder / "one", folder / "many"
    assert {p.name for p in one.iterdir()} == {p.name for p in many.iterdir()}
    for name in ("samples.npy", "samples.png"):
        assert (one / name).read_bytes() == (many / name).read_bytes(), name


def test_bad_calls() -> None:
    score = model().bind(label=1)
    with pytest.raises(TypeError, match="leave callback, trajectory out"):
        sample_sharded(score, (4, 2), trajectory=True, callback=lambda p: None)
    with pytest.raises(ValueError, match="seed or noise, not both"):
        sample_sharded(score, (4, 2), seed=1, noise=lambda first: BrownianNoise(0, 1.0))
    with pytest.raises(TypeError, match="score must be"):
        sample_sharded(3, (4, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be"):
        sample_sharded(score, (4, 2), batch_size=0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        sample_sharded(score, (4, 2), solvers=DDIM())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
