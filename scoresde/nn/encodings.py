"""What a network makes of its conditions, before it acts on it: recorded, and shifted.

A network of this package makes one vector of its labels, vectors, sets and series, and one sequence of tokens of its
captions and embeddings; pictures it takes as they are. Each is made by one module, found by what it is told of::

    encoders = encoders_of(net, ["caption"])                   # {"context": its ContextEncoder}
    own = encodings_of(encoders, lambda: net(x, c, caption=null))  # {"context": Context(tokens, present)}
    with shifted(encoders, {"context": shift}, {"context": present}):
        net(x, c, caption=null)                                # as if the caption were another

:func:`scoresde.editing.null_text` optimises what stands for "no condition" so. A network of your own takes part with a
module that has ``told_of``, the names of its conditions, and calls :func:`~scoresde.nn.attention.edit_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.nn.attention import Context, edited_maps

Encoding = Tensor | Context
"""A vector for each sample, (B, E), or tokens and which of them count."""


def encoders_of(net: object, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules that encode these conditions, by their place in the network; those that encode none are left out."""
    wanted = set(names)
    parts = net.named_modules() if isinstance(net, nn.Module) else ()
    return {place: part for place, part in parts if wanted & set(getattr(part, "told_of", ()))}


def encodings_of(encoders: Mapping[str, nn.Module], call: Callable[[], Any]) -> dict[str, Encoding]:
    """The encodings that a call of the network makes, by the place of their encoder."""
    found: dict[str, Encoding] = {}

    def record(place: str) -> Callable[[Encoding], Encoding]:
        def keep(own: Encoding) -> Encoding:
            found[place] = own
            return own

        return keep

    with edited_maps({part: record(place) for place, part in encoders.items()}, maps=False):
        call()
    return found


@contextmanager
def shifted(
    encoders: Mapping[str, nn.Module], shifts: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> Iterator[None]:
    """Inside, and in this thread alone, the encoders add these to their vectors (B, E), or tokens (B, N, width).

    Sums are of float32 at least, and of the encoding's dtype in the end.

    Args:
        encoders: by place.
        shifts: what is added, by place.
        present: of tokens (B, N) bool: which count then, by place.
    """

    def by(place: str) -> Callable[[Encoding], Encoding]:
        def moved(own: Encoding) -> Encoding:
            if isinstance(own, Context):
                return Context(_sum(own.tokens, shifts[place]), present[place])
            return _sum(own, shifts[place])

        return moved

    with edited_maps({encoders[place]: by(place) for place in shifts}, maps=False):
        yield


def towards(own: Encoding, other: Encoding, share: float) -> tuple[Tensor, Tensor | None]:
    """By how much to shift an encoding so that it lies ``share`` of the way to another; of tokens also which count.

    All of the way the other's tokens count. Before, one that counts in the other alone starts from the last before it
    that counts in the own. Of a single one attention to all its copies makes what it made of that one; of several it
    would weigh one more than the rest, so that none of the way they count alone.
    """
    if not isinstance(own, Context) or not isinstance(other, Context):
        return share * (_wide(other) - _wide(own)), None  # type: ignore[arg-type]
    places = torch.arange(own.present.shape[1], device=own.present.device)
    last = torch.where(own.present, places, 0).cummax(1).values
    start = own.tokens.gather(1, last[..., None].expand_as(own.tokens))
    shift = torch.lerp(_wide(start), _wide(other.tokens), share) - _wide(own.tokens)
    if share == 1:
        return shift, other.present
    joining = other.present if share else other.present & (own.present.sum(1, keepdim=True) == 1)
    return shift, own.present | joining


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(own: Tensor, shift: Tensor) -> Tensor:
    return (own + shift).to(own.dtype)  # of float32 and bfloat16 torch makes float32
