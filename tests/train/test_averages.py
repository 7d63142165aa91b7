"""Several averages of the weights at once, and averages with power profiles of any width after training."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import mlp, points, trained, weights
from torch import Tensor, nn

from scoresde.data import Scaling, from_tensors
from scoresde.files import PARTIAL
from scoresde.models import ScoreModel
from scoresde.nn import MagnitudeUNet
from scoresde.sde import VP
from scoresde.train import (
    EMA,
    CheckpointError,
    EarlyStopping,
    PowerEMA,
    Snapshots,
    describe,
    exponent_of,
    fit_profile,
    load_model,
    reconstruct_ema,
    save,
    save_snapshot,
    snapshot_steps,
    train,
    width_of,
)
from scoresde.train.folder import sealed

F64 = torch.float64


def shares(step: int, width: float) -> Tensor:
    """What each step contributes to an average: the mass of (γ + 1) τ^γ / t^(γ+1) on (k - 1, k]."""
    power = exponent_of(width) + 1
    return ((torch.arange(step + 1, dtype=F64) / step) ** power).diff()


# -- several decays ----------------------------------------------------------------------------------------------------


def test_each_of_several_averages_is_the_one_that_a_run_with_it_alone_has(tmp_path: Path) -> None:
    both = trained(ema=(0.9, 0.5), folder=tmp_path / "both")
    for decay in (0.9, 0.5):
        alone = trained(ema=decay, folder=tmp_path / str(decay))
        assert torch.equal(weights(both.ema_model(decay)), weights(alone.ema_model()))
        assert torch.equal(weights(load_model(tmp_path / "both", ema=decay)), weights(alone.ema_model()))
        assert torch.equal(weights(both.model), weights(alone.model))
    assert both.ema is both.averages[0.9] and describe(tmp_path / "both").decays == {
        "ema.safetensors": 0.9,
        "ema-2.safetensors": 0.5,
    }
    for ema in (None, True):
        assert torch.equal(weights(load_model(tmp_path / "both", ema=ema)), weights(both.ema_model()))
    assert torch.equal(weights(load_model(tmp_path / "both", ema=False)), weights(both.model))
    with pytest.raises(CheckpointError, match=r"no averages of decay 0\.7: ema must be one of 0\.9, 0\.5"):
        load_model(tmp_path / "both", ema=0.7)
    with pytest.raises(ValueError, match=r"one of 0\.9, 0\.5"):
        both.ema_model(0.7)


def test_several_averages_go_on_where_they_were(tmp_path: Path) -> None:
    whole = trained(steps=6, ema=(0.9, 0.5))
    trained(steps=3, ema=(0.9, 0.5), folder=tmp_path)
    again = trained(mlp(seed=1), steps=6, ema=(0.9, 0.5), folder=tmp_path, resume=True)
    for decay in (0.9, 0.5):
        assert torch.equal(weights(again.ema_model(decay)), weights(whole.ema_model(decay)))


def test_a_new_decay_goes_on_from_the_first_average_with_a_warning(tmp_path: Path) -> None:
    run = trained(steps=3, ema=(0.9, 0.5), folder=tmp_path)
    with pytest.warns(UserWarning, match="ema"):
        again = train(mlp(), points(), steps=4, batch_size=8, ema=(0.5, 0.7), folder=tmp_path, resume=True,
                      progress=False)  # fmt: skip
    assert torch.equal(weights(again.ema_model(0.5)), weights(run.ema_model(0.5)))
    assert torch.equal(weights(again.ema_model(0.7)), weights(run.ema_model(0.9)))


def test_checkpoints_of_before_do_not_tell_a_decay_and_load_as_ever(tmp_path: Path) -> None:
    run = trained(ema=0.9, folder=tmp_path)
    path = describe(tmp_path).path / "config.json"
    content = json.loads(path.read_text())
    del content["averages"]
    path.write_text(json.dumps(sealed(content)))
    assert torch.equal(weights(load_model(tmp_path)), weights(run.ema_model()))
    with pytest.raises(CheckpointError, match="does not tell of any decay"):
        load_model(tmp_path, ema=0.9)
    resumed = train(mlp(), points(), steps=4, batch_size=8, ema=0.9, folder=tmp_path, resume=True, progress=False)
    assert torch.equal(weights(resumed.ema_model()), weights(run.ema_model()))


def test_no_step_is_done_while_any_average_is_applied() -> None:
    run = train(mlp(), points(), steps=4, batch_size=8, ema=(0.9, 0.5), progress=False)
    next(run)
    for average in run.averages.values():
        with average.applied(), pytest.raises(RuntimeError, match="iterating the run is refused"):
            next(run)
    assert next(run).step == 2


@pytest.mark.parametrize("decays", [(), (0.9, 0.9), (0.9, 1.0), (0.9, "0.5"), tuple(0.1 * i for i in range(9))])
def test_bad_lists_of_decays_are_refused(decays: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="ema"):
        trained(ema=decays)


# -- power profiles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1e-3, 0.05, 0.1, 0.15, 0.25, 12**-0.5])
def test_the_width_is_the_deviation_of_the_profile(width: float) -> None:
    gamma = exponent_of(width)
    assert width_of(gamma) == pytest.approx(width, rel=1e-12)  # bisection to rounding, of a smooth function
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    times = u ** (1 / (gamma + 1))  # quantiles of (γ + 1) τ^γ
    assert float(times.std(correction=0)) == pytest.approx(width, rel=5e-5)  # midpoints of a logarithm's pole at most


def test_a_power_average_is_the_weighted_sum_of_all_steps() -> None:
    """Σ_k w_k θ_k with w_k the mass of the profile in (k-1, k]: nothing is left of the initial weights."""
    net = nn.Linear(3, 2).double()
    average, history = PowerEMA(net, 0.12), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=F64))
        average.update()
        history.append(weights(net))
    expected = shares(50, 0.12) @ torch.stack(history)
    found = torch.cat([value.flatten() for value in average.state().values()])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # 50 roundings of float64


def _sum_of_profiles(steps: list[int], widths: list[float], coefficients: Tensor, tau: Tensor) -> Tensor:
    total = torch.zeros_like(tau)
    for t, width, a in zip(steps, widths, coefficients.tolist(), strict=True):
        g = exponent_of(width)
        total += a * torch.where(tau <= t, (g + 1) / t * (tau / t).clamp(max=1) ** g, 0.0)
    return total


def _kept(n: int, last: int) -> tuple[list[int], list[float]]:
    steps = [last * (i + 1) // n for i in range(n) for _ in range(2)]
    return steps, [0.05, 0.10] * n


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.2])
def test_the_error_of_a_fit_is_the_norm_of_what_is_left(width: float) -> None:
    """In closed form as by quadrature over [0, t], with Gauss-Legendre nodes between any two snapshots."""
    steps, widths = _kept(6, 600)
    fit = fit_profile(steps=steps, widths=widths, step=600, width=width)
    assert float(fit.coefficients.sum()) == pytest.approx(1, abs=1e-12)
    nodes, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))
    tau = torch.cat([100 * i + 50 * (1 + nodes) for i in range(6)])
    wanted = _sum_of_profiles([600], [width], torch.ones(1), tau)
    left = _sum_of_profiles(steps, widths, fit.coefficients, tau) - wanted
    norms = [(50 * weight.repeat(6) @ value.square()).sqrt() for value in (left, wanted)]
    assert fit.error == pytest.approx(float(norms[0] / norms[1]), rel=1e-6)  # a root of a difference of 1e-3
    # and no other sum that adds up to 1 is nearer
    for i in range(len(steps) - 1):
        other = fit.coefficients.clone()
        other[i] += 1e-3
        other[i + 1] -= 1e-3
        further = _sum_of_profiles(steps, widths, other, tau) - wanted
        assert float(50 * weight.repeat(6) @ further.square()) > float(50 * weight.repeat(6) @ left.square())


@pytest.mark.parametrize(("width", "factor"), [(0.07, 1.0), (0.15, 2.4), (0.2, 7.3)])
def test_the_error_falls_with_the_square_of_the_number_of_snapshots(width: float, factor: float) -> None:
    errors = []
    for n in (32, 64, 128):
        steps, widths = _kept(n, 12_800)
        errors.append(fit_profile(steps=steps, widths=widths, step=12_800, width=width).error)
    for before, after in itertools.pairwise(errors):
        assert before / after == pytest.approx(4, rel=0.06)  # second order; from 32 on the next terms are 6 %
    assert errors[-1] * 128**2 == pytest.approx(factor, rel=0.03)  # what the docstring says


def test_averages_that_were_kept_are_their_own_fit() -> None:
    steps, widths = _kept(8, 800)
    for i in (5, 14):
        fit = fit_profile(steps=steps, widths=widths, step=steps[i], width=widths[i])
        torch.testing.assert_close(fit.coefficients, torch.eye(16, dtype=F64)[i], rtol=0, atol=1e-9)
        assert fit.error < 1e-6  # the root of a rounding of 1


# -- of a real training ------------------------------------------------------------------------------------------------

STEPS = 112


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A training with a snapshot of every second step, and the weights after each."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    model, history = mlp(), []
    run = train(model, points(), steps=STEPS, batch_size=8, folder=folder, snapshots=Snapshots(every=2), lr=1e-2,
                progress=False)  # fmt: skip
    for _ in run:
        history.append(weights(model).double())
    return folder, torch.stack(history)


@pytest.mark.parametrize("width", [0.05, 0.07, 0.1, 0.15])
@pytest.mark.parametrize("step", [STEPS, 90])
def test_a_reconstruction_is_the_average_over_all_steps(kept: tuple[Path, Tensor], width: float, step: int) -> None:
    folder, history = kept
    found = reconstruct_ema(folder, width, None if step == STEPS else step)
    missed = (weights(found).double() - shares(step, width) @ history[:step]).abs().max().item()
    assert missed < 1e-5
    # Cauchy and Schwarz: what is left of the profile times how far weights are from their mean; and float32.
    n = step // 2
    fit = fit_profile(steps=_kept(n, step)[0], widths=[0.05, 0.1] * n, step=step, width=width)
    gamma = exponent_of(width)
    spread = history[:step].std(0, correction=0).max().item()
    rounding = 4 * torch.finfo(torch.float32).eps * history.abs().max().item() * fit.coefficients.abs().sum().item()
    assert missed <= fit.error * (gamma + 1) / math.sqrt(2 * gamma + 1) * spread + rounding
    assert found.averaged and not found.training


def test_widths_are_told_apart(kept: tuple[Path, Tensor]) -> None:
    """Averages of other widths differ by far more than the tolerance above."""
    folder, history = kept
    found = weights(reconstruct_ema(folder, 0.07)).double()
    for other in (0.065, 0.075):
        assert (found - shares(STEPS, other) @ history).abs().max() > 1e-4


def test_a_step_between_snapshots_is_told_to_be_worse(kept: tuple[Path, Tensor]) -> None:
    with pytest.warns(UserWarning, match="take the step of a snapshot, 100 or 102"):
        found = reconstruct_ema(kept[0], 0.05, 101)
    expected = shares(101, 0.05) @ kept[1][:101]
    assert (weights(found).double() - expected).abs().max() < 1e-2  # the last step's share of what a step moves


def test_half_precision_rounds_each_weight(tmp_path: Path) -> None:
    run = trained(steps=8, folder=tmp_path, snapshots=Snapshots(every=4, dtype=torch.float16))
    exact = torch.cat([v.flatten() for v in next(iter(run._averages.by_width.values())).state().values()])
    found = weights(reconstruct_ema(tmp_path, 0.05))
    torch.testing.assert_close(found, exact, rtol=2**-11, atol=2**-24)  # half a unit of 11 bits, or a subnormal
    assert not torch.equal(found, exact)


# -- snapshots as files ------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "snapshots").rglob("*.safetensors"))}


def test_a_resumed_run_keeps_the_snapshots_of_the_whole_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 10, "snapshots": Snapshots(every=3), "save_every": 5, "keep": 9}
    trained(folder=tmp_path / "whole", **options)
    assert snapshot_steps(tmp_path / "whole") == [3, 6, 9, 10]
    trained(folder=tmp_path / "parts", **options)
    shutil.rmtree(tmp_path / "parts" / "step-00000010")  # killed after step 9, whose snapshots are past step 5
    half = tmp_path / "parts" / "snapshots" / f"{PARTIAL}snapshot-00000012"
    half.mkdir()
    run = train(
        mlp(), points(), batch_size=8, ema=0.9, folder=tmp_path / "parts", resume=True, progress=False, **options
    )
    assert run.step == 5 and os.listdir(half.parent) == ["snapshot-00000003"]
    for _ in run:
        pass
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_other_widths_cannot_go_on(tmp_path: Path) -> None:
    trained(folder=tmp_path / "with", snapshots=Snapshots(every=2))
    with pytest.raises(CheckpointError, match=r"widths \(0\.1, 0\.2\): it holds averages of widths 0\.05, 0\.1"):
        trained(steps=6, folder=tmp_path / "with", snapshots=Snapshots(every=2, widths=(0.1, 0.2)), resume=True)
    trained(folder=tmp_path / "without")
    with pytest.raises(CheckpointError, match="it holds none"):
        trained(steps=6, folder=tmp_path / "without", snapshots=Snapshots(every=2), resume=True)


def test_snapshots_of_another_run_are_not_overwritten(tmp_path: Path) -> None:
    trained(folder=tmp_path, snapshots=Snapshots(every=2))
    shutil.rmtree(tmp_path / "step-00000004")
    with pytest.raises(CheckpointError, match="snapshots of another run"):
        trained(folder=tmp_path, snapshots=Snapshots(every=2))
    trained(folder=tmp_path, snapshots=Snapshots(every=4), resume=True)
    assert snapshot_steps(tmp_path) == [4]


def test_what_is_averaged_are_the_weights_as_layers_want_them_after_a_step() -> None:
    """An average without memory, and one with a power profile after its first update, is the last weights."""
    data = from_tensors(torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0)), scaling=Scaling(0.0, 1.0))
    net = MagnitudeUNet(1, width=4, multipliers=(1,), blocks=1, attention_levels=())
    run = train(ScoreModel(net, VP()), data, steps=2, batch_size=8, lr=0.1, ema=0.0, progress=False, cpu=True)
    power = PowerEMA(run.model, 0.1)
    run._averages.by_width[power.width] = power
    next(run)
    assert torch.equal(weights(run.ema_model()), weights(run.model))
    assert all(torch.equal(power.state()[name], value) for name, value in run.model.named_parameters())


def test_a_run_that_ends_early_keeps_its_end(tmp_path: Path) -> None:
    """Its last step is not a multiple of ``every``, and is not that of its options."""
    run = train(
        mlp(), points(100), steps=40, batch_size=64, lr=1e-5, held_out=0.4, held_out_every=2, progress=False, cpu=True,
        early_stopping=EarlyStopping(), folder=tmp_path, snapshots=Snapshots(every=3),
    )  # fmt: skip
    list(run)
    assert run.step == 10 and run.verdict == "converged"
    assert snapshot_steps(tmp_path) == [3, 6, 9, 10]


def test_a_loop_of_ones_own_keeps_them(tmp_path: Path) -> None:
    model = mlp()
    averages = [PowerEMA(model, width) for width in (0.05, 0.1)]
    for step in range(1, 9):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        for one in averages:
            one.update()
        if step % 2 == 0:
            save_snapshot(tmp_path, averages, step=step)
    with pytest.raises(ValueError, match="number of updates of each average, 8"):
        save_snapshot(tmp_path, averages, step=7)
    save(tmp_path, model, step=8, ema=averages[1])
    assert describe(tmp_path).widths == {"ema.safetensors": 0.1}
    start = weights(mlp()).double()
    for width in (0.05, 0.08, 0.1):
        expected = start + 0.1 * (shares(8, width) * torch.arange(1, 9)).sum()
        found = weights(reconstruct_ema(tmp_path, width)).double()
        # weights on a line: what is left of a profile is orthogonal to nothing but the fit; 4 snapshots, 0.3 % of 0.8
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if width != 0.08 else 3e-3)
    assert torch.equal(weights(load_model(tmp_path)), weights(reconstruct_ema(tmp_path, 0.1)))


def test_weights_that_never_moved_come_out_as_they_are(tmp_path: Path) -> None:
    """Coefficients sum to 1, so that no width scales the weights."""
    model = mlp()
    averages = [PowerEMA(model, width) for width in (0.05, 0.1)]
    for step in range(1, 7):
        for one in averages:
            one.update()
        save_snapshot(tmp_path, averages, step=step)
    save(tmp_path, model, step=6)
    found = weights(reconstruct_ema(tmp_path, 0.15))
    torch.testing.assert_close(found, weights(model), rtol=3e-7, atol=0)  # float32 of the parts, coefficients of 2


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_what_is_damaged_or_missing_is_refused(kept: tuple[Path, Tensor], tmp_path: Path) -> None:
    trained(folder=tmp_path / "run", snapshots=Snapshots(every=2))
    snapshot = tmp_path / "run" / "snapshots" / "snapshot-00000002"
    for step in (1, 9):
        with pytest.raises(CheckpointError, match="snapshots of steps 2 to 4"):
            reconstruct_ema(tmp_path / "run", 0.1, step)
    _damage(snapshot / "width-2.safetensors")
    with pytest.raises(CheckpointError, match="SHA-256"):
        reconstruct_ema(tmp_path / "run", 0.07)
    (snapshot / "width-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        reconstruct_ema(tmp_path / "run", 0.07)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        reconstruct_ema(tmp_path / "run", 0.07)
    trained(folder=tmp_path / "none")
    with pytest.raises(CheckpointError, match="no snapshots in"):
        reconstruct_ema(tmp_path / "none")
    with pytest.raises(ValueError, match="width must be at most"):
        reconstruct_ema(kept[0], 0.3)


def test_folders_of_a_run_and_of_its_checkpoints_are_found(tmp_path: Path) -> None:
    run = trained(folder=tmp_path / "run" / "checkpoints", snapshots=Snapshots(every=2))
    expected = weights(reconstruct_ema(tmp_path / "run" / "checkpoints", 0.07))
    for place in (tmp_path / "run", run.save()):
        assert torch.equal(weights(reconstruct_ema(place, 0.07)), expected)


def test_the_snapshots_need_a_folder() -> None:
    with pytest.raises(ValueError, match="snapshots needs a folder"):
        trained(snapshots=Snapshots(every=2))


def test_a_second_average_costs_what_the_first_costs() -> None:
    """One pass over the weights each, all parameters in one call; the numbers of kernels, not seconds."""
    model: ScoreModel = mlp()
    averages = [EMA(model), PowerEMA(model, 0.1)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for one in averages:
            one.update()
    calls = {event.key: event.count for event in seen.key_averages()}
    assert calls["aten::_foreach_lerp_"] == 2
