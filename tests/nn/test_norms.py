"""`group_normed` against its equation: values, derivatives of all kinds, memory formats, and what it keeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from scoresde.nn import norms
from scoresde.nn.norms import group_normed

# In float64, the same sums in another order differ by a few thousand roundings of 2e-16 of numbers of order 1.
SAME = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = [(3, 8, 7), (3, 8, 4, 5), (2, 8, 3, 2, 4), (3, 8, 1, 1), (2, 8, 1)]


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are treated as large ones are."""
    monkeypatch.setattr(norms, "SMALL", 0)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def equation(norm: nn.GroupNorm, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    grouped = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    y = ((grouped - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)

    def wide(v: Tensor) -> Tensor:
        return v.reshape(*v.shape, *[1] * (x.ndim - 2))

    if norm.affine:
        y = y * wide(norm.weight[None]) + wide(norm.bias[None])
    if scale is not None and shift is not None:
        y = y * wide(1 + scale) + wide(shift)
    return F.silu(y) if silu else y


def last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


FORMATS: dict[str, Any] = {
    "contiguous": lambda x: x,
    "channels-last": last,
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
}


def case(shape: tuple[int, ...], affine: bool, told: bool) -> tuple[nn.GroupNorm, Tensor, list[Tensor]]:
    norm = nn.GroupNorm(2, shape[1], affine=affine).double()
    if affine:
        with torch.no_grad():
            norm.weight.copy_(randn(shape[1], seed=5))
            norm.bias.copy_(randn(shape[1], seed=6))
    extra = [randn(*shape[:2], seed=seed).requires_grad_() for seed in (1, 2)] if told else []
    return norm, randn(*shape), extra


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_equation_s(
    shape: tuple[int, ...], form: str, affine: bool, told: bool, silu: bool
) -> None:
    norm, plain, extra = case(shape, affine, told)
    x = FORMATS[form](plain).detach().requires_grad_()
    scale, shift = extra if told else (None, None)
    found, expected = group_normed(norm, x, scale, shift, silu=silu), equation(norm, x, scale, shift, silu)
    torch.testing.assert_close(found, expected, **SAME)
    with torch.no_grad():
        torch.testing.assert_close(group_normed(norm, x, scale, shift, silu=silu), expected, **SAME)
    inputs = [x, *extra, *norm.parameters()]
    for given in (randn(*shape, seed=3), last(randn(*shape, seed=3)), torch.ones(1).double().expand(shape)):
        grads = torch.autograd.grad(found, inputs, given, retain_graph=True)
        wanted = torch.autograd.grad(expected, inputs, given, retain_graph=True)
        for one, other in zip(grads, wanted, strict=True):
            torch.testing.assert_close(one, other, **SAME)


@pytest.mark.parametrize("form", ["contiguous", "channels-last"])
def test_the_memory_format_is_kept(form: str) -> None:
    norm, plain, (scale, shift) = case((2, 8, 4, 5), False, True)
    x = FORMATS[form](plain).requires_grad_()
    y = group_normed(norm, x, scale, shift, silu=True)
    (grad,) = torch.autograd.grad(y, x, FORMATS[form](randn(*y.shape)))
    assert y.stride() == x.stride() and grad.stride() == x.stride()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("form", ["contiguous", "channels-last"])
def test_derivatives_beyond_the_first_and_forwards(form: str, told: bool) -> None:
    norm, plain, extra = case((2, 4, 2, 3), not told, told)
    x = FORMATS[form](plain).detach().requires_grad_()

    def call(x: Tensor, *extra: Tensor) -> Tensor:
        return group_normed(norm, x, *extra, silu=True)

    inputs = (x, *extra)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)
    tangents = tuple(randn(*v.shape, seed=9 + i) for i, v in enumerate(inputs))
    scale, shift = extra if told else (None, None)
    _, along = torch.func.jvp(call, inputs, tangents)
    primals = (x, scale, shift) if told else (x,)
    _, wanted = torch.func.jvp(lambda x, *extra: equation(norm, x, *(extra or (None, None)), True), primals, tangents)  # type: ignore[arg-type]
    torch.testing.assert_close(along, wanted, **SAME)
    with forward_ad.dual_level():
        dual = call(*(forward_ad.make_dual(v.detach(), t) for v, t in zip(inputs, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, wanted, **SAME)


@pytest.mark.parametrize("again", [False, True])
def test_inputs_that_depend_on_one_another(again: bool) -> None:
    """Gradients that are differentiated again are the same numbers: ways between the inputs are counted once.

    As where a network is applied to its own answer, so that x depends on this norm's weights, in a run of a solver.
    """
    norm, plain, (scale, _) = case((2, 8, 4, 5), True, True)

    def grads(call: Any) -> tuple[Tensor, ...]:
        x = call(norm, plain * scale[..., None, None], scale, scale.sin(), True)
        y = call(norm, x, scale.cos(), scale, True)
        return torch.autograd.grad(y.square().sum(), [scale, *norm.parameters()], create_graph=again)

    found = grads(lambda norm, x, scale, shift, silu: group_normed(norm, x, scale, shift, silu=silu))
    for one, other in zip(found, grads(equation), strict=True):
        torch.testing.assert_close(one, other, **SAME)


def test_vmap_is_a_loop() -> None:
    norm, _, _ = case((1, 4, 2, 3), True, False)
    x, scale, shift = randn(5, 2, 4, 2, 3), randn(5, 2, 4, seed=1), randn(5, 2, 4, seed=2)

    def loss(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return group_normed(norm, x, scale, shift, silu=True).square().sum()

    found = torch.vmap(torch.func.grad(loss))(x, scale, shift)
    each = torch.stack([torch.func.grad(loss)(x[i], scale[i], shift[i]) for i in range(5)])
    torch.testing.assert_close(found, each, **SAME)


@pytest.mark.parametrize("centre", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_rounds_once(dtype: torch.dtype, centre: float) -> None:
    norm, plain, extra = case((2, 8, 16, 16), True, True)
    scale, shift = (v.detach() for v in extra)
    x = last(plain + centre).to(dtype)
    found = group_normed(norm.to(dtype), x, scale.to(dtype), shift.to(dtype), silu=True)
    assert found.dtype == dtype
    exact = equation(norm.double(), x.double(), scale.to(dtype).double(), shift.to(dtype).double(), True)
    # Rounding the answer, at most eps / 2 of it, and float32's rounding of x - mean: 2^-24 of the centre each.
    rounding, wide = torch.finfo(dtype).eps, 2**-22 * (1 + centre**2)
    assert ((found.double() - exact).abs() <= rounding * exact.abs() + wide * exact.abs().max()).all()


def test_autocast_changes_nothing_inside() -> None:
    """Under autocast torch's own norm answers in float32; here in the dtype of x, rounded once."""
    norm = nn.GroupNorm(2, 8)
    x = randn(2, 8, 4, 4).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = group_normed(norm, last(x), silu=True)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, group_normed(norm, last(x), silu=True))


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("form", ["contiguous", "channels-last"])
def test_x_alone_is_kept_for_the_backward_pass(form: str, told: bool) -> None:
    norm, plain, extra = case((2, 8, 16, 16), not told, told)
    x = FORMATS[form](plain).requires_grad_()
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        group_normed(norm, x, *extra, silu=True)
    others = sum(size for place, size in kept.items() if place != x.untyped_storage().data_ptr())
    # A gain and an offset, of each sample or of all, and mean and deviation of 2 samples' 2 groups: float64.
    assert x.untyped_storage().data_ptr() in kept and others <= 8 * (2 * 2 * 8 + 2 * 2 * 2)
    assert x.untyped_storage().nbytes() == 8 * math.prod(x.shape)


def test_no_samples_and_no_graph() -> None:
    norm = nn.GroupNorm(2, 8)
    assert group_normed(norm, torch.zeros(0, 8, 3, 3)).shape == (0, 8, 3, 3)
    assert group_normed(norm, torch.zeros(0, 8, 3, 3, requires_grad=True), silu=True).sum().backward() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["contiguous", "channels-last"])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_a_large_mean_costs_half_precision_nothing_but_its_own_rounding(
    dtype: torch.dtype, form: str, offset: float
) -> None:
    """The answer for the x that is given, rounded: E x² - μ² in float32 loses 1e6 · 1e-5 beside a variance of 1."""
    norm = nn.GroupNorm(2, 8)
    x = FORMATS[form]((offset + randn(2, 8, 64, 64)).to(dtype)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    given = randn(2, 8, 64, 64, seed=1).to(dtype)
    y, wanted = group_normed(norm, x), equation(norm, exact, None, None, False)
    y.backward(given)
    wanted.backward(given.double())
    assert x.grad is not None and exact.grad is not None
    # The last operation rounds to half an eps of what may be 5 or so; sums of float32 are a hundredth of that.
    for found, truth in ((y.detach(), wanted.detach()), (x.grad, exact.grad)):
        assert float((found.double() - truth).abs().max() / truth.abs().max()) < torch.finfo(dtype).eps
