"""Guidance: functions that turn a Score into a Score, so they compose with each other and with every solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.score import Score, ScoreModel
from scoresde.sde import SDE, spread


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
    _number(scale)
    return ClassifierGuided(score, log_prob, scale, label)


@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """A Score made by :func:`classifier`; its fields are that function's arguments."""

    score: Score
    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float
    label: int | Tensor | None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        base = self.score(x, t)
        if self.scale == 0:
            return base
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
        return base + self.scale * gradient


@dataclass(frozen=True, eq=False)
class NoisyClassifier:
    """log p(k | x_t = x) by a noise-conditional network: what :func:`classifier` takes, with ``label``.

    The network is called as a ScoreModel calls its own, ``net(x, c)`` with c = log(σ/α) (B,), and answers logits
    (B, K): a :class:`scoresde.nn.NoiseClassifier`, or an ``MLP(dim, out_dim=K)`` for vectors.

    Args:
        net: the network.
        sde: the SDE whose x_t it is shown.
        sigma_data: standard deviation of the data: the network sees x / sqrt(α² σ_data² + σ²). None for x itself.
    """

    net: Callable[[Tensor, Tensor], Tensor]
    sde: SDE
    sigma_data: float | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, checks.state(x))
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        if self.sigma_data is not None:
            x = x * spread((alpha**2 * self.sigma_data**2 + sigma**2).rsqrt(), x)
        c = (sigma / alpha).log().to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return self.net(x, c.expand(x.shape[0]) if c.ndim == 0 else c).log_softmax(1)


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


def classifier_free(
    model: ScoreModel, scale: float = 1.0, *, null: Mapping[str, Any] | Any = None, **cond: Any
) -> Score:
    r"""Classifier-free guidance: s(x, t, ∅) + scale · (s(x, t, y) - s(x, t, ∅)).

    scale 0 is unconditional, 1 conditional, above 1 guided. (Ho & Salimans 2022, arXiv:2207.12598, eq. 6 write w for
    scale - 1.) Both branches are evaluated in one network call on a batch of 2B; at 0 and 1 only the one needed.

    Args:
        model: a ScoreModel trained with its conditions dropped at random.
        scale: the guidance scale.
        null: what stands for "no condition": a mapping by name, or the value itself where there is one condition.
            Default: the network's own ``null_conditions``.
        cond: the conditions, e.g. ``label=y``: tensors (B, ...), or a number for the whole batch.

    Raises:
        ValueError: no condition, no null condition for one of them, or shapes that differ.
    """
    _number(scale)
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"classifier_free needs a ScoreModel, not bound, to give it both conditions; got {type(model)}."
        )
    if not cond:
        raise ValueError("classifier_free needs a condition, e.g. classifier_free(model, scale=3.0, label=y).")
    return ClassifierFree(model, scale, cond, _nulls(model, null, cond))


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """A Score made by :func:`classifier_free`: the model, the scale, its conditions and what stands for none."""

    model: ScoreModel
    scale: float
    cond: Mapping[str, Any]
    nulls: Mapping[str, Any]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        batch = x.shape[0]
        with_cond = {name: _rows(name, value, batch, x) for name, value in self.cond.items()}
        if self.scale == 1:
            return self.model(x, t, **with_cond)
        without = {name: _null_rows(name, self.nulls[name], value) for name, value in with_cond.items()}
        if self.scale == 0:
            return self.model(x, t, **without)
        time = torch.as_tensor(t)
        both = self.model(
            torch.cat([x, x]),
            torch.cat([time, time]) if time.ndim else time,
            **{name: torch.cat([with_cond[name], without[name]]) for name in with_cond},
        )
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)


def _nulls(model: ScoreModel, null: Any, cond: Mapping[str, Any]) -> Mapping[str, Any]:
    if null is None:
        null = getattr(model.net, "null_conditions", None)
        if not isinstance(null, Mapping):
            raise ValueError(
                "classifier_free needs the null condition, the value by which the network was told 'no condition' in "
                f"training: pass null=..., e.g. null={{{next(iter(cond))!r}: 10}}."
            )
    elif not isinstance(null, Mapping):
        if len(cond) > 1:
            raise ValueError(f"with several conditions, null must be a mapping by name; got {type(null).__name__}.")
        null = dict.fromkeys(cond, null)
    missing = [name for name in cond if name not in null]
    if missing:
        raise ValueError(f"no null condition for {', '.join(missing)}; null has {', '.join(null) or 'none'}.")
    return null


def _rows(name: str, value: Any, batch: int, x: Tensor) -> Tensor:
    value = torch.as_tensor(value, device=x.device)
    if value.ndim == 0:
        return value.expand(batch)
    if value.shape[0] != batch:
        raise ValueError(f"condition {name!r} has {value.shape[0]} rows but x has {batch} samples.")
    return value


def _null_rows(name: str, null: Any, like: Tensor) -> Tensor:
    null = torch.as_tensor(null, device=like.device).to(like.dtype)
    try:
        return null.expand(like.shape)
    except RuntimeError as error:
        raise ValueError(
            f"the null of {name!r} has shape {tuple(null.shape)}, which does not fit conditions {tuple(like.shape)}."
        ) from error


def _number(scale: float) -> None:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}.")
