"""The command-line examples in process, with tiny settings: what they write, what flags do, what they refuse."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import digits
import scoresde as ss
import toy2d
from scoresde.cli.command import command
from scoresde.cli.training_flags import FOUND
from scoresde.train import describe
from shared.readers import QUANTILE, Judge
from shared.toys import TOYS, Checkerboard

EXAMPLES = Path(digits.__file__).parent
SCRIPTS = [importlib.import_module(path.stem) for path in sorted(EXAMPLES.glob("*.py"))]


def flags_of(script: ModuleType) -> type[Any]:
    """A script's class of flags."""
    (found,) = (v for k, v in vars(script).items() if k.endswith("Config") and dataclasses.is_dataclass(v))
    assert isinstance(found, type)
    return found


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_help_lists_and_explains_every_flag(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, "--help"])
    with pytest.raises(SystemExit) as stopped:
        command(script.main, flags_of(script))
    assert not stopped.value.code
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)).split())
    explained = {}
    for cls in (*reversed(flags_of(script).__mro__[:-1]),):
        if cls.__name__ == "TrainingFlags":  # made of the options that scoresde.train has, with what it says of them
            explained.update((name, option.text.replace("``", "")) for name, option in FOUND.items())
            continue
        source = Path(sys.modules[cls.__module__].__file__ or "").read_text()
        (body,) = (n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                explained[ast.unparse(field.target)] = str(text.value.value)
    for field in dataclasses.fields(flags_of(script)):
        assert f"--{field.name.replace('_', '-')}" in shown
        # wrapped lines break after hyphens as well as at spaces
        words = re.sub(r"-\s+", "-", " ".join(explained[field.name].split()))
        assert words.split("...")[0].strip() in re.sub(r"-\s+", "-", shown), field.name


# -- toy2d.py ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [ss.VP(), ss.VE(), ss.RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_checkerboard_is_a_law_with_its_score(sde: ss.SDE) -> None:
    board, t = Checkerboard(), sde.t_of_log_snr(-2 * math.log(0.3))
    side = torch.linspace(-4.5, 4.5, 181, dtype=torch.float64) * sde.alpha(t)
    x = torch.cartesian_prod(side, side).requires_grad_()
    log_prob = board.log_prob(x, sde, t)
    # The trapezoid rule on a smooth function that vanishes at the ends: exact up to the tails cut at 8 deviations.
    total = log_prob.detach().exp().sum() * (side[1] - side[0]) ** 2
    assert abs(total.item() - 1) < 1e-6
    (slope,) = torch.autograd.grad(log_prob.sum(), x)
    # Two float64 formulas; in the far tail Φ is a difference of nearly equal logarithms.
    assert torch.allclose(board.score(sde)(x.detach(), t), slope, rtol=1e-6, atol=1e-6)
    data = board.sample(2000, 0)
    assert bool(((data[:, 0].floor() + data[:, 1].floor()) % 2 == 0).all()) and float(data.abs().max()) <= 2


@pytest.mark.parametrize("name", list(TOYS))
def test_toys_fill_the_same_square(name: str) -> None:
    x = TOYS[name]().sample(4000, 0)
    assert x.shape == (4000, 2) and x.dtype == torch.float32
    assert 0.9 < float(x.std()) < 1.2 and float(x.abs().max()) < 3.5
    assert torch.equal(x, TOYS[name]().sample(4000, 0)) and not torch.equal(x, TOYS[name]().sample(4000, 1))


def test_toy2d_writes_everything_and_its_figures_hold(tmp_path: Path) -> None:
    config = toy2d.Config(
        data="mixture", out=tmp_path, points=3000, steps=300, width=32, depth=2,
        samples=300, sampling_steps=30, resolution=10, frames=4,
    )  # fmt: skip
    report = toy2d.main(config)
    assert {p.name for p in tmp_path.iterdir()} == {"plane.png", "noise-to-data.gif", "report.json"}
    Image.open(tmp_path / "plane.png").verify()
    assert Image.open(tmp_path / "noise-to-data.gif").n_frames == 4
    assert read(tmp_path / "report.json") == json.loads(json.dumps(report))

    # The learned score beats that of one Gaussian, with which the network starts, wherever the data are not one.
    toy, sde = TOYS["mixture"](), ss.VP()
    start = ss.ScoreModel(lambda x, c: torch.zeros_like(x), sde, "edm", float(toy.sample(3000, 0).std()))
    before = toy2d.score_errors(sde, toy, start, toy.sample(300, 1), 0)
    for row, old in zip(report["score_errors"], before, strict=True):
        assert row["noise_level"] == old["noise_level"]
        assert row["relative_error"] < (0.8 if 0.05 <= row["noise_level"] <= 0.5 else 1.0) * old["relative_error"]
    # E[log exact - log model] is a Kullback-Leibler divergence, so it is not negative beyond its standard error.
    nats = report["log_likelihood_nats"]
    assert nats["gap"] > -4 * nats["standard_error_of_gap"]
    assert nats["gap"] < 0.5  # nats; the Gaussian it starts from is 0.9 off
    assert nats["exact"] == pytest.approx(toy.log_prob(toy.sample(300, 1), sde, sde.t_min).mean().item(), abs=1e-5)
    assert report["nfe"] == {"sde": 31, "ode": 61}
    assert set(report["energy_distance"]) == {
        "real_vs_real", "real_vs_real_std",
        "sde_learned_score", "ode_learned_score", "sde_exact_score", "ode_exact_score",
    }  # fmt: skip
    # The ODE with the exact score and 60 evaluations draws from the data's law: as far as real points, give or take.
    # The distance of two samples of one law is a sum of squares; where one direction carries it (here how many points
    # fall on each side), it exceeds 10.8 times its mean once in a thousand seeds: chi square of one degree.
    distance = report["energy_distance"]
    assert distance["ode_exact_score"] < 10.8 * distance["real_vs_real"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"samples": 1}, "--samples must be at least 2"),
        ({"sampling_steps": 0}, "--sampling-steps must be at least 1"),
        ({"frames": 0}, "--frames must be at least 1"),
        ({"threads": -1}, "--threads must be at least 0"),
        ({"sde_options": ("beta=1",)}, "VP has no option 'beta'"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
    ],
)
def test_toy2d_refuses(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        toy2d.main(toy2d.Config(out=tmp_path / "out", **flags))
    assert not any(tmp_path.rglob("*.png"))


def test_toy2d_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write into"):
        toy2d.main(toy2d.Config(out=tmp_path / "file" / "out"))


# -- digits.py ---------------------------------------------------------------------------------------------------------


def test_digits_goes_on_after_a_kill_and_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"steps": 260, "batch_size": 8, "width": 8, "sde_steps": 2, "ode_steps": 2, "out": tmp_path}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    script = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "digits.py"), *words, "--threads=1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first, deadline = tmp_path / "checkpoints" / "step-00000250", time.monotonic() + 240
    while not first.exists():
        assert script.poll() is None and time.monotonic() < deadline, "digits.py ended without a checkpoint"
        time.sleep(0.02)
    script.send_signal(signal.SIGKILL)
    script.wait()
    log = tmp_path / "checkpoints" / "log.jsonl"
    before = log.read_text().splitlines()[:10]

    # Eight held-out digits of each class are enough to see that every figure is there.
    whole = digits.load

    def load(seed: int) -> Any:
        training, held = whole(seed)
        rows = torch.cat([torch.where(held[:]["label"] == k)[0][:8] for k in range(10)])
        return training, held.subset(rows)

    monkeypatch.setattr(digits, "load", load)
    shared = tmp_path / "shared"
    digits.main(digits.Config(resume=True, save=shared, **flags))
    after = log.read_text().splitlines()
    assert [json.loads(line)["step"] for line in after] == [*range(25, 260, 25), 260]
    assert after[:10] == before  # down to the clock: steps before the checkpoint were not done again
    solvers = ["euler_maruyama", "predictor_corrector", "probability_flow_ode", "ddim", "heun"]
    pictures = [f"{solver}-{kind}.png" for solver in solvers for kind in ("guided", "unguided")]
    for name in (*pictures, "loss.png", "noise-to-digits.gif"):
        Image.open(tmp_path / name).verify()
    report = read(tmp_path / "report.json")
    told = {**dataclasses.asdict(digits.Config(resume=True, **flags)), "out": str(tmp_path), "save": str(shared)}
    assert report["config"] == told
    saved, card = describe(shared), (shared / "README.md").read_text()
    assert saved.averaged and saved.computes_in == torch.float32 and (shared / "samples.png").exists()
    accuracy = report["solvers"]["heun"]["guided"]["accuracy"]
    assert f"| heun, guided | 3 | {accuracy:.4g} |" in card and "--steps 260" in card
    assert set(report) >= {
        "config", "sde", "parameters", "classifier_accuracy_on_held_out_real", "energy_distance_real_vs_real",
        "memorised_share_of_held_out_real", "solvers", "bits_per_dim_held_out", "seconds",
    }  # fmt: skip
    assert list(report["solvers"]) == solvers
    for figures in report["solvers"].values():
        for kind in ("unguided", "guided"):
            assert set(figures[kind]) == {
                "nfe", "seconds", "samples", "accuracy", "energy_distance", "energy_distance_over_real",
                "memorised_share",
            }  # fmt: skip
    assert [report["solvers"][s]["guided"]["nfe"] for s in solvers if s != "probability_flow_ode"] == [3, 5, 3, 3]
    assert set(report["bits_per_dim_held_out"]) == {"given_label", "without_label"}
    assert report["classifier_accuracy_on_held_out_real"] >= 0.97  # at least 78 of the 80; 0.99 on all


