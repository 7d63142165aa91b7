"""Whether the probabilities of a noise-conditional classifier mean what they say, time by time.

    found = calibration(classifier_model, sde, x0, label, times=[0.1, 0.3, 0.6], noise=0)
    found.ece, found.nll, found.temperature
    classifier(score, classifier_model, label=3, temperature=found.temperature_at)

Give it data that the classifier was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.modules import parameters_of
from scoresde.models.score import same_sde
from scoresde.noise import Noise, as_noise
from scoresde.sde import SDE, Time

_MOST_BINS = 1_000_000
# Fitted temperatures stay within this factor of 1: beyond, the fit has no finite end (see `fit_temperature`).
_MOST = 100.0


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibration` found; each tensor is (n,) float64, one entry for each time.

    Attributes:
        sde: the SDE.
        times: the times asked for.
        samples: how many samples were seen at each.
        accuracy: share of samples whose most probable class is the true one.
        confidence: mean probability of the most probable class.
        nll: mean of -log p(label | x_t), nats. No classifier has less, in expectation, than the exact one.
        ece: expected calibration error, Σ_m |B_m|/n · |accuracy(B_m) - confidence(B_m)| over equal bins of confidence
            (Guo et al. 2017, arXiv:1706.04599, eq. 3).
        ece_floor: what a perfectly calibrated classifier of the same confidences shows in ``ece`` from sampling alone,
            at most, in expectation: (1/n) Σ_m sqrt(Σ_{i in B_m} p_i (1 - p_i)), by Jensen's inequality.
        brier: mean of Σ_k (p_k - 1[k = label])² (Brier 1950).
        temperature: the T that minimises the NLL of softmax(logits / T) at this time (Guo et al. 2017, section 4.2);
            above 1 where the classifier is too sure of itself. 1 where the logits say nothing.
        log_temperature_error: standard error of log T, from the Fisher information; infinite where the logits say
            nothing, and where the fit has no finite end (``temperature`` is then 100 or 1/100).
    """

    sde: SDE
    times: Tensor
    samples: int
    accuracy: Tensor
    confidence: Tensor
    nll: Tensor
    ece: Tensor
    ece_floor: Tensor
    brier: Tensor
    temperature: Tensor
    log_temperature_error: Tensor

    def temperature_at(self, t: Time) -> Tensor:
        """The temperature at other times, () or (B,): log T linear in log-SNR, and constant beyond the times asked for.

        What ``classifier(..., temperature=calibration.temperature_at)`` takes.
        """
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        known = self.sde.log_snr(self.times)
        order = known.argsort()
        known, values = known[order].to(time.device), self.temperature.log()[order].to(time.device)
        at = self.sde.log_snr(time).clamp(known[0], known[-1])
        if len(known) == 1:
            return values[0].exp().expand(time.shape)
        right = torch.searchsorted(known, at.detach().contiguous()).clamp(1, len(known) - 1)
        share = (at - known[right - 1]) / (known[right] - known[right - 1])
        return torch.lerp(values[right - 1], values[right], share).exp()


@torch.no_grad()
@in_evaluation_mode("log_prob")
def calibration(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    sde: SDE,
    x0: Tensor,
    label: Tensor,
    times: Sequence[float] | Tensor,
    noise: Noise | torch.Generator | int,
    *,
    bins: int = 15,
    batch_size: int = 1000,
) -> Calibration:
    """Compare a classifier's probabilities on x_t = α x_0 + σ ε with the labels, at each of some times.

    Give it data that the classifier was not trained on. At every t the exact classifier of x_t is calibrated, whatever
    the noise, so what is found here is the classifier's own error.

    Args:
        log_prob: (x, t) -> (B, K), log-probabilities or logits: a ClassifierModel, or any function.
        sde: the SDE of x_t.
        x0: (n, *event) data in model units, on any device: pieces of x_t go to that of the classifier's parameters.
        label: (n,) integers in [0, K), on any device.
        times: of one axis, each once, where σ(t) > 0.
        noise: where ε comes from, fresh at each time; or a seed.
        bins: number of equal bins of confidence in [0, 1].
        batch_size: samples in one call of ``log_prob``; the numbers are the same for any, to rounding.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, labels or times out of range, a model that
            says that it is of another schedule, answers that are not finite.
    """
    checks.function(log_prob, name="log_prob", what="(x, t) -> log-probabilities (B, K)", takes=2)
    checks.instance(sde, SDE, name="sde")
    own = getattr(log_prob, "sde", None)
    if isinstance(own, SDE):
        same_sde({"sde": sde, "the classifier": own})
    bins = checks.count(bins, name="bins", most=_MOST_BINS)
    batch_size = checks.count(batch_size, name="batch_size")
    checks.state(x0, name="x0", values=True)
    _check_label(label, len(x0))
    grid = _times(sde, times)
    source = as_noise(noise, "data")
    parameters = parameters_of(log_prob)
    device = parameters[0].device if parameters else x0.device
    label = label.long().cpu()
    rows = []
    for time in grid:
        mean, std = sde.marginal(x0, time)
        x = mean + std * source.normal(x0)
        parts = [log_prob(piece.to(device), time) for piece in x.split(batch_size)]
        _check_answer(parts, len(x0), label, time)
        log_p = torch.cat([part.cpu().double() for part in parts]).log_softmax(1)
        rows.append(_at_one_time(log_p, label, bins))
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    return Calibration(sde, grid, len(x0), *columns)


