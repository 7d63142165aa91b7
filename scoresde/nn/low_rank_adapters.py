"""Low-rank adapters (LoRA): a trained network learns something new in a few thousand numbers beside its own::

    style = lora(net, rank=4, where=["*attention*", "*cross*"], name="style")     # all else is frozen
    ...                                         # train(...) as ever: only the adapter learns
    style.scale = 0.7                           # at run time; style.on = False is the network as it was
    style.merge()                               # into the weights; style.unmerge() takes it out again
    adapters(net)                               # {"style": ...}, of a loaded network or a copy, too

Several may be in a network at once, and add up. :func:`scoresde.train.save_adapter` writes one alone.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.nn.low_rank import (
    AdaptedConv1d,
    AdaptedConv2d,
    AdaptedConv3d,
    AdaptedLinear,
    Factors,
    active,
    drawn_factors,
)
from scoresde.nn.magnitude import MagnitudeConv

Where = str | Sequence[str] | Callable[[str, nn.Module], bool] | None
"""Which layers: a pattern of their names such as "*attention*", several, or a function of name and layer; None: all."""

MOST_RANK = 2**16


class AdaptedMagnitudeConv(MagnitudeConv):
    """A `MagnitudeConv` whose w is W + Σ s B A: by its direction alone, as ever."""

    plain = MagnitudeConv
    adapters: nn.ModuleDict

    def acting(self) -> Tensor:
        """W + Σ s B A, at least float32."""
        changes = [one.delta() for one in active(self)]
        return sum(changes, self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)))


ADAPTED: Mapping[type[nn.Module], type[nn.Module]] = {
    kind.plain: kind for kind in (AdaptedLinear, AdaptedConv1d, AdaptedConv2d, AdaptedConv3d, AdaptedMagnitudeConv)
}
"""What each kind of layer becomes."""

_PLAIN = {adapted: plain for plain, adapted in ADAPTED.items()}
_NOT_CALLED = (nn.TransformerEncoderLayer,)
"""torch reads the weights of the layers inside, and does not call them."""


class LoRA:
    r"""The adapter of one name in a network: ΔW = scale · α / r · B A for each of its layers.

    Made by :func:`lora`, or found by :func:`adapters`. It holds nothing itself: copies of the network have copies of
    the adapter, and :func:`adapters` finds those.

    Args:
        net: the network.
        name: of the adapter.

    Raises:
        ValueError: the network has no adapter of that name.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        self.net, self.name = checks.instance(net, nn.Module, name="net"), checks.instance(name, str, name="name")
        self.layers  # noqa: B018 - raises where there is none

    def __repr__(self) -> str:
        return f"LoRA({self.name!r}, rank={self.rank}, {len(self.layers)} layers, {self.count} parameters)"

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that it adds to, by their names in the network."""
        found = {name: layer for name, layer in self.net.named_modules() if self.name in _adapters_of(layer)}
        if not found:
            there = ", ".join(map(repr, adapters(self.net))) or "none"
            raise ValueError(f"name must be that of an adapter in this network, got {self.name!r}; there: {there}.")
        return found

    @property
    def factors(self) -> dict[str, Factors]:
        """A and B of each layer, by its name."""
        return {name: _adapters_of(layer)[self.name] for name, layer in self.layers.items()}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A and B, for an optimizer of your own."""
        return [p for one in self.factors.values() for p in (one.down, one.up)]

    @property
    def count(self) -> int:
        """How many numbers it has learned."""
        return sum(p.numel() for p in self.parameters)

    @property
    def rank(self) -> int:
        """r."""
        return self._first.rank

    @property
    def alpha(self) -> float:
        """α; may be set."""
        return self._first.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._set("alpha", checks.positive(value, name="alpha"))

    @property
    def scale(self) -> float:
        """How much of it is added; 1 unless set, and any finite number."""
        return self._first.scale

    @scale.setter
    def scale(self, value: float) -> None:
        given = checks.number(value, name="scale")
        if not math.isfinite(given):
            raise ValueError(f"scale must be a finite number, got {given:g}.")
        self._set("scale", given)

    @property
    def on(self) -> bool:
        """Whether it is added; may be set. Off, it costs nothing."""
        return self._first.on

    @on.setter
    def on(self, value: bool) -> None:
        self._set("on", checks.flag(value, name="on"))

    @property
    def merged(self) -> bool:
        """Whether it is in the weights."""
        return self._first.merged

    def merge(self) -> None:
        """Add it to the weights, so that it costs nothing more; what was trained stays beside, for :meth:`unmerge`.

        Rounds once, in the dtype of the weights. ``merge()`` and then ``remove()`` leave a plain network.

        Raises:
            RuntimeError: it is merged already, or off.
            ValueError: a layer shares its weight with another one.
        """
        if self.merged or not self.on:
            raise RuntimeError(f"adapter {self.name!r} must be on and not merged to be merged: {self._state}.")
        self._check_own_weights()
        self._into_weights(1.0, merged=True)

    def unmerge(self) -> None:
        """Take it out of the weights again: they are as they were, to rounding.

        Raises:
            RuntimeError: it is not merged.
        """
        if not self.merged:
            raise RuntimeError(f"adapter {self.name!r} must be merged to be taken out of the weights: {self._state}.")
        self._into_weights(-1.0, merged=False)

    def remove(self) -> None:
        """Take it out of the network. Merged, it stays in the weights, and cannot be told apart any more.

        The parameters of the network stay frozen; ``net.requires_grad_(True)`` frees them.
        """
        for layer in self.layers.values():
            held: Any = layer
            del held.adapters[self.name]
            if not len(held.adapters):
                del held.adapters
            _settle(layer)

    def state(self) -> dict[str, Tensor]:
        """A and B by the names of layers, "<layer>.down" and "<layer>.up": the tensors themselves."""
        return {
            f"{layer}.{part}": value.detach()
            for layer, one in self.factors.items()
            for part, value in (("down", one.down), ("up", one.up))
        }

    def describe(self) -> dict[str, Any]:
        """All that makes it again in another network, but for the numbers, ready for JSON."""
        told = {"kind": "lora", "name": self.name, "rank": self.rank, "alpha": self.alpha, "scale": self.scale}
        return {**told, "on": self.on, "merged": self.merged, "layers": list(self.layers)}

    @property
    def _first(self) -> Factors:
        return next(iter(self.factors.values()))

    @property
    def _state(self) -> str:
        return f"it is {'merged' if self.merged else 'not merged'}, and {'on' if self.on else 'off'}"

    def _set(self, what: str, value: object) -> None:
        if self.merged:
            raise RuntimeError(f"{what} must be set before adapter {self.name!r} is merged, or after unmerge().")
        for layer, one in zip(self.layers.values(), self.factors.values(), strict=True):
            setattr(one, what, value)
            one.settle()
            _settle(layer)

    @torch.no_grad()
    def _into_weights(self, sign: float, *, merged: bool) -> None:
        for name, layer in self.layers.items():
            one: Factors = self.factors[name]
            weight: Any = layer.weight
            exact = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(exact) + sign * one.delta().to(exact))
            one.merged = merged
            one.settle()
            _settle(layer)

    def _check_own_weights(self) -> None:
        seen: dict[int, int] = {}
        for module in self.net.modules():
            for p in module.parameters(recurse=False):
                seen[id(p)] = seen.get(id(p), 0) + 1
        shared = [name for name, layer in self.layers.items() if seen[id(layer.weight)] > 1]
        if shared:
            raise ValueError(
                f"the weight of {shared[0]} must be its own to be merged into, and another layer shares it: leave the "
                "adapter unmerged."
            )


