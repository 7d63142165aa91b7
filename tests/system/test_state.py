"""Sampling leaves everything as it was: networks, generators, settings, other threads, what later gradients need."""

from __future__ import annotations

import copy
import functools
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from public_objects import (
    ALL,
    OPERATORS,
    SCORES,
    SDES,
    VP,
    X,
    captioned,
    exact,
    measured,
    numbers,
    same,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from scoresde import (
    Reverse,
    ScoreModel,
    as_score,
    bits_per_dim,
    checks,
    classifier,
    classifier_free,
    editing,
    grids,
    inverse,
    log_prob,
    particles,
    sample,
    solvers,
)
from scoresde.checks.lasting import lasting, lasting_property, outlasting
from scoresde.fitting import fit
from scoresde.guidance import calibration, compose, projected
from scoresde.inverse import Measurement, dps, pigdm
from scoresde.likelihood import decode, encode
from scoresde.models import evaluating, modules
from scoresde.models.modules import modules_used
from scoresde.noise import BrownianNoise
from scoresde.sde import Chain, ChainSDE
from scoresde.sde.base import derivative


class Restless(nn.Module):
    """A network all of whose parts behave otherwise in training: dropout, batch norm, and a part that is frozen."""

    def __init__(self, out: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, out)
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        with torch.no_grad():
            for i, p in enumerate((*self.first.parameters(), *self.last.parameters())):
                p.copy_(0.5 * numbers(*p.shape, seed=i))
        self.train()

    null_conditions = {"label": 3}  # noqa: RUF012

    def train(self, mode: bool = True) -> Restless:
        """As frozen batch norms are often written."""
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.norm(self.first(x)) + 0.1 * c[:, None]
        h = h if label is None else h + 0.2 * label[:, None]
        return self.last(self.drop(self.frozen(torch.tanh(h))))


def restless() -> ScoreModel:
    return ScoreModel(Restless(), VP(), predicts="v", sigma_data=1.0)


def restless_images() -> ScoreModel:
    """The network of captions with dropout that is on."""
    model = captioned()
    copied = ScoreModel(type(model.net)(**{**model.net.config, "dropout": 0.5}), VP(), predicts="v", sigma_data=1.0)  # type: ignore[union-attr]
    copied.net.load_state_dict(model.net.state_dict())  # type: ignore[union-attr]
    return copied.train()


WORDS = [{"caption": torch.tensor([[1, k, 0]])} for k in (2, 3)]
LABEL = {"label": 1}
PATH = functools.partial(BrownianNoise, 0, 1.0)

# What uses a score (of vectors, conditional on a label), by name: everything that draws or follows samples.
CALLS: dict[str, Callable[[ScoreModel], Any]] = {
    "sample": lambda m: sample(m.bind(label=1), (6, 2), steps=4).x,
    "solve": lambda m: solvers.Heun().solve(Reverse(m.bind(label=1), 0.0), X, grids.karras(VP(), 3)).x.detach(),
    "checkpointed": lambda m: gradient(
        lambda x: solvers.Heun().solve(Reverse(m.bind(label=1), 0.0), x, grids.karras(VP(), 3), checkpoint=True).x
    ),
    "adjoint": lambda m: gradient(
        lambda x: (
            solvers.ProbabilityFlow("rk4", adjoint=True)
            .solve(Reverse(m.bind(label=1), 0.0), x, grids.karras(VP(), 3))
            .x
        )
    ),
    "stochastic adjoint": lambda m: gradient(
        lambda x: (
            solvers.TorchSDE(adjoint=True).solve(Reverse(m.bind(label=1), 1.0), x, grids.karras(VP(), 3), PATH()).x
        )
    ),
    "srk": lambda m: sample(m.bind(label=1), (6, 2), solver=solvers.TorchSDE("srk"), steps=3).x,
    "adaptive": lambda m: sample(m.bind(label=1), (6, 2), solver=solvers.AdaptiveODE(rtol=0.1, atol=0.1)).x,
    "guided": lambda m: sample(classifier_free(m, LABEL, 2.0), (6, 2), steps=4).x,
    "projected": lambda m: sample(projected(m, LABEL, 2.0), (6, 2), steps=4).x,
    "composed": lambda m: sample(compose(m, [(1.0, {"label": 0}), (1.0, {"label": 2})]), (6, 2), steps=4).x,
    "classifier": lambda m: sample(classifier(m.bind(label=0), near(m), 2.0), (6, 2), steps=4).x,
    "dps": lambda m: sample(dps(m.bind(label=1), measured()), (3, 2), steps=4).x,
    "RePaint": lambda m: sample(m.bind(label=1), (3, 2), solver=inverse.RePaint(measured()), steps=3).x,
    "corrected": lambda m: (
        sample(
            m.bind(label=1),
            (6, 2),
            solver=solvers.PredictorCorrector(solvers.EulerMaruyama(), solvers.AdjustedLangevin(near(m))),
            steps=3,
        ).x
    ),
    "corrected, checkpointed": lambda m: gradient(
        lambda x: (
            solvers.PredictorCorrector(solvers.DDIM(), solvers.AdjustedLangevin(near(m)))
            .solve(Reverse(m.bind(label=1), 0.0), x, grids.karras(VP(), 3), 0, checkpoint=True)
            .x
        )
    ),
    "log_prob": lambda m: log_prob(m.bind(label=1), X, "exact", solver=RK4).detach(),
    "bits_per_dim": lambda m: bits_per_dim(m.bind(label=1), X, 0.1, solver=RK4).detach(),
    "encode": lambda m: encode(m.bind(label=1), X, solver=RK4).detach(),
    "decode": lambda m: decode(m.bind(label=1), X, solver=RK4).detach(),
    "sdedit": lambda m: editing.sdedit(m.bind(label=1), X, t=0.5, steps=3).x,
    "sdedit in a mask": lambda m: (
        editing.sdedit(m.bind(label=1), X, t=0.5, steps=3, mask=torch.tensor([True, False]), eta=1.0).x
    ),
    "invert": lambda m: editing.invert(m.bind(label=1), X, steps=3, iterations=2).x,
    "decoded": lambda m: editing.invert(m.bind(label=1), X, steps=3).decoded(m.bind(label=2)).x.detach(),
    "counterfactual": lambda m: editing.counterfactual(m.bind(label=1), m.bind(label=2), X, steps=3).x,
    "diffedit": lambda m: editing.diffedit(m.bind(label=0), m.bind(label=2), X, t=0.5, steps=3).x,
    "anomaly_map": lambda m: editing.anomaly_map(m.bind(label=1), X, samples=2, steps=2).map,
    "diffedit_mask": lambda m: editing.diffedit_mask(m.bind(label=0), m.bind(label=2), X, t=0.5, threshold=None),
    "tilted": lambda m: particles.tilted(classifier_free(m, LABEL, 1.5), (64, 2), steps=4).x,
    "twisted": lambda m: (
        particles.twisted(
            pigdm(m.bind(label=1), Measurement(torch.ones(1), inverse.Mask(torch.tensor([True, False])), 2.0)),
            (64, 2),
            steps=4,
        ).x
    ),
    "fit": lambda m: fit(m.bind(label=1), 2, shape=(30, 2), batch=10, iterations=1, solver=solvers.DDIM()).weights,
    "adapted": lambda m: grids.adapted(m.bind(label=1), (64, 2), solver=solvers.DDIM(), evaluations=1200).logs,
    "calibration": lambda m: calibration(near(m, 3), VP(), X, torch.tensor([0, 1, 2]), [0.3], 0).nll,
}
RK4 = solvers.ProbabilityFlow("rk4", options={"step_size": 0.5})


def near(m: ScoreModel, out: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """A classifier that is the same network, by a function that has closed over it."""

    def log_p(x: Tensor, t: Tensor) -> Tensor:
        answer = m.denoise(x, t, {"label": torch.zeros(len(x))})
        return -(answer**2).sum(1) if out == 1 else torch.cat([answer, -answer[:, :1]], 1)

    return log_p


def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad((run(x) ** 2).sum(), x)
    return found


def everything() -> list[Any]:
    """All global state that a program may share."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return [
        torch.get_rng_state(),
        random.getstate(),
        [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        str(torch.get_default_dtype()),
        str(torch.get_default_device()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_float32_matmul_precision(),
        [repr(f) for f in warnings.filters],
        str(np.geterr()),
    ]


def modes(m: nn.Module) -> list[bool]:
    return [module.training for module in m.modules()]


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- networks and global state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_changed_and_no_mode_matters(name: str) -> None:
    trained, resting = restless(), restless().eval()
    wanted = CALLS[name](resting)
    before, state, own = everything(), {n: v.clone() for n, v in trained.state_dict().items()}, modes(trained)
    assert any(own) and not all(own)
    found = CALLS[name](trained)
    assert same(everything(), before)
    assert modes(trained) == own and not any(modes(resting))
    assert same(dict(trained.state_dict()), state)
    assert same(found, wanted)  # what the network gives in evaluation mode


@pytest.mark.parametrize("name", ["prompt_to_prompt", "gradients", "null_text"])
def test_nor_by_prompt_to_prompt_and_null_text(name: str) -> None:
    trained, resting = restless_images(), captioned()

    def run(m: ScoreModel) -> Tensor:
        latent = numbers(2, 1, 4, 4)
        both = [{"caption": word["caption"].expand(2, -1)} for word in WORDS]
        if name == "null_text":
            found = editing.invert(m.bind(**both[0]), latent, steps=3, trajectory=True)
            return editing.null_text(m, found, both[0], 2.0, iterations=2).reconstruction
        return editing.prompt_to_prompt(m, latent, *both, steps=3, gradients=name == "gradients").x.detach()

    before = everything()
    found = run(trained)
    assert same(everything(), before) and all(modes(trained.net))  # type: ignore[arg-type]
    assert same(found, run(resting))


def test_modes_come_back_after_an_error_and_one_inside_another() -> None:
    m = restless()
    own = modes(m)
    with pytest.raises(ZeroDivisionError), evaluating(m), evaluating(m.net):
        assert not any(modes(m))
        raise ZeroDivisionError
    assert modes(m) == own

    def fails(progress: Any) -> None:
        assert not any(modes(m))
        raise KeyError

    with pytest.raises(KeyError):
        sample(m.bind(label=1), (2, 2), steps=3, callback=fails)
    assert modes(m) == own


def test_the_last_to_leave_puts_the_mode_back() -> None:
    m, inside, leave = restless(), threading.Event(), threading.Event()
    own = modes(m)

    def long() -> None:
        with evaluating(m):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=long)
    thread.start()
    assert inside.wait(60)
    sample(m.bind(label=1), (2, 2), steps=2)
    assert not any(modes(m))  # the other is still at it
    leave.set()
    thread.join()
    assert modes(m) == own


@pytest.mark.parametrize(
    "hide",
    [
        lambda net: lambda x, t: net(x, x[:, 0]),
        lambda net: functools.partial(lambda x, t, f: f(x, x[:, 0]), f=net),
        lambda net: Holder(net),
        lambda net: Holder(net).method,
        lambda net: lambda x, t, inner=lambda x: net(x, x[:, 0]): inner(x),
        lambda net: Slotted(net),
        lambda net: type("OfClass", (Classy,), {"net": net})().method,
        lambda net: type("OfClass", (Classy,), {"net": net}).of_class,
        lambda net: HELD.update(net=net) or by_held,
        lambda net: Unregistered(net),
        lambda net: Hooked(net),
        lambda net: setattr(NAMESPACE, "net", net) or by_attribute,
    ],
    ids=[
        *("closure", "partial", "object", "method", "default", "slots", "attribute of a class", "class method"),
        *("dict among globals", "unregistered", "hook", "object among globals"),
    ],
)
def test_networks_are_found_wherever_they_are(hide: Callable[[nn.Module], Any]) -> None:
    net = Restless()
    state, rng = {n: v.clone() for n, v in net.state_dict().items()}, torch.get_rng_state()
    sample(as_score(hide(net), VP()), (4, 2), solver=solvers.DDIM(), steps=2)
    assert same(dict(net.state_dict()), state) and torch.equal(torch.get_rng_state(), rng) and net.training


class Holder:
    def __init__(self, net: nn.Module) -> None:
        self.anything = [net]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.anything[0](x, x[:, 0])

    def method(self, x: Tensor, t: Tensor) -> Tensor:
        return self(x, t)


class Slotted:
    __slots__ = ("_net",)

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._net(x, x[:, 0])


class Classy:
    net: nn.Module

    def method(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, x[:, 0])

    @classmethod
    def of_class(cls, x: Tensor, t: Tensor) -> Tensor:
        return cls.net(x, x[:, 0])


class Unregistered(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Identity())
        self.hidden[0].others = [net]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.hidden[0].others[0](x, x[:, 0])


class Hooked(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Identity()
        self.inside.register_forward_hook(lambda module, given, answer: net(answer, answer[:, 0]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inside(x)


HELD: dict[str, nn.Module] = {}
NAMESPACE = types.SimpleNamespace()


def by_held(x: Tensor, t: Tensor) -> Tensor:
    return HELD["net"](x, x[:, 0])


def by_attribute(x: Tensor, t: Tensor) -> Tensor:
    return NAMESPACE.net(x, x[:, 0])


GLOBAL = Restless()


def by_global(x: Tensor, t: Tensor) -> Tensor:
    return _called_by_it(x)


def _called_by_it(x: Tensor) -> Tensor:
    return GLOBAL(x, x[:, 0])


def test_scripted_and_parametrized_networks_are_put_back() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    for net in (scripted, spectral):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        sample(as_score(lambda x, t, net=net: net(x), VP()), (4, 2), solver=solvers.DDIM(), steps=2)
        assert same(dict(net.state_dict()), before) and all(modes(net))


def test_a_wrong_call_says_so_by_the_name_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"log_prob\(\) got an unexpected keyword argument 'points'"):
        log_prob(exact(), X, points=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"encode\(\) missing 1 required positional argument"):
        encode(exact())  # type: ignore[call-arg]


def test_networks_among_globals_are_found() -> None:
    assert GLOBAL in modules_used(as_score(by_global, VP()))
    assert not modules_used(as_score(torch.tanh, VP()), {"data": list(range(20_000))}, 3, "text", None)  # type: ignore[arg-type]


def test_a_stranger_that_makes_up_attributes_is_left_alone() -> None:
    class Endless:
        def __getattr__(self, name: str) -> Endless:
            if name.startswith("__"):
                raise AttributeError(name)
            return Endless()

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

    assert modules_used(Endless()) == ()


class Program:
    """It makes a new part of itself whenever it is asked for one, as what holds a whole program seems to."""

    def __init__(self, used: list[nn.Module]) -> None:
        self.used = used

    @property
    def model(self) -> Program:
        return Program(self.used)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.used[0](x, x[:, 0])


def test_a_search_for_modules_ends_and_has_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_SEEN_AT_MOST", 100)
    program = Program([Restless()])
    assert modules.modules_used(lambda x, t: program(x, t))[:1] == (program.used[0],)
    assert modules.modules_of(program) == ()
    deep = nn.Sequential(*(nn.Identity() for _ in range(200)))  # modules are not what the search is bounded by
    assert len(modules.modules_used(deep)) == 201


def test_what_a_script_has_imported_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose code names a package is not slowed by all that is in there; what it names itself is seen."""
    package = types.ModuleType("installed_package")
    package.__file__ = "/usr/lib/python3/site-packages/installed_package/__init__.py"
    monkeypatch.setitem(sys.modules, "installed_package", package)
    inside, named = nn.Identity(), nn.Identity()
    theirs: dict[str, Any] = {"inside": inside, "__name__": "installed_package"}
    exec("def use(x, t): return inside(x)", theirs)
    package.use, package.named = theirs["use"], named  # type: ignore[attr-defined]
    mine: dict[str, Any] = {"package": package, "__name__": "a_script"}
    exec("def score(x, t): return package.use(x, t) + package.named(x)", mine)
    found = modules.modules_used(as_score(mine["score"], VP()))
    assert any(one is named for one in found) and not any(one is inside for one in found)
    # a score's own function is looked into, wherever it is installed
    assert any(one is inside for one in modules.modules_used(as_score(theirs["use"], VP())))


def test_a_compiled_network_is_compiled_once_for_each_mode() -> None:
    counted = CompileCounter()
    m = restless()
    m.net.compile(backend=counted)  # type: ignore[union-attr]
    for _ in range(4):
        sample(m.bind(label=1), (2, 2), steps=3)
        m.net(X, X[:, 0])  # type: ignore[operator]
    made = counted.frame_count
    for _ in range(4):
        sample(m.bind(label=1), (2, 2), steps=3)
        m.net(X, X[:, 0])  # type: ignore[operator]
    assert counted.frame_count == made
    torch._dynamo.reset()


# -- threads -----------------------------------------------------------------------------------------------------------


def at_once(jobs: list[Callable[[], Any]], repeats: int = 1) -> list[list[Any]]:
    """What each job answers, with all of them running together."""
    found: list[list[Any]] = [[] for _ in jobs]
    failed: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any], into: list[Any]) -> None:
        try:
            start.wait(60)
            for _ in range(repeats):
                into.append(job())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(jobs, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


# fit stops by the clock; torchdiffeq's and torchsde's adjoints are torch's to make safe
THREADS = [name for name in CALLS if name not in ("fit", "adapted")]


@pytest.mark.parametrize("name", THREADS)
def test_two_threads_on_one_network_get_what_each_gets_alone(name: str) -> None:
    m = restless()
    own, alone, plain = modes(m), CALLS[name](m), CALLS["sample"](m)
    jobs = [functools.partial(CALLS[name], m), functools.partial(CALLS["sample"], m), functools.partial(CALLS[name], m)]
    first, second, third = at_once(jobs, repeats=2)
    assert all(same(found, alone) for found in (*first, *third))
    assert all(same(found, plain) for found in second)
    assert modes(m) == own


def test_another_thread_draws_from_the_default_generators_what_it_draws_alone() -> None:
    def draw() -> list[Any]:
        return [torch.rand(2).tolist(), random.random(), float(np.random.rand())]  # noqa: NPY002

    def drawn() -> list[Any]:
        return [draw() for _ in range(40)]

    def seed() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002

    seed()
    alone = drawn()
    m = restless()
    seed()
    jobs = [functools.partial(CALLS[name], m) for name in ("sample", "checkpointed", "srk", "diffedit", "tilted")]
    (found,), *_ = at_once([drawn, *jobs])
    assert found == alone


def test_a_repeated_run_leaves_a_generator_alone_that_others_draw_from() -> None:
    """Another thread draws during each evaluation, of which a checkpointed run repeats some in its backward pass."""
    drawn: list[float] = []

    def elsewhere(x: Tensor, t: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: drawn.append(float(torch.rand(()))))
        thread.start()
        thread.join()
        return -x * x

    torch.manual_seed(7)
    run = functools.partial(solvers.DDIM().solve, Reverse(as_score(elsewhere, VP()), 0.0), checkpoint=True)
    gradient(lambda x: run(x, grids.karras(VP(), 5)).x)
    drawn.append(float(torch.rand(())))
    torch.manual_seed(7)
    assert len(drawn) > 11 and drawn == [float(torch.rand(())) for _ in drawn]


def test_a_number_is_no_variable_while_another_thread_differentiates() -> None:
    """torch's level of forward-mode differentiation is of the process: a tensor's own tangent is what counts."""
    x = torch.ones((), dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        assert not checks.followed(x)
        assert checks.followed(torch.autograd.forward_ad.make_dual(x, x))
    assert not checks.followed(x) and checks.followed(x.clone().requires_grad_())


def test_prompt_to_prompt_in_one_thread_leaves_plain_sampling_in_another_alone() -> None:
    m = captioned()
    latent = numbers(2, 1, 4, 4)
    both = [{"caption": word["caption"].expand(2, -1)} for word in WORDS]

    def edit() -> Tensor:
        return editing.prompt_to_prompt(m, latent, *both, steps=4).x

    def plain() -> Tensor:
        return sample(m.bind(**both[1]), (2, 1, 4, 4), steps=4).x

    edited, sampled = edit(), plain()
    one, other, third = at_once([edit, plain, edit], repeats=4)
    assert all(same(x, edited) for x in (*one, *third)) and all(same(x, sampled) for x in other)


def test_maps_are_recorded_in_the_thread_that_asked() -> None:
    from scoresde.nn import AttentionMaps

    m, maps = captioned(), AttentionMaps()
    score = m.bind(**WORDS[0])
    with maps.recording(m), torch.no_grad():
        at_once([lambda: score(numbers(1, 1, 4, 4), 0.3)])
        assert maps.layers[0] == []
        score(numbers(1, 1, 4, 4), 0.3)
    assert maps.calls == 1


def test_maps_of_compiled_layers_are_recorded_and_edited() -> None:
    from scoresde.nn import AttentionMaps
    from scoresde.nn.attention import CrossAttention

    net = copy.deepcopy(captioned().net)
    assert isinstance(net, nn.Module)
    given = (numbers(1, 1, 4, 4), torch.zeros(1))
    plain, maps, counted = net(*given, **WORDS[0]), AttentionMaps(), CompileCounter()
    for layer in net.modules():
        if isinstance(layer, CrossAttention):
            layer.compile(backend=counted)
    assert torch.allclose(net(*given, **WORDS[0]), plain)
    with maps.recording(net):
        net(*given, **WORDS[0])
    with maps.injecting(net, lambda layer, call, own: 0 * own):
        changed = net(*given, **WORDS[0])
    assert maps.calls == 1 and not torch.allclose(changed, plain, atol=1e-3)
    made = counted.frame_count
    assert torch.allclose(net(*given, **WORDS[0]), plain)
    assert counted.frame_count == made  # what was compiled before serves again
    torch._dynamo.reset()


def test_maps_through_data_parallel_are_refused() -> None:
    from scoresde.nn import AttentionMaps

    net = nn.DataParallel(captioned().net)  # type: ignore[arg-type]
    net.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"DataParallel.*\.module"), AttentionMaps().recording(net):
        pass


def test_derivatives_in_time_in_several_threads() -> None:
    """torch's forward mode counts its levels for the whole process."""
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    wanted = t.cos() * t + t.sin()
    for found in at_once([lambda: derivative(lambda u: u.sin() * u, t)] * 3, repeats=100):
        assert all(torch.allclose(d, wanted, rtol=1e-14) for d in found)


@pytest.mark.parametrize("name", SCORES)
def test_scores_in_several_threads(name: str) -> None:
    entry = SCORES[name]
    score = entry.make()
    alone = entry.ask(entry.make())
    for found in at_once([lambda: entry.ask(score)] * 2, repeats=3):
        assert all(same(answer, alone) for answer in found)


# -- inference mode ----------------------------------------------------------------------------------------------------


def needs_gradients(ask: Callable[[Any], Any], it: Any) -> bool:
    """Whether it answers under inference mode; else it says clearly that it cannot."""
    try:
        with torch.inference_mode():
            ask(it)
    except ValueError as error:
        assert "torch.no_grad" in str(error)
        return True
    return False


@pytest.mark.parametrize("name", SCORES)
def test_scores_first_asked_under_inference_mode_differentiate(name: str) -> None:
    entry = SCORES[name]
    score, fresh = entry.make(), entry.make()
    needs_gradients(entry.ask, score)
    for _ in range(2):  # a graph is not kept, either
        found, wanted = (gradient(lambda x, s=s: s(x, 0.3) + s.denoise(x, 0.3)) for s in (score, fresh))
        assert same(found, wanted)


@pytest.mark.parametrize("name", SDES)
def test_schedules_first_asked_under_inference_mode_differentiate(name: str) -> None:
    entry = SDES[name]
    sde, fresh = entry.make(), entry.make()
    with torch.inference_mode():
        entry.ask(sde)
    for _ in range(2):
        slopes = []
        for one in (sde, fresh):
            t = torch.tensor([0.2, 0.5], dtype=torch.float64, requires_grad=True)
            value = one.alpha(t) + one.sigma(t) + one.g(t) + one.t_of_log_snr(one.log_snr(t))
            slopes.append(torch.autograd.grad(value.sum(), t)[0])
        assert same(*slopes)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_first_asked_under_inference_mode_differentiate(name: str) -> None:
    entry = OPERATORS[name]
    operator, fresh = entry.make(), entry.make()
    needs_gradients(entry.ask, operator) if name != "FunctionOperator" else None
    found = []
    for one in (operator, fresh):
        x = numbers(2, *one.event).requires_grad_()
        y = one(x)
        value = one.solve(y, 1.0, 0.3).sum() + one.adjoint(y).square().sum() + one.pseudo_inverse(y).sum()
        found.append(torch.autograd.grad(value, x)[0])
    assert same(*found)


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("solver ") and "Held" not in name])
def test_solvers_first_used_under_inference_mode_differentiate(name: str) -> None:
    entry = ALL[name]
    solver, fresh = entry.make(), entry.make()
    with torch.inference_mode():
        entry.ask(solver)
    found = []
    for one in (solver, fresh):
        run = functools.partial(one.solve, Reverse(exact(), one.default_eta))
        times = grids.karras(VP(), 3)
        found.append(gradient(lambda x, run=run, times=times: run(x, times, 0).x))
    assert same(*found)


