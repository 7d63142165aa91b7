"""Group norm, scale and shift and SiLU in one step, in the memory format that comes in and with little kept for later::

    h = group_normed(norm, x)                                       # what norm(x) is
    h = group_normed(norm, x, silu=True)                            # silu(norm(x))
    h = group_normed(norm, x, scale, shift, silu=True)              # silu(norm(x) (1 + scale) + shift)

torch's own group norm answers in contiguous format on a GPU, whatever comes in, so that a network in channels-last
copies every feature map twice at every norm; and written as three operations, norm, modulation and SiLU keep a feature
map each for the backward pass. Here the input alone is kept, and what the derivative needs is worked out from it again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

SMALL = 2**19
"""Elements of a feature map that stays in a core's cache, on the CPU."""


def group_normed(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
) -> Tensor:
    r"""Group norm (Wu and He 2018, arXiv:1803.08494), modulated and through a SiLU where asked for.

    .. math::
        y_{bcp} = (w_c \hat x_{bcp} + b_c) (1 + s_{bc}) + t_{bc}, \qquad
        \hat x_{bcp} = \frac{x_{bcp} - \mu_{bg}}{\sqrt{v_{bg} + \epsilon}}

    with μ and v the mean and variance over the channels of a group g and the positions p of a sample b. Statistics are
    at least float32; the answer has the dtype and the memory format of x.

    Args:
        norm: the groups, ε, w and b.
        x: features (B, C, \*spatial).
        scale: s (B, C); 0 where it is left out.
        shift: t (B, C), with scale.
        silu: answer silu(y).
    """
    if (x.device.type == "cpu" and x.numel() < SMALL and not _forwards()) or not untouched(norm, nn.GroupNorm):
        return _plain(norm, x, scale, shift, silu)
    inputs = (x, norm.weight, norm.bias, scale, shift)
    if torch.compiler.is_compiling() or _forwards() or not torch.is_grad_enabled() or any(map(_wrapped, inputs)):
        return _composed(*inputs, norm.num_groups, norm.eps, silu)
    return _Normalised.apply(*inputs, norm.num_groups, norm.eps, silu)


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of ``module`` does what its class says and nothing else, so that another kernel may do it.

    Not so where it has been replaced by another kind, or somebody looks on or steps in by a hook or a ``forward`` of
    its own, as adapters, quantisers, pruning and offloading do.
    """
    if type(module) is not kind or _hooks_of_all():
        return False
    own = module.__dict__
    return not any(own.get(name) for name in _STEPS_IN)


_STEPS_IN = ("forward", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _hooks_of_all() -> bool:
    """Whether there are hooks for every module, as profilers register."""
    return not torch.compiler.is_compiling() and bool(_has_any_global_hook())


def _plain(norm: nn.GroupNorm, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    """The same as it reads: fewer operations, where each is so short that their number counts, and more memory."""
    y = norm(x)
    if scale is not None and shift is not None:
        y = torch.addcmul(_spread(shift, x), y, _spread(1 + scale, x))
    return F.silu(y) if silu else y


def _wrapped(value: Tensor | None) -> bool:
    """Whether torch.func transforms it."""
    if value is None or torch.compiler.is_compiling():
        return False
    return bool(_functorch.is_functorch_wrapped_tensor(value))


def _forwards() -> bool:
    """Whether a derivative may be taken forwards, which torch's group norm cannot in channels-last."""
    return forward_ad._current_level >= 0


def in_fast_format(x: Tensor) -> Tensor:
    """x (B, C, *spatial) in channels-last on the CPU, where oneDNN's convolutions take it without reordering."""
    if (
        x.device.type != "cpu" or x.ndim < 4 or _wrapped(x) or _forwards()
    ):  # torch.vmap knows no other format than contiguous
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


