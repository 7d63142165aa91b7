"""examples/inverse.py in process, with tiny settings: what it writes, its operators, methods and figures, its flags."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inverse
import scoresde as ss
from scoresde.cli import posteriors as inverse_methods
from scoresde.cli import train
from scoresde.data import Scaling
from scoresde.inverse import LinearOperator, Measurement
from scoresde.problems import Gaussian
from scoresde.train import CheckpointError
from shared.inverse import figures as inverse_figures
from shared.inverse.tasks import TASKS, Event, Settings, Task

SMALL: dict[str, Any] = {"count": 3, "samples": 2, "particles": 4, "steps": 2, "cpu": True}
METHODS = inverse_methods.NAMES
SHAPES = [(1, 8, 8), (3, 8, 12)]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random colour pictures (3, 8, 8) as .npy, and a prior of theirs of one step by train.py."""
    folder = tmp_path_factory.mktemp("colours")
    pictures = folder / "pictures.npy"
    np.save(pictures, np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8))
    out = folder / "run"
    train.main(
        train.TrainConfig(
            data=pictures, out=out, steps=1, batch_size=4, width=8, multipliers=(1,), blocks=1, attention_levels=(),
            cpu=True,
        )
    )  # fmt: skip
    return pictures, out


def build(name: str, event: Event, **flags: Any) -> Task:
    return TASKS[name](event, Settings(**flags))


# -- the script --------------------------------------------------------------------------------------------------------


