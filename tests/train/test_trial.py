"""What a run needs at its end is tried before its first step; what cannot be trained is refused there."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import mlp, points, trained, weights
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from scoresde import losses, times
from scoresde.data import from_tensors
from scoresde.models import ClassifierModel, ScoreModel
from scoresde.sde import VP, ChainSDE
from scoresde.train import EMA, TrainOptions, ema_model, load_model, train, train_classifier
from scoresde.train.copying import copied
from scoresde.train.draws import seeded

OPTIONS: dict[str, Any] = {"steps": 3, "batch_size": 4, "progress": False, "ema": 0.5}


class Net(nn.Module):
    """Two layers; ``make`` adds to it, ``use`` answers in its place."""

    def __init__(
        self, make: Callable[[Any], Any] | None = None, use: Callable[[Any, Tensor], Any] | None = None
    ) -> None:
        super().__init__()
        with seeded(torch.device("cpu"), 0):
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.use = use
        if make is not None:
            make(self)

    def forward(self, x: Tensor, c: Tensor) -> Any:
        return self.b(self.a(x).tanh()) if self.use is None else self.use(self, x)


def holds(make: Callable[[], Any]) -> Callable[[Net], None]:
    return lambda net: setattr(net, "thing", make())


def keeps(net: Net, x: Tensor) -> Tensor:
    net.feature = net.a(x)  # a tensor that is no leaf
    net.more = {"features": [net.feature.tanh(), (net.feature.exp(),)]}  # type: ignore[assignment]
    return net.b(net.feature)


def quietly(norm: Callable[[nn.Module], Any]) -> Callable[[Net], None]:
    def make(net: Net) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks that are deprecated, and in use
            norm(net.a)

    return make


def a_method(net: Net) -> None:
    net.method = net.a.forward  # type: ignore[assignment]


# -- what a network may hold -------------------------------------------------------------------------------------------

HELD: dict[str, tuple[Callable[[Net], Any] | None, Callable[[Any, Tensor], Any] | None]] = {
    "features of a forward pass": (None, keeps),
    "weight norm by hooks": (quietly(weight_norm), None),
    "spectral norm by hooks": (quietly(spectral_norm), None),
    "weight norm": (lambda net: parametrizations.weight_norm(net.a), None),
    "spectral norm": (lambda net: parametrizations.spectral_norm(net.a), None),
    "orthogonal": (lambda net: parametrizations.orthogonal(net.a), None),
    "a lock": (holds(threading.RLock), None),
    "a condition": (holds(threading.Condition), None),
    "thread-local values": (holds(threading.local), None),
    "an open file": (holds(lambda: Path(__file__).open()), None),  # noqa: SIM115
    "a Python module": (holds(lambda: sys), None),
    "a function": (holds(lambda: lambda x: x), None),
    "a random generator": (holds(torch.Generator), None),
    "a method of its part": (a_method, lambda net, x: net.b(net.method(x))),
    "tied weights": (lambda net: setattr(net.b, "weight", net.a.weight), None),
    "a transposed weight": (lambda net: setattr(net.a, "weight", nn.Parameter(torch.eye(2).add(1).t())), None),
    "a boolean buffer": (lambda net: net.register_buffer("mask", torch.ones(2, dtype=torch.bool)), None),
    "infinities that are not saved": (
        lambda net: net.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False),
        None,
    ),
    "a layer yet to get its shape": (lambda net: setattr(net, "a", nn.LazyLinear(2)), None),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy modules")
def test_a_network_that_may_be_trained_can_be_averaged_and_saved(name: str, tmp_path: Path) -> None:
    """The average of a copy is that of the model under ``applied``: the copy computes with all of its own weights."""
    made = ScoreModel(Net(*HELD[name]), VP())
    run = train(made, points(), folder=tmp_path, **OPTIONS)
    list(run)
    x, t = torch.randn(5, 2), torch.tensor(0.4)
    averaged = run.ema_model()
    with torch.no_grad():
        with run.ema.applied():
            wanted = made(x, t)
        assert torch.equal(averaged(x, t), wanted)
        assert not torch.equal(made.eval()(x, t), wanted)
        again = ScoreModel(Net(*HELD[name]), VP())
        again(x, t)  # a lazy one gets its shapes
        assert torch.equal(load_model(tmp_path, net=again.net)(x, t), wanted)
    assert not averaged.training and not any(p.requires_grad for p in averaged.parameters())
    own = {p.data_ptr() for p in made.parameters()}
    assert not own & {p.data_ptr() for p in averaged.parameters()}


def holds_on(net: Net) -> None:
    net.activation = lambda x: net.a(x).tanh()  # type: ignore[assignment]


def by_hook(net: Net) -> None:
    net.a.register_forward_hook(lambda module, inputs, output: output + net.b(inputs[0]))


REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "a generator": (holds(lambda: (i for i in range(3))), None, TypeError, r"attribute net\.thing is a generator"),
    "deep in a list": (
        lambda net: setattr(net.a, "thing", [{"k": (i for i in range(3))}]),
        None,
        TypeError,
        r"attribute net\.a\.thing is a list",
    ),
    "a lambda with a module": (
        holds_on, lambda net, x: net.b(net.activation(x)), ValueError, "weights of the original",
    ),
    "a hook with a module": (by_hook, None, ValueError, "weights of the original"),
    "no gradient": (
        None, lambda net, x: torch.no_grad()(net.b)(x), ValueError, "does not depend on any weight that is trained",
    ),
    "a detached answer": (None, lambda net, x: net.b(x).detach(), ValueError, "does not depend on any weight"),
    "NaN": (None, lambda net, x: net.b(x) * torch.nan, ValueError, "it is nan; the network answers values that"),
    "a weight of NaN": (
        lambda net: nn.init.constant_(net.a.bias, torch.nan), None, ValueError, r"weight net\.a\.bias is not finite",
    ),
    "an attribute that is missing": (None, lambda net, x: net.nothing, ValueError, "no loss for dataset.*'nothing'"),
    "an index": (None, lambda net, x: [][0], ValueError, "no loss for dataset.*out of range"),
    "infinities in a buffer": (
        lambda net: net.register_buffer("mask", torch.full((2,), -torch.inf)), None, ValueError, "mask.*persistent",
    ),
    "a sparse buffer": (
        lambda net: net.register_buffer("some", torch.eye(2).to_sparse()), None, TypeError, "some is torch.sparse",
    ),
    "an expanded buffer": (
        lambda net: net.register_buffer("some", torch.zeros(1).expand(5)), None, TypeError, r"net\.some repeats",
    ),
    "no numbers": (lambda net: net.to("meta"), None, ValueError, r"net\.a\.weight is on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_fail_at_the_end_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    make, use, error, message = REFUSED[name]
    made = Net(make, use)
    before = {k: v.clone() for k, v in made.state_dict().items()} if name != "no numbers" else {}
    with pytest.raises(error, match=message):
        train(ScoreModel(made, VP()), points(), folder=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
    for key, value in before.items():  # the trial has put everything back
        assert torch.equal(value.to_dense().nan_to_num(), made.state_dict()[key].to_dense().nan_to_num())


class Extra(Net):
    def get_extra_state(self) -> Any:
        return {"words": 1}

    def set_extra_state(self, state: Any) -> None: ...


def test_a_state_that_is_no_tensor_and_a_data_set_that_is_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"holds net\._extra_state, .*checkpoint holds tensors alone"):
        train(ScoreModel(Extra(), VP()), points(), folder=tmp_path / "run", **OPTIONS)
    train(ScoreModel(Extra(), VP()), points(), **OPTIONS)  # nothing is saved
    data = points()
    data.class_names = (object(), object(), object())  # type: ignore[assignment]
    with pytest.raises((TypeError, ValueError), match=r"JSON|names"):
        train(mlp(), data, folder=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_tensors_outside_of_the_model_that_would_be_trained_are_named() -> None:
    with pytest.warns(UserWarning, match="2 tensors that require a gradient and are not parameters") as caught:
        train(
            ScoreModel(
                Net(lambda net: setattr(net, "parts", [nn.Linear(2, 2)]), lambda n, x: n.parts[0](n.b(x))), VP()
            ),
            points(),
            **OPTIONS,
        )
    assert caught[0].filename == __file__


def test_a_copy_is_detached_and_shares_only_what_has_no_copy() -> None:
    net = Net(holds(threading.Lock), keeps)
    net(torch.ones(1, 2), torch.zeros(1))
    other = copied(net)
    assert other.thing is net.thing and other.a.weight is not net.a.weight
    assert torch.equal(other.feature, net.feature) and not other.feature.requires_grad
    assert other.more["features"][1][0] is not net.more["features"][1][0]  # type: ignore[index]
    assert net.feature.requires_grad  # the original keeps its graph
    with torch.inference_mode():
        assert not any(p.is_inference() for p in ema_model(net, EMA(net)).parameters())


# -- times, weights, weightings ----------------------------------------------------------------------------------------


class Density:
    """Answers what it is told to, of uniforms."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        self.answer = answer

    def sample(self, sde: Any, u: Tensor) -> Any:
        return self.answer(u)


