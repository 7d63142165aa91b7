"""Scores: the currency of the library, and the model that turns a network's prediction into one."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.sde import SDE, Time, spread

Score = Callable[[Tensor, Tensor], Tensor]
"""(x (B, *event), t () or (B,)) -> ∇_x log p_t(x), shaped like x."""


class Affine(NamedTuple):
    """What a network's output F means: ε = noise_x x + noise_out F and x_0 = data_x x + data_out F.

    Four float64 coefficients of time. They are written out for each prediction because computing one quantity from
    the other loses all digits where σ or α is small.
    """

    noise_x: Tensor
    noise_out: Tensor
    data_x: Tensor
    data_out: Tensor


Prediction = Callable[[Tensor, Tensor, float], Affine]
"""(α, σ, σ_data) -> Affine: a user's own parametrisation is one such function."""


def predicts_noise(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = ε (Ho et al. 2020, arXiv:2006.11239)."""
    one = torch.ones_like(alpha)
    return Affine(0 * one, one, 1 / alpha, -sigma / alpha)


def predicts_x0(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = x_0."""
    one = torch.ones_like(alpha)
    return Affine(1 / sigma, -alpha / sigma, 0 * one, one)


def predicts_v(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = v = α ε - σ x_0 (Salimans & Ho 2022, arXiv:2202.00512, section 4), for any α and σ."""
    total = alpha**2 + sigma**2
    return Affine(sigma / total, alpha / total, alpha / total, -sigma / total)


def predicts_score(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = ∇ log p_t = -ε/σ (Song et al. 2021, arXiv:2011.13456)."""
    return Affine(torch.zeros_like(alpha), -sigma, 1 / alpha, sigma**2 / alpha)


def predicts_velocity(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = ε - x_0, the velocity of the straight path (Liu et al. 2023, arXiv:2209.03003), for any α and σ."""
    total = alpha + sigma
    return Affine(1 / total, alpha / total, 1 / total, -sigma / total)


def predicts_edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F of D = c_skip x̃ + c_out F(c_in x̃), x̃ = x/α (Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1)."""
    total = sigma**2 + (alpha * sigma_data) ** 2
    return Affine(
        sigma / total,
        -sigma_data * alpha / total.sqrt(),
        sigma_data**2 * alpha / total,
        sigma_data * sigma / total.sqrt(),
    )


PREDICTIONS: Mapping[str, Prediction] = {
    "noise": predicts_noise,
    "x0": predicts_x0,
    "v": predicts_v,
    "score": predicts_score,
    "velocity": predicts_velocity,
    "edm": predicts_edm,
}


class ScoreModel(nn.Module):
    r"""A network, the SDE it was trained under, and what it predicts: together a score.

    The network is called as ``net(x, c, **cond)`` with c = log(σ/α), shape (B,), at least float32. As α enters only
    through this ratio and the scale of x, one trained network serves every other schedule: see :meth:`under`.

    Args:
        net: an ``nn.Module`` or any function ``(x, c, **cond) -> F`` shaped like x.
        sde: the SDE.
        predicts: "noise", "x0", "v", "score", "velocity", "edm", or a function (see :data:`Prediction`).
        sigma_data: standard deviation of the data. With it the network sees x / sqrt(α² σ_data² + σ²), of unit
            variance; without it, x itself. "edm" always scales, with 0.5 unless told otherwise.

    Raises:
        ValueError: an unknown prediction, or a sigma_data that is not positive.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: SDE,
        predicts: str | Prediction = "noise",
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(predicts, str) and predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, or a function; got {predicts!r}.")
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be an SDE, got {type(sde).__name__}; the order is ScoreModel(net, sde).")
        if not callable(net):
            raise TypeError(f"net must be a module or a function, got {type(net).__name__}.")
        if sigma_data is not None:
            checks.positive(sigma_data, name="sigma_data")
        self.net, self.sde, self.predicts = net, sde, predicts
        self._prediction = PREDICTIONS[predicts] if isinstance(predicts, str) else predicts
        self.sigma_data = 0.5 if sigma_data is None and predicts == "edm" else sigma_data

    def output(self, x: Tensor, t: Time, **cond: Any) -> tuple[Tensor, Affine, Tensor]:
        """The network's F at (x, t), the coefficients that give it a meaning, and σ(t)."""
        x = checks.state(x)
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, x)
        if time.ndim and time.device != x.device:
            time = time.to(x.device)
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        if checks.readable(alpha) and bool((alpha <= 0).any()):
            raise ValueError(
                f"there is no score model where α(t) = 0 and log(σ/α) is infinite; got t = {t} under "
                f"{type(self.sde).__name__}. Start at T = {self.sde.T:g}."
            )
        if checks.readable(sigma) and bool((sigma <= 0).any()):
            raise ValueError(
                f"there is no score where σ(t) = 0; got t = {t} under {type(self.sde).__name__}. Stop at t_min = "
                f"{self.sde.t_min:g} and let solve(..., denoise=True) take the last step."
            )
        scaled = x
        if self.sigma_data is not None:
            scaled = x * spread((alpha**2 * self.sigma_data**2 + sigma**2).rsqrt(), x)
        c = (sigma / alpha).log().to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        out = self.net(scaled, c.expand(x.shape[0]) if c.ndim == 0 else c, **cond)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the network must return a tensor shaped like x, {tuple(x.shape)}; it returned {got}.")
        coefficients = self._prediction(alpha, sigma, self.sigma_data if self.sigma_data is not None else 1.0)
        return out.to(x.dtype), coefficients, sigma

    def forward(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The score ∇ log p_t(x), (B, *event).

        Args:
            x: (B, *event).
            t: () or (B,), where σ(t) > 0.
            cond: conditions, passed to the network as they are.
        """
        out, k, sigma = self.output(x, t, **cond)
        return spread(-k.noise_x / sigma, x) * x + spread(-k.noise_out / sigma, x) * out

    def noise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The predicted ε = E[ε | x_t] = -σ ∇ log p_t(x)."""
        out, k, _ = self.output(x, t, **cond)
        return spread(k.noise_x, x) * x + spread(k.noise_out, x) * out

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x], Tweedie's formula."""
        out, k, _ = self.output(x, t, **cond)
        return spread(k.data_x, x) * x + spread(k.data_out, x) * out

    def bind(self, **cond: Any) -> BoundScore:
        """The Score of this model under fixed conditions, e.g. ``model.bind(label=y)``.

        A number or one row (1, ...) is for the whole batch where the network's ``null_conditions`` name the condition;
        all else is passed on as it is.
        """
        return BoundScore(self, cond)

    def under(self, sde: SDE) -> ScoreModel:
        """This model's score under another schedule, exactly, without training.

        The laws of x_t/α depend on σ/α alone, so with t' the time at which both ratios agree and c = α(t')/α_new(t)::

            ∇ log p_new(x, t) = c ∇ log p(c x, t')

        Probability-flow trajectories of the two are the same up to the factor α_new/α.

        Args:
            sde: the other schedule. Asking it for a σ/α outside [0, T] of the trained one raises; for one that was
                not trained, a warning is given here.
        """
        return Transported(self, sde)


class Transported(ScoreModel):
    """A model seen under another schedule; made by :meth:`ScoreModel.under`."""

    def __init__(self, model: ScoreModel, sde: SDE) -> None:
        super().__init__(model.net, sde, model.predicts, model.sigma_data)
        self.trained_under: SDE = model.trained_under if isinstance(model, Transported) else model.sde
        # In a tuple: as an attribute of its own, nn.Module would list the network's parameters a second time.
        self._inner: tuple[ScoreModel, ...] = model._inner if isinstance(model, Transported) else (model,)
        own, new = self.trained_under, sde
        asked, seen = ([s.log_snr(t).item() for t in (s.T, s.t_min)] for s in (new, own))
        if asked[0] < seen[0] - 1e-6 or asked[1] > seen[1] + 1e-6:
            warnings.warn(
                f"{type(new).__name__} runs over log-SNR [{asked[0]:.3g}, {asked[1]:.3g}], but the network was trained "
                f"under {type(own).__name__} on [{seen[0]:.3g}, {seen[1]:.3g}]. Narrow the new one's T and t_min (for "
                "example with its t_of_log_snr) to stay where the network has been.",
                stacklevel=3,
            )

    def output(self, x: Tensor, t: Time, **cond: Any) -> tuple[Tensor, Affine, Tensor]:
        """F at the trained schedule's own (x, t) with the same σ/α; the coefficients absorb the change of scale."""
        x = checks.state(x)
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, x)
        if time.ndim and time.device != x.device:
            time = time.to(x.device)
        own = self.trained_under.t_of_log_snr(self.sde.log_snr(time))
        scale = self.trained_under.alpha(own) / self.sde.alpha(time)
        out, k, _ = self._inner[0].output(spread(scale, x) * x, own, **cond)
        return out, Affine(k.noise_x * scale, k.noise_out, k.data_x * scale, k.data_out), self.sde.sigma(time)


@dataclass(frozen=True)
class BoundScore:
    """A Score: a model with its conditions filled in."""

    model: ScoreModel
    cond: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        known = getattr(self.model.net, "null_conditions", None) or {}
        return self.model(x, t, **{k: _rows(v, x) if k in known else v for k, v in self.cond.items()})


def _rows(value: Any, x: Tensor) -> Any:
    """A condition with a row for each sample: a number, a tensor () or one row (1, ...) is that of all of them."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.as_tensor(value, device=x.device)
    if isinstance(value, Tensor) and (not value.ndim or len(value) == 1):
        return value.expand(len(x), *value.shape[1:])
    return value


def modules_of(score: object) -> tuple[nn.Module, ...]:
    """Every module behind a score: its model's, a classifier's, through bound conditions and guidance.

    Looks into the fields of dataclasses (such as the library's own guidances), ``functools.partial``, bound methods,
    containers, and attributes called score, model, net, log_prob or classifier. Not seen: what a plain function or a
    lambda has closed over; make such a function an ``nn.Module``, or an object with one of these attributes.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def look(part: object) -> None:
        if part is None or isinstance(part, (Tensor, SDE, str, int, float)) or id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found[id(part)] = part
        if isinstance(part, Mapping):
            inside = list(part.values())
        elif isinstance(part, (tuple, list)):
            inside = list(part)
        else:
            names = [f.name for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
            inside = [getattr(part, name, None) for name in [*names, *_HOLDERS]]
        for other in inside:
            look(other)

    look(score)
    return tuple(found.values())


# Where an object that is no dataclass may hold a module; the last four are functools.partial's and a bound method's.
_HOLDERS = ("score", "model", "net", "log_prob", "classifier", "func", "args", "keywords", "__self__")


def parameters_of(score: object) -> tuple[nn.Parameter, ...]:
    """The parameters of :func:`modules_of`, each once."""
    return tuple({id(p): p for module in modules_of(score) for p in module.parameters()}.values())


def denoise(score: Score, sde: SDE, x: Tensor, t: Time) -> Tensor:
    """E[x_0 | x_t = x] = (x + σ² s(x, t)) / α from any score (Robbins 1956; Efron 2011)."""
    time = checks.time(t, sde.t_max, what=type(sde).__name__)
    alpha, sigma = sde.alpha(time), sde.sigma(time)
    return spread(1 / alpha, x) * x + spread(sigma**2 / alpha, x) * score(x, time)


def score_of_denoiser(denoiser: Score, sde: SDE) -> Score:
    """The Score (α D(x, t) - x) / σ² of a denoiser D(x, t) = E[x_0 | x_t = x]."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return spread(alpha / sigma**2, x) * denoiser(x, t) - spread(sigma**-2, x) * x

    return score
