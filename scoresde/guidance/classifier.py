"""Classifier guidance: the gradient of log p(y | x_t), added to a score.

    classifier(score, classifier_model, scale=2.0, label=3)          # logits or log-probabilities of all classes
    classifier(score, lambda x, t: log_likelihood(x, t), scale=1.0)  # one number for each sample

The exact classifier of a problem is ``problem.label_log_prob(sde)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import kept_at
from scoresde.guidance.leaf import constant, on_leaf
from scoresde.guidance.parts import LinearGuidance, Part, Twist, TwistedGuidance, finite_scale, parts_of
from scoresde.models.combination import X0, Combination, combine
from scoresde.models.score import DerivedScore, Score, check_independent, check_score, same_sde
from scoresde.sde import SDE

Temperature = float | Callable[[Tensor], Tensor | float]


def classifier(
    score: Score,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    scale: float = 1.0,
    *,
    label: int | Tensor | None = None,
    temperature: Temperature = 1.0,
    t_end: float | None = None,
) -> Score:
    r"""Classifier guidance: s(x, t) + scale · ∇_x log p(y | x_t = x).

    Dhariwal & Nichol 2021 (arXiv:2105.05233, eq. 14); Song et al. 2021 (arXiv:2011.13456, eq. 14). With the exact
    classifier, scale 1 is the exact conditional score.

    A temperature τ makes the classifier softmax_k(log p(k | x_t) / τ) (Guo et al. 2017, arXiv:1706.04599, eq. 9): below
    1 surer, above 1 less sure. With a τ(t) that calibrates it at every t, the classifier is nearer to p(y | x_t), which
    is what the weights of :func:`scoresde.particles.tilted` take it for; with a τ that only sharpens,
    :func:`scoresde.particles.twisted` knows better.

    Args:
        score: the score to be guided.
        log_prob: (x, t) -> log p(y | x_t = x), (B,), differentiable in x; or (B, K) for all classes, with ``label``.
        scale: 0 leaves the score as it is (and never calls the classifier).
        label: the wanted class, an index, (B,), or (1,) for all samples, where log_prob answers (B, K).
        temperature: τ > 0, a number or a function of t, () or (B,), to () or (B,); needs ``label``.
        t_end: where the tilt of clean samples is read off, see :meth:`ClassifierGuided.log_potential`. Default: the
            ``t_min`` of the SDE that log_prob says is its own, as a ``ClassifierModel`` does.

    Raises:
        TypeError: the score is no Score, or log_prob no function.
        ValueError: a classifier that says it is of another schedule; a label that is no whole number; a temperature
            that is not positive or comes without label; when called, before the score is: a label out of range, a
            classifier's answer of the wrong shape or that does not depend on x; x̂_0 asked for where α(t) = 0, of which
            the classifier's gradient says nothing there.
    """
    check_independent(check_score(score), what="classifier(score, log_prob)")
    scale = finite_scale(scale)
    _whole(label)
    checks.function(log_prob, name="log_prob", what="(x, t) -> log p(y | x)", takes=2)
    if not callable(temperature) or isinstance(temperature, type):
        checks.positive(temperature, name="temperature")
        temperature = checks.unboxed(temperature)
    if label is None and _tempers(temperature):
        raise ValueError(
            "temperature divides the log-probabilities of all classes before they are normalised again: let log_prob "
            "answer (B, K) and say which class with label=."
        )
    sde = getattr(log_prob, "sde", None)
    if isinstance(sde, SDE):
        same_sde({"the score": score.sde, "the classifier": sde})
    if t_end is None:
        t_end = sde.t_min if isinstance(sde, SDE) else None
    else:
        t_end = checks.number(t_end, name="t_end")
        if not 0 <= t_end < float("inf"):
            raise ValueError(f"t_end must be a time, at least 0; got {t_end:g}.")
    return ClassifierGuided(score, log_prob, scale, label, temperature, t_end)


@dataclass(frozen=True, eq=False)
class ClassifierGuided(DerivedScore, LinearGuidance, TwistedGuidance):
    """A Score made by :func:`classifier`; its fields are that function's arguments.

    It is a weighted sum of scores, and a score bent by the known log ψ_t(x) = scale · log p(y | x_t = x).
    """

    score: Score
    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float
    label: int | Tensor | None = None
    temperature: Temperature = 1.0
    t_end: float | None = None

    @property
    def amplification(self) -> float:  # type: ignore[override]
        strength = abs(self.scale) if callable(self.temperature) else abs(self.scale) / float(self.temperature)
        inner = self.score.amplification
        return abs(1 - strength) + strength if inner == 1 else inner + 2 * strength

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if self.scale == 0:
            return self.score.evaluate(x, t, wanted)
        of_score = wanted.of_score(self.sde, t)[1]
        gradient = self.gradient(x, t)[1]  # first, for it checks the label and may cost less
        return combine((1.0, self.score.evaluate(x, t, wanted)), (self.scale * of_score, gradient))

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """The score s with weight 1 - scale, and the conditional score s + ∇ log p(y | x_t) with weight scale.

        Where s is itself a weighted sum, its first part stands for s: the law of which p(y | x_t) is the classifier.
        At scale 0 the classifier is not called.
        """
        if self.scale == 0:
            return parts_of(self.score, x, t, wanted)
        of_score = wanted.of_score(self.sde, t)[1]
        gradient = self.gradient(x, t)[1]
        first, *others = parts_of(self.score, x, t, wanted)
        conditional = combine((1.0, first.value), (of_score, gradient))
        return [Part(first.weight - self.scale, first.value), *others, Part(self.scale, conditional)]

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        """x̂_0, scale · log p(y | x_t = x) and its gradient; 0 without a call of the classifier at scale 0."""
        if self.scale == 0:
            return Twist(self.score.evaluate(x, t, X0), x.new_zeros(len(x)), torch.zeros_like(x))
        value, gradient = self.gradient(x, t)
        return Twist(self.score.evaluate(x, t, X0), self.scale * value, self.scale * gradient)

    def log_potential(self, x0: Tensor) -> Tensor:
        """scale · log p(y | x_{t_end} = x0), (B,).

        A noise-conditional classifier knows clean samples only as states at a small time, so that is how they are
        read; they differ by noise of σ(t_end). A run that ends at the last time of its grid, without denoising, is
        weighted with log ψ there and has no use for this.

        Raises:
            ValueError: no t_end.
        """
        if self.scale == 0:
            return x0.new_zeros(len(x0))
        return self.scale * self._log_prob(x0, torch.tensor(self._end(), dtype=torch.float64))

    def check(self) -> None:
        """Raises ValueError without t_end, unless the scale is 0."""
        if self.scale != 0:
            self._end()

    def _end(self) -> float:
        if self.t_end is None:
            raise ValueError(
                "the tilt of clean samples needs a time at which this log_prob takes them: pass classifier(..., "
                "t_end=...), the last time of the grid, or 0.0 for an exact classifier."
            )
        return self.t_end

    def gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | x_t = x), (B,), and its gradient ∇_x, shaped like x; not multiplied by scale."""
        # The gradient is part of the score's value; it is differentiable itself only if the caller differentiates.
        create_graph = torch.is_grad_enabled()
        leaf, value = on_leaf(lambda leaf: self._log_prob(leaf, t), x, name="log_prob")
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=create_graph, allow_unused=True)
        if gradient is None:
            raise constant("log_prob")
        return (value if create_graph else value.detach()), gradient

    def _log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t = x), (B,), of the wanted class at the temperature."""
        value = self.log_prob(x, t)
        if not isinstance(value, Tensor):
            raise TypeError(f"log_prob must return a tensor, ({len(x)},) or ({len(x)}, K); got {checks.got(value)}.")
        if _tempers(self.temperature):
            _all_classes(value, x)
            value = (value / self._divisor(t, value)).log_softmax(1)
        return _pick(value, self.label, x)

    def _divisor(self, t: Tensor, value: Tensor) -> Tensor | float:
        """The temperature, a number or (B or 1, 1)."""
        if not callable(self.temperature):
            return self.temperature
        found = checks.real(self.temperature(checks.real(t, name="t")), name="temperature(t)")
        found = checks.sent(found, value.device, value.dtype)
        if found.ndim > 1 or (found.ndim == 1 and found.shape != value.shape[:1]):
            raise ValueError(
                f"temperature(t) must be one number () or ({value.shape[0]},), one for each sample; got "
                f"{tuple(found.shape)}."
            )
        if checks.readable(found) and not bool(((found > 0) & found.isfinite()).all()):
            raise ValueError(f"temperature(t) must be positive and finite; got {found.tolist()} at t = {t}.")
        return found.reshape(-1, 1)


def _tempers(temperature: Temperature) -> bool:
    return not isinstance(temperature, (int, float)) or temperature != 1


def _whole(label: int | Tensor | None) -> None:
    """A label is None, or whole numbers, () or (B,)."""
    if label is None:
        return
    try:
        wanted = torch.as_tensor(None if isinstance(label, bytes) else label)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"label must be a whole number or a tensor (B,) of them; got {checks.got(label)}.") from error
    if wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool or wanted.ndim > 1:
        raise ValueError(
            f"label must be a whole number or a tensor (B,) of them; got {label!r:.80}, {wanted.dtype}. Call "
            ".long() if these are class indices."
        )
    if wanted.numel() and checks.readable(wanted) and int(wanted.amin()) < 0:
        raise ValueError(f"label must be at least 0, got {int(wanted.amin())}.")


def _all_classes(value: Tensor, x: Tensor) -> None:
    if value.ndim != 2 or value.shape[0] != x.shape[0]:
        raise ValueError(f"with label=, log_prob must answer ({x.shape[0]}, K); got {tuple(value.shape)}.")


def _pick(value: Tensor, label: int | Tensor | None, x: Tensor) -> Tensor:
    batch = x.shape[0]
    if label is None:
        if value.shape != (batch,):
            raise ValueError(
                f"log_prob must answer one number for each sample, ({batch},); got {tuple(value.shape)}. If it answers "
                "all classes, (B, K), say which with label=."
            )
        return value
    _all_classes(value, x)
    wanted = kept_at(torch.as_tensor(label), value.device)
    if wanted.ndim and wanted.shape not in ((batch,), (1,)):
        raise ValueError(f"label must be a whole number, ({batch},) or (1,); got {tuple(wanted.shape)}.")
    if checks.readable(wanted) and wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < value.shape[1]:
        raise ValueError(f"label must lie in 0..{value.shape[1] - 1}; got {label}.")
    return value.gather(1, wanted.long().expand(batch)[:, None])[:, 0]