def _at_one_time(log_p: Tensor, label: Tensor, bins: int) -> tuple[float, ...]:
    """The fields of a Calibration from ``accuracy`` on."""
    p = log_p.exp()
    confidence, guess = p.max(1)
    right = (guess == label).double()
    where = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins ((m - 1)/M, m/M]
    sums = torch.zeros(2, bins, dtype=torch.float64)
    sums[0].index_add_(0, where, right - confidence)
    sums[1].index_add_(0, where, confidence * (1 - confidence))
    truth = nn.functional.one_hot(label, log_p.shape[1])
    temperature, error = fit_temperature(log_p, label)
    return (
        right.mean().item(),
        confidence.mean().item(),
        -log_p.gather(1, label[:, None]).mean().item(),
        sums[0].abs().sum().item() / len(label),
        sums[1].clamp_min(0).sqrt().sum().item() / len(label),
        (p - truth).square().sum(1).mean().item(),
        temperature,
        error,
    )


def fit_temperature(logits: Tensor, label: Tensor) -> tuple[float, float]:
    r"""The T that minimises the mean of -log softmax(logits / T)[label], and the standard error of log T.

    In β = 1/T this is convex (Guo et al. 2017, arXiv:1706.04599, section 4.2)::

        d NLL/dβ = mean(E_β[z] - z_label),   d² NLL/dβ² = mean(Var_β[z]),   z = logits, p_β = softmax(β z)

    Newton's method from β = 1, and bisection wherever it leaves the bracket; the Fisher information of β is n times
    the second derivative. Where the least NLL lies at β <= 0 (worse than guessing) or at infinity (no sample is
    mistaken), T is the end of [1/100, 100] on that side, and its error infinite.

    Args:
        logits: (n, K) float64.
        label: (n,) int64.
    """
    z = logits - logits.mean(1, keepdim=True)
    wanted = z.gather(1, label[:, None])[:, 0].mean()
    if z.abs().amax() <= 1e-9:  # rounding alone, and T has no influence
        return 1.0, math.inf

    def slopes(beta: float) -> tuple[float, float]:
        p = (beta * z).softmax(1)
        mean = (p * z).sum(1)
        return (mean.mean() - wanted).item(), (p * (z - mean[:, None]).square()).sum(1).mean().item()

    low, high, beta = 1 / _MOST, _MOST, 1.0
    if slopes(low)[0] >= 0:
        return _MOST, math.inf
    if slopes(high)[0] <= 0:
        return 1 / _MOST, math.inf
    for _ in range(200):
        first, second = slopes(beta)
        low, high = (beta, high) if first < 0 else (low, beta)
        newton = beta - first / second if second > 0 else math.inf
        before, beta = beta, newton if low < newton < high else math.sqrt(low * high)
        if abs(beta - before) <= 1e-12 * beta:
            break
    information = len(label) * slopes(beta)[1]
    return 1 / beta, 1 / (beta * math.sqrt(information)) if information > 0 else math.inf


def _check_label(label: Tensor, count: int) -> None:
    if not isinstance(label, Tensor):
        raise TypeError(f"label must be a torch.Tensor ({count},), got {checks.got(label)}.")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"label: labels must be integers, got {label.dtype}; class numbers convert by label.long().")
    if label.shape != (count,) or not count:
        raise ValueError(
            f"label must be one integer for each of at least one sample, ({count},); got {tuple(label.shape)}."
        )


def _times(sde: SDE, times: Sequence[float] | Tensor) -> Tensor:
    grid = checks.real(times, name="times")
    if grid.is_meta:
        raise ValueError(f"times must hold values, got {checks.got(times)}.")
    grid = checks.time(grid, sde.t_max, name="times", what=type(sde).__name__).detach().cpu()
    if grid.ndim != 1 or not len(grid) or len(grid.unique()) != len(grid):
        raise ValueError(f"times must be one axis of different times, (n,); got {grid.tolist()}, {checks.got(times)}.")
    if not bool((sde.sigma(grid) > 0).all()):
        raise ValueError(
            f"a noise-conditional classifier is asked where σ(t) > 0; got the times {grid.tolist()}. Start at t_min = "
            f"{sde.t_min:g}."
        )
    return grid


def _check_answer(parts: list[Tensor], count: int, label: Tensor, time: Tensor) -> None:
    for part in parts:
        checks.instance(part, Tensor, name="what log_prob returns")
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or sum(len(part) for part in parts) != count:
        raise ValueError(f"log_prob must answer all classes, (B, K); got {tuple(parts[0].shape)}.")
    low, high = (int(end) for end in label.aminmax())
    if low < 0 or high >= parts[0].shape[1]:
        raise ValueError(
            f"label must lie in 0..{parts[0].shape[1] - 1}, the classes of log_prob; got {low} to {high} in "
            f"{checks.got(label)}."
        )
    for part in parts:
        if not bool(part.isfinite().all()):
            raise ValueError(
                f"log_prob answers NaN or infinity at t = {time.item():g}. Probabilities of exactly 0 have no "
                "logarithm: return logits."
            )