@pytest.mark.parametrize("name", [name for name in CALLS if "checkpointed" not in name and name != "adjoint"])
def test_sampling_under_inference_mode_is_sampling(name: str) -> None:
    m = restless().eval()
    wanted = CALLS[name](m)
    try:
        with torch.inference_mode():
            found = CALLS[name](m)
    except (ValueError, RuntimeError) as error:
        assert name in ("log_prob", "bits_per_dim", "stochastic adjoint"), error
        return
    assert same(found, wanted)


@pytest.mark.parametrize("name", ["sdedit", "invert", "counterfactual", "diffedit", "sample", "tilted"])
def test_what_was_made_under_inference_mode_takes_part_in_gradients(name: str) -> None:
    m = restless().eval()
    with torch.inference_mode():
        found = CALLS[name](m)
    assert not found.is_inference()
    m.denoise(found, 0.5, {"label": torch.zeros(len(found))}).sum().backward()
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad and p is not m.net.frozen.weight)  # type: ignore[union-attr]


def test_an_inversion_made_under_inference_mode_is_decoded_with_gradients() -> None:
    m = restless().eval()
    with torch.inference_mode():
        found = editing.invert(m.bind(label=1), X, steps=3)
    found.decoded(m.bind(label=2)).x.sum().backward()
    assert m.net.first.weight.grad is not None  # type: ignore[union-attr]