class _Normalised(torch.autograd.Function):
    """`_composed`, keeping x and the statistics alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *options: Any
    ) -> Tensor:
        groups, eps, silu = ctx.options = options
        y, mean, root = _normed(x, *_modulation(x, weight, bias, scale, shift), groups, eps)
        ctx.save_for_backward(x, weight, bias, scale, shift, mean, root)
        return (F.silu(y) if silu else y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> Any:
        *inputs, mean, root = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted
            # by views: one of the inputs may have been made from another, and ways between them are not this norm's
            views: Any = [None if value is None else value.view_as(value) for value in inputs]
            wanted = [value for value in views if value is not None and value.requires_grad]
            found = iter(torch.autograd.grad(_composed(*views, *ctx.options), wanted, given, create_graph=True))
            grads = [None if value is None or not value.requires_grad else next(found) for value in views]
        else:
            grads = _gradients(given, tuple(inputs), mean, root, *ctx.options)
        return (*grads, None, None, None)


Some = Tensor | None


def _composed(
    x: Tensor, weight: Some, bias: Some, scale: Some, shift: Some, groups: int, eps: float, silu: bool
) -> Tensor:
    """`group_normed` of operations that torch differentiates, transforms and compiles."""
    y, _, _ = _normed(x, *_modulation(x, weight, bias, scale, shift), groups, eps)
    return (F.silu(y) if silu else y).to(x.dtype)


def _modulation(x: Tensor, weight: Some, bias: Some, scale: Some, shift: Some) -> tuple[Tensor, Tensor]:
    """Gain w (1 + s) and offset b (1 + s) + t of each channel, (B, C), or (1, C) for all samples; float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if scale is None or shift is None:
        gain = x.new_ones(x.shape[1], dtype=wide) if weight is None else weight.to(wide)
        return gain[None], (torch.zeros_like(gain) if bias is None else bias.to(wide))[None]
    one, offset = 1 + scale.to(wide), shift.to(wide)
    return one if weight is None else one * weight, offset if bias is None else offset + one * bias


