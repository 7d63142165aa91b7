"""The held-out loss: exact on Gaussians, with the same noise each time, and nothing of training changes by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import CLASSES, Plain, classifier, levels, mlp, points, weights
from torch import Tensor, nn

from scoresde import losses
from scoresde.curve import LossCurve
from scoresde.data import Scaling, from_tensors
from scoresde.models import ClassifierModel, ScoreModel
from scoresde.nn import MLP
from scoresde.sde import EDM, SDE, VE, VP, RectifiedFlow
from scoresde.times import LogNormalSigma, TimeDensity, UniformTime
from scoresde.train import (
    Callback,
    EarlyStopping,
    TrainOptions,
    describe,
    load_model,
    save,
    train,
    train_classifier,
)
from scoresde.train.classification import Classification
from scoresde.train.draws import seeded, step_noise
from scoresde.train.feeds import feed_of
from scoresde.train.held_out import LEVELS, HeldOut, HeldOutSamples, held_out_of, level_range
from scoresde.train.objective import Denoising
from scoresde.train.placement import Placement
from scoresde.train.processes import Processes

OPTIONS: dict[str, Any] = {"steps": 12, "batch_size": 64, "progress": False, "ema": 0.9, "cpu": True}
DEVIATIONS = (0.5, 1.0, 2.5)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alone() -> Placement:
    """One process, which holds all weights."""
    return Placement(Processes(cpu=True))


def held(model: ScoreModel, dataset: Any, **options: Any) -> HeldOut[ScoreModel]:
    """Samples with their noise, all of a data set."""
    given = TrainOptions(**{**OPTIONS, **options})
    return HeldOut(Denoising(model, given), HeldOutSamples(dataset, None), given, alone())


# -- the figures -------------------------------------------------------------------------------------------------------


class Exact(nn.Module):
    """E[x_0 | x_t] of N(0, diag s²), for a network that sees x_t/√(α² + σ²) under any SDE: x_0's prediction there."""

    def __init__(self, deviations: tuple[float, ...], sde: SDE) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.register_buffer("square", torch.tensor(deviations).square())
        self.sde = sde

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        t = self.sde.t_of_log_snr(-2 * c.double())
        alpha, sigma = (part[:, None].float() for part in (self.sde.alpha(t), self.sde.sigma(t)))
        # sigma_data = 1: the network sees x_t / sqrt(α² + σ²)
        x_t = x * (alpha**2 + sigma**2).sqrt()
        square: Tensor = self.square  # type: ignore[assignment]
        return self.one * square * alpha / (alpha**2 * square + sigma**2) * x_t


def error_of_noise(c: Tensor) -> Tensor:
    """E|ε - ε̂|²/d of the exact denoiser at log(σ/α) = c: the mean of s²/(s² + σ̃²)."""
    square = torch.tensor(DEVIATIONS, dtype=torch.float64).square()
    return (square / (square + (2 * c)[..., None].exp())).mean(-1)