def lora(
    net: nn.Module,
    rank: int,
    where: Where = None,
    *,
    name: str = "lora",
    alpha: float | None = None,
    seed: int = 0,
) -> LoRA:
    r"""Put a low-rank adapter into linear maps and convolutions of a network, and freeze all else.

    .. math::
        W \to W + \frac{\alpha}{r} B A, \qquad A \in R^{r \times \text{in}}, \; B \in R^{\text{out} \times r}

    (Hu et al. 2021, arXiv:2106.09685, section 4.1), with A ~ N(0, 1/in) and B = 0, so that the network starts exactly
    as it was. For a convolution A is one to r channels of the same kernel, stride and padding, and B one of kernel 1. A
    `MagnitudeConv` takes the direction of W + (α/r) B A. Where fast kernels do the work of several layers at once, they
    add what the adapters do, too. Where a layer has no rank r, A and B are smaller; α is divided by r all the same.

    The network's own weights are not touched until :meth:`LoRA.merge`; their names, and so checkpoints of it without
    the adapter, stay as they are. Adapters of a network in half precision are float32, in which they train.

    Args:
        net: any nn.Module, such as ``model.net``; changed in place.
        rank: r.
        where: which layers: a pattern of names such as "*attention*" ("*" is anything, "?" a letter), several, of which
            one must fit, or a function ``(name, layer) -> bool``; by default all linear maps and convolutions.
        name: of the adapter, a word without points.
        alpha: α, rank by default.
        seed: that A is drawn from.

    Returns:
        What switches, scales, merges and tells of the adapter.

    Raises:
        TypeError: no module, no whole rank, or ``where`` is of another kind.
        ValueError: a rank below 1; no layer fits ``where``, or the network has no such layers; there is an adapter of
            this name.
    """
    checks.instance(net, nn.Module, name="net")
    rank = checks.count(rank, name="rank", most=MOST_RANK)
    wanted = _wanted(where)
    alpha = float(rank) if alpha is None else checks.positive(alpha, name="alpha")
    check_new_name(net, name)
    generator = torch.Generator().manual_seed(checks.seed(seed))
    able = adaptable(net)
    chosen = {at: layer for at, layer in able.items() if wanted(at, layer)}
    if not chosen:
        some = ", ".join(list(able)[:8]) + (", ..." if len(able) > 8 else "")
        there = f"those that can be adapted are {some}" if able else "it has no linear map or convolution at all"
        given = where if isinstance(where, (str, list, tuple)) else checks.got(where)
        raise ValueError(f"where={given!r} must fit some layer of this network, and fits none: {there}.")
    net.requires_grad_(False)
    for layer in chosen.values():
        weight: Any = layer.weight
        put_factors(layer, name, drawn_factors(weight, rank, alpha, generator))
    return LoRA(net, name)