def test_maps_recorded_under_inference_mode_are_injected_with_gradients() -> None:
    from scoresde.nn import AttentionMaps

    m, maps = captioned(), AttentionMaps()
    x = numbers(1, 1, 4, 4).requires_grad_()
    with torch.inference_mode(), maps.recording(m):
        m.bind(**WORDS[0])(x, 0.3)
    with maps.injecting(m):
        assert torch.autograd.grad(m.bind(**WORDS[1])(x, 0.3).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["independent", "per sample", "path"])
def test_noise_first_drawn_under_inference_mode(kind: str) -> None:
    from public_objects import NOISES, of_noise

    name = {"independent": "IndependentNoise", "per sample": "PerSampleNoise", "path": "BrownianNoise"}[kind]
    noise, fresh = NOISES[name].make(), NOISES[name].make()
    with torch.inference_mode():
        of_noise(noise)
    of_noise(fresh)
    x = X.clone().requires_grad_()
    drawn = [noise.normal(X), noise.between(X, torch.tensor(0.7), torch.tensor(0.3))]
    assert not any(z.is_inference() for z in drawn)
    torch.autograd.grad((x * drawn[0] * x * drawn[1]).sum(), x)
    assert same(drawn, [fresh.normal(X), fresh.between(X, torch.tensor(0.7), torch.tensor(0.3))])


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_gradients_reach_a_chain_whenever_it_was_asked_first() -> None:
    """The levels of a chain whose own tensors require gradients are not kept: neither lost nor used up."""
    for first in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        beta = torch.linspace(0.01, 0.2, 6, dtype=torch.float64).requires_grad_()
        ratio = (1 - beta).sqrt().detach().requires_grad_()
        sde = ChainSDE(Chain(torch.arange(1, 7, dtype=torch.float64) / 6, ratio, beta))
        with first():
            sde.alpha(0.5), sde.sigma(0.5)
        grads = [torch.autograd.grad(sde.alpha(0.5) * sde.sigma(0.5), (ratio, beta)) for _ in range(2)]
        assert same(*grads) and all(float(g.abs().max()) > 0 for g in grads[0])


