"""What the likelihood costs: graphs only where asked, the exact trace in chunks, memory that no step adds to."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.likelihood import bits_per_dim, decode, encode, log_prob
from scoresde.models import ScoreModel, as_score
from scoresde.problems import Gaussian
from scoresde.sde import VP
from scoresde.solvers import DDIM, AdaptiveODE, ProbabilityFlow

D = 12
FIXED = ProbabilityFlow("rk4", options={"step_size": 0.05})
COARSE = ProbabilityFlow("rk4", options={"step_size": 0.5})


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(D + 1, 8, dtype=dtype), nn.Linear(8, D, dtype=dtype)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.3 * normals(*p.shape, seed=i))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([x, c[:, None].to(x)], 1))))


MODEL = ScoreModel(Net(), VP(t_min=0.1), "v")
X = normals(3, D, seed=9)
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "exact": lambda x=X, **options: log_prob(MODEL, x, "exact", **options),
    "hutchinson": lambda x=X, **options: log_prob(MODEL, x, **options),
    "bits": lambda x=X, **options: bits_per_dim(MODEL, x, 0.1, **options),
    "encode": lambda x=X, **options: encode(MODEL, x, **options),
    "decode": lambda x=X, **options: decode(MODEL, x, **options),
}


# ---- graphs ----


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_is_kept_only_where_it_is_asked_for(name: str) -> None:
    function = FUNCTIONS[name]
    assert not function(solver=COARSE).requires_grad  # though the network's parameters do
    assert function(solver=COARSE, differentiable=True).requires_grad
    assert function(X.clone().requires_grad_(True), solver=COARSE).requires_grad
    adjoint = ProbabilityFlow("rk4", options={"step_size": 0.5}, adjoint=True)
    assert function(solver=adjoint).requires_grad
    with torch.no_grad():
        assert not function(solver=COARSE, differentiable=True).requires_grad
        assert not function(X.clone().requires_grad_(True), solver=adjoint).requires_grad


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_parameters_are_those_with_x_and_of_the_adjoint(name: str) -> None:
    def gradient(**options: Any) -> Tensor:
        value = FUNCTIONS[name](**options)
        grads = torch.autograd.grad((value * normals(*value.shape, seed=5)).sum(), list(MODEL.net.parameters()))  # type: ignore[union-attr, arg-type]
        return torch.cat([g.flatten() for g in grads])

    tight = {"rtol": 1e-6, "atol": 1e-6}
    own = gradient(solver=ProbabilityFlow(**tight), differentiable=True)
    with_x = gradient(x=X.clone().requires_grad_(True), solver=ProbabilityFlow(**tight))
    torch.testing.assert_close(own, with_x, rtol=1e-12, atol=1e-12)  # rounding
    adjoint = gradient(solver=ProbabilityFlow(**tight, adjoint=True))
    # two solves of 1e-6 a step, over some tens of them
    assert float((adjoint - own).norm() / own.norm()) < 1e-3 and float(own.norm()) > 0


class Kept:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class Held:
    """How many numbers autograd holds for a backward pass, and the most it ever did."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Any:
        size = tensor.numel()
        self.now += size
        self.most = max(self.most, self.now)

        kept = Kept(tensor.detach())  # with its graph it would hold itself
        weakref.finalize(kept, self.free, size)
        return kept

    def free(self, size: int) -> None:
        self.now -= size

    @staticmethod
    def unpack(kept: Any) -> Tensor:
        return kept.value


def most_held(act: Callable[[], Any]) -> int:
    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
        out = act()
        del out
    return held.most


@pytest.mark.parametrize("name", FUNCTIONS)
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    def solver(size: float, **options: Any) -> ProbabilityFlow:
        return ProbabilityFlow("euler", options={"step_size": size}, **options)

    few, many = (most_held(lambda size=size: FUNCTIONS[name](solver=solver(size))) for size in (0.3, 0.03))  # type: ignore[misc]
    assert few == many  # that of one evaluation, of which encode and decode keep nothing
    few, many = (
        most_held(lambda size=size: FUNCTIONS[name](solver=solver(size, adjoint=True)))  # type: ignore[misc]
        for size in (0.3, 0.03)
    )
    assert few == many
    # and a graph of the path does grow, so that this measure sees one
    few, many = (
        most_held(lambda size=size: FUNCTIONS[name](solver=solver(size), differentiable=True))  # type: ignore[misc]
        for size in (0.3, 0.03)
    )
    assert many > 5 * few


# ---- the exact trace in chunks ----