def late(u: Tensor, bad: float) -> Tensor:
    """1, but for the last of ten parts."""
    return torch.where(u > 0.9, bad, 1.0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"weighting": lambda sde, t: late(t, -1.0)}, r"weighting must be finite and at least 0; at t = 0\.91"),
        ({"weighting": lambda sde, t: late(t, torch.nan)}, "weighting must be finite .* it is nan"),
        ({"weighting": lambda sde, t: late(t, torch.inf)}, "weighting must be finite .* it is inf"),
        ({"weighting": lambda sde, t: -1.0}, "weighting must be finite .* it is -1. A negative"),
        ({"weighting": lambda sde, t: 0 * t}, "weighting and the weights of times are 0"),
        ({"weighting": lambda sde, t: torch.ones(3)}, r"weighting must answer .*got a tensor \(3,\)"),
        ({"weighting": lambda sde, t: t > 0}, "weighting must answer .*bool"),
        ({"weighting": lambda sde, t: "heavy"}, "weighting failed"),
        ({"weighting": lambda t: t}, "weighting failed .*positional"),
        ({"weighting": lambda sde, t: 1 / 0}, "weighting failed .*zero"),
        ({"times": Density(lambda u: (u, late(u, -1.0)))}, r"times\.sample must .*at u = 0\.91.* weight is -1"),
        ({"times": Density(lambda u: (u * late(u, torch.nan), u))}, r"times\.sample must .* t is nan"),
        ({"times": Density(lambda u: (u * late(u, 3.0), u))}, r"times\.sample must return t from 0 to 1"),
        ({"times": Density(lambda u: (u, u[:1]))}, r"times\.sample must .*weight is a tensor \(1,\)"),
        ({"times": Density(lambda u: u)}, r"times\.sample must return t and weight"),
        ({"times": Density(lambda u: 1 / 0)}, r"times\.sample failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_weights_that_teach_what_is_wrong_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        train(mlp(), points(), **OPTIONS, **option)


def test_sound_weights_are_taken() -> None:
    """All that the library has, under an SDE without signal at its end as well, where some diverge."""
    chain = VP().discretize(30)
    for weighting in losses.WEIGHTINGS:
        train(mlp(predicts="v"), points(), **OPTIONS, weighting=weighting)
    model = mlp(predicts="v")
    for density in (times.LevelTime(chain), times.LogSNRTime(), times.LogNormalSigma(), times.Stratified()):
        train(model, points(), **OPTIONS, times=density)
    train(ScoreModel(mlp().net, ChainSDE(chain), predicts="x0"), points(), **OPTIONS, times=times.LevelTime(chain))
    train(mlp(), points(), **OPTIONS, weighting=lambda sde, t: 2.0)  # one for all


# -- kinds of numbers, modes, data -------------------------------------------------------------------------------------


def test_numbers_of_numpy_and_torch_are_taken_and_recorded_as_plain_ones(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "steps": np.int64(4), "batch_size": np.int32(8), "lr": np.float32(0.5), "seed": np.uint64(3),
        "betas": [np.float32(0.5), torch.tensor(0.75)], "weight_decay": torch.tensor(0.25), "warmup": np.uint8(1),
        "clip": np.float64(1.0), "ema": torch.tensor(0.5), "ema_warmup": np.bool_(True), "flip": torch.tensor(True),
        "condition_dropout": {"label": np.float16(0.5)}, "conditions": ["label"], "accumulate": torch.tensor(2),
        "save_every": np.int64(2), "keep": np.int8(1), "log_every": np.int64(1), "max_seconds": np.int64(100),
        "num_workers": np.int64(0), "cpu": np.bool_(True), "progress": np.bool_(False),
    }  # fmt: skip
    plain: dict[str, Any] = {
        "steps": 4, "batch_size": 8, "lr": 0.5, "seed": 3, "betas": (0.5, 0.75), "weight_decay": 0.25, "warmup": 1,
        "clip": 1.0, "ema": 0.5, "flip": True, "condition_dropout": {"label": 0.5}, "conditions": ("label",),
        "accumulate": 2, "save_every": 2, "keep": 1, "log_every": 1, "max_seconds": 100.0, "cpu": True,
        "progress": False,
    }  # fmt: skip
    assert TrainOptions(**given, folder="x") == TrainOptions(**plain, folder="x")
    run = train(mlp(), points(), folder=tmp_path, **given)
    list(run)
    assert torch.equal(weights(run.model), weights(trained(**plain, folder=tmp_path / "plain").model))
    recorded = json.loads((tmp_path / "step-00000004" / "training.json").read_text())["options"]
    assert recorded == json.loads((tmp_path / "plain" / "step-00000004" / "training.json").read_text())["options"]


@pytest.mark.parametrize(
    "option",
    [
        {"flip": "no"}, {"flip": 1}, {"resume": "no"}, {"progress": "no"}, {"cpu": 0}, {"ema_warmup": "False"},
        {"dequantize": []}, {"ema": "a"}, {"betas": 0.9}, {"betas": (0.9,)}, {"betas": ("a", "b")}, {"lr": True},
        {"lr": [1e-3]}, {"lr": np.ones(1)}, {"steps": True}, {"steps": 3.0}, {"batch_size": np.float64(8)},
        {"seed": "x"}, {"seed": None}, {"folder": 3}, {"folder": b"x"}, {"folder": ""}, {"max_seconds": float("inf")},
        {"decay": ["cosine"]}, {"mixed_precision": torch.bfloat16}, {"weighting": None}, {"times": None},
        {"condition_dropout": "0.1"}, {"condition_dropout": {3: 0.1}}, {"condition_dropout": float("nan")},
        {"conditions": 3}, {"conditions": [3]}, {"conditions": ["label", "label"]}, {"conditions": {"label": 1}},
        {"num_workers": 1.0}, {"clip": "1"}, {"keep": None}, {"log_every": "a"}, {"weight_decay": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_another_kind_are_refused_by_name(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises((TypeError, ValueError), match=name):
        train(mlp(), points(), **{**OPTIONS, **option})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
def test_training_computes_gradients_whatever_mode_it_is_called_in(mode: Callable[[], Any]) -> None:
    wanted = weights(trained().model)
    model = mlp()
    with mode():
        run = train(model, points(), steps=4, batch_size=8, progress=False, ema=0.9)
        list(run)
        averaged = run.ema_model()
        inside = from_tensors(torch.eye(2), torch.zeros(2).long(), num_classes=3)
    assert torch.equal(weights(model), wanted)
    assert not any(p.is_inference() for p in [*averaged.parameters(), *run.ema.state().values()])
    trained(dataset=inside)
    half = train(mlp(), points(), steps=4, batch_size=8, progress=False, ema=0.9)  # one step in, one outside
    for _ in range(2):
        with mode():
            next(half)
        next(half)
    assert torch.equal(weights(half.model), wanted)


def test_a_network_that_was_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        train(model, points(), **OPTIONS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (points()[:3], r"a data set needs len\(dataset\) and dataset\[i\], (?s:.*)\(dict\)"),
        ([{"x": torch.zeros(2), "label": 0}, None], r"do not make a batch"),
        ([{"x": 3}], "got 'x' of type int"),
        ([{"x": torch.zeros(2), "label": "a"}], r"dataset\[0\]\['label'\] must be a tensor or a number, got 'a'"),
        ([{"x": torch.zeros(2), "label": None}], r"dataset\[0\]\['label'\] must be .* got None"),
        ([{"x": torch.full((2,), torch.nan), "label": 0}], "NaN"),
        ([{"x": torch.zeros(2), "label": 0}, {"x": torch.zeros(3), "label": 0}], "do not make a batch: .*same shapes"),
        ([{"x": torch.zeros(2), "label": 0}, {"x": torch.zeros(2)}], "do not make a batch: .*same entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_cannot_be_read_are_named(data: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        trained(dataset=data)


def test_one_sample_is_enough_and_a_batch_holds_it_often() -> None:
    assert trained(dataset=points(1), batch_size=100).step == 4
    with pytest.raises(ValueError, match="empty"):
        empty = points(1)
        empty.data = empty.data[:0]
        train(mlp(), empty, **OPTIONS)


def test_a_sample_that_requires_a_gradient_gets_none() -> None:
    sample = {"x": torch.ones(2, requires_grad=True), "label": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(dataset=[sample])
    assert sample["x"].grad is None  # type: ignore[union-attr, attr-defined]


def test_a_classifier_is_tried_as_well() -> None:
    net = Net(None, lambda n, x: torch.cat([n.b(x), n.b(x)[:, :1]], 1).detach())
    with pytest.raises(ValueError, match="does not depend on any weight"):
        train_classifier(ClassifierModel(net, VP()), points(), **OPTIONS)
