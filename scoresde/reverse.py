"""Reverse-time processes: one family with one parameter η, from the probability-flow ODE to the reverse SDE::

    process = Reverse(score, eta=1.0)
    process.drift(x, t), process.diffusion(t)

:class:`Reverse` is what every solver takes: it knows the score and, through it, the SDE. η is the stochasticity: 0 is
the ODE, 1 the SDE of Anderson, and more than 1 draws more noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde import checks
from scoresde.models.score import Score, check_score
from scoresde.sde import SDE, Time, signal_at

MOST_STOCHASTICITY = 1e6
"""Far beyond any use of η, whose square must be a number, and of whose steps something must be left in float32."""


@dataclass(frozen=True)
class Reverse:
    r"""The process that carries noise back to data::

        dx = [f x - ½ (1 + η²) g² s(x, t)] dt + η g dw̄

    All η >= 0 share the marginals p_t. η = 0 is the probability-flow ODE, η = 1 Anderson's reverse SDE
    (Song et al. 2021, arXiv:2011.13456, eq. 6 and 13; the family: Zhang & Chen 2023, arXiv:2204.13902, eq. 4).

    Args:
        score: a Score; it brings its SDE.
        eta: the stochasticity η; a tensor () is differentiable.

    Raises:
        TypeError: not a Score.
        ValueError: η negative, not finite or above 1e6.
    """

    score: Score
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_score(self.score)
        checks.fields(self)
        if not 0 <= checks.number(self.eta, name="eta") <= MOST_STOCHASTICITY:
            raise ValueError(
                f"eta must be at least 0 (0: probability-flow ODE, 1: reverse SDE) and at most {MOST_STOCHASTICITY:g}, "
                f"got {self.eta}."
            )

    @property
    def sde(self) -> SDE:
        """The score's."""
        return self.score.sde

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f x - ½ (1 + η²) g² s(x, t), (B, *event): dx/dt along increasing t when η = 0.

        Where α = 0 and f diverges it is E[α' x_0 + σ' ε | x_t = x], for η = 0.

        Raises:
            ValueError: η is not 0 where α(t) = 0: the drift and the noise diverge there together.
        """
        sde = self.sde
        time = checks.time(t, sde.t_max, what=type(sde).__name__)
        signal = signal_at(sde, time)
        if not signal and self.eta != 0:
            raise ValueError(
                f"the reverse SDE has no drift where α(t) = 0, at t = {float(time.max()):g} of {type(sde).__name__}: "
                "it diverges there. Solvers step from that time by the law of the step; for drift itself start below."
            )
        if signal:
            return self.score.linear(x, time, sde.f(time), -0.5 * (1 + self.eta**2) * sde.g(time) ** 2)
        return self.score.expect(x, time, *sde.derivatives(time))

    def diffusion(self, t: Time) -> Tensor:
        """η g(t), shaped like t."""
        return self.eta * self.sde.g(t)