def adaptable(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that :func:`lora` can add to, by name.

    Those inside torch's own transformer layers are none: it reads their weights without calling them.
    """
    found: dict[str, nn.Module] = {}
    closed: list[str] = []
    for at, layer in net.named_modules():
        if isinstance(layer, _NOT_CALLED):
            closed.append(f"{at}." if at else "")
        if (type(layer) in ADAPTED or type(layer) in _PLAIN) and not any(at.startswith(one) for one in closed):
            found[at] = layer
    return found


def put_factors(layer: Any, name: str, factors: Factors) -> None:
    """Have a layer add these, under a name."""
    if not hasattr(layer, "adapters"):
        layer.adapters = nn.ModuleDict()
    layer.adapters[name] = factors
    _settle(layer)


def check_new_name(net: nn.Module, name: object) -> str:
    """A name for an adapter, of which the network has none yet.

    Raises:
        TypeError, ValueError: no word that a parameter could be called, or one that is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a word for the adapter, got {checks.got(name)}.")
    if not name.isidentifier():
        raise ValueError(f"name must be a word of letters, digits and underscores, got {name!r:.80}.")
    held = [getattr(module, kind, None) for module in net.modules() for kind in ("adapters", "learned")]
    if any(isinstance(one, nn.ModuleDict) and name in one for one in held):
        raise ValueError(
            f"name must be new, and the network has an adapter {name!r} already: remove() it, or take another one."
        )
    return name


def adapters(net: nn.Module) -> dict[str, LoRA]:
    """The low-rank adapters in a network, by name, in the order in which they were put there.

    Raises:
        TypeError: no module.
    """
    checks.instance(net, nn.Module, name="net")
    names = dict.fromkeys(name for module in net.modules() for name in _adapters_of(module))
    return {name: LoRA(net, name) for name in names}


def _adapters_of(layer: nn.Module) -> Mapping[str, Any]:
    held = getattr(layer, "adapters", None)
    if not isinstance(held, nn.ModuleDict):
        return {}
    return {name: one for name, one in held.items() if isinstance(one, Factors)}


def _settle(layer: Any) -> None:
    """Make a layer of the class that does what is on, and no more: the plain one is the fastest."""
    plain = _PLAIN.get(type(layer), type(layer))
    busy = bool(_adapters_of(layer)) and bool(active(layer))
    layer.__class__ = ADAPTED[plain] if busy else plain


def _wanted(where: Where) -> Callable[[str, nn.Module], bool]:
    if where is None:
        return lambda name, layer: True
    if callable(where) and not isinstance(where, (str, type)):
        return where
    patterns = [where] if isinstance(where, str) else where
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(one, str) for one in patterns):
        raise TypeError(
            "where must be a pattern of names such as '*attention*', a list of them or a function (name, layer) -> "
            f"bool, got {checks.got(where)}."
        )
    return lambda name, layer: any(fnmatch.fnmatchcase(name, one) for one in patterns)
