r"""Couplings of data and noise: which noise each sample of a batch is mixed with, where it need not be any::

    eps = coupled_noise(x0, torch.randn_like(x0))                                   # unconditional
    eps = coupled_noise(x0, eps, conditions={"label": y})                           # within each class
    eps = coupled_noise(x0, eps, conditions={"y": y}, condition_weight=10.0)        # continuous conditions
    train(model, dataset, coupling=OptimalTransport(), ...)                         # the same in scoresde.train

**What it is for, and what it costs in meaning.** A batch's noises are dealt out anew so that Σ |x_0 - ε|² is least. The
pairs (x_0, ε) are then no longer independent, paths x_t = α x_0 + σ ε cross less, and the velocity
E[α' x_0 + σ' ε | x_t] is straighter: fewer steps of an ODE solver. Data and noise are the same numbers, so both laws
stay as they were (in expectation over the batch), and the ODE with this velocity still carries noise to data. But the
path between them is another one: p(x_t | x_0) is not N(α x_0, σ² I), and E[ε | x_t] = -σ ∇ log p_t(x_t), which rests on
ε being independent of x_0, no longer holds. For x_0 ~ N(0, s²) and large batches ε = x_0/s and x_t = (α s + σ) ε, so
that -E[ε | x_t]/σ = -x/(σ (α s + σ)), while the score of that path is -x/(α s + σ)². What such a network answers is
right for η = 0 alone; it is no score, and reverse SDEs, Langevin steps, the score of a classifier and posteriors, which
take it for one, are refused, and so is what mixes a sample with noise of its own half way, as SDEdit does: x_t would be
of another law than that of the path (``model.trained_with.coupling`` says so, and so does the checkpoint).

**At the end of the path** x_T = α x_0 + σ ε has the deviation α s + σ where data and noise are coupled, and
sqrt(α² s² + σ²) where they are not. Samples that start from N(0, σ²) come out narrower by the factor σ/(α s + σ), of
first order in α(T): take an SDE with α(T) = 0, such as RectifiedFlow. VP loses 0.7 % of the deviation (s = 1), EDM
0.6 % (s = ½), VE up to σ = 50 2 %.

**Conditions.** A plain coupling lets x_0 choose its noise, and with it its condition: noise on the side of class 1 is
given to class 1, p(ε | label) is not N(0, I), and samples that start there, as all samplers do, are skewed (Cheng &
Schwing 2025, arXiv:2503.10636). So whole-number conditions are coupled within each value, where p(ε | label) stays
N(0, I) exactly; for floating ones a term w |c_i - c_j|² is added to the cost of giving sample i the noise of sample j,
and the skew goes to 0 as w grows, and with it the coupling.

**Bias of small batches.** The plan is that of B samples, not of the laws: paths become straight only as B grows, slowly
in high dimension; with B = 1 nothing is coupled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks

Coupling = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""(x_0, ε, conditions by name) -> the noises in the order in which they meet the samples."""


@dataclass(frozen=True)
class OptimalTransport:
    """Minibatch optimal transport: see :func:`coupled_noise`, which it calls, and the top of this file.

    Args:
        condition_weight: of the squared distance of floating conditions in the cost; needed where there are any.

    Raises:
        TypeError, ValueError: a weight that is no number, or below 0.
    """

    condition_weight: float | None = None

    name = "optimal transport"

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.condition_weight is not None:
            weight = checks.not_negative(self.condition_weight, name="condition_weight")
            object.__setattr__(self, "condition_weight", weight)

    def __call__(self, x0: Tensor, eps: Tensor, conditions: Mapping[str, Tensor] | None = None) -> Tensor:
        """The noises, shaped like eps."""
        return coupled_noise(x0, eps, conditions=conditions, condition_weight=self.condition_weight)