@pytest.mark.parametrize(
    ("sde", "times", "weighting"),
    [
        (VP(), UniformTime(), "simple"),
        (VE(0.01, 50.0), LogNormalSigma(), "edm"),
        (RectifiedFlow(), UniformTime(), "x0"),
    ],
    ids=["VP", "VE", "rectified flow"],
)
@pytest.mark.parametrize("samples", [48, 1500])
def test_the_exact_denoiser_of_a_gaussian_has_its_closed_form(
    sde: SDE, times: TimeDensity, weighting: str, samples: int
) -> None:
    """At each level and in all, within the stated error: over sets of samples (loss - truth)/error has variance 1."""
    model = ScoreModel(Exact(DEVIATIONS, sde), sde, "x0", sigma_data=1.0)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t, factor = times.sample(sde, u)
    c = -0.5 * sde.log_snr(t)
    named = losses.edm(1.0) if weighting == "edm" else losses.WEIGHTINGS[weighting]
    truth = (named(sde, t) / sde.sigma(t) ** 2 * factor * error_of_noise(c)).mean().item()
    at_levels, in_all = [], []
    for seed in range(12):
        dataset = from_tensors(numbers(samples, 3, seed=seed) * torch.tensor(DEVIATIONS), scaling=Scaling(0.0, 1.0))
        one = held(model, dataset, seed=seed, times=times, weighting=weighting, batch_size=512)
        found = one.evaluate()
        mean, error = one.design.mean(found.training)
        in_all.append((mean - truth) / error)
        curve = one.curve(found.level, step=3)
        assert curve is not None and len(curve.levels) == LEVELS and curve.sigma_data == 1.0 and curve.step == 3
        assert sum(curve.count) == one.count == max(samples, -(-1024 // samples) * samples)
        levels, half = torch.tensor(curve.levels, dtype=torch.float64), (curve.levels[1] - curve.levels[0]) / 2
        inside = levels[:, None] + half * torch.linspace(-1, 1, 101, dtype=torch.float64)[:-1] + half / 100
        # in units of the best denoiser that knows sigma_data = 1 alone
        exact = (error_of_noise(inside) * (1 + (2 * inside).exp())).mean(1)
        at_levels.append((torch.tensor(curve.loss) - exact) / torch.tensor(curve.standard_error))
    ratios = torch.cat(at_levels)
    # squares of losses are skew, and 32 draws make an error of 1/8: the ratio spreads by up to 1.2
    assert abs(ratios.mean()) < 0.25 and 0.75 < ratios.std() < 1.3
    assert abs(torch.tensor(in_all).mean()) < 4 / math.sqrt(12) and torch.tensor(in_all).std() < 1.8


class OfCoupledNoise(nn.Module):
    """x_0 itself of x_t = x_0 + σ ε where ε = x_0: what the optimal coupling of N(0, 1) with N(0, 1) teaches."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        sigma = c.exp()[:, None]
        return self.one * x * (1 + sigma**2).sqrt() / (1 + sigma)  # the network sees x_t / sqrt(1 + σ²)


@pytest.mark.parametrize("parts", [1, 3])
def test_noise_is_coupled_as_in_training(parts: int) -> None:
    """Else the loss of the best network is that of noise it was never shown, and is told to have converged, or to rise.

    Independent x_0 and ε give E|x_0 - (x_0 + σ ε)/(1 + σ)|² = 2 σ²/(1 + σ)². Coupled among B samples it is that times
    half of E|x_0 - ε|², which falls as log log B / B (Bobkov & Ledoux 2019, for the normal law): below 0.02 for 512.
    The draws stand in blocks of other sizes where a step has parts; the groups do not.
    """
    model = ScoreModel(OfCoupledNoise(), VE(0.01, 50.0), "x0", sigma_data=1.0)
    dataset = from_tensors(numbers(1024, 1), scaling=Scaling(0.0, 1.0))
    options: dict[str, Any] = {"times": UniformTime(), "weighting": "x0", "batch_size": 512}
    apart = held(model, dataset, **options).evaluate()
    one = held(model, dataset, coupling=losses.OptimalTransport(), **options)
    together = held(model, dataset, coupling=losses.OptimalTransport(), accumulate=parts, **options).evaluate()
    for kind in ("level", "training"):
        assert getattr(together, kind).mean() < 0.05 * getattr(apart, kind).mean()
        torch.testing.assert_close(getattr(together, kind), getattr(one.evaluate(), kind), rtol=1e-5, atol=1e-6)
    sigma = model.sde.sigma(one._times)
    # 1024 squares of normals: 3 sqrt(2/1024) = 0.13, and more for a few levels weigh most
    assert apart.training.mean().item() == pytest.approx((2 * sigma**2 / (1 + sigma) ** 2).mean().item(), rel=0.2)


def test_a_coupling_of_ones_own_is_asked_for_conditions_and_all_draws() -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []

    def coupling(x0: Tensor, eps: Tensor, given: Any) -> Tensor:
        seen.append((len(x0), tuple(given)))
        return eps

    model = ScoreModel(MLP(2, width=8, depth=1, num_classes=2), VP(), "noise")
    data = from_tensors(numbers(1100, 2), torch.arange(1100) % 2, scaling=Scaling(0.0, 1.0))
    one, other = held(model, data, coupling=coupling, batch_size=300), held(model, data, batch_size=300)
    assert torch.equal(one.evaluate().training, other.evaluate().training)
    # 1100 draws for levels and as many for times, in groups of a step's samples
    assert sorted(seen) == [(200, ("label",))] * 2 + [(300, ("label",))] * 6


def test_of_the_other_units_the_curve_tells_the_same() -> None:
    sde = VP()
    model = ScoreModel(Exact(DEVIATIONS, sde), sde, "x0", sigma_data=1.0)
    dataset = from_tensors(numbers(4000, 3) * torch.tensor(DEVIATIONS), scaling=Scaling(0.0, 1.0))
    one = held(model, dataset, batch_size=1000)
    curve = one.curve(one.evaluate().level, step=0)
    assert curve is not None
    c = torch.tensor(curve.levels[8:24:5], dtype=torch.float64)
    rough = max(e / loss for e, loss in zip(curve.standard_error, curve.loss, strict=True))
    assert torch.allclose(curve.noise_error(c), error_of_noise(c), rtol=4 * rough)
    assert torch.allclose(curve.x0_error(c), error_of_noise(c) * (2 * c).exp(), rtol=4 * rough)


def test_without_sigma_data_the_unit_is_that_of_the_samples() -> None:
    model = ScoreModel(MLP(2, width=8, depth=1), VP(), "noise")
    data = from_tensors(3 * numbers(64, 2), scaling=Scaling(0.0, 1.0))
    one = held(model, data)
    curve = one.curve(one.evaluate().level, step=0)
    assert curve is not None and curve.sigma_data == pytest.approx(float(data.data.square().mean().sqrt()))


def test_levels_end_where_there_is_no_signal() -> None:
    ve = VE(0.01, 50.0)
    ends = [-0.5 * float(ve.log_snr(t)) for t in (ve.t_min, ve.T)]
    assert level_range(ve, 1.0) == pytest.approx(ends) and ends[1] == pytest.approx(math.log(50.0))
    flow = RectifiedFlow(T=1.0)
    low, high = level_range(flow, 2.0)
    assert high == pytest.approx(math.log(2000.0)) and low == pytest.approx(-0.5 * float(flow.log_snr(flow.t_min)))


@pytest.mark.parametrize("event", [(), (5,), (2, 7), (1, 4, 4), (1, 2, 3, 4)])
def test_of_any_event_shape(event: tuple[int, ...]) -> None:
    """x̂_0 = 0 errs by x_0² alone: in units of σ_data² = 1, at low noise by 1/σ̃² and more."""
    net = Zero()
    samples = [{"x": x} for x in numbers(64, *event)]
    one = held(ScoreModel(net, VE(0.1, 10.0), "x0", sigma_data=1.0), samples)
    curve = one.curve(one.evaluate().level, step=0)
    assert curve is not None
    c = torch.tensor(curve.levels, dtype=torch.float64)
    mean = torch.stack([sample["x"].square().mean() for sample in samples]).mean().item()
    # the mean square of those samples that a level has; and the level is its centre
    assert torch.allclose(torch.tensor(curve.loss).double(), mean * (1 + (-2 * c).exp()), rtol=1.0)
    (whole,) = (one.design.mean(one.evaluate().training),)
    assert math.isfinite(whole[0]) and whole[1] > 0


class Zero(nn.Module):
    """Answers zeros, and remembers what it saw in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if not self.training:
            self.seen.append(x.clone())
        return self.weight * x


def test_the_noise_is_the_same_at_each_evaluation_and_in_blocks_of_any_size() -> None:
    net = Zero()
    model = ScoreModel(net, VP(), "noise")
    seen = []
    for batch_size in (64, 64, 50):
        one = held(model, points(), batch_size=batch_size)
        for _ in range(2):
            net.seen.clear()
            one.evaluate()
            assert all(len(x) == batch_size for x in net.seen)  # the last is filled up: compiled once
            first = torch.cat(net.seen)[: 64 * 10]
            seen.append(first)
    for other in seen[1:]:
        assert torch.equal(seen[0], other)
    assert not torch.equal(held_first(model, seed=1), seen[0])


def held_first(model: ScoreModel, seed: int) -> Tensor:
    net: Any = model.net
    net.seen.clear()
    held(model, points(), batch_size=64, seed=seed).evaluate()
    return torch.cat(net.seen)[: 64 * 10]


class Labels(nn.Module):
    """x̂_0 is 10 times the label; the null is label 3, of which it is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.null_conditions = {"label": 3}
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return (self.scale * torch.where(label == 3, 0, label))[:, None].expand_as(x) + 0 * x


def test_conditions_go_with_their_samples_and_are_dropped_as_often_as_in_training() -> None:
    label = torch.arange(90) % 2 + 1
    data = from_tensors(10.0 * label[:, None].float().expand(90, 2), label, scaling=Scaling(0.0, 1.0), num_classes=3)
    model = ScoreModel(Labels(), VP(), "x0")
    exact = held(model, data, condition_dropout=0.0, weighting="x0").evaluate()
    assert float(exact.training.max()) < 1e-8 and float(exact.level.max()) < 1e-6  # of float32 at the least noise
    dropped = held(model, data, condition_dropout=0.25, weighting="x0").evaluate()
    share = (dropped.training > 1).double().mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(dropped.training))


def by_rank(x0: Tensor, eps: Tensor, conditions: Any = None) -> Tensor:
    """The optimal transport of numbers: the k-th smallest noise meets the k-th smallest sample."""
    order = x0[:, 0].argsort().argsort()
    return eps[eps[:, 0].argsort()][order]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_coupling_gives_its_noises_to_groups_of_a_batch(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has its independent noises in the order of its samples, however it is worked off."""
    data = from_tensors(numbers(100, 1), scaling=Scaling(0.0, 1.0))
    seen: list[tuple[Tensor, Tensor]] = []
    model = ScoreModel(MLP(1, width=4, depth=1), VP())
    one = held(model, data, coupling=by_rank, batch_size=48, accumulate=accumulate)
    losses = Denoising.at_levels

    def look(task: Any, x0: Tensor, t: Tensor, eps: Tensor, given: Any, scale: float) -> Tensor:
        seen.append((x0[:, 0], eps[:, 0]))
        return losses(task, x0, t, eps, given, scale)

    monkeypatch.setattr(Denoising, "at_levels", look)
    found = one.evaluate()
    x0, eps = (torch.cat(part)[: one.count] for part in zip(*seen, strict=True))
    independent = step_noise(one._seed, 0, 0, x0[:, None])[:, 0]
    groups = [x.split(48) for x in (x0, eps, independent)]
    assert len(groups[0]) == -(-one.count // 48) > 20
    for x, e, drawn in zip(*groups, strict=True):
        assert torch.equal(e[x.argsort()], e.sort().values) and torch.equal(e.sort().values, drawn.sort().values)
    again = held(model, data, coupling=by_rank, batch_size=48).evaluate()
    assert torch.allclose(again.level, found.level) and torch.allclose(again.training, found.training)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("size", [40, 1024, 1050])
def test_all_processes_call_the_network_as_often(count: int, size: int) -> None:
    """Where weights are divided, one that calls it once more waits for the others for ever."""
    data = from_tensors(numbers(size, 1), scaling=Scaling(0.0, 1.0))
    done: list[int] = []
    calls = set()
    for rank in range(count):
        placement = alone()
        placement.processes.count, placement.processes.rank = count, rank
        given = TrainOptions(**{**OPTIONS, "batch_size": 50})
        task = Denoising(ScoreModel(MLP(1, width=4, depth=1), VP()), given)
        one = HeldOut(task, HeldOutSamples(data, None), given, placement)
        blocks = one._own_blocks()
        calls.add(len(blocks))
        done += [row for first, end in blocks for row in range(first, end)]
        assert all(end <= one.count or first >= one.count for first, end in blocks)
        assert all(end - first <= one._block for first, end in blocks)
    assert len(calls) == 1 and sorted(done) == list(range(2 * one.count))


def test_a_learned_weighting_is_not_in_the_loss_that_says_convergence() -> None:
    """What u has learnt by then would make two losses of one network different."""
    plain, learned = (held(mlp(), points(), weighting=weighting) for weighting in ("x0", losses.Uncertainty("x0")))
    before = learned.evaluate()
    with torch.no_grad():
        for parameter in learned._task.companion.parameters():  # type: ignore[union-attr]
            parameter.add_(1.0)
    assert torch.equal(before.training, learned.evaluate().training)
    assert torch.equal(before.training, plain.evaluate().training)


def test_a_classifier_has_cross_entropies() -> None:
    """Logits that are all alike: log K at every level, without an error."""
    model = ClassifierModel(MLP(2, width=8, depth=1, out_dim=CLASSES), VP())
    options = TrainOptions(**OPTIONS)
    one = HeldOut(Classification(model), HeldOutSamples(points(), None), options, alone())
    found = one.evaluate()
    curve = one.curve(found.level, step=0)
    assert curve is not None and curve.sigma_data is None
    assert torch.allclose(torch.tensor(curve.loss), torch.tensor(math.log(CLASSES)), rtol=1e-6)
    assert one.design.mean(found.training)[0] == pytest.approx(math.log(CLASSES), rel=1e-6)
    run = train_classifier(classifier(), points(), held_out=points(), **OPTIONS)
    list(run)
    assert run.held_out is not None and run.model.loss_curve == run.held_out.curve


def test_levels_are_dequantised() -> None:
    """A network that answers x̂_0 = the level nearest to x errs by the uniform noise of a bin, of variance w²/12."""
    data = levels()
    width = data.scaling.bin_width
    assert width is not None
    net = Zero()
    model = ScoreModel(net, VP(t_min=1e-4), "x0")
    for dequantize, expected in ((False, 0.0), (True, width**2 / 12)):
        net.seen.clear()
        one = held(model, data, dequantize=dequantize, batch_size=64)
        one.evaluate()
        x = net.seen[0][:40]  # the first draws have the least noise, σ = 1e-2
        spacing = (x - x[:, :1].new_tensor(-1.0)) / width
        spread = ((spacing - spacing.round()) * width).square().mean().item()
        assert spread == pytest.approx(expected, rel=0.4, abs=4e-4)  # noise of 1e-4 besides, 80 numbers


def test_in_bfloat16_the_loss_is_that_of_bfloat16() -> None:
    model = mlp()
    plain, narrow = held(model, points()).evaluate(), None
    options = TrainOptions(**OPTIONS)
    task = Denoising(model, options)
    task.autocast = True
    narrow = HeldOut(task, HeldOutSamples(points(), None), options, alone()).evaluate()
    assert not torch.equal(plain.training, narrow.training)
    # of one answer 2^-8, and of squares twice that; 1024 of them
    assert torch.allclose(plain.training.mean(), narrow.training.mean(), rtol=2**-6)
    list(run := train(mlp(), points(), held_out=points(), mixed_precision="bf16", **OPTIONS))
    assert run.held_out is not None and math.isfinite(run.held_out.loss)


# -- in a run ----------------------------------------------------------------------------------------------------------


class Noisy(Plain):
    """A data set that draws from torch's generator."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, "x": sample["x"] + 0.1 * torch.randn(2)}


@pytest.mark.parametrize("data", [points, lambda: Noisy(points())], ids=["in memory", "that draws"])
def test_training_is_bit_for_bit_what_it_is_without(data: Any) -> None:
    """With dropout, too, and torch's generators are where they were."""
    before = torch.get_rng_state()
    plain = train(mlp(dropout=0.3), data(), **OPTIONS)
    recorded = [step.loss for step in plain]
    watched = train(mlp(dropout=0.3), data(), held_out=data(), held_out_every=2, **OPTIONS)
    assert [step.loss for step in watched] == recorded
    assert torch.equal(weights(plain.model), weights(watched.model))
    for name, average in plain.ema.state().items():
        assert torch.equal(average, watched.ema.state()[name])
    assert torch.equal(torch.get_rng_state(), before)
    assert watched.model.training == plain.model.training


def test_a_share_is_never_trained_on_and_the_rest_as_if_it_were_all() -> None:
    data = points(100)
    feed, samples = held_out_of(*_of(data, held_out=0.4))
    assert samples is not None and samples.places is not None and len(samples) == 40 and feed.size == 60
    rest = [i for i in range(100) if i not in samples.places.tolist()]
    run = train(mlp(), data, held_out=0.4, held_out_every=3, **OPTIONS)
    list(run)
    alone = train(mlp(), data.subset(rest), **OPTIONS)
    list(alone)
    assert torch.equal(weights(run.model), weights(alone.model))
    _, other = held_out_of(*_of(data, held_out=0.4, seed=1))
    assert other is not None and other.places is not None and not torch.equal(other.places, samples.places)


def _of(data: Any, **options: Any) -> tuple[Any, TrainOptions, Processes]:
    given, processes = TrainOptions(**{**OPTIONS, **options}), Processes(cpu=True)
    return feed_of(data, given, processes), given, processes


def test_what_is_measured_is_the_average_and_is_written_wherever_it_is_looked_for(tmp_path: Path) -> None:
    heard: list[int] = []

    class Hears(Callback):
        def held_out(self, run: Any, record: Any) -> None:
            assert record.held_out is run.held_out
            heard.append(record.step)

    options = {**OPTIONS, "held_out": points(), "held_out_every": 5, "log_every": 4, "save_every": 6}
    run = train(mlp(), points(), folder=tmp_path, callbacks=[Hears()], **options)
    found = {record.step: record.held_out for record in run if record.held_out is not None}
    assert list(found) == heard == [5, 6, 10, 12]  # at a checkpoint and the end, too
    last = found[12]
    assert last.seconds > 0 and last.curve == run.model.loss_curve and run.verdict == last.verdict
    again = held(run.ema_model().requires_grad_(True), points())
    losses_now = again.evaluate()
    assert again.design.mean(losses_now.training) == (last.loss, last.standard_error)
    assert again.curve(losses_now.level, step=12) == last.curve
    raw = held(run.model, points()).evaluate()
    assert not torch.equal(raw.training, losses_now.training)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5, 6, 8, 10, 12] and all("loss" in line for line in lines)
    told = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
    assert list(told) == [5, 6, 10, 12] and told[12]["loss"] == pytest.approx(last.loss, rel=1e-5)
    assert told[12]["verdict"] == last.verdict and len(told[12]["curve"]["loss"]) == LEVELS
    assert describe(tmp_path).loss_curve == load_model(tmp_path).loss_curve == last.curve
    assert load_model(tmp_path).under(EDM()).loss_curve == last.curve
    saved = save(tmp_path / "again", load_model(tmp_path), step=1)
    assert load_model(saved).loss_curve == last.curve


def test_a_resumed_run_says_and_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped in mid-run, between two evaluations; a run that has ended does no step more."""
    options = {**OPTIONS, "steps": 60, "held_out": points(), "held_out_every": 2, "ema": 0.5}
    rule = EarlyStopping(tolerance=0.05)
    whole = {r.step: r for r in train(mlp(), points(), folder=tmp_path / "a", early_stopping=rule, **options)}
    assert 4 < len(whole) < 60
    at = len(whole) - 1
    begun = train(mlp(), points(), folder=tmp_path / "b", early_stopping=rule, **options)
    for record in begun:
        if record.step == at:
            begun.save()
            break
    begun.close()
    again = train(mlp(seed=5), points(), folder=tmp_path / "b", early_stopping=rule, resume=True, **options)
    rest = {r.step: r for r in again}
    assert list(rest) == list(range(at + 1, len(whole) + 1)) and again.verdict == getattr(
        whole[len(whole)].held_out, "verdict", None
    )
    for step, record in rest.items():
        mine, theirs = record.held_out, whole[step].held_out
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert {**vars(mine), "seconds": 0} == {**vars(theirs), "seconds": 0}
    said = []
    for folder in ("a", "b"):
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        said.append([(one["step"], {**one["held_out"], "seconds": 0}) for one in lines if "held_out" in one])
    assert said[0] == said[1]
    assert not list(train(mlp(), points(), folder=tmp_path / "b", early_stopping=rule, resume=True, **options))
    on = train(mlp(), points(), folder=tmp_path / "b", resume=True, **options)  # without the rule it goes on
    assert next(on).step == len(whole) + 1
    on.close()


def test_a_run_that_learns_its_samples_by_heart_is_told_so(tmp_path: Path) -> None:
    """8 points, which a network of 6,000 weights fits: the loss of others rises, the run ends, the best is kept."""
    few, others = (from_tensors(numbers(n, 2, seed=s), scaling=Scaling(0.0, 1.0)) for n, s in ((8, 0), (400, 1)))
    with seeded(torch.device("cpu"), 0):
        model = ScoreModel(MLP(2, width=32, depth=1), VP(), "edm", sigma_data=1.0)
    run = train(
        model, few, steps=1000, batch_size=64, lr=5e-3, ema=0.98, held_out=others, held_out_every=25, save_every=25,
        keep=1, folder=tmp_path, early_stopping=EarlyStopping(), progress=False, cpu=True, times=LogNormalSigma(-0.5),
    )  # fmt: skip
    *_, record = run
    assert run.verdict == "overfitting" and run.step < 1000 and run.held_out is not None
    best = run.held_out.best_step
    assert 0 < best < run.step and run.held_out.above_best > 3 * run.held_out.above_best_error
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == [f"step-{best:08d}", f"step-{run.step:08d}"]
    assert describe(tmp_path / names[0]).loss_curve is not None
    assert record.held_out is run.held_out and not list(run)  # it has ended


def test_a_network_that_knows_it_all_has_converged() -> None:
    """Samples of N(0, 1), a linear network that is right from the start: said as soon as three evaluations, of
    30 to 50 steps, are of the second half."""
    data, others = (from_tensors(numbers(200, 2, seed=seed), scaling=Scaling(0.0, 1.0)) for seed in (0, 1))
    run = train(
        ScoreModel(Zero(), VP(), "edm", sigma_data=1.0), data, steps=200, batch_size=32, lr=1e-4, held_out=others,
        held_out_every=10, early_stopping=EarlyStopping(), progress=False, cpu=True,
    )  # fmt: skip
    steps = [record.step for record in run]
    assert run.verdict == "converged" and steps[-1] == 50
    # the best linear denoiser: 1 in its own units
    curve = run.model.loss_curve
    assert curve is not None
    off = (torch.tensor(curve.loss) - 1) / torch.tensor(curve.standard_error)
    assert off.abs().max() < 5


class Breaks(nn.Module):
    """Answers NaN in evaluation mode where σ/α is above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.breaks = nn.Parameter(torch.ones(())), True

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        wrong = (c > 0) & (not self.training) & self.breaks
        return torch.where(wrong[:, None], math.nan, self.weight * x)


def test_a_loss_that_is_not_finite_is_told_loudly_and_training_goes_on(tmp_path: Path) -> None:
    net = Breaks()
    net.breaks = False
    run = train(
        ScoreModel(net, VP()), points(), folder=tmp_path, held_out=points(), held_out_every=3,
        early_stopping=EarlyStopping(), **{**OPTIONS, "lr": 1e-6},
    )  # fmt: skip
    assert next(run).step == 1
    net.breaks = True
    with pytest.warns(UserWarning, match=r"after step 3 the held-out loss is not finite at log\(σ/α\) -?0\.\d+ to"):
        next(run), next(run)
    found = run.held_out
    assert found is not None and math.isnan(found.loss) and found.verdict == "undecided" and run.step == 3
    assert found.curve is not None and max(found.curve.levels) < 0.3  # what is finite is told
    net.breaks = False
    list(run)
    assert run.held_out is not None and math.isfinite(run.held_out.loss)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 3 and lines[0]["held_out"]["loss"] is None and math.isfinite(lines[0]["loss"])


@pytest.mark.parametrize(
    "change",
    [
        {"weighting": "x0"},
        {"weighting": losses.Uncertainty("x0")},
        {"times": LogNormalSigma()},
        {"coupling": losses.OptimalTransport()},
        {"condition_dropout": 0.5},
        {"ema": (0.5, 0.9)},
        {"mixed_precision": "bf16"},
    ],
    ids=str,
)
def test_another_loss_is_not_compared_with_that_of_before(change: dict[str, Any], tmp_path: Path) -> None:
    """It would be called overfitting for having other units."""
    options: dict[str, Any] = {**OPTIONS, "folder": tmp_path, "held_out": points(), "held_out_every": 3}
    list(train(mlp(), points(), **options))
    with pytest.warns(UserWarning) as told:
        run = train(mlp(), points(), resume=True, **{**options, "steps": 15, **change})
    assert any("begins anew" in str(one.message) for one in told)
    list(run)
    assert run._watch is not None and run._watch._history.count == 1


def test_other_averages_beside_the_first_are_compared_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {**OPTIONS, "folder": tmp_path, "held_out": points(), "held_out_every": 3}
    list(train(mlp(), points(), **options))
    with pytest.warns(UserWarning, match="ema: 0.9") as told:
        run = train(mlp(), points(), resume=True, **{**options, "steps": 15, "ema": (0.9, 0.5), "lr": 1e-4})
    assert len(told) == 1
    list(run)
    assert run._watch is not None and run._watch._history.count == 5


def test_other_samples_begin_what_is_said_anew(tmp_path: Path) -> None:
    options = {**OPTIONS, "folder": tmp_path, "held_out_every": 3}
    list(train(mlp(), points(), held_out=points(), **options))
    options["steps"] = 14
    with pytest.warns(UserWarning, match="others than those of"):
        run = train(mlp(), points(), held_out=points(50), resume=True, **options)
    list(run)
    assert run._watch is not None and run._watch._history.count == 0
    options["steps"] = 16
    with pytest.warns(UserWarning, match=r"held_out: None -> 0\.5"):  # the samples of training are others then
        train(mlp(), points(80), held_out=0.5, resume=True, **options)


def test_evaluations_take_a_twentieth_of_the_time() -> None:
    """2 x 1024 forward passes against 3 x 64 a step: every 214 steps."""
    run = train(mlp(), points(), held_out=points(), **OPTIONS)
    assert run._watch is not None and run._watch.every == math.ceil(2 * 1040 / (0.05 * 3 * 64))


class Stream:
    def __iter__(self) -> Any:
        return iter([{"x": torch.zeros(2)}] * 100)


def other_units() -> Any:
    data = points()
    return from_tensors(data.data, data.label, scaling=Scaling(1.0, 2.0), num_classes=CLASSES)


@pytest.mark.parametrize(
    ("data", "options", "error", "told"),
    [
        (points, {"held_out": 0.5}, ValueError, "at least 32 are needed"),
        (lambda: points(33), {"held_out": 0.99}, ValueError, "leaves none"),
        (Stream, {"held_out": 0.5}, TypeError, "a data set of its own"),
        (points, {"held_out": Stream()}, TypeError, "a list of the first samples of a stream"),
        (points, {"held_out": points(31)}, ValueError, "held_out has 31 samples"),
        (points, {"held_out": points(40, 3)}, ValueError, r"samples \(3,\)"),
        (points, {"held_out": other_units()}, ValueError, "other units"),
        (points, {"held_out": [{"x": torch.zeros(2)}] * 40}, ValueError, "label"),
        (points, {"held_out": 1.5}, ValueError, "share"),
        (points, {"held_out": "test.npy"}, TypeError, "share"),
        (points, {"held_out": True}, TypeError, "share"),
        (points, {"held_out": numbers(40, 2)}, TypeError, "from_tensors"),
        (points, {"held_out_every": 10}, ValueError, "held_out=0.05"),
        (points, {"early_stopping": EarlyStopping()}, ValueError, "held_out=0.05"),
        (points, {"held_out": points(), "early_stopping": True}, TypeError, "early_stopping"),
    ],
)
def test_what_cannot_be_held_out_is_refused_before_the_first_step(
    data: Any, options: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        train(mlp(), data(), folder=tmp_path / "run", **{**OPTIONS, **options})
    assert not (tmp_path / "run").exists()


def test_a_label_out_of_range_is_told_as_one_of_the_held_out() -> None:
    wrong = [{**points()[i], "label": CLASSES + 1} for i in range(40)]
    run = train(mlp(), points(), held_out=wrong, held_out_every=1, **OPTIONS)
    with pytest.raises(ValueError) as caught:
        next(run)
    assert any("held-out" in note for note in caught.value.__notes__)


def test_training_on_forgets_the_curve() -> None:
    model = mlp()
    model.loss_curve = LossCurve((0.0,), (1.0,), (0.1,), (5,), 1.0)
    train(model, points(), **OPTIONS).close()
    assert model.loss_curve is None
