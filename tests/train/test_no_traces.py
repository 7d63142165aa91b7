"""Looking at a model in training, and training itself, leave nothing changed but what they are for."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import Augmented, classifier, mlp, points, trained, weights
from torch import Tensor, nn

import scoresde.train.gradient as gradient_module
from scoresde import losses, times
from scoresde.models import ScoreModel
from scoresde.nn import MLP, UNet
from scoresde.sampling import sample
from scoresde.sde import VP
from scoresde.solvers import DDIM
from scoresde.train import EMA, train, train_classifier
from scoresde.train.batches import batches
from scoresde.train.draws import DataOrder, draws_itself, is_of_ours, seeded

OPTIONS: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False, "ema": 0.5}


class Normed(nn.Module):
    """Batch norm, dropout, and a buffer that counts in any mode."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(torch.device("cpu"), 0):
            self.norm, self.dropout, self.head = nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.dropout(self.norm(x)))


# -- the averaged weights, for a look ----------------------------------------------------------------------------------


def looked_at(model: ScoreModel, look: Callable[[Any], None]) -> Tensor:
    run = train(model, points(), **OPTIONS)
    for _ in run:
        look(run)
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def sampled(run: Any) -> None:
    with run.ema.applied():
        assert not any(module.training for module in run.model.modules())
        shown = sample(run.model, (64, 2), solver=DDIM(), steps=3, seed=0).x
        assert torch.equal(
            shown, sample(run.model, (64, 2), solver=DDIM(), steps=3, seed=0).x
        )  # no dropout, nothing learnt
        assert torch.equal(shown, sample(run.ema_model(), (64, 2), solver=DDIM(), steps=3, seed=0).x)
    assert all(module.training for module in run.model.modules())


def nested(run: Any) -> None:
    with run.ema.applied():
        with run.ema.applied():
            sample(run.model, (8, 2), solver=DDIM(), steps=2, seed=0)
        assert not run.model.training and torch.equal(weights(run.model), weights(run.ema_model()))


def failing(run: Any) -> None:
    with pytest.raises(KeyboardInterrupt), run.ema.applied():
        run.model(torch.ones(3, 2), torch.tensor(0.5))
        raise KeyboardInterrupt


def careless(run: Any) -> None:
    with run.ema.applied():
        run.model.train()
        run.model(torch.ones(3, 2), torch.tensor(0.5))


def in_inference_mode(run: Any) -> None:
    with torch.inference_mode(), run.ema.applied():
        run.model(torch.ones(3, 2), torch.tensor(0.5))


@pytest.mark.parametrize("look", [sampled, nested, failing, careless, in_inference_mode])
def test_a_look_at_the_averages_leaves_the_training_as_it_was(look: Callable[[Any], None]) -> None:
    def model() -> ScoreModel:
        return ScoreModel(Normed(), VP())

    assert torch.equal(looked_at(model(), look), looked_at(model(), lambda run: None))


def test_each_module_gets_its_own_mode_back() -> None:
    net = Normed().train()
    net.norm.eval()
    ema = EMA(net, 0.5)
    with ema.applied():
        assert not net.training and not net.dropout.training
        net.dropout.train()
    assert net.training and net.dropout.training and not net.norm.training


def test_training_does_not_go_on_inside(tmp_path: Path) -> None:
    run = train(mlp(), points(), folder=tmp_path, **OPTIONS)
    next(run)
    with run.ema.applied():
        for attempt in (lambda: next(run), run.save, run.ema.update):
            with pytest.raises(RuntimeError, match=r"refused inside `with ema\.applied\(\)`.*Leave the block"):
                attempt()
    assert [step.step for step in run] == [2, 3]
    assert torch.equal(weights(run.model), weights(trained(**OPTIONS).model))


