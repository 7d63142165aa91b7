r"""Networks of Song et al. 2021 as their code trains them, continuous and discrete::

    model = from_score_sde(net, VP())                            # continuous: net(x, 999 t), s = -net/σ(t)
    model = from_score_sde(net, VE(sigma_max=50.0))              # net(x, σ(t)) is the score
    model = from_score_sde(net, VP(), continuous=False)          # DDPM's: net(x, i), i = 0 ... n - 1

What each SDE's networks are told, and mean, stands in :data:`READINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import kept_at
from scoresde.interop.foreign import (
    ForeignModel,
    ForeignNetwork,
    as_steps,
    ask_steps,
    nearest,
    network_times,
)
from scoresde.interop.timesteps import ChainTimesteps, SigmaTimesteps, Timesteps, TimeTimesteps
from scoresde.models import ScoreModel
from scoresde.sde import SDE, VE, VP, Chain, ChainSDE, SubVP

Between = Literal["chain", "nearest", "below"]
"""What a discrete network is asked for between its levels."""

_FIRST = 1e-5
"""Where the first level of a discrete chain is put: t = 0, which is data under a chain's SDE, but for this."""


class TimeLabels(ForeignNetwork):
    """What continuous networks are told: net(x, scale t) of VP and SubVP, which answer the noise; net(x, σ) of VE.

    Args:
        net: the network; of VE it answers the score.
        timesteps: from c to the label.
        options: of :class:`~scoresde.interop.foreign.ForeignNetwork`.
    """

    def __init__(self, net: Callable[..., Tensor], timesteps: Timesteps, **options: Any) -> None:
        super().__init__(net, what=_CALLED, **options)
        self.timesteps = timesteps

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """The network's answer at c."""
        return self.ask(x, network_times(self.timesteps(c.double()), x), **conditions)


class StepLabels(ForeignNetwork):
    """net(x, i), i the level of a chain: what discrete networks of VP are told. Answers the noise, or the score.

    Args:
        net: the network.
        chain: the levels.
        between: "chain" answers the noise; "nearest" and "below" the score -net/σ_i of that level.
        options: of :class:`~scoresde.interop.foreign.ForeignNetwork`.
    """

    def __init__(self, net: Callable[..., Tensor], chain: Chain, between: Between, **options: Any) -> None:
        super().__init__(net, what=_CALLED, **options)
        self.timesteps, self.between = ChainTimesteps.of(chain, "time"), between
        self.sigma = chain.sigma

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """The network's answer at the place of c."""
        places = self.timesteps(c)
        answer = ask_steps(self, x, as_steps(places, x, self.between == "nearest" or None), conditions)
        if self.between == "chain":
            return answer
        level = nearest(places) if self.between == "nearest" else places.floor().long()
        sigma = network_times(kept_at(self.sigma, level.device)[level], x)
        return -answer / sigma.reshape(-1, *[1] * (x.ndim - 1))


class SigmaIndices(ForeignNetwork):
    """net(x, i), i the place of σ in a list that falls from σ_max: what discrete networks of VE are told."""

    def __init__(self, net: Callable[..., Tensor], sde: SDE, n: int, **options: Any) -> None:
        super().__init__(net, what=_CALLED, **options)
        self.sde, self.n = sde, n

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """The network's answer at the level nearest to σ = e^c."""
        t = self.sde.t_of_log_snr(-2 * c.double())
        label = nearest((1 - t / self.sde.T) * (self.n - 1)).clamp(0, self.n - 1)
        return self.ask(x, checks.sent(label, x.device), **conditions)


_CALLED = "(x, labels, **conditions)"


class _Asked(NamedTuple):
    """How a network is asked: its SDE, number of levels (None: continuous), time scale, and options."""

    sde: Any
    n: int | None
    time_scale: float
    between: Between | None
    sigma_data: float | None
    options: Mapping[str, Any]


def _times(net: Callable[..., Tensor], asked: _Asked) -> ScoreModel:
    adapter = TimeLabels(net, TimeTimesteps(asked.sde, asked.time_scale), **asked.options)
    return ForeignModel(adapter, asked.sde, "noise", sigma_data=asked.sigma_data)


def _levels(net: Callable[..., Tensor], asked: _Asked) -> ScoreModel:
    sde, n = asked.sde, asked.n or 0
    if sde.T != 1.0:
        raise ValueError(f"sde must run to T = 1, as the chain of a discrete network does; got {sde!r}.")
    chain = sde.discretize(n)
    times = torch.arange(n, dtype=torch.float64) / (n - 1)
    times[0] = min(_FIRST, 0.01 / (n - 1))
    chained = ChainSDE(Chain(times, chain.ratio, chain.variance))
    between = asked.between or "chain"
    adapter = StepLabels(net, chained.chain, between, **asked.options)
    return ForeignModel(adapter, chained, "noise" if between == "chain" else "score", sigma_data=asked.sigma_data)


def _sigmas(net: Callable[..., Tensor], asked: _Asked) -> ScoreModel:
    return ForeignModel(
        TimeLabels(net, SigmaTimesteps(), **asked.options), asked.sde, "score", sigma_data=asked.sigma_data
    )


