"""A function of x recorded by autograd, whether or not the caller differentiates.

    leaf, value = on_leaf(lambda x: log_prob(x, t), x, name="log_prob")
    (gradient,) = torch.autograd.grad(value.sum(), leaf)

What every guidance by gradients asks for its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_leaf(function: Callable[[Tensor], Tensor], x: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
    """``x`` as something to differentiate by, and ``function`` of it with its graph: (leaf, value).

    A gradient that is part of a score's value is needed under ``torch.no_grad`` too. Where grad is enabled and x
    requires one, the leaf is x itself, so that what is made of it differentiates further; else a detached copy.

    Raises:
        ValueError: the value does not depend on x; ``name`` says whose it is.
    """
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if further and x.requires_grad else x.detach().requires_grad_(True)
        value = function(leaf)
    if not value.requires_grad:
        raise constant(name)
    return leaf, value


def constant(name: str) -> ValueError:
    """What to raise where a gradient in x is wanted of something that does not depend on x."""
    return ValueError(
        f"{name} must be differentiable in x, but its answer does not depend on x: it is detached inside, or runs "
        "under torch.inference_mode (use torch.no_grad)."
    )
