"""The recipe for natural images: its samplers, its table that outlives kills, its pieces, and all of it in small."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cifar
import scoresde as ss
from scoresde.cli.choices import NETWORKS, PRESETS
from scoresde.cli.networks import NetworkFlags, network
from scoresde.cli.trained import Trained
from scoresde.data import load
from scoresde.nn import UNet
from scoresde.train import Terminated
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


@pytest.mark.parametrize("t_min", [1e-3, 0.2])  # α there is 1 and 0.81: a scale that is left out shows
@pytest.mark.parametrize("name", ["default", "ddim", "heun", "dpm-solverpp", *cifar.OTHERS])
def test_every_sampler_ends_where_the_flow_does_within_its_evaluations(name: str, t_min: float) -> None:
    if samplers.missing([name]):
        pytest.skip("the library is not installed")
    sde = ss.VP(t_min=t_min)
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
    """Pictures of 8x8 of two classes, bright and dark, 96 to learn and 80 held out."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 96), ("test", 80)):
        label = np.arange(count) % 2
        x = draw.integers(0, 128, (count, 3, 8, 8)) + 127 * label[:, None, None, None]
        np.savez(tmp_path / f"{name}.npz", x=x.astype(np.uint8), label=label)
    return cifar.Config(
        data=tmp_path / "train.npz",
        test=tmp_path / "test.npz",
        out=tmp_path / "run",
        network="unet",
        held_out=0.4,
        samplers=("default", "EDM Heun karras"),
        nfe=(2,),
        bits=0,
        samples=72,
        guidance=(2.0,),
        quick=True,
        cpu=True,
        most_bytes=50_000,
    )


@pytest.fixture
def trained(config: cifar.Config, monkeypatch: pytest.MonkeyPatch) -> ss.ScoreModel:
    """In place of a training: a network of no size, for pictures of two classes."""
    torch.manual_seed(0)
    net = UNet(3, num_classes=2, width=8, multipliers=(1,), blocks=1, attention_levels=(), dropout=0.0)
    model = ss.ScoreModel(net, ss.VP(), "edm", sigma_data=0.5)
    known = load(config.data)
    opened = Trained(model.eval(), torch.device("cpu"), config.data, (3, 8, 8), known.scaling, config.data.parent,
                     step=7, classes=("0", "1"))  # fmt: skip
    monkeypatch.setattr(cifar, "trained_model", lambda config, known: opened)
    return model


def test_all_of_it_in_small_and_a_second_call_measures_nothing_again(
    config: cifar.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, bits=1)
    cifar.main(config)
    out = config.folder
    rows = Rows(out / "table.jsonl").all()
    assert len(rows) == 1 + 3 * 2  # real pictures, and three kinds of score by two samplers
    for row in rows[1:]:
        assert row["figures"]["nfe"] <= 2 and all(math.isfinite(value) for value in row["figures"].values())
        assert row["key"]["samples"] == 72
    pictures = {"conditional.png", "guided-2.png", "unconditional.png", "held-out.png"}
    index = json.loads((out / "results" / pieces.INDEX).read_text())
    assert pictures | {"table.md", "table.jsonl", "bits.jsonl", "log.jsonl"} <= set(index)
    assert len(index["model.safetensors"]["pieces"]) > 1
    pieces.joined(out / "results", out / "back")
    before = (out / "table.jsonl").read_bytes()
    drawn: list[Any] = []
    monkeypatch.setattr(cifar, "drawn", lambda *args: drawn.append(args))
    cifar.main(config)
    # What was carried away is a model, and that of these rows.
    cifar.main(dataclasses.replace(config, checkpoint=str(out / "back")))
    assert not drawn and (out / "table.jsonl").read_bytes() == before


