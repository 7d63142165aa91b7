"""EMA: the exponential moving average of a model's parameters::

    ema = EMA(model, decay=0.999)
    for batch in data:
        ...                                        # a step of the optimizer
        ema.update()
    averaged = ema_model(model, ema)               # a copy, to generate with
    with ema.applied():                            # or for a look: the model itself, with the averaged weights
        ...

The loop of :mod:`scoresde.train` keeps one, or several of different decays; :class:`EMA` serves a loop of your own as
well. :class:`PowerEMA` forgets in proportion to the length of the run: of two of these averages of any width can be put
together afterwards (:mod:`scoresde.train.posthoc`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.pretrained import Pretrained
from scoresde.train.atomic import as_it_was
from scoresde.train.copying import copied
from scoresde.train.tensors import local_part

Averaged = TypeVar("Averaged", bound=nn.Module)


def average_decay(update: int, decay: float) -> float:
    """The decay of update k (counted from 0) of a moving average with warm-up: min(decay, (1 + k) / (10 + k)).

    Early on the average looks back over about a tenth of the updates there have been, so that the initial weights
    are forgotten: after n updates below ``decay`` their share is n! 9! / (n + 9)!.
    """
    update, largest = checks.count(update, name="update", least=0), checks.number(decay, name="decay")
    if not 0 <= largest < 1:
        raise ValueError(f"decay must lie in [0, 1), got {largest}.")
    return min(largest, (1 + update) / (10 + update))


class EMA:
    """Exponential moving average of the parameters (buffers are not averaged)::

        average <- d average + (1 - d) parameter        d = decay, or min(decay, (1 + k) / (10 + k)) with warm-up

    starting from the parameters at construction; k counts the updates. (Polyak & Juditsky 1992; used for diffusion
    models since Ho et al. 2020, arXiv:2006.11239.)

    Args:
        model: the model in training, already on its device: its parameters are followed by reference.
        decay: in [0, 1).
        warmup: whether early updates forget faster.

    Raises:
        TypeError: not a module, a decay that is no number, a warmup that is neither True nor False.
        ValueError: decay out of range.
    """

    @torch.inference_mode(False)
    def __init__(self, model: nn.Module, decay: float = 0.9999, *, warmup: bool = True) -> None:
        self._model = checks.instance(model, nn.Module, name="model")
        number = checks.number(decay, name="decay")
        if not 0 <= number < 1:
            raise ValueError(f"the decay of an average must lie in [0, 1), got {number}.")
        self.decay, self.warmup, self.updates = number, checks.flag(warmup, name="warmup"), 0
        self._names = [name for name, _ in model.named_parameters()]
        self._kept = [parameter.detach().clone() for _, parameter in model.named_parameters()]
        # Of weights that several processes divide, each averages its part.
        self._live: list[Tensor] = [local_part(parameter) for _, parameter in model.named_parameters()]
        self._average = [local_part(average) for average in self._kept]
        self._applied = 0

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average towards the parameters as they are now.

        Raises:
            RuntimeError: inside ``applied``, where they are the averages themselves.
        """
        self.refuse_if_applied("updating the average")
        torch._foreach_lerp_(self._average, self._live, 1 - self.decay_of(self.updates))
        self.updates += 1

    def decay_of(self, update: int) -> float:
        """d of an update, counted from 0."""
        return average_decay(update, self.decay) if self.warmup else self.decay

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name: the tensors themselves, not copies."""
        return dict(zip(self._names, self._kept, strict=True))

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue from averages saved after so many updates.

        Raises:
            ValueError: other names or shapes than the model's.
        """
        checks.instance(state, Mapping, name="state")
        updates = checks.count(updates, name="updates", least=0)
        for name, value in state.items():
            checks.instance(value, Tensor, name=f"state[{name!r}]")
        self._check({name: tuple(value.shape) for name, value in state.items()}, "the saved averages, state,")
        for name, average in zip(self._names, self._kept, strict=True):
            average.copy_(state[name])
        self.updates = updates

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of ``model`` with the averages.

        Raises:
            ValueError: ``model`` has other parameters.
        """
        parameters = dict(checks.instance(model, nn.Module, name="model").named_parameters())
        self._check({name: tuple(value.shape) for name, value in parameters.items()}, "this model")
        for name, average in zip(self._names, self._kept, strict=True):
            parameters[name].copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the ``with`` block the model in training has the averaged weights and is in evaluation mode.

        Afterwards, and after an error, it is as it was: its own weights, its buffers, and the mode of each of its
        modules. It may stand inside itself. Training must not go on inside: the loop and ``update`` refuse.
        """
        weights = [parameter.detach().clone() for parameter in self._live]
        self._applied += 1
        try:
            with torch.no_grad():
                torch._foreach_copy_(self._live, self._average)
            with as_it_was(self._model):
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, weights)
            self._applied -= 1

    @property
    def is_applied(self) -> bool:
        """Whether the model holds the averages now: inside ``applied``."""
        return self._applied > 0

    def refuse_if_applied(self, what: str) -> None:
        """Raise inside ``applied``; ``what`` is what is refused there.

        Raises:
            RuntimeError: so it is.
        """
        if self._applied:
            raise RuntimeError(
                f"{what} is refused inside `with ema.applied()`: the model holds the averaged weights there, not its "
                "own. Leave the block first."
            )

    def _check(self, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
        own = {name: tuple(value.shape) for name, value in zip(self._names, self._kept, strict=True)}
        differ = sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name))
        if differ:
            raise ValueError(
                f"the average follows a model of {len(own)} parameters and {what} has {len(shapes)}; they differ in "
                f"{', '.join(differ[:5])}{', ...' if len(differ) > 5 else ''}. Use the same network and configuration."
            )