def test_default_tasks_write_picture_and_figures(run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four particles collapse
        report = inverse.main(inverse.Config(prior=run, out=tmp_path, **SMALL))
    assert list(report["tasks"]) == ["hole", "pixels", "x2", "x4", "deblur"]
    for name, task in report["tasks"].items():
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG" and task["baselines"]
        assert list(task["methods"]) == ["pigdm", "diffpir", "particles"]
        for figures in task["methods"].values():
            assert figures["nfe"] == 3 and {"accuracy_sample", "coverage_90", "seconds"} <= set(figures)
        assert task["methods"]["diffpir"]["gradients"] == 0 < task["methods"]["pigdm"]["gradients"]
        assert 1 <= task["methods"]["particles"]["least_effective_sample_size"] <= 4
    assert json.loads((tmp_path / "report.json").read_text())["tasks"].keys() == report["tasks"].keys()


def test_every_method_and_the_other_tasks(run: Path, tmp_path: Path) -> None:
    config = inverse.Config(prior=run, out=tmp_path, tasks=("projections",), methods=METHODS, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = inverse.main(config)
    found = report["tasks"]["projections"]["methods"]
    assert tuple(found) == METHODS
    assert found["repaint"]["nfe"] == inverse_methods.PASSES + 1  # one step of 5 passes, and the last evaluation
    # conjugate gradients of 2 iterations, and the gradient itself; a sample that has converged goes on for nothing
    assert 3 <= found["moment-matching"]["gradients"] <= 3 * (inverse_methods.ITERATIONS + 1)
    phase = inverse.main(dataclasses.replace(config, tasks=("phase",), methods=()))
    assert list(phase["tasks"]["phase"]["methods"]) == ["dps"]


def test_pictures_of_your_own(colours: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, folder = colours
    config = inverse.Config(prior=folder, data=pictures, out=tmp_path, tasks=("colour", "x4"), **SMALL)
    report = inverse.main(config)
    assert list(report["tasks"]) == ["colour", "x4"] and (tmp_path / "colour.png").exists()
    assert list(report["tasks"]["colour"]["methods"]) == ["pigdm", "diffpir"]
    assert "accuracy_mean" not in report["tasks"]["colour"]["methods"]["pigdm"] and not report["truth"]
    other = inverse.main(dataclasses.replace(config, tasks=("colour",), methods=("pigdm",), sigma_data=0.1))
    assert other["sigma_data"] == 0.1 and report["sigma_data"] > 1
    assert (
        other["tasks"]["colour"]["methods"]["pigdm"]["psnr_mean_db"]
        != report["tasks"]["colour"]["methods"]["pigdm"]["psnr_mean_db"]
    )


def test_without_a_prior_it_trains_and_resumes(tmp_path: Path) -> None:
    config = inverse.Config(out=tmp_path, train_steps=1, tasks=("hole",), methods=("diffpir",), **SMALL)
    first = inverse.main(config)
    again = inverse.main(dataclasses.replace(config, resume=True))
    seconds = [report["tasks"]["hole"]["methods"]["diffpir"].pop("seconds") for report in (first, again)]
    assert len(seconds) == 2 and first["tasks"] == again["tasks"]
    other = inverse.main(dataclasses.replace(config, resume=True, noise=0.5, seed=0))
    assert other["tasks"]["hole"]["baselines"] != first["tasks"]["hole"]["baselines"]


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", SHAPES, ids=["grey", "colour"])
@pytest.mark.parametrize("name", TASKS)
def test_measurements_and_answers_to_them_are_pictures(name: Any, event: Any) -> None:
    if name == "colour" and event[0] == 1:
        with pytest.raises(ValueError, match="three channels"):
            build(name, event)
        return
    task = build(name, event)
    x = torch.rand(2, *event, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = Measurement.simulate(x, task.operator, 0.05, 0).y
    assert task.show(y).shape == x.shape
    for answer in task.baselines(y).values():
        assert answer.shape == x.shape and bool(answer.isfinite().all())
    if isinstance(task.operator, LinearOperator):
        task.operator.check()
    if name in ("hole", "pixels"):
        assert task.hidden is not None
        # the drawing shows y where it was measured, and 0, grey, elsewhere
        assert bool((task.show(y)[:, task.hidden] == 0).all())
        torch.testing.assert_close(task.show(y)[:, ~task.hidden], x[:, ~task.hidden], rtol=0, atol=0.4)  # 8 deviations


def test_flags_reach_the_operators() -> None:
    for side in (0.25, 0.5):
        hidden = build("hole", (1, 8, 8), hole=side).hidden
        assert hidden is not None and int(hidden.sum()) == (side * 8) ** 2
    for kept in (0.25, 0.5):
        hidden = build("pixels", (3, 8, 8), kept=kept).hidden
        assert hidden is not None and int((~hidden).sum()) == kept * 3 * 64
        measured = build("projections", (1, 8, 8), kept=kept).operator.measured
        assert measured == (kept * 64,)
    one, other = (build("pixels", (1, 8, 8), seed=seed).hidden for seed in (0, 1))
    assert one is not None and other is not None and not torch.equal(one, other)
    point = torch.zeros(1, 1, 16, 16)
    point[..., 8, 8] = 1
    # the variance of a blurred point is sigma² on each axis, but for the cut at 3 sigma
    for blur in (1.0, 1.5):
        line = build("deblur", (1, 16, 16), blur=blur).operator(point)[0, 0].sum(0)
        variance = float(((torch.arange(16) - 8) ** 2 * line).sum())
        assert variance == pytest.approx(blur**2, rel=0.06)
    with pytest.raises(ValueError, match="4 divides"):
        build("x4", (1, 6, 6))


def test_mean_fill_is_that_of_each_channel() -> None:
    task = build("hole", (3, 8, 8))
    x = torch.tensor([-0.5, 0.0, 0.5]).reshape(1, 3, 1, 1).expand(2, 3, 8, 8).contiguous()
    torch.testing.assert_close(task.baselines(task.operator(x))["mean fill"], x)


# -- methods and figures -----------------------------------------------------------------------------------------------

EVENT = (1, 4, 4)


def _question(
    std: float, samples: int, **flags: Any
) -> tuple[inverse_methods.PriorModel, Any, torch.Tensor, Measurement]:
    """White Gaussian pictures, of which half a row is hidden, in plain sight of their exact posterior."""
    sde = ss.VP()
    law = Gaussian(torch.zeros(EVENT), std**2)
    options: dict[str, Any] = {
        "particles": 2 * samples, "steps": 50, "dps_scale": 1.0, "batch_size": 10_000, "seed": 0, **flags
    }  # fmt: skip
    prior = inverse_methods.PriorModel(law.score(sde), std, EVENT, samples, device=torch.device("cpu"), **options)
    task = build("hole", EVENT)
    truth = law.sample(4, 1)
    return prior, task, truth, Measurement.simulate(truth, task.operator, 0.3, 2)


@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")
@pytest.mark.parametrize("method", METHODS)
def test_methods_on_white_pictures(method: Any) -> None:
    """The posterior is known: hidden pixels N(0, σ_d²), measured ones of mean κ y with κ = σ_d²/(σ_d² + σ_y²)."""
    std, samples = 0.5, 100
    prior, task, _, measurement = _question(std, samples)
    found = inverse_methods.answer(prior, method, measurement)
    x = found.x
    assert x.shape == (4, samples, *EVENT) and found.seconds > 0
    assert found.nfe == 51 and bool(found.gradients) == (method in GRADIENTS)
    assert task.hidden is not None
    hidden, seen = x[..., task.hidden], x[..., ~task.hidden]
    # 4 · 100 · 4 hidden numbers of deviation 0.5: standard error 0.013 of the mean and 0.009 of the deviation, more for
    # particles, which share ancestors. 50 stochastic steps are a tenth off, the 10 of repaint a quarter and more, and
    # so is DiffPIR, whose spread is nobody's.
    short = 0.5 if method in ("repaint", "diffpir") else 0.15
    assert float(hidden.std()) == pytest.approx(std, rel=short) and abs(float(hidden.mean())) < 0.1
    if method in ("dps", "diffpir", "replacement", "repaint"):  # whose biases have tests of their own elsewhere
        assert float((seen.mean(1) - measurement.y).square().mean().sqrt()) < 0.3  # the noise's own
        return
    wanted = std**2 / (std**2 + 0.3**2) * measurement.y
    # deviation of the posterior 0.26, so 0.026 for a mean of 100, and 2.5 times that for the largest of 48
    torch.testing.assert_close(seen.mean(1), wanted, rtol=0, atol=0.1)


GRADIENTS = ("dps", "pigdm", "moment-matching", "particles")


def test_samples_do_not_depend_on_the_batch() -> None:
    one, other = (
        inverse_methods.answer(prior, "pigdm", measurement).x
        for prior, _, _, measurement in (_question(0.5, 6), _question(0.5, 6, batch_size=13))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # float32 of 50 steps


@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")
def test_particles_of_one_picture_stay_together() -> None:
    """However small the batch: groups of 12 particles, one at a time, each with noise of its own."""
    prior, _, _, measurement = _question(0.5, 6, batch_size=5)
    same = Measurement(measurement.y[:1].repeat(2, 1), measurement.operator, measurement.noise_std)
    found = inverse_methods.answer(prior, "particles", same)
    assert found.x.shape == (2, 6, *EVENT) and found.nfe == 51 and not torch.allclose(found.x[0], found.x[1])


@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")
def test_options_of_methods_matter() -> None:
    changes: dict[Any, dict[str, Any]] = {
        "dps": {"dps_scale": 0.1},
        "particles": {"particles": 20},
        "diffpir": {"seed": 1},
        "pigdm": {"steps": 5},
    }
    for method, flags in changes.items():
        one, other = (
            inverse_methods.answer(prior, method, measurement)
            for prior, _, _, measurement in (_question(0.5, 6), _question(0.5, 6, **flags))
        )
        assert not torch.allclose(one.x, other.x, atol=1e-3)


def test_figures_look_at_what_was_hidden() -> None:
    task = build("hole", EVENT)
    assert task.hidden is not None
    scaling = Scaling.to_unit_range(17)  # levels 1/8 apart
    truth = torch.zeros(2, *EVENT)
    measurement = Measurement.simulate(truth, task.operator, 0.1, 0)
    x = torch.zeros(2, 2, *EVENT)
    x[:, 1, task.hidden] = 0.5
    answers = inverse_methods.Answers(x, 3, 0, 0.0, {"families": 2.0})
    figures = inverse_figures.answer_figures(answers, truth, task, measurement, scaling, None, None)
    # error of the mean 1/4 on 4 of 16 pixels; variance 1/8, times 1 + 1/2, over 1/16
    assert figures["psnr_mean_db"] == pytest.approx(10 * np.log10(4 / (0.25**2 / 4)), rel=1e-5)
    assert figures["spread_over_error"] == pytest.approx(3**0.5, rel=1e-5)
    # A x = 0 for all, so what is left is the noise itself
    assert figures["residual_over_noise"] == pytest.approx(float(measurement.y.square().mean().sqrt()) / 0.1, rel=1e-5)
    assert figures["families"] == 2 and figures["nfe"] == 3
    # the truth ties with the lower of two samples: it stands for ranks 0 and 1 of 0, 1, 2, that is for [0, 2/3]
    assert figures["coverage_50"] == pytest.approx((2 / 3 - 1 / 4) / (2 / 3), rel=1e-5)
    # less than half a level off is no error to rounded samples
    off = dataclasses.replace(answers, x=torch.full_like(x, 0.06))
    figures = inverse_figures.answer_figures(off, truth, task, measurement, scaling, None, None)
    assert figures["coverage_50"] == pytest.approx(0.5) and figures["psnr_mean_db"] < 60


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"count": 0}, "--count"),
        ({"samples": 1}, "--samples"),
        ({"steps": 0}, "--steps"),
        ({"batch_size": 0}, "--batch-size"),
        ({"train_steps": 0}, "--train-steps"),
        ({"hole": 1.0}, "--hole is a share"),
        ({"kept": 0.0}, "--kept is a share"),
        ({"noise": 0.0}, "--noise must be positive"),
        ({"blur": float("nan")}, "--blur must be positive"),
        ({"dps_scale": -1.0}, "--dps-scale"),
        ({"sigma_data": 0.0}, "--sigma-data"),
        ({"methods": ("particles",), "particles": 4, "samples": 8}, "more particles or fewer samples"),
        ({"tasks": ("phase",), "methods": ("pigdm",)}, "--methods dps"),
        ({"prior": Path("x"), "resume": True}, "leave one out"),
        ({"data": Path("x")}, "give --prior"),
        ({"mode": "L"}, "give --data"),
    ],
)
def test_bad_flags(flags: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        inverse.main(inverse.Config(**flags))


def test_what_does_not_fit_the_prior_is_refused(run: Path, colours: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, folder = colours
    with pytest.raises(ValueError, match="three channels"):
        inverse.main(inverse.Config(prior=run, out=tmp_path, tasks=("colour",), **SMALL))
    with pytest.raises(ValueError, match="by --data"):
        inverse.main(inverse.Config(prior=folder, out=tmp_path, **SMALL))
    with pytest.raises(ValueError, match="the prior knows pictures"):
        inverse.main(inverse.Config(prior=run, data=pictures, out=tmp_path, **SMALL))
    with pytest.raises(ValueError, match="12 pictures, and --count asks for 13"):
        inverse.main(inverse.Config(prior=folder, data=pictures, out=tmp_path, **{**SMALL, "count": 13}))
    with pytest.raises(ValueError, match="held out"):
        inverse.main(inverse.Config(prior=run, out=tmp_path, **{**SMALL, "count": 1000}))
    with pytest.raises(ValueError, match="says nothing about"):
        inverse.main(inverse.Config(prior=folder, data=pictures, mode="L", out=tmp_path, **SMALL))
    with pytest.raises(CheckpointError, match="checkpoint"):
        inverse.main(inverse.Config(prior=tmp_path, out=tmp_path, **SMALL))
    assert not list(tmp_path.glob("*.png"))