def test_what_time_does_not_allow_is_left_for_the_next_call(
    config: cifar.Config, trained: ss.ScoreModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = cifar.main(dataclasses.replace(config, table_seconds=1e-9))
    assert report["rows missing"] == 3 * 2 and {"model.safetensors", "table.md"} <= set(report["pieces"])
    report = cifar.main(config)
    assert report["rows missing"] == 0 and len(Rows(config.folder / "table.jsonl").all()) == 1 + 3 * 2
    # Weights that are others are other rows, though step and name are the same.
    next(trained.net.parameters()).data += 1
    assert cifar.main(dataclasses.replace(config, table_seconds=1e-9))["rows missing"] == 3 * 2


@pytest.mark.parametrize("how", ["SIGTERM", "an error"])
def test_results_are_there_however_it_ends(
    how: str, config: cifar.Config, trained: ss.ScoreModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    draw = cifar.drawn

    def ended(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            if how == "SIGTERM":
                signal.raise_signal(signal.SIGTERM)
            raise MemoryError
        return draw(*args)

    monkeypatch.setattr(cifar, "drawn", ended)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit if how == "SIGTERM" else MemoryError) as told:
        cifar.main(config)
    assert how != "SIGTERM" or told.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) == handler
    pieces.joined(config.folder / "results", config.folder / "back")
    assert len(Rows(config.folder / "back" / "table.jsonl").all()) == 2  # real pictures, and the row that was done
    assert (config.folder / "back" / "model.safetensors").stat().st_size > 0


def test_a_run_that_is_told_to_end_leaves_its_model(config: cifar.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    train = cifar.training.main

    def told(given: Any) -> Any:
        train(given)
        raise Terminated(20, config.folder)

    monkeypatch.setattr(cifar.training, "main", told)
    with pytest.raises(Terminated):
        cifar.main(dataclasses.replace(config, held_out=0.0))
    assert "model.safetensors" in json.loads((config.folder / "results" / pieces.INDEX).read_text())


def test_a_sampler_that_diverges_costs_its_row_alone(
    config: cifar.Config, trained: ss.ScoreModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cifar.samplers.sampler
    wild = lambda at, nfe: (torch.full_like(at.x, math.nan), nfe)  # noqa: E731
    monkeypatch.setattr(cifar.samplers, "sampler", lambda name: wild if name == "default" else real(name))
    cifar.main(config)
    assert {row["key"].get("sampler") for row in Rows(config.folder / "table.jsonl").all()} == {None, "EDM Heun karras"}


def test_pictures_of_sorted_folders_are_compared_at_random(config: cifar.Config, tmp_path: Path) -> None:
    found = np.load(config.test)
    order = np.argsort(found["label"], kind="stable")
    np.savez(tmp_path / "sorted.npz", x=found["x"][order], label=found["label"][order])
    _, held = cifar.pictures(dataclasses.replace(config, test=tmp_path / "sorted.npz", samples=40))
    # 40 of 80 without replacement, half of them of each class: a mean of 20, a variance of 40/4 · 40/79 = 5.1.
    assert abs(int(held.label.sum()) - 20) <= 4 * 5.1**0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["auto", *NETWORKS, *PRESETS])
def test_every_network_has_a_small_form(name: str) -> None:
    net = network(NetworkFlags(network=name, **cifar.small(name)), (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) < 1_000_000


def test_what_is_wrong_is_said_before_any_work(config: cifar.Config, tmp_path: Path) -> None:
    grey = tmp_path / "grey.npz"
    np.savez(grey, x=np.zeros((80, 1, 8, 8), np.uint8), label=np.arange(80) % 2)
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((80, 3, 8, 8), np.uint8), label=np.arange(80) % 3)
    for change, message in (
        ({"samplers": ("huen",)}, "no sampler 'huen'"),
        ({"nfe": ()}, "--nfe"),
        ({"samples": 2}, "--samples must be at least"),
        ({"train_seconds": -1.0}, "--train-seconds must be positive"),
        ({"table_seconds": math.nan}, "--table-seconds must be positive"),
        ({"guidance": (math.inf,)}, "--guidance must be finite"),
        ({"held_out": 0.0, "early_stopping": True}, "--early-stopping looks at"),
        ({"test": grey}, "must be of one kind: their event_shape"),
        ({"test": other}, "must be of one kind: their class_names"),
    ):
        with pytest.raises(ValueError, match=message):
            cifar.main(dataclasses.replace(config, **change))
    with pytest.raises(FileNotFoundError):
        cifar.main(dataclasses.replace(config, test=Path("none.npz")))
    assert not config.folder.exists()