def _normed(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ gain + offset, the mean and the reciprocal deviation (B, groups); float32 or wider."""
    if _native(x, gain):
        n, folded = _folded(x, gain, groups)
        y, mean, root = torch.native_group_norm(folded, gain.flatten(), offset.flatten(), *n, eps)
        return y.reshape(x.shape), mean.view(-1, groups), root.view(-1, groups)
    wide, positions = gain.dtype, tuple(range(2, x.ndim))
    mean = x.mean(positions, dtype=wide).unflatten(1, (groups, -1)).mean(2)
    if x.dtype == wide or x.device.type == "cpu":
        centred = x - _spread(mean, x)
        square = (centred * centred).mean(positions).unflatten(1, (groups, -1)).mean(2)
        root = (square + eps).rsqrt()
        return torch.addcmul(_spread(offset, x), centred, _spread(_wide(root, x) * gain, x)), mean, root
    # One pass without a wide copy of x, on a device, which sums by trees: what float32 loses to cancellation is less
    # than the rounding of x in bfloat16. The CPU sums in order, and would lose a hundred times as much.
    norms = torch.linalg.vector_norm(x, 2, positions, dtype=wide).unflatten(1, (groups, -1))
    square = norms.square().mean(2) / math.prod(x.shape[2:])
    root = (torch.addcmul(square, mean, mean, value=-1).clamp_min(0) + eps).rsqrt()
    return _affine(x, gain, offset, mean, root), mean, root


def _native(x: Tensor, gain: Tensor) -> bool:
    """Whether torch's own kernel takes x as it is, without a copy to another memory format or dtype."""
    if x.dtype not in (torch.float32, torch.float64) or x.numel() == 0:
        return False
    if x.is_contiguous():
        return True
    # On the CPU it takes channels-last too, but then knows no gain for each sample, see `_folded`.
    plain = not _wrapped(x) and not _forwards()
    return len(gain) == 1 and x.device.type == "cpu" and x.ndim > 3 and plain and _is_last(x)


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _folded(x: Tensor, gain: Tensor, groups: int) -> tuple[tuple[int, int, int, int], Tensor]:
    """Numbers of samples, channels, positions and groups, and x in that shape, for torch's kernel.

    Where each sample has a gain of its own, the channels of all samples are told to be those of one.
    """
    batch, channels, positions = len(x), x.shape[1], math.prod(x.shape[2:])
    if len(gain) == 1:
        return (batch, channels, positions, groups), x
    return (1, batch * channels, positions, batch * groups), x.reshape(1, batch * channels, positions)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """A value of each group for all its channels, (B, groups) to (B, C)."""
    return values[..., None].expand(-1, -1, x.shape[1] // values.shape[1]).flatten(1)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """Values of groups or channels (B, ·) as (B, C, 1, ...), to meet x."""
    full = values if values.shape[1] == x.shape[1] else _wide(values, x)
    return full.reshape(*full.shape, *[1] * (x.ndim - 2))


def _affine(x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """x̂ gain + offset in one pass, as a x + b."""
    a = _wide(root, x) * gain
    return torch.addcmul(_spread(torch.addcmul(offset, _wide(mean, x), a, value=-1), x), x, _spread(a, x))


def _gradients(
    given: Tensor,
    inputs: tuple[Tensor, Some, Some, Some, Some],
    mean: Tensor,
    root: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> list[Some]:
    """By the inputs x, weight, bias, scale and shift; None where there is none."""
    x, weight, bias, scale, shift = inputs
    gain, offset = _modulation(x, weight, bias, scale, shift)
    if _native(x, gain):
        n, folded = _folded(x, gain, groups)
        grad = (given if given.stride() == x.stride() else torch.empty_like(x).copy_(given)).view(folded.shape)
        if silu:
            y, _, _ = torch.native_group_norm(folded, gain.flatten(), offset.flatten(), *n, eps)
            grad = torch.ops.aten.silu_backward(grad, y)
        dx, dgain, doffset = torch.ops.aten.native_group_norm_backward(
            grad, folded, mean.view(n[0], -1), root.view(n[0], -1), gain.flatten(), *n, [True, True, True]
        )
        dx, dgain, doffset = dx.view(x.shape), dgain.view(gain.shape), doffset.view(gain.shape)
    else:
        grad, spare = (
            given.to(gain.dtype),
            _affine(x, gain, offset, mean, root) if silu else x.to(gain.dtype, copy=True),
        )
        grad = torch.ops.aten.silu_backward(grad, spare) if silu else grad
        dx, dgain, doffset = _backward(grad, x, gain, mean, root, spare)
    found: list[Some] = [dx.to(x.dtype), None, None, None, None]
    if scale is None or shift is None:
        found[1:3] = dgain.sum(0), doffset.sum(0)
    else:
        found[3:5] = dgain, doffset
        if weight is not None and bias is not None:
            one = 1 + scale.to(gain.dtype)
            found[1:4] = (dgain * one).sum(0), (doffset * one).sum(0), dgain * weight + doffset * bias
    return [
        None if value is None or new is None else new.to(value.dtype) for new, value in zip(found, inputs, strict=True)
    ]


def _backward(
    grad: Tensor, x: Tensor, gain: Tensor, mean: Tensor, root: Tensor, spare: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Derivatives by x, and by gain and offset of each sample, of x̂ gain + offset.

    .. math::
        \frac{\partial}{\partial x}
        = \rho \left(\gamma g - \overline{\gamma g} - \hat x \overline{\gamma g \hat x}\right)

    with g what comes in, γ the gain, ρ the reciprocal deviation, and bars the mean over group and positions.
    ``spare``, of the shape of x, is written over: a new tensor would not be in the cache.
    """
    positions, size = tuple(range(2, x.ndim)), math.prod(x.shape[1:]) // mean.shape[1]
    root_c = _wide(root, x)
    doffset = grad.sum(positions)
    dgain = torch.addcmul(torch.mul(grad, x, out=spare).sum(positions), _wide(mean, x), doffset, value=-1) * root_c
    by_group = torch.stack([gain * doffset, gain * dgain]).unflatten(2, (mean.shape[1], -1)).sum(3) / -size
    slope = by_group[1] * root.square()
    level = torch.addcmul(by_group[0] * root, slope, mean, value=-1)
    dx = torch.addcmul(_spread(level, x), x, _spread(slope, x), out=spare).addcmul_(grad, _spread(root_c * gain, x))
    return dx, dgain, doffset
