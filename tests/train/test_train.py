"""The training loop: its schedules, its randomness, each of its options, and what stops it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import random
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde.train.batches as batches_module
from scoresde import losses, times
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.losses import dsm_loss
from scoresde.models import ClassifierModel, ScoreModel
from scoresde.models.conditions import drop_conditions
from scoresde.nn import MLP, UNet
from scoresde.sde import VP
from scoresde.train import (
    EMA,
    CheckpointError,
    Run,
    TrainOptions,
    average_decay,
    ema_model,
    learning_rate,
    load_classifier,
    load_model,
    train,
    train_classifier,
)
from scoresde.train.batches import batches
from scoresde.train.draws import DataOrder, Uniforms, seeded, step_noise
from scoresde.train.optimizer import Optimizer
from scoresde.train.options import option_fields

CLASSES = 3


def points(count: int = 40, dim: int = 2) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return from_tensors(
        torch.randn(count, dim, generator=generator),
        torch.randint(0, CLASSES, (count,), generator=generator),
        scaling=Scaling(0.0, 1.0),
        num_classes=CLASSES,
    )


def levels(count: int = 40) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 5, (count, 2), generator=generator)
    label = torch.randint(0, CLASSES, (count,), generator=generator)
    return from_tensors(data, label, levels=5, num_classes=CLASSES)


def mlp(
    seed: int = 0, *, predicts: str = "noise", num_classes: int | None = CLASSES, dropout: float = 0.0
) -> ScoreModel:
    with seeded(torch.device("cpu"), seed):
        net = MLP(2, width=8, depth=1, num_classes=num_classes, dropout=dropout)
        for parameter in net.parameters():  # networks start with outputs of zero, which hides what they see
            nn.init.normal_(parameter, std=0.2)
    return ScoreModel(net, VP(), predicts=predicts)


def classifier() -> ClassifierModel:
    with seeded(torch.device("cpu"), 0):
        net = MLP(2, width=8, depth=1, out_dim=CLASSES)
        nn.init.normal_(net.head.weight)
    return ClassifierModel(net, VP())


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(model: ScoreModel | None = None, dataset: Any = None, **options: Any) -> Run:
    """A run on tiny data, carried to its end."""
    given: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "ema": 0.9, **options}
    run = train(mlp() if model is None else model, points() if dataset is None else dataset, **given)
    for _ in run:
        pass
    return run


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_learning_rate_rises_linearly_then_rests_or_falls_along_a_cosine() -> None:
    steps, warmup, lr = 50, 10, 3e-4
    for k in range(steps):
        up = min(1.0, (k + 1) / warmup)
        assert learning_rate(k, lr=lr, steps=steps, warmup=warmup) == pytest.approx(lr * up, rel=1e-14)
        wave = 1.0 if k < warmup else math.cos(0.5 * math.pi * (k - warmup) / (steps - warmup)) ** 2
        cosine = learning_rate(k, lr=lr, steps=steps, warmup=warmup, decay="cosine")
        # the half-angle formula for the cosine, to float64 rounding
        assert cosine == pytest.approx(lr * up * wave, rel=1e-12)
        assert cosine > 0


def test_the_loop_follows_the_schedule() -> None:
    run = train(mlp(), points(), steps=5, batch_size=4, lr=0.01, warmup=2, decay="cosine", progress=False)
    for k, step in enumerate(run):
        assert step.lr == learning_rate(k, lr=0.01, steps=5, warmup=2, decay="cosine")


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        self.register_buffer("count", torch.tensor([5.0]))


def test_average_without_warmup_is_the_geometric_sum() -> None:
    module, decay, values = Scalar(), 0.8, [2.0, -1.0, 0.5, 3.0]
    ema = EMA(module, decay, warmup=False)
    for value in values:
        module.weight.data.fill_(value)
        ema.update()
    n = len(values)
    expected = decay**n * 1.0 + sum((1 - decay) * decay ** (n - 1 - k) * v for k, v in enumerate(values))
    assert ema.state()["weight"].item() == pytest.approx(expected, rel=1e-14)
    assert ema.updates == n


def test_average_with_warmup_forgets_the_start_like_a_binomial() -> None:
    module, n = Scalar(), 20
    ema = EMA(module, 0.9999)
    module.weight.data.fill_(0.0)  # started at 1: the average is the share of the start
    for _ in range(n):
        ema.update()
    share = math.factorial(n) * math.factorial(9) / math.factorial(n + 9)
    # 20 products in float64
    assert ema.state()["weight"].item() == pytest.approx(share, rel=1e-13)
    assert average_decay(10**9, 0.9999) == 0.9999  # and ends at the decay asked for


def test_only_parameters_are_averaged_and_the_model_is_handed_back() -> None:
    module = Scalar()
    ema = EMA(module, 0.5, warmup=False)
    module.weight.data.fill_(3.0)
    ema.update()
    assert set(ema.state()) == {"weight"}
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert module.weight.item() == 2.0
        raise RuntimeError("inside")
    assert module.weight.item() == 3.0
    copy = ema_model(module, ema)
    assert copy.weight.item() == 2.0 and not copy.weight.requires_grad and not copy.training
    module.weight.data.fill_(9.0)
    ema.update()
    assert copy.weight.item() == 2.0
    with pytest.raises(ValueError, match="decay"):
        EMA(module, 1.0)
    with pytest.raises(ValueError, match=r"bias"):
        ema.copy_to(nn.Linear(1, 1))


def test_the_run_averages_its_own_steps() -> None:
    model = mlp()
    run = train(model, points(), steps=5, batch_size=4, ema=0.7, ema_warmup=False, progress=False)
    expected = weights(model).double()
    for _ in run:
        expected = 0.7 * expected + 0.3 * weights(model).double()
    # five roundings of float32 numbers of size 1
    assert torch.allclose(weights(run.ema_model()).double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(weights(run.ema_model()), weights(model))


# -- randomness --------------------------------------------------------------------------------------------------------


def test_each_epoch_is_a_permutation_and_any_step_can_be_asked_for() -> None:
    size, batch, steps = 10, 4, 10
    order = DataOrder(size, batch, seed=3)
    stream = torch.cat([order.indices(k) for k in range(steps)])
    for epoch in range(batch * steps // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))
    assert not torch.equal(stream[:size], stream[size : 2 * size])
    for k in (7, 2, 9, 0):  # out of order, from a fresh start
        assert torch.equal(DataOrder(size, batch, seed=3).indices(k), stream[k * batch : (k + 1) * batch])
    assert not torch.equal(DataOrder(size, batch, seed=4).indices(0), stream[:batch])
    # a batch larger than the data holds everything again and again
    assert sorted(DataOrder(3, 7, seed=0).indices(0).bincount().tolist()) == [2, 2, 3]
    assert sorted(DataOrder(3, 6, seed=0).indices(5).tolist()) == [0, 0, 1, 1, 2, 2]


def test_noise_of_a_row_does_not_depend_on_who_asks() -> None:
    whole = step_noise(1, 5, 0, torch.empty(8, 3))
    assert torch.equal(torch.cat([step_noise(1, 5, 0, whole[:3]), step_noise(1, 5, 3, whole[3:])]), whole)
    assert not torch.equal(step_noise(1, 6, 0, whole), whole)
    assert not torch.equal(step_noise(2, 5, 0, whole), whole)


def test_uniforms_differ_between_uses_and_steps() -> None:
    draws = [Uniforms.draw(0, step, 16) for step in (0, 1)]
    rows = [row for d in draws for row in (d.time, d.condition_dropout, d.flip)]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert all(bool(((row >= 0) & (row < 1)).all()) for row in rows)


def test_the_first_step_is_the_loss_of_its_declared_draws() -> None:
    """Rebuild step 1 from the public pieces: order, uniforms, noise, density of t, weighting, dropped labels, flips."""
    dataset, size, seed = points(), 8, 11
    density, weighting = times.Stratified(times.LogSNRTime()), losses.min_snr(3.0)
    run = train(
        mlp(),
        dataset,
        steps=1,
        batch_size=size,
        seed=seed,
        times=density,
        weighting=weighting,
        condition_dropout=0.5,
        flip=True,
        progress=False,
    )
    (step,) = list(run)
    model = mlp()
    batch = dataset.batch(DataOrder(len(dataset), size, seed).indices(0))
    u = Uniforms.draw(seed, 0, size)
    t, weight = density.sample(model.sde, u.time)
    assert weight.std() > 0.1
    x = torch.where((u.flip < 0.5)[:, None], batch["x"].flip(-1), batch["x"])
    label = torch.where(u.condition_dropout < 0.5, CLASSES, batch["label"])
    assert 0 < int((label == CLASSES).sum()) < size
    per_sample = dsm_loss(model, x, t, step_noise(seed, 0, 0, x), weighting, conditions={"label": label})
    expected = (per_sample * weight).mean() / 2  # per number of the event
    expected.backward()  # type: ignore[no-untyped-call]
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    # the same float32 operations in another order of summation
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)
    assert step.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_global_generators_are_left_alone_and_do_not_matter() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(weights(trained(mlp(dropout=0.5)).model))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


def test_network_dropout_is_seeded_by_step_and_run() -> None:
    def masks(seed: int) -> list[Tensor]:
        seen: list[Tensor] = []
        model = mlp(dropout=0.5)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(
                    lambda module, inputs, output: seen.append(output == 0) if module.training else None
                )
        trained(model, seed=seed)
        return seen

    first, again, other = masks(1), masks(1), masks(2)
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in combinations(first + other, 2))


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 1e-2},
        {"betas": (0.5, 0.999)},
        {"betas": (0.9, 0.5)},
        {"weight_decay": 0.5},
        {"warmup": 4},
        {"decay": "cosine"},
        {"clip": 1e-9},  # far below AdamW's eps of 1e-8 times a few: steps shrink
        {"weighting": "likelihood"},
        {"times": times.LogSNRTime()},
        {"condition_dropout": 0.9},
        {"conditions": ()},
        {"flip": True},
        {"seed": 1},
        {"batch_size": 16},
        {"mixed_precision": "bf16"},
    ],
    ids=str,
)
def test_options_change_the_weights(option: dict[str, Any]) -> None:
    assert not torch.equal(weights(trained(**option).model), weights(trained().model))


def test_options_may_come_as_an_object_and_be_changed() -> None:
    options = TrainOptions(steps=4, batch_size=8, progress=False, ema=0.9)
    for given in ((options, {}), (dataclasses.replace(options, lr=0.5, seed=7), {"lr": 1e-3, "seed": 0})):
        run = train(mlp(), points(), given[0], **given[1])
        list(run)
        assert torch.equal(weights(run.model), weights(trained().model))
    run = train(mlp(), points(), options, lr=1e-2)
    list(run)
    assert torch.equal(weights(run.model), weights(trained(lr=1e-2).model))
    assert options.lr == 1e-3


def test_options_tell_what_they_are() -> None:
    """In help, and to editors: each with its type, its default and what it means, from its field alone."""
    fields = {field.name: field for field in dataclasses.fields(TrainOptions)}
    parameters = inspect.signature(train).parameters
    assert list(parameters) == ["model", "dataset", "options", *fields]
    types = get_type_hints(TrainOptions)
    help_text, of_the_object = (" ".join((one.__doc__ or "").split()) for one in (train, TrainOptions))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        assert parameters[name].default == (inspect.Parameter.empty if required else field.default)
        assert parameters[name].annotation == types[name]
        text = option_fields()[name].text
        assert text and f" {name}: {text}" in help_text and f" {name}: {text}" in of_the_object
    assert "AdamW's peak learning rate." in help_text and help_text.count("Raises:") == 1


def test_an_option_is_recorded_unless_it_changes_no_number() -> None:
    recorded = TrainOptions(steps=4, batch_size=8, decay="cosine").recorded("score")
    assert json.loads(json.dumps(recorded)) == recorded
    assert set(inspect.signature(TrainOptions).parameters) - recorded.keys() == {
        "folder", "resume", "save_every", "keep", "log_every", "max_seconds", "num_workers", "cpu", "progress",
        "callbacks", "sharding", "held_out_every", "early_stopping", "prefetch", "snapshots",
        "optimizer", "scaling", "held_out",  # told by name, and with the data
    }  # fmt: skip
    assert "steps" not in TrainOptions(steps=4, batch_size=8).recorded("score")  # a constant rate does not depend on it
    assert recorded.keys() - TrainOptions(steps=4, batch_size=8, decay="cosine").recorded("classifier").keys() == {
        "weighting", "condition_dropout", "conditions", "coupling", "augment",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {"steps": 1, "batch_size": 4, "learning_rate": 1.0}, "no option 'learning_rate'; it has steps, batch_s"),
        ((), {"steps": 1, "batch_size": 4, "label_dropout": 0.1}, "it is called condition_dropout now"),
        ((), {}, r"train needs steps=\.\.\. and batch_size=\.\.\."),
        ((), {"steps": 1}, r"train needs batch_size=\.\.\."),
        (({"steps": 1, "batch_size": 4},), {}, r"takes TrainOptions\(\.\.\.\) or options by keyword, got dict"),
    ],
)
def test_options_that_do_not_exist_or_are_missing_are_named(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train(mlp(), points(), *arguments, **options)


@pytest.mark.parametrize("option", [{"ema": 0.15}, {"ema_warmup": False}], ids=str)
def test_options_change_the_average_alone(option: dict[str, Any]) -> None:
    base, other = trained(), trained(**option)
    assert torch.equal(weights(base.model), weights(other.model))
    assert not torch.equal(weights(base.ema_model()), weights(other.ema_model()))


def test_accumulation_gives_the_same_step() -> None:
    base, split = trained(condition_dropout=0.5, flip=True), trained(condition_dropout=0.5, flip=True, accumulate=4)
    # the same gradients but for the order of summation; Adam divides by their size, so 1e-3 per step is the scale
    assert torch.allclose(weights(base.model), weights(split.model), rtol=0, atol=1e-5)
    assert not torch.equal(weights(base.model), weights(mlp()))


def test_mixed_precision_runs_the_network_in_bfloat16_and_keeps_float32_weights() -> None:
    seen: list[torch.dtype] = []
    model = mlp()
    assert isinstance(model.net, MLP)
    linear = next(m for m in model.net.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        seen.clear()
        trained(model, steps=1, mixed_precision=precision)
        assert set(seen) == {dtype}
        assert weights(model).dtype == torch.float32


class Plain(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style data set of a user's own, a sample at a time."""

    def __init__(self, source: Dataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        return {"x": sample["x"], "label": int(sample["label"]), "unused": 0.0}


def test_a_data_set_of_ones_own_and_workers_make_no_difference() -> None:
    expected = weights(trained().model)
    assert torch.equal(weights(trained(dataset=Plain(points())).model), expected)
    assert torch.equal(weights(trained(dataset=points(), num_workers=1).model), expected)
    assert torch.equal(weights(trained(dataset=Plain(points()), num_workers=1).model), expected)


class Augmented(Plain):
    """Draws from all three default generators, as users' data sets do."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        shift = torch.randn(2) + np.random.standard_normal() + random.gauss(0.0, 1.0)  # noqa: NPY002
        return {**sample, "x": sample["x"] + shift}


def test_what_a_data_set_draws_is_a_function_of_seed_step_and_process(tmp_path: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    dataset = Augmented(points())
    options = {"steps": 4, "batch_size": 8, "progress": False, "save_every": 2, "ema": 0.9}
    whole = weights(trained(dataset=dataset).model)
    assert not torch.equal(whole, weights(trained(dataset=Plain(points())).model))
    assert torch.equal(whole, weights(trained(dataset=dataset, num_workers=1).model))
    for workers in (0, 1):
        folder = tmp_path / str(workers)
        for step in train(mlp(), dataset, folder=folder, num_workers=workers, **options):  # type: ignore[arg-type]
            if step.step == 3:
                break
        resumed = trained(mlp(seed=1), dataset, folder=folder, resume=True, num_workers=workers, save_every=2)
        assert torch.equal(whole, weights(resumed.model))
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())

    def draws(**changes: int) -> Tensor:
        order, given = DataOrder(40, 8, 0), {"num_workers": 0, "seed": 0, "rank": 0, **changes}
        return batches(dataset, order, slice(0, 8), 0, 4, **given, pin_memory=False)()["x"]  # type: ignore[arg-type]

    for workers in (0, 1):
        assert torch.equal(draws(), draws(num_workers=workers))
        assert not torch.equal(draws(), draws(rank=1, num_workers=workers))
        assert not torch.equal(draws(), draws(seed=1, num_workers=workers))


def test_memory_is_pinned_only_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["pin_memory"])
        return torch.utils.data.DataLoader(*args, **options)

    monkeypatch.setattr(batches_module, "DataLoader", spy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there is a GPU, but it is not used
    trained(num_workers=1, cpu=True, steps=1)
    assert seen == [False]


def test_clipping_bounds_the_gradient_that_the_optimizer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any) -> Any:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat(gradients).norm().item())
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    norms = [s.grad_norm for s in train(mlp(), points(), steps=4, batch_size=8, clip=None, progress=False)]
    # both are norms of the same float32 numbers
    assert seen == pytest.approx(norms, rel=1e-6)
    seen.clear()
    limit = sorted(norms)[1] * 1.01
    clipped = [s.grad_norm for s in train(mlp(), points(), steps=4, batch_size=8, clip=limit, progress=False)]
    assert seen == pytest.approx([min(norm, limit) for norm in clipped], rel=1e-6)
    assert max(clipped) > limit


def test_the_optimizer_is_adamw() -> None:
    """Its rule written out (Loshchilov & Hutter 2019, algorithm 2), in float64."""
    module, lr, decay, (b1, b2) = Scalar(), 0.1, 0.2, (0.7, 0.9)
    optimizer = Optimizer(module, (b1, b2), decay)
    w, m, v = 1.0, 0.0, 0.0
    for k, g in enumerate([0.3, -1.0, 2.0], start=1):
        module.weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step(lr, optimizer.gradient_norm(), None)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - lr * decay * w - lr * (m / (1 - b1**k)) / (math.sqrt(v / (1 - b2**k)) + 1e-8)
        # a dozen float64 operations a step; torch keeps the bias corrections in float32 on some devices
        assert module.weight.item() == pytest.approx(w, rel=1e-6)
        assert module.weight.grad is None


class Watch(nn.Module):
    """Looks at no label, as on a GPU, and remembers what it was told."""

    null_conditions = {"label": CLASSES}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        self.labels.append(label)
        return self.weight * x


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    def rate(**options: Any) -> float:
        net = Watch()
        trained(ScoreModel(net, VP()), steps=40, batch_size=100, **options)
        return (torch.cat(net.labels) == CLASSES).float().mean().item()

    for probability in (0.1, 0.3):
        # five standard deviations of a binomial share of 4000
        bound = 5 * math.sqrt(probability * (1 - probability) / 4000)
        assert abs(rate(condition_dropout=probability) - probability) < bound
    assert rate(condition_dropout=0.0) == 0
    assert rate() == rate(condition_dropout=0.1)


def test_all_conditions_of_a_row_are_dropped_together() -> None:
    conditions = {"label": torch.arange(4), "vector": torch.ones(4, 2), "kept": torch.ones(4)}
    out = drop_conditions(conditions, {"label": 9, "vector": torch.zeros(2)}, torch.tensor([True, False, True, False]))
    assert out["label"].tolist() == [9, 1, 9, 3]
    assert out["vector"].tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert torch.equal(out["kept"], conditions["kept"])


def test_a_network_without_conditions_ignores_labels() -> None:
    run = trained(mlp(num_classes=None))
    assert run.step == 4


def test_training_continues_after_a_look_in_evaluation_mode() -> None:
    def run(peek: bool) -> Tensor:
        model = mlp(dropout=0.5)
        for _ in (r := train(model, points(), steps=4, batch_size=8, progress=False)):
            if peek:
                model.eval()
                with r.ema.applied(), torch.no_grad():
                    model(torch.zeros(1, 2), torch.tensor(0.5))
        return weights(model)

    assert torch.equal(run(peek=True), run(peek=False))


def test_training_is_in_training_mode_when_a_part_was_looked_at_in_evaluation_mode() -> None:
    def run(part: str | None) -> Tensor:
        model = mlp(dropout=0.5)
        for _ in train(model, points(), steps=3, batch_size=8, progress=False):
            if part is not None:
                model.get_submodule(part).eval()
        return weights(model)

    expected = run(None)
    for part in ("net", "net.blocks.0.dropout"):
        assert torch.equal(run(part), expected)


def test_the_trial_before_training_changes_nothing() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout, self.head = nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            self.calls += 1
            return self.head(self.dropout(self.norm(x)))

    model = ScoreModel(Counts(), VP())
    model.net.get_submodule("dropout").eval()  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]

    def compiled(*args: Any) -> Tensor:  # as net.compile() does: a trial must not set it going
        raise AssertionError("called")

    model.net._compiled_call_impl = compiled  # type: ignore[union-attr]
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    train(model, points(), steps=1, batch_size=4, progress=False)
    assert torch.equal(generator, torch.get_rng_state()) and modes == [module.training for module in model.modules()]
    assert model.net._compiled_call_impl is compiled  # type: ignore[union-attr]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_a_stopped_clock_ends_the_run_and_saves(tmp_path: Path) -> None:
    run = trained(steps=1000, max_seconds=1e-9, folder=tmp_path)
    assert run.step == 1  # a step was under way when time was up
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000001"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_records_and_log_tell_the_same(tmp_path: Path) -> None:
    run = train(mlp(), points(), steps=7, batch_size=4, folder=tmp_path, log_every=3, lr=1e-2, warmup=3, progress=False)
    records = list(run)
    assert [r.step for r in records] == list(range(1, 8)) and [r.samples for r in records] == list(range(4, 29, 4))
    assert all(a.seconds <= b.seconds for a, b in pairwise(records))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]
    for line, window in zip(lines, (records[:3], records[3:6], records[6:]), strict=True):
        # float64 sums of the same float32 losses
        assert line["loss"] == pytest.approx(sum(r.loss for r in window) / len(window), rel=1e-12)
        assert line["grad_norm"] == window[-1].grad_norm and line["lr"] == window[-1].lr
        assert line["samples"] == window[-1].samples
    with pytest.raises(AttributeError):
        records[0].step = 5  # type: ignore[misc]


def test_a_progress_bar_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    trained(progress=False)
    assert capsys.readouterr().err == ""
    trained(progress=True)
    assert "4/4" in capsys.readouterr().err


def test_the_loss_of_a_network_that_says_nothing_is_one() -> None:
    """U-Nets start with output zero, so that the loss is the mean square of the noise: 1, within its spread."""
    with seeded(torch.device("cpu"), 0):
        net = UNet(1, width=16, multipliers=(1,), blocks=1, attention_levels=())
    data = from_tensors(torch.randint(0, 256, (64, 1, 8, 8)).to(torch.uint8))
    (step,) = list(train(ScoreModel(net, VP()), data, steps=1, batch_size=64, progress=False))
    # mean of 4096 squares of normals, each of variance 2: five standard deviations
    assert abs(step.loss - 1) < 5 * math.sqrt(2 / 4096)


# -- what stops it -----------------------------------------------------------------------------------------------------


class OneTime:
    def sample(self, sde: Any, u: Tensor) -> times.Times:
        return times.Times(torch.tensor(0.5), torch.ones_like(u))


class Spoilt(Plain):
    """One sample is so large that its square is infinite in float32."""

    def __init__(self, source: Dataset, bad: int) -> None:
        super().__init__(source)
        self.bad = bad

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if index == self.bad:
            sample["x"] = sample["x"] * 1e30
        return sample


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    dataset, size = points(), 4
    order = DataOrder(len(dataset), size, 0)
    bad = int(order.indices(4)[2])  # first seen in step 5
    model, good = mlp(predicts="x0"), {}  # of which the prediction of the noise grows with x
    run = train(model, Spoilt(dataset, bad), steps=10, batch_size=size, folder=tmp_path, save_every=2, progress=False)
    with pytest.raises(FloatingPointError, match=r"step 5, .* last checkpoint is .*step-00000004"):
        for step in run:
            good[step.step] = weights(model).clone()
    assert sorted(good) == [1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000004"]
    assert torch.equal(weights(load_model(tmp_path, ema=False)), good[4])
    assert torch.equal(weights(model), good[4])
    with pytest.raises(FloatingPointError, match="nothing was saved"):
        trained(mlp(predicts="x0"), Spoilt(dataset, bad), steps=10, batch_size=size)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    # the loss and its gradient are finite, but a step of this length leaves the range of float32
    with pytest.raises(FloatingPointError, match=r"weight net\..* is not finite after step 1"):
        trained(steps=1, lr=1e39, folder=tmp_path)
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 9, "accumulate": 2}, ValueError, "take a multiple of 2"),
        ({"lr": 0.0}, ValueError, "lr must be finite and above 0"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr must be a real number"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"warmup": 5}, ValueError, "longer than the whole run"),
        ({"decay": "linear"}, ValueError, "'constant', 'cosine'"),
        ({"clip": 0.0}, ValueError, "clip"),
        ({"ema": 1.0}, ValueError, "ema"),
        ({"weighting": "sharp"}, ValueError, "weighting must be one of 'simple'"),
        ({"weighting": 3}, TypeError, "a name, a function"),
        ({"weighting": losses.edm}, TypeError, r"weighting=losses\.edm\(\.\.\.\)"),
        ({"weighting": losses.min_snr}, TypeError, r"weighting=losses\.min_snr\(\.\.\.\)"),
        ({"weighting": lambda sde, t: torch.ones(3)}, ValueError, r"\(3,\)|3"),
        ({"times": "uniform"}, TypeError, r"such as UniformTime\(\)"),
        ({"times": times.UniformTime}, TypeError, "the class UniformTime; add its parentheses"),
        ({"times": OneTime()}, ValueError, r"shaped like u, \(2,\); t is"),
        ({"model": ScoreModel(nn.Bilinear(2, 1, 2), VP())}, ValueError, "no loss for dataset|shape"),
        ({"model": ScoreModel(MLP(3, width=8, depth=1, num_classes=CLASSES), VP())}, ValueError, "dim=3"),
        ({"condition_dropout": 1.0}, ValueError, "probability"),
        ({"conditions": ("text",)}, ValueError, r"\['text'\].*\['label', 'x'\]"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"flip": "yes"}, TypeError, "flip must be True or False, got 'yes'"),
        ({"save_every": 2}, ValueError, "save_every needs a folder"),
        ({"resume": True}, ValueError, "resume needs a folder"),
        ({"keep": 0}, ValueError, "keep"),
        ({"log_every": 0}, ValueError, "log_every"),
        ({"max_seconds": 0.0}, ValueError, "max_seconds"),
        ({"mixed_precision": "fp16"}, ValueError, "loss scaling"),
        ({"num_workers": -1}, ValueError, "num_workers"),
        ({"model": nn.Linear(2, 2)}, TypeError, r"ScoreModel\(net, sde\)"),
        ({"model": ScoreModel(lambda x, c: x, VP())}, ValueError, "no parameters"),
        ({"model": mlp().half()}, TypeError, "mixed_precision='bf16'"),
        ({"model": mlp().under(VP(T=0.9))}, TypeError, "under another schedule"),
        ({"model": mlp(num_classes=None), "condition_dropout": 0.1}, ValueError, "null_conditions"),
        ({"dataset": []}, ValueError, "empty"),
        ({"dataset": 3}, TypeError, "from_tensors"),
        ({"dataset": [torch.zeros(2)]}, TypeError, "a dict with a tensor 'x'"),
        ({"dataset": [{"x": torch.zeros(2, dtype=torch.int64)}]}, ValueError, "how many levels"),
        ({"dataset": [{"x": torch.zeros(2)}]}, ValueError, "Give the data set labels"),
        ({"dataset": from_tensors(torch.randn(4, 2), torch.arange(4))}, ValueError, "num_classes=4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_before_training(
    option: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = None if {"save_every", "resume"} & option.keys() else tmp_path / "run"
    arguments = {"steps": 4, "batch_size": 8, "progress": False, "folder": folder, **option}
    model, dataset = arguments.pop("model", None) or mlp(), arguments.pop("dataset", None)
    with pytest.raises(error, match=message):
        train(model, points() if dataset is None else dataset, **arguments)
    assert not (tmp_path / "run").exists()


def test_labels_out_of_range_are_named_before_they_reach_the_device() -> None:
    for bad, text in ((CLASSES + 4, "0 to 7"), (-2, "-2 to 2")):
        net, data = Watch(), [{"x": torch.zeros(2), "label": k} for k in (0, 1, 2, bad)]
        with pytest.raises(ValueError, match=f"labels of the batch of step 1 run from {text}.*for {CLASSES} classes"):
            trained(ScoreModel(net, VP()), data, batch_size=4)
        assert len(net.labels) == 1  # the trial with a good sample
    data[3]["label"] = CLASSES  # the null label is one of the network's own
    trained(dataset=data, batch_size=4)


def test_another_device_than_accelerate_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(cpu=True, steps=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"on 'cuda', but Accelerate chose 'cpu' earlier.*new process"):
        train(mlp(), points(), steps=1, batch_size=4)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as `accelerate launch --cpu` says
    trained(steps=1)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write into"):
        train(mlp(), points(), steps=1, batch_size=4, folder=tmp_path / "file" / "run")


# -- many processes ----------------------------------------------------------------------------------------------------

_SCRIPT = """
import os, re, sys, torch
from pathlib import Path
from accelerate.utils import gather_object
from test_train import classifier, levels, mlp
from scoresde import times
from scoresde.train import CheckpointError, describe, train, train_classifier
from scoresde.train.checkpoint import read_training
torch.set_num_threads(1)
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
options = dict(
    steps=3, batch_size=8, accumulate=2, flip=True, condition_dropout=0.5, times=times.Stratified(),
    dequantize=True, cpu=True, progress=False, log_every=1,
)

run = train(mlp(seed=rank), levels(), folder=folder, **options)
for step in run:
    if step.step == 2:
        break
assert run.save() == folder / "step-00000002"
assert read_training(describe(folder))["options"]["processes"] == 2
run.close()

model, seeds = mlp(seed=5 + rank), []
model.net.register_forward_pre_hook(lambda module, _: seeds.append(torch.initial_seed()) if module.training else None)
for step in (run := train(model, levels(), folder=folder, resume=True, **options)):
    assert step.step == 3
assert run.save() == folder / "step-00000003"
assert len(set(gather_object(seeds[:1]))) == 2  # that of dropout inside the network

# Conditions dropped by name, and a classifier.
by_name = {**options, "condition_dropout": {"label": 0.5}}
for _ in train(mlp(), levels(), folder=folder.with_name("named"), **by_name):
    pass
without = {name: value for name, value in options.items() if name != "condition_dropout"}
for _ in train_classifier(classifier(), levels(), folder=folder.with_name("classified"), **without):
    pass

for path, message in (
    (folder if rank == 0 else folder / "elsewhere", "see different checkpoints in .*: step-00000003, none"),
    (Path(__file__) / "run", "cannot write into"),
):
    try:
        train(mlp(), levels(), folder=path, resume=True, **options)
    except CheckpointError as error:
        assert re.search(message, str(error)), error
    else:
        raise AssertionError(message)

# torch's data-parallel wrapper leaves threads of gloo behind, which now and then abort an interpreter that is ending
torch.distributed.barrier()
os._exit(0)
"""


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """With a resumption, on levels; each refusal of one process is one of all."""
    options: dict[str, Any] = {"flip": True, "condition_dropout": 0.5, "times": times.Stratified(), "log_every": 1}
    alone = trained(dataset=levels(), steps=3, folder=tmp_path / "one", dequantize=True, **options)
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    # this checkout, wherever another one is installed
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]),
    }
    done = subprocess.run(
        [*command, str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    together = load_model(tmp_path / "two", ema=False)
    # gradients summed in another order; Adam's first steps magnify small components to the size of lr = 1e-3
    assert torch.allclose(weights(alone.model), weights(together), rtol=0, atol=1e-5)
    assert not torch.allclose(weights(mlp()), weights(together), rtol=0, atol=1e-4)
    named = trained(dataset=levels(), steps=3, dequantize=True, **{**options, "condition_dropout": {"label": 0.5}})
    same = load_model(tmp_path / "named", ema=False)
    assert torch.allclose(weights(named.model), weights(same), rtol=0, atol=1e-5)
    assert not torch.allclose(weights(together), weights(same), rtol=0, atol=1e-4)
    del options["condition_dropout"]
    list(classified := train_classifier(classifier(), levels(), steps=3, batch_size=8, dequantize=True, **options))
    same_classifier = load_classifier(tmp_path / "classified", ema=False)
    assert torch.allclose(weights(classified.model), weights(same_classifier), rtol=0, atol=1e-5)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["step"] for line in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        # the mean of the processes' mean losses, to float32 rounding
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5) and a["samples"] == b["samples"]