def test_the_judge_of_digits_knows_real_repeated_and_mislabelled_digits() -> None:
    training, held = digits.load(0)
    judge = Judge(training, held, 0)
    assert judge.accuracy_real >= 0.99
    rows = torch.cat([torch.where(training[:]["label"] == k)[0][:1] for k in judge.labels])
    repeated = judge(training[rows]["x"])
    assert repeated["memorised_share"] == 1.0  # each is a training digit
    assert repeated["accuracy"] >= 0.99  # what the classifier was fitted to
    # as many training digits with these labels, chosen differently: a repeat of one digit of each class is far off
    assert repeated["energy_distance_over_real"] > 3
    real = judge(judge.held)
    assert real["energy_distance"] == 0.0 and real["memorised_share"] == pytest.approx(QUANTILE, abs=1 / 360)
    assert judge(judge.held.roll(1, 0))["accuracy"] < 0.5  # ten classes in random order
    # the mean of 20 draws is within 4 of its standard errors of 20 others' mean
    other = Judge(training, held, 1)
    assert abs(judge.floor - other.floor) < 4 * (judge.floor_std**2 / 20 + other.floor_std**2 / 20) ** 0.5
    x = judge.held + 0.4 * judge.scaling.bin_width
    torch.testing.assert_close(judge.levels(x), judge.held)  # rounds to the level it came from


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"sde_steps": 0}, "--sde-steps must be at least 1"),
        ({"ode_steps": 0}, "--ode-steps must be at least 1"),
        ({"guidance": float("nan")}, "--guidance must be a finite number"),
        ({"threads": -1}, "--threads must be at least 0"),
        ({"out": Path(__file__) / "out"}, "cannot write into"),
    ],
    ids=str,
)
def test_digits_refuses_before_it_starts(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        digits.main(digits.Config(**{"out": tmp_path / "run", **flags}))
    assert not list(tmp_path.rglob("log.jsonl"))