def coupled_noise(
    x0: Tensor,
    eps: Tensor,
    *,
    conditions: Mapping[str, Tensor] | None = None,
    condition_weight: float | None = None,
) -> Tensor:
    """The noises of a batch, dealt out anew: ε_π(i) with the permutation π that minimises::

        Σ_i |x_i - ε_π(i)|² + w |c_i - c_π(i)|²        π(i) only among samples with the same whole-number conditions

    the exact minibatch optimal transport (Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2023, arXiv:2302.00482),
    in float64 on the host. Rows of NaN, "not given", are a value of their own. What a network that is trained so no
    longer means stands at the top of this file.

    The time grows as B² to B³, and the costs take B² numbers: 5 ms for B = 64 and events of 3072 numbers, 9 ms for 128,
    60 ms for 512, 0.2 s for 1024 and 0.8 s for 2048 on one CPU core; for events of 2 numbers, whose costs are nearly
    tied, 50 ms for 512 and 3.6 s for 2048. Beyond a few thousand samples, couple parts of the batch.

    Args:
        x0: clean samples (B, *event).
        eps: N(0, I), shaped like x0, drawn independently of x0 and conditions.
        conditions: tensors (B, ...) by name.
        condition_weight: w, of the squared distance of floating conditions in the network's units; needed where there
            are any.

    Raises:
        TypeError, ValueError: shapes that differ, NaN or infinity, conditions of another number of samples, floating
            ones without a weight.
        ModuleNotFoundError: SciPy is not installed.
    """
    checks.same_shape(checks.state(x0, name="x0", values=True), checks.state(eps, name="eps", values=True),
                      names="x0 and eps")  # fmt: skip
    if condition_weight is not None:
        condition_weight = checks.not_negative(condition_weight, name="condition_weight")
    given = {} if conditions is None else conditions
    checks.instance(given, Mapping, name="conditions", hint="By name, as the network takes them.")
    if len(x0) < 2:
        return eps
    kinds, places = _split(given, len(x0))
    if places is not None and condition_weight is None:
        raise ValueError(
            "condition_weight must be given where conditions are floating: noise is coupled among samples whose "
            "conditions are near, and it says how near; 0 would skew the prior given a condition, and a large one is "
            "the same as independent noise. Got None."
        )
    order = torch.arange(len(x0))
    for rows in _groups(kinds, len(x0)):
        if len(rows) > 1:
            near = None if places is None else places[rows]
            where = rows.to(x0.device)
            order[rows] = rows[_assigned(x0[where], eps[where], near, condition_weight or 0.0)]
    return eps[order.to(eps.device)]


def _split(conditions: Mapping[str, Tensor], batch: int) -> tuple[Tensor, Tensor | None]:
    """What must agree, whole numbers (B, n), and what had better be near, float64 (B, m) or None; on the CPU."""
    kinds, places = [torch.zeros(batch, 1, dtype=torch.int64)], []
    for name, value in conditions.items():
        checks.instance(value, Tensor, name=f"conditions[{name!r}]")
        if value.ndim == 0 or len(value) != batch:
            raise ValueError(
                f"conditions[{name!r}] must have a row for each of the {batch} samples, got shape {tuple(value.shape)}."
            )
        rows = value.detach().reshape(batch, -1).cpu()
        if rows.is_floating_point():
            absent = rows.isnan()
            kinds.append(absent.long())
            places.append(torch.where(absent, 0.0, rows.double()))
        else:
            kinds.append(rows.long())
    return torch.cat(kinds, 1), torch.cat(places, 1) if places else None


def _groups(kinds: Tensor, batch: int) -> list[Tensor]:
    """The rows that agree, each list in increasing order."""
    _, group = torch.unique(kinds, dim=0, return_inverse=True)
    order = torch.argsort(group, stable=True)
    return list(order.split(torch.bincount(group).tolist()))


def _assigned(x0: Tensor, eps: Tensor, places: Tensor | None, weight: float) -> Tensor:
    """For each sample the noise that it gets."""
    from scipy.optimize import linear_sum_assignment

    work = torch.float64 if checks.has_float64(x0.device) else torch.float32
    x, e = (value.detach().reshape(len(value), -1).to(work) for value in (x0, eps))
    cost = (-2 * (x @ e.T)).cpu().double()  # |x|² and |ε|² are the same for every permutation
    if places is not None:
        cost = cost + weight * torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").square()
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(columns)