def _indices(net: Callable[..., Tensor], asked: _Asked) -> ScoreModel:
    if asked.between not in (None, "nearest"):
        raise ValueError(
            "between must be 'nearest' for a discrete network of VE, which indexes its list of σ; got "
            f"{asked.between!r}."
        )
    adapter = SigmaIndices(net, asked.sde, asked.n or 0, **asked.options)
    return ForeignModel(adapter, asked.sde, "score", sigma_data=asked.sigma_data)


_Reading = Callable[[Callable[..., Tensor], _Asked], ScoreModel]

READINGS: Mapping[type[SDE], tuple[_Reading, _Reading | None]] = {
    VP: (_times, _levels),
    SubVP: (_times, None),
    VE: (_sigmas, _indices),
}
"""For each SDE how its continuous networks are read, and its discrete ones."""


def from_score_sde(
    net: Callable[..., Tensor],
    sde: SDE,
    *,
    continuous: bool = True,
    n: int | None = None,
    time_scale: float | None = None,
    between: Between | None = None,
    sigma_data: float | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ScoreModel:
    r"""A network trained by the code of Song et al. 2021 (arXiv:2011.13456), as a ScoreModel.

    ============ ============================= =================================== =======================
    SDE          continuous                    discrete, n levels                  model's SDE
    ============ ============================= =================================== =======================
    VP           net(x, 999 t) = ε             net(x, i) = ε, i = t (n - 1)        sde; its chain of β_i
    SubVP        net(x, 999 t) = ε             --                                  sde
    VE           net(x, σ(t)) = score          net(x, i) = score, i from σ_max     sde
    ============ ============================= =================================== =======================

    The score is -ε/σ(t). A discrete VP network lives on DDPM's chain, β_i from β_min/n to β_max/n, whose noise at level
    i is sqrt(1 - ᾱ_i): the model's SDE is ``ChainSDE`` through it, with level i at t = i/(n - 1), where their code has
    it (the first at t = 1e-5). There the score is theirs exactly; see ``between``. A discrete VE network is asked for
    the nearest level of its list, σ_max first, (σ_max/σ_min)^{1/(n-1)} apart.

    Args:
        net: called as ``net(x, labels, **conditions)`` with x (B, *event) and labels (B,). Of VE it divides by σ
            itself, as theirs do (``scale_by_sigma``).
        sde: ``VP``, ``SubVP`` or ``VE``, with the constants it was trained with.
        continuous: whether it was trained on continuous times.
        n: levels of a discrete network; 1000 unless told.
        time_scale: of continuous VP and SubVP networks; 999 unless told.
        between: what a discrete VP network is asked for between levels. "chain", the default, tells it the fraction
            t (n - 1) and divides by the chain's own noise at t; "below" tells it the same and divides by that of the
            level below, which is their formula to the letter, and up to half a level off; "nearest" tells it the
            nearest level, as int64, and divides by its noise, for networks that look levels up. VE: always "nearest".
        sigma_data: standard deviation of the data, for samplers, if known.
        null_conditions: what stands for "not given", by name, where the network does not tell by itself.
        keywords: options that go along with every call.

    Raises:
        TypeError, ValueError: net cannot be called, another SDE, or an option that the reading does not have.
    """
    checks.function(net, name="net", what=f"{_CALLED}, such as a module")
    checks.instance(sde, SDE, name="sde", hint="The order is from_score_sde(net, sde).")
    kind = next((cls for cls in type(sde).__mro__ if cls in READINGS), None)
    if kind is None:
        known = ", ".join(f"{cls.__name__}()" for cls in READINGS)
        raise ValueError(
            f"sde must be one that their code trains under, {known}; got {sde!r}. A network under another schedule "
            "goes into ScoreModel(net, sde, predicts=...), called with c = log(σ/α)."
        )
    of_times, of_levels = READINGS[kind]
    if between is not None:
        between = checks.one_of(between, get_args(Between), name="between")
    options = {"null_conditions": null_conditions, "keywords": keywords}
    if checks.flag(continuous, name="continuous"):
        for name, value in (("n", n), ("between", between)):
            if value is not None:
                raise ValueError(
                    f"{name} must be left out for a continuous network, got {value!r}: give continuous=False."
                )
        if time_scale is not None and of_times is _sigmas:
            raise ValueError(f"time_scale must be left out for {kind.__name__}, got {time_scale!r}: it is told σ(t).")
        scale = 999.0 if time_scale is None else checks.positive(time_scale, name="time_scale")
        return of_times(net, _Asked(sde, None, scale, None, sigma_data, options))
    if of_levels is None:
        raise ValueError(
            f"continuous must be True for {kind.__name__}, got {continuous!r}: it has no discrete networks."
        )
    if time_scale is not None:
        raise ValueError(f"time_scale must be left out for a discrete network, got {time_scale!r}: it is told levels.")
    levels = 1000 if n is None else checks.count(n, name="n", least=2, most=10_000_000)
    return of_levels(net, _Asked(sde, levels, 0.0, between, sigma_data, options))