def test_an_average_checks_what_it_is_given() -> None:
    for bad in ({"decay": "a"}, {"decay": 1.5}, {"decay": True}, {"warmup": "no"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
            EMA(nn.Linear(1, 1), **bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a Module"):
        EMA([], 0.5)  # type: ignore[arg-type]


# -- the generators of the process -------------------------------------------------------------------------------------


class Drawing(threading.Thread):
    """Draws from all default generators until it is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.over, self.started, self.drawn = threading.Event(), threading.Event(), []  # type: ignore[var-annotated]

    def run(self) -> None:
        while not self.over.is_set():
            self.drawn.append(self.one())
            self.started.set()

    @staticmethod
    def one() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.random())  # noqa: NPY002


@pytest.mark.parametrize("kind", ["score", "classifier", "workers"])
def test_what_another_thread_draws_is_not_disturbed(kind: str) -> None:
    """By training without dropout on data of ours: the thread's numbers are those of a thread alone."""

    def seed() -> None:
        torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002

    state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    model, start = (classifier(), train_classifier) if kind == "classifier" else (mlp(), train)
    data, workers = points(), int(kind == "workers")
    try:
        seed()
        other = Drawing()
        other.start()
        other.started.wait()
        run = start(model, data, **{**OPTIONS, "steps": 30}, num_workers=workers)  # type: ignore[operator]
        list(run)
        run.ema_model()
        other.over.set()
        other.join()
        seed()
        assert other.drawn == [other.one() for _ in other.drawn] and len(other.drawn) > 10
    finally:
        torch.set_rng_state(state[0]), random.setstate(state[1]), np.random.set_state(state[2])  # noqa: NPY002


def test_generators_are_set_only_where_something_may_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    original = gradient_module.seeded_where

    def spy(draws: bool, *rest: Any) -> Any:
        asked.append(draws)
        return original(draws, *rest)

    monkeypatch.setattr(gradient_module, "seeded_where", spy)

    def of(**options: Any) -> bool:
        asked.clear()
        trained(steps=1, **options)
        (found,) = asked
        return found

    class Density:
        def sample(self, sde: Any, u: Tensor) -> times.Times:
            return times.UniformTime().sample(sde, u)

    assert not of() and not of(times=times.Stratified(), weighting="edm") and not of(weighting=losses.min_snr())
    assert of(model=mlp(dropout=0.1)) and of(times=Density()) and of(weighting=lambda sde, t: sde.sigma(t))
    assert of(times=times.Stratified(Density()))


def test_which_modules_may_draw() -> None:
    quiet = [
        nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.BatchNorm1d(2)), nn.Dropout(0.0), nn.MultiheadAttention(4, 2),
        MLP(2, width=4, depth=1), UNet(1, width=16, multipliers=(1,), blocks=1, num_classes=2),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), nn.LSTM(2, 2), nn.LPPool1d(2, 2),
    ]  # fmt: skip
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    replaced = nn.Linear(2, 2)
    replaced.forward = lambda x: torch.randn_like(x)  # type: ignore[method-assign]
    drawing = [
        nn.Sequential(nn.Dropout(0.1)), nn.Dropout2d(), nn.AlphaDropout(0.5), nn.RReLU(), nn.FractionalMaxPool2d(2, 1),
        nn.MultiheadAttention(4, 2, dropout=0.1), nn.LSTM(2, 2, num_layers=2, dropout=0.1), Normed(), hooked, replaced,
        MLP(2, width=4, depth=1, dropout=0.2), nn.TransformerEncoderLayer(4, 2, 8),
    ]  # fmt: skip
    for module in quiet:
        assert not draws_itself(module) or isinstance(module, nn.LPPool1d), module
    for module in drawing:
        assert draws_itself(module), module
    assert is_of_ours(losses.edm()) and is_of_ours(times.UniformTime()) and not is_of_ours(lambda: None)


def test_a_data_set_of_a_subclass_is_seeded_like_any_other() -> None:
    class Shifted(type(points())):  # type: ignore[misc]
        def batch(self, indices: Any) -> dict[str, Tensor]:
            found: dict[str, Tensor] = super().batch(indices)
            return {**found, "x": found["x"] + torch.randn(2) + np.random.standard_normal()}  # noqa: NPY002

    own = points()
    own.__class__ = Shifted

    def drawn(seed: int) -> Tensor:
        order = DataOrder(40, 8, 0)
        return batches(own, order, slice(0, 8), 0, 4, num_workers=0, seed=seed, rank=0, pin_memory=False)()["x"]

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    state = torch.get_rng_state()
    one, two = (weights(trained(dataset=own).model) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())
    trained(dataset=Augmented(points()))
    assert torch.equal(state, torch.get_rng_state())


def test_another_default_dtype_changes_nothing() -> None:
    wanted, kept = weights(trained().model), torch.get_default_dtype()
    data, model = points(), mlp()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(weights(trained(model, data).model), wanted)
    finally:
        torch.set_default_dtype(kept)
