"""The recipe for natural images: its samplers, its table that outlives kills, its pieces, and all of it in small."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cifar
import scoresde as ss
from shared.recipe import pieces, samplers
from shared.recipe.table import Rows, markdown

VARIANCE = 0.3


class Counted:
    """The score of N(0, VARIANCE), which counts how often it is asked."""

    def __init__(self, sde: ss.SDE) -> None:
        self.sde, self.calls = sde, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return -x / (VARIANCE * self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2).to(x)


@pytest.mark.parametrize("name", ["default", "ddim", "heun", "dpm-solverpp", *cifar.OTHERS])
def test_every_sampler_ends_where_the_flow_does_within_its_evaluations(name: str) -> None:
    if samplers.missing([name]):
        pytest.skip("the library is not installed")
    sde = ss.VP()
    counted = Counted(sde)
    x = sde.prior_sample((64, 1, 2, 2), ss.PerSampleNoise(0))
    start = samplers.Start(ss.as_score(counted, sde), x, seed=3)
    y, taken = samplers.sampler(name)(start, 40)
    assert taken == counted.calls <= 40
    # N(0, v) flows as x ~ sqrt(v α² + σ²); what noise is left at t_min the last evaluation takes by the factor v α/(…).
    spread = {t: (VARIANCE * sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt().item() for t in (sde.T, sde.t_min)}
    kept = VARIANCE * float(sde.alpha(sde.t_min)) / spread[sde.t_min] ** 2
    exact = x.double() * spread[sde.t_min] / spread[sde.T] * kept
    if "_sde" in name:  # the law alone: the mean square of 256 numbers, five of its deviations sqrt(2/256)
        assert y.double().square().mean().item() == pytest.approx(
            exact.square().mean().item(), rel=5 * math.sqrt(2 / 256)
        )
    else:
        # First-order rules at 39 steps are a few per cent off, and a wrong end, scale or noise level tens of per cent.
        assert (y.double() - exact).abs().max() < 0.08 * exact.abs().max()


def test_wrong_samplers_are_named() -> None:
    with pytest.raises(ValueError, match="ours are default, "):
        samplers.sampler("no-such")
    if not samplers.missing(["diffusers x karras"]):
        with pytest.raises(ValueError, match="one of the grids"):
            samplers.sampler("diffusers UniPC 2 bh2 x0")
    assert samplers.missing(["heun", "EDM Heun karras"]) == {}
    with pytest.raises(ValueError, match="more than 1 evaluations"):
        samplers.most_steps(lambda steps: 2 * steps, 1, "heun")
    assert samplers.most_steps(lambda steps: 2 * steps - 1, 20, "heun") == 10


def test_a_row_is_measured_once_and_a_cut_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = Rows(path)
    key = {"kind": "conditional", "sampler": "heun", "seed": 0}
    rows.add(key, {"frechet": 2.0})
    path.write_text(path.read_text() + '{"key": {"kind": "guided 2"')  # killed while writing
    rows = Rows(path)
    assert rows.has(key) and len(rows.all()) == 1
    rows.add({**key, "seed": 1}, {"frechet": 4.0})
    assert [row["figures"]["frechet"] for row in Rows(path).all()] == [2.0, 4.0]
    rows.add({**key, "sampler": "ddim"}, {"recall": 0.5})
    table = markdown(rows.all())
    assert "kind conditional" in table  # what all have in common stands above
    assert "| heun | 3 ± 1.4 |  |" in table and "| ddim |  | 0.5 |" in table  # sqrt(2) over two seeds


def test_pieces_come_together_again_and_damage_is_found(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_bytes(b"x")
    (tmp_path / "large.bin").write_bytes(np.random.default_rng(0).bytes(2500))
    index = pieces.gather(tmp_path / "out", [tmp_path / "small.txt", tmp_path / "large.bin"], most=1000)
    assert [len(index[name]["pieces"]) for name in ("small.txt", "large.bin")] == [1, 3]
    assert max(file.stat().st_size for file in (tmp_path / "out").glob("large*")) == 1000
    found = pieces.joined(tmp_path / "out", tmp_path / "back")
    assert [file.read_bytes() for file in found] == [(tmp_path / file.name).read_bytes() for file in found]
    part = tmp_path / "out" / "large.bin.part-001"
    part.write_bytes(part.read_bytes()[::-1])
    with pytest.raises(ValueError, match="not whole"):
        pieces.joined(tmp_path / "out", tmp_path / "again")
    (tmp_path / "large.bin").write_bytes(b"short now")
    pieces.gather(tmp_path / "out", [tmp_path / "large.bin"], most=1000)
    assert not list((tmp_path / "out").glob("*.part-*"))


@pytest.fixture
def config(tmp_path: Path) -> cifar.Config:
    """Pictures of 8x8 of two classes, bright and dark, 96 to learn and 64 held out."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 96), ("test", 64)):
        label = np.arange(count) % 2
        x = draw.integers(0, 128, (count, 3, 8, 8)) + 127 * label[:, None, None, None]
        np.savez(tmp_path / f"{name}.npz", x=x.astype(np.uint8), label=label)
    return cifar.Config(
        data=tmp_path / "train.npz",
        test=tmp_path / "test.npz",
        out=tmp_path / "run",
        samplers=("default", "ddim", "EDM Heun karras"),
        nfe=(4,),
        bits=2,
        samples=64,
        quick=True,
        cpu=True,
        most_bytes=50_000,
    )


def test_all_of_it_in_small_and_a_second_call_measures_nothing_again(
    config: cifar.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar.main(config)
    out = config.out
    rows = Rows(out / "table.jsonl").all()
    assert len(rows) == 1 + 3 * 3  # real pictures, and three kinds of score by three samplers
    for row in rows[1:]:
        assert row["figures"]["nfe"] <= 4 and all(math.isfinite(value) for value in row["figures"].values())
    assert {"conditional.png", "guided-2.png", "unconditional.png", "table.md"} <= {file.name for file in out.iterdir()}
    index = json.loads((out / "results" / pieces.INDEX).read_text())
    assert len(index["model.safetensors"]["pieces"]) > 1
    pieces.joined(out / "results", out / "back")
    before = (out / "table.jsonl").read_bytes()
    drawn: list[Any] = []
    monkeypatch.setattr(cifar, "drawn", lambda *args: drawn.append(args))
    cifar.main(config)
    assert not drawn and (out / "table.jsonl").read_bytes() == before


def test_what_is_wrong_is_said_before_any_work(config: cifar.Config) -> None:
    for change, message in (
        ({"samplers": ("huen",)}, "no sampler 'huen'"),
        ({"nfe": ()}, "--nfe"),
        ({"samples": 2}, "--samples must be at least"),
    ):
        with pytest.raises(ValueError, match=message):
            cifar.main(dataclasses.replace(config, **change))
    with pytest.raises(FileNotFoundError):
        cifar.main(dataclasses.replace(config, test=Path("none.npz")))
    assert not config.out.exists()