@pytest.mark.parametrize("graph", [False, True])
def test_chunks_change_nothing_but_the_number_of_passes(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shapes = torch.autograd.grad, list[tuple[int, ...]]()

    def listening(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        if options.get("retain_graph"):
            shapes.append(tuple(grad_outputs.shape) if options.get("is_grads_batched") else ())
        return plain(outputs, inputs, grad_outputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", listening)
    one, found = log_prob(MODEL, X, "exact", solver=FIXED, chunk=1), {}
    evaluations = len(shapes) // D
    assert evaluations == 4 * 18 and set(shapes) == {()}
    for chunk in (5, D, 100, None):
        shapes.clear()
        found[chunk] = log_prob(MODEL, X, "exact", solver=FIXED, chunk=chunk, differentiable=graph)
        size = min(chunk or D, D)
        assert len(shapes) == evaluations * math.ceil(D / size) and max(shape[0] for shape in shapes) == size
        # the same sums in another order
        torch.testing.assert_close(found[chunk].detach(), one, rtol=1e-12, atol=1e-12)


def test_a_chunk_holds_2_to_the_18_numbers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes = torch.autograd.grad, list[int]()

    def listening(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        sizes.append(grad_outputs.numel() if options.get("is_grads_batched") else 0)
        return plain(outputs, inputs, grad_outputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", listening)
    large = ProbabilityFlow("euler", options={"step_size": 1.0})
    log_prob(as_score(lambda x, t: -x, VP()), normals(4, 600, dtype=torch.float32), "exact", solver=large)
    assert 2**17 < max(sizes) <= 2**18


def test_a_backward_pass_that_cannot_be_batched_is_taken_one_by_one() -> None:
    passes = 0

    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return -x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            nonlocal passes
            passes += 1
            return -gradient if float(gradient.sum()) != 0 else gradient  # looks at a number: no vmap

    score = as_score(lambda x, t: Stubborn.apply(x), VP())
    got = log_prob(score, X, "exact", solver=FIXED)
    expected = log_prob(as_score(lambda x, t: -x, VP()), X, "exact", solver=FIXED)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # rounding
    # D for each evaluation, and one that did not work
    assert passes == 4 * 20 * D + 1


def test_an_error_of_the_score_is_not_taken_for_that() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return -x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        log_prob(as_score(lambda x, t: Broken.apply(x), VP()), X, "exact")


# ---- shapes, dtypes, refusals ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3,), (2, 1, 2), (2, 0)])
def test_events_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    score, x = as_score(lambda x, t: -x, VP()), normals(*shape, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    # N(0, I) is stationary under VP; bfloat16 rounds each evaluation to 2^-8, times the integral of β/2 = 5
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x.to(wide)).reshape(shape[0], math.prod(shape[1:])).sum(1)
    for options in ({"divergence": "exact"}, {"divergence": "exact", "chunk": 1}, {"probes": 2}):
        seen: list[Any] = []
        got = log_prob(score, x, callback=seen.append, **options)  # type: ignore[arg-type]
        assert got.dtype == wide and got.shape == shape[:1]
        assert bool(seen) == bool(x.numel())
        torch.testing.assert_close(got, expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-3)
    for function in (encode, decode):
        assert function(score, x).dtype == dtype and function(score, x).shape == shape


def test_one_fixed_step() -> None:
    """From t_min to T at once: Euler's method by hand."""
    sde, score = VP(), Gaussian(torch.zeros(2), 0.5).score(VP())
    x = normals(3, 2)
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    got = encode(score, x, solver=ProbabilityFlow("euler", options={"step_size": 1.0}))
    slope = sde.f(t) * x - 0.5 * sde.g(t) ** 2 * score(x, t)
    torch.testing.assert_close(got, x + (sde.T - sde.t_min) * slope, rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"chunk": 0}, ValueError, "chunk"),
        ({"chunk": 1.5}, TypeError, "chunk"),
        ({"chunk": True}, TypeError, "chunk"),
        ({"differentiable": 1}, TypeError, "differentiable"),
        ({"progress": "yes"}, TypeError, "progress"),
        ({"callback": 3}, TypeError, "callback"),
        ({"solver": DDIM()}, TypeError, "ProbabilityFlow"),
        ({"solver": AdaptiveODE()}, TypeError, "ProbabilityFlow"),
        ({"solver": "dopri5"}, TypeError, "ProbabilityFlow"),
        ({"solver": ProbabilityFlow(rtol=1e-18)}, ValueError, "rtol = 1e-18 is finer"),
        ({"solver": ProbabilityFlow("rk4", options={"step_size": 1e-6})}, ValueError, "max_steps"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    functions: list[Callable[..., Tensor]] = [lambda **o: log_prob(MODEL, X, "exact", **o)]
    functions += [lambda **o: bits_per_dim(MODEL, X, 0.1, divergence="exact", **o)]
    if "chunk" not in options:
        functions += [lambda **o: encode(MODEL, X, **o), lambda **o: decode(MODEL, X, **o)]
    for function in functions:
        with pytest.raises(error, match=match):
            function(**options)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "9", None])
def test_a_limit_is_a_count(steps: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_steps"):
        ProbabilityFlow(max_steps=steps)


def test_bits_of_no_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x must have at least one number in each sample, .* got \(2, 0\)"):
        bits_per_dim(MODEL, torch.zeros(2, 0), 0.1)