def width_of(exponent: float) -> float:
    """The relative width σ_rel of the profile τ^γ on [0, 1]: (γ + 1)^½ (γ + 2)^-1 (γ + 3)^-½.

    It is the standard deviation of a time that is drawn with that density, as a part of the whole (Karras et al. 2024,
    arXiv:2312.02696, eq. 123).
    """
    gamma = checks.number(exponent, name="exponent")
    if not (math.isfinite(gamma) and gamma > -1):
        raise ValueError(f"exponent must be finite and above -1, got {gamma:g}.")
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def exponent_of(width: float) -> float:
    """The exponent γ >= 0 of the profile τ^γ whose relative width is σ_rel, the inverse of :func:`width_of`.

    A polynomial of third degree in γ, (γ + 1) = σ_rel² (γ + 2)² (γ + 3), with one root of at least 0 where σ_rel is at
    most 12^-½, the width of the plain mean of all steps (Karras et al. 2024, arXiv:2312.02696, eq. 126).
    """
    sigma = checks.positive(width, name="width")
    if sigma > MOST_WIDTH * (1 + 1e-12):
        raise ValueError(
            f"width must be at most 1/sqrt(12) = {MOST_WIDTH:.4g}, that of the plain mean of all steps, got {sigma:g}: "
            "it is the deviation of the steps that are averaged, as a part of the run. 0.05 to 0.2 are usual."
        )
    low, high = 0.0, 1 / sigma  # width_of(γ) < 1/(γ + 2), so that the root lies below 1/σ_rel - 2
    for _ in range(100):  # halvings: to rounding, and below it near 0
        middle = 0.5 * (low + high)
        low, high = (middle, high) if width_of(middle) > sigma else (low, middle)
    return 0.5 * (low + high)


MOST_WIDTH = 12**-0.5
"""The relative width of the plain mean of all steps."""


class PowerEMA(EMA):
    r"""Average of the parameters with a power of the time as its profile (Karras et al. 2024, arXiv:2312.02696,
    section 3.1, eq. 121 and 127)::

        after t updates     Σ_k w_k θ_k,   w_k = (k^(γ+1) - (k-1)^(γ+1)) / t^(γ+1)
        update t            average <- d average + (1 - d) parameter,   d = (1 - 1/t)^(γ+1)

    the mean over [0, t] of the density (γ + 1) τ^γ / t^(γ+1), where θ(τ) = θ_k for k - 1 < τ <= k. It always looks back
    over the same part of the run, nothing is left of the initial weights, and no decay has to be chosen for its length.

    Args:
        model: as for :class:`EMA`.
        width: σ_rel in (0, 12^-½], the standard deviation of the profile as a part of the run; about 0.05 to 0.2.

    Attributes:
        width: σ_rel.
        exponent: γ.

    Raises:
        TypeError, ValueError: not a module, or a width out of range.
    """

    def __init__(self, model: nn.Module, width: float = 0.1) -> None:
        self.exponent = exponent_of(width)
        super().__init__(model, 0.0, warmup=False)
        self.width = checks.number(width)

    def decay_of(self, update: int) -> float:
        """(1 - 1/t)^(γ+1) of an update, t - 1 counted from 0."""
        done = checks.count(update, name="update", least=0)
        return (done / (done + 1)) ** (self.exponent + 1)


@torch.inference_mode(False)
def ema_model(model: Averaged, ema: EMA) -> Averaged:
    """A copy of ``model`` with the averaged weights, in evaluation mode and without gradients.

    Raises:
        TypeError: the network holds something that cannot be copied, which is named; see
            :func:`~scoresde.train.copying.copied`. A run finds this before its first step.
        ValueError: its weights are divided among processes.
    """
    checks.instance(ema, EMA, name="ema")
    checks.instance(model, nn.Module, name="model")
    if any(local_part(parameter) is not parameter for parameter in model.parameters()):
        raise ValueError(
            "the weights of this model are divided among processes (sharding='full'): take run.ema_model(), which all "
            "of them call, or load_model(folder)."
        )
    averaged = copied(model)
    ema.copy_to(averaged)
    averaged.zero_grad(set_to_none=True)
    if isinstance(averaged, Pretrained):
        averaged.averaged = True
    return averaged.eval().requires_grad_(False)