def test_kept_tensors_have_no_mode_graph_or_device_of_their_first_user() -> None:
    class Thing:
        made = 0

        @lasting_property
        def kept(self) -> Tensor:
            type(self).made += 1
            return torch.arange(3.0)

    thing = Thing()
    with torch.inference_mode(), torch.device("meta"):
        first = thing.kept
    assert not first.is_inference() and first.device.type == "cpu" and thing.kept is first and Thing.made == 1
    assert isinstance(Thing.kept, lasting_property)

    @lasting
    def nodes() -> Tensor:
        return torch.ones(2) * torch.ones((), requires_grad=True)

    with torch.inference_mode(), torch.device("meta"):
        made = nodes()
    assert not made.requires_grad and not made.is_inference() and made.device.type == "cpu"
    with torch.inference_mode():
        inference = torch.ones(2)
    assert outlasting(first) is first and not outlasting(inference).is_inference()


def test_caches_made_in_a_device_context_serve_others() -> None:
    from scoresde.noise.counter import atoms
    from scoresde.noise.shapes import library
    from scoresde.solvers._quadrature import gauss_legendre

    for cached, argument in ((atoms, 32), (library, torch.device("cpu")), (gauss_legendre, 7)):
        cached.cache_clear()  # type: ignore[attr-defined]
        with torch.inference_mode(), torch.device("meta"):
            made = cached(argument)  # type: ignore[operator]
        for part in made if isinstance(made, tuple) else (made,):
            assert part.device.type == "cpu" and not part.is_inference()


def test_a_score_that_draws_for_itself_draws_the_same_again() -> None:
    """Monte Carlo dropout, on in any mode: a checkpointed run repeats its masks, and the generator goes on."""
    net = nn.Linear(2, 2)

    def dropped(x: Tensor, t: Tensor) -> Tensor:
        return -x + nn.functional.dropout(net(x), 0.5, training=True)

    found = []
    for checkpoint in (False, True):
        torch.manual_seed(3)
        found.append(
            gradient(
                lambda x, c=checkpoint: (
                    (
                        solvers.DDIM().solve(
                            Reverse(as_score(dropped, VP()), 0.0), x, grids.karras(VP(), 4), checkpoint=c
                        )
                    ).x
                )
            )
        )
        found.append(torch.rand(2))
    # sums in another order
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], found[3])
