r"""What every network of others has in common here: an adapter that turns c into the network's own time, and its model.

    class Mine(ForeignNetwork):
        def forward(self, x, c, **conditions):
            return self.ask(x, network_times(torch.sigmoid(c), x), **conditions)

    model = ForeignModel(Mine(net), RectifiedFlow(), predicts="velocity")

:class:`ForeignModel` hands c over in float64, so that an adapter finds the very time, level or σ that the network was
trained on; the ways of counting are in :mod:`scoresde.interop.timesteps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models import Prediction, ScoreModel
from scoresde.models.conditions import Conditions, check_name
from scoresde.sde import NO_SIGNAL, SDE
from scoresde.spectrum import Spectrum


class ForeignNetwork(nn.Module):
    """A network of another library as ``net(x, c, **conditions)``; a subclass writes :meth:`forward`.

    The network is :attr:`net`, and its parameters are this module's. Its own ``null_conditions`` and ``conditions`` are
    passed on.

    Args:
        net: an ``nn.Module`` or any function.
        what: how it is called, for messages.
        null_conditions: what stands for "not given", by name, in the place of the network's own.
        keywords: options that go along with every call.

    Raises:
        TypeError: net cannot be called, or null_conditions or keywords are no mapping by name.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        *,
        name: str = "net",
        what: str,
        null_conditions: Mapping[str, Any] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        checks.function(net, name=name, what=f"{what}, such as a module")
        self.net = net
        self.keywords = _named(keywords, "keywords")
        nulls = getattr(net, "null_conditions", None)
        if null_conditions is not None:
            nulls = _named(null_conditions, "null_conditions")
        if isinstance(nulls, Mapping):
            self.null_conditions = dict(nulls)
        kinds = getattr(net, "conditions", None)
        if isinstance(kinds, Conditions):
            self.conditions = kinds

    def ask(self, *args: Tensor, **conditions: Any) -> Tensor:
        """The network's answer, which must be a tensor."""
        twice = self.keywords.keys() & conditions.keys()
        if twice:
            raise ValueError(
                f"{', '.join(sorted(twice))} must be given once: it is among the keywords of the model, too."
            )
        answer = self.net(*args, **conditions, **self.keywords)
        if not isinstance(answer, Tensor):
            raise TypeError(
                f"net must answer a tensor shaped like x, got {type(answer).__name__} from "
                f"{type(self.net).__name__}. Give a function that takes the tensor out of it, such as answer.sample or "
                "answer[0]; a network of diffusers goes into from_diffusers(net, scheduler)."
            )
        return answer


def _named(given: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Values by names that a call can have."""
    if not isinstance(given, Mapping | None):
        raise TypeError(f"{name} must be a mapping by name, got {checks.got(given)}.")
    for key in given or {}:
        try:
            check_name(key)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return dict(given or {})


class ForeignModel(ScoreModel):
    """A ScoreModel whose network sees x itself and c in float64: what it computes of them is its own business.

    ``sigma_data`` is told to samplers, and scales nothing here. c, (B,), stays in main memory where all samples have
    one time, so that reading a level from it stalls no accelerator.

    Args:
        net, sde, predicts, sigma_data, spectrum: as of :class:`~scoresde.ScoreModel`.
        takes: the dtype in which the network is given x; default that of its weights, or x's own where it has none.
    """

    def __init__(
        self,
        net: ForeignNetwork,
        sde: SDE,
        predicts: str | Prediction,
        *,
        sigma_data: float | None = None,
        spectrum: Spectrum | None = None,
        takes: torch.dtype | None = None,
    ) -> None:
        super().__init__(net, sde, predicts, sigma_data, spectrum)
        self.takes = None if takes is None else checks.dtype(takes, name="takes")

    def answer(self, x: Tensor, alpha: Tensor, sigma: Tensor, conditions: Mapping[str, Any]) -> Any:
        """The network's output for x (B, *event) at noise levels that :meth:`levels` answered."""
        c = (sigma / torch.maximum(alpha, NO_SIGNAL * sigma)).log()
        c = c.expand(x.shape[0]) if c.ndim == 0 else c
        return self.net(checks.brought(x, self.takes or self.dtype or x.dtype), c, **conditions)


def network_times(times: Tensor, x: Tensor) -> Tensor:
    """Times of a network (B,) on x's device, in its dtype, at least float32."""
    return checks.sent(times, x.device, torch.promote_types(x.dtype, torch.float32))


def ask_steps(network: ForeignNetwork, x: Tensor, steps: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """The network's answer at steps; an error over fractions is told what to do about it."""
    try:
        return network.ask(x, steps, **conditions)
    except Exception as error:
        if steps.is_floating_point():
            error.add_note(
                "The network was told fractions of steps, since these times lie between the levels of its chain. If it "
                "knows whole steps alone, say whole=True."
            )
        raise


def as_steps(places: Tensor, x: Tensor, whole: bool | None) -> Tensor:
    """Places on a chain as a network takes them.

    Args:
        places: float64 (B,).
        x: what they stand beside.
        whole: True for the nearest whole numbers, int64; False for fractions, floating; None for int64 where all are
            whole numbers (and can be read without stalling a device), and else fractions.
    """
    if whole is None:
        whole = checks.readable(places) and bool((places == places.round()).all())
    return checks.sent(nearest(places), x.device) if whole else network_times(places, x)


def nearest(places: Tensor) -> Tensor:
    """The nearest whole numbers, int64; ties by the even one, also where a place is a rounding away from the tie."""
    return places.round(decimals=9).round().long()


def check_whole(whole: object) -> bool | None:
    """True, False or None."""
    return None if whole is None else checks.flag(whole, name="whole")
