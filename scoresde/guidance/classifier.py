"""Classifier guidance: the gradient of log p(y | x_t), added to a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.score import Score


def classifier(
    score: Score,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    scale: float = 1.0,
    *,
    label: int | Tensor | None = None,
) -> Score:
    r"""Classifier guidance: s(x, t) + scale · ∇_x log p(y | x_t = x).

    Dhariwal & Nichol 2021 (arXiv:2105.05233, eq. 14); Song et al. 2021 (arXiv:2011.13456, eq. 14). With the exact
    classifier, scale 1 is the exact conditional score.

    Args:
        score: the score to be guided.
        log_prob: (x, t) -> log p(y | x_t = x), (B,), differentiable in x; or (B, K) for all classes, with ``label``.
        scale: 0 leaves the score as it is (and never calls the classifier).
        label: the wanted class, an index or (B,), where log_prob answers (B, K).

    Raises:
        ValueError: the classifier's answer has the wrong shape, or does not depend on x.
    """
    finite_scale(scale)
    return ClassifierGuided(score, log_prob, scale, label)


@dataclass(frozen=True, eq=False)
class ClassifierGuided(LinearGuidance):
    """A Score made by :func:`classifier`; its fields are that function's arguments."""

    score: Score
    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float
    label: int | Tensor | None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        base = self.score(x, t)
        return base if self.scale == 0 else base + self.scale * self.gradient(x, t)[1]

    def parts(self, x: Tensor, t: Tensor) -> list[Part]:
        """The score with weight 1 - scale, and the conditional score s + ∇ log p(y | x_t) with weight scale."""
        base = self.score(x, t)
        return [Part(1 - self.scale, base), Part(self.scale, base + self.gradient(x, t)[1])]

    def gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | x_t = x), (B,), and its gradient ∇_x, shaped like x."""
        # The gradient is part of the score's value; it is differentiable itself only if the caller differentiates.
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if create_graph and x.requires_grad else x.detach().requires_grad_(True)
            value = _pick(self.log_prob(leaf, t), self.label, x)
            if not value.requires_grad:
                raise ValueError(_CONSTANT)
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=create_graph, allow_unused=True)
        if gradient is None:
            raise ValueError(_CONSTANT)
        return (value if create_graph else value.detach()), gradient


_CONSTANT = (
    "log_prob must be differentiable in x, but its answer does not depend on x: it is detached inside, or runs under "
    "torch.inference_mode (use torch.no_grad)."
)


def _pick(value: Tensor, label: int | Tensor | None, x: Tensor) -> Tensor:
    batch = x.shape[0]
    if label is None:
        if value.shape != (batch,):
            raise ValueError(
                f"log_prob must answer one number for each sample, ({batch},); got {tuple(value.shape)}. If it answers "
                "all classes, (B, K), say which with label=."
            )
        return value
    if value.ndim != 2 or value.shape[0] != batch:
        raise ValueError(f"with label=, log_prob must answer ({batch}, K); got {tuple(value.shape)}.")
    wanted = torch.as_tensor(label, device=value.device)
    if wanted.is_floating_point() or (wanted.ndim and wanted.shape != (batch,)):
        raise ValueError(f"label must be a whole number or ({batch},); got {wanted.dtype} {tuple(wanted.shape)}.")
    if checks.readable(wanted) and wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < value.shape[1]:
        raise ValueError(f"label must lie in 0..{value.shape[1] - 1}; got {label}.")
    return value.gather(1, wanted.long().expand(batch)[:, None])[:, 0]
