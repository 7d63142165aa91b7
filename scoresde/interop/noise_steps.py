r"""An ε-network on the integer steps of a chain, as DDPM trains it::

    model = from_noise(net, torch.linspace(1e-4, 0.02, 1000))                 # net(x, step), steps 0 ... 999
    sample(model, shape, solver=Ancestral(), grid=model.sde.chain.times.flip(0))      # Algorithm 2 of Ho et al. 2020

Every other solver, grid and guidance takes it as well; ``model.under(VP())`` is the same network in continuous time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from scoresde import checks
from scoresde.interop.foreign import ForeignModel, ForeignNetwork, as_steps, ask_steps, check_whole
from scoresde.interop.timesteps import ChainTimesteps, Timesteps
from scoresde.models import ScoreModel
from scoresde.sde import Chain, ChainSDE, has_signal


class StepNetwork(ForeignNetwork):
    """net(x, step) as net(x, c).

    Args:
        net: called as ``net(x, step, **conditions)``.
        timesteps: from c to the step, a place on a chain.
        whole: see :func:`from_noise`.
        learned_variance: see :func:`from_noise`.
        null_conditions: see :func:`from_noise`.
        keywords: see :func:`from_noise`.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        timesteps: Timesteps,
        *,
        whole: bool | None = None,
        learned_variance: bool = False,
        null_conditions: Mapping[str, Any] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(net, what="(x, step, **conditions)", null_conditions=null_conditions, keywords=keywords)
        self.timesteps = timesteps
        self.whole = check_whole(whole)
        self.learned_variance = checks.flag(learned_variance, name="learned_variance")

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """The network's answer at the place of c."""
        answer = ask_steps(self, x, as_steps(self.timesteps(c), x, self.whole), conditions)
        if not self.learned_variance:
            return answer
        if answer.shape[1:2] != (2 * x.shape[1],):
            raise ValueError(
                f"learned_variance=True expects net to answer twice the channels of x, ({len(x)}, {2 * x.shape[1]}, "
                f"...), noise first; got {tuple(answer.shape)}."
            )
        return answer[:, : x.shape[1]]


def from_noise(
    net: Callable[..., Tensor],
    betas: Tensor | Sequence[float],
    *,
    whole: bool | None = None,
    learned_variance: bool = False,
    sigma_data: float | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ScoreModel:
    r"""A network that predicts the noise ε on integer steps 0 ... n - 1, as a ScoreModel under the chain of ``betas``.

    Step i is told with x = sqrt(ᾱ) x_0 + sqrt(1 - ᾱ) ε, ᾱ = Π_{j ≤ i} (1 - β_j) (Ho et al. 2020, arXiv:2006.11239,
    eq. 4); papers count it as i + 1. The model's SDE is ``ChainSDE`` through these levels, at times (i + 1)/n. On the
    grid ``model.sde.chain.times.flip(0)`` the solver ``Ancestral()``, with its last denoising step, is their
    Algorithm 2 to rounding, with σ_t² = β̃_t; ``Ancestral("transition")`` has σ_t² = β_t.

    Args:
        net: called as ``net(x, step, **conditions)`` with x (B, *event) and step (B,); answers ε like x.
        betas: (n,) β_i, from 0 to 1, both excluded; see :meth:`Chain.from_betas <scoresde.sde.Chain.from_betas>`.
        whole: what the network is told. At the levels of the chain a step is a whole number exactly, between them a
            fraction, linear in the times. None hands whole numbers over as int64 and fractions as floats; True always
            the nearest whole number, for networks that look steps up in a table; False always floats. None asks for
            values, which is done in main memory alone: with one time for each sample on an accelerator it is False.
        learned_variance: whether the network answers twice as many channels, of which the second half is a learned
            variance; that half is left aside (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15).
        sigma_data: standard deviation of the data, for samplers, if known.
        null_conditions: what stands for "not given", by name, where the network does not tell by itself.
        keywords: options that go along with every call.

    Raises:
        TypeError, ValueError: net cannot be called, or betas are no numbers between 0 and 1.
    """
    checks.function(net, name="net", what="(x, step, **conditions), such as a module")
    sde = ChainSDE(_chain(betas))
    adapter = StepNetwork(
        net,
        ChainTimesteps.of(sde.chain, "time"),
        whole=whole,
        learned_variance=learned_variance,
        null_conditions=null_conditions,
        keywords=keywords,
    )
    return ForeignModel(adapter, sde, "noise", sigma_data=sigma_data)


def _chain(betas: object) -> Chain:
    beta = checks.real(betas, name="betas").detach()
    if beta.ndim != 1 or len(beta) < 2 or beta.is_meta:
        raise ValueError(f"betas must be numbers β_i in one axis, (n,), at least two; got {checks.got(betas)}.")
    chain = Chain.from_betas(beta.cpu())
    if not has_signal(chain.alpha[-1], chain.sigma[-1]):
        raise ValueError(
            f"betas must leave some signal at the last level, got β_n = {chain.beta[-1].item():g}: a network that "
            "predicts noise says nothing of x_0 there. Leave that level out, or take a network that predicts x0 or v."
        )
    return chain
