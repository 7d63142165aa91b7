"""The maps of cross-attention: recorded, put in place of others, and recombined, as prompt-to-prompt editing does.

Two captions from one latent, the second looking where the first did (:func:`scoresde.editing.prompt_to_prompt` does so
step by step)::

    maps = AttentionMaps()
    with maps.recording(net):
        net(x, c, caption=source)
    pairs = shared_tokens(source[0], target[0])                  # the words in common
    with maps.injecting(net, lambda layer, call, own: map_tokens(maps.layers[layer][call], own, pairs)):
        net(x, c, caption=target)
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.checks.lasting import outlasting
from scoresde.nn.attention import CrossAttention, edited_maps

Edit = Callable[[int, int, Tensor], Tensor]
"""(layer, call, own map (B, heads, positions, tokens)) -> the map to use, of the same shape."""


class AttentionMaps:
    """Softmax maps M of a network's cross-attention (B, heads, positions, tokens), for each layer and each call.

        maps = AttentionMaps()
        with maps.recording(net):
            ...                            # any number of calls: a whole sampling run
        with maps.injecting(net):
            ...                            # the same calls again, with these maps instead of the network's own

    `maps.layers[i][k]` is that of layer i, in the order of use, at its call k. The first of the tokens is the learned
    one of the first caption or embedding, then come its own, then the learned one of the next, and so on: see
    `ContextEncoder`. Positions are x's at that layer's resolution, flattened.

    Prompt-to-prompt (Hertz et al. 2022, arXiv:2208.01626) is injecting with an edit, a function of layer, call and
    the network's own map, made of `map_tokens`, `shared_tokens` and `reweight_tokens`.

    A context is of the thread that opened it: others may use the network meanwhile, and see nothing of it. Recorded
    maps are detached; those of a long run on many samples take memory in proportion. Classifier-free guidance calls
    the network on both its branches, so record and inject under the same guidance.

    Args:
        layers: maps to start from, layer by layer and call by call, e.g. recorded ones after a change.

    Raises:
        ValueError: layers differ in their number of calls.
    """

    def __init__(self, layers: Sequence[Sequence[Tensor]] = ()) -> None:
        if not isinstance(layers, (list, tuple)) or not all(
            isinstance(calls, (list, tuple)) and all(isinstance(one, Tensor) for one in calls) for calls in layers
        ):
            raise TypeError(f"layers must be a list of lists of maps, a list for each layer; got {checks.got(layers)}.")
        self.layers: list[list[Tensor]] = [list(calls) for calls in layers]
        if len({len(calls) for calls in self.layers}) > 1:
            counts = [len(calls) for calls in self.layers]
            raise ValueError(f"layers must be lists of as many calls each, got a list of {counts} calls.")

    @property
    def calls(self) -> int:
        """Number of network calls held."""
        return len(self.layers[0]) if self.layers else 0

    @contextmanager
    def recording(self, net: nn.Module) -> Iterator[AttentionMaps]:
        """Record the maps of every call of net (or of a model that holds it) inside the context.

        Raises:
            ValueError: net has no cross-attention, or is spread over devices by nn.DataParallel.
            RuntimeError: maps are held already, or net is inside another context.
        """
        if self.calls:
            raise RuntimeError(
                f"these AttentionMaps hold {self.calls} calls already; record each run into an AttentionMaps() of its "
                "own."
            )
        layers = cross_attention(net)
        self.layers = [[] for _ in layers]

        def record(layer: int, call: int, own: Tensor) -> Tensor:
            self.layers[layer].append(outlasting(own.detach()))
            return own

        with _edited(layers, record):
            yield self

    @contextmanager
    def injecting(self, net: nn.Module, edit: Edit | None = None) -> Iterator[None]:
        """Replace the maps of every call of net inside the context.

        Args:
            net: the network, or a model that holds it.
            edit: (layer, call, own map) -> the map to use, with calls counted from 0 on entering; by default the map
                held here for that layer and call.

        Raises:
            ValueError: net has no cross-attention, other layers than the held maps, a call beyond those held, or a map
                of another shape than the network's own.
            TypeError: edit is no function, or returns no tensor.
            RuntimeError: net is inside another context, or nothing is held and no edit is given.
        """
        layers = cross_attention(net)
        if edit is None:
            if not self.calls:
                raise RuntimeError("no maps are held: record some first (with maps.recording(net): ...), or pass edit.")
            if len(self.layers) != len(layers):
                raise ValueError(
                    f"maps of {len(self.layers)} layers are held, but this network has {len(layers)} layers of "
                    "cross-attention; inject into the network that they were recorded from, or a copy."
                )
            edit = self._held
        elif not callable(edit):
            raise TypeError(f"edit is {edit!r}; expected a function (layer, call, own map) -> map.")
        with _edited(layers, edit):
            yield

    def _held(self, layer: int, call: int, own: Tensor) -> Tensor:
        if call >= self.calls:
            raise ValueError(
                f"the network is called more than the {self.calls} times for which maps are held; use the grid and the "
                "solver of the recorded run, or an edit that returns the network's own map after it."
            )
        return self.layers[layer][call]


def cross_attention(net: nn.Module) -> list[CrossAttention]:
    """Return the cross-attention layers of a network in the order of use.

    Raises:
        TypeError: net is no module.
        ValueError: it has none, or is spread over devices by nn.DataParallel.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net is of type {type(net).__name__}; expected the network or the ScoreModel that holds it.")
    if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in net.modules()):
        raise ValueError(
            "nn.DataParallel runs copies of the network in threads of their own, where maps can be neither recorded "
            "nor edited; give the network inside, its .module, on one device."
        )
    layers = [module for module in net.modules() if isinstance(module, CrossAttention)]
    if not layers:
        raise ValueError(
            f"this {type(net).__name__} has no cross-attention, hence no maps; build the UNet with captions= or "
            "embeddings=."
        )
    return layers


@contextmanager
def _edited(layers: Sequence[CrossAttention], edit: Edit) -> Iterator[None]:
    def of_layer(index: int) -> Callable[[Tensor], Tensor]:
        calls = itertools.count()

        def use(own: Tensor) -> Tensor:
            call = next(calls)
            chosen = edit(index, call, own)
            if not isinstance(chosen, Tensor):
                raise TypeError(f"the edit returned {type(chosen).__name__}; expected a map, a tensor like its own.")
            if chosen.shape != own.shape:
                raise ValueError(
                    f"the map for layer {index}, call {call} has shape {tuple(chosen.shape)}; expected that of the "
                    f"network's own, {tuple(own.shape)} = (B, heads, positions, tokens). Use the batch, the sizes and "
                    "the padded caption length of the recorded run, and `map_tokens` where captions differ."
                )
            return chosen

        return use

    with edited_maps({layer: of_layer(index) for index, layer in enumerate(layers)}):
        yield


def map_tokens(source: Tensor, own: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return own with the columns of some tokens taken from source, as prompt-to-prompt does.

        M[..., j] = source[..., i]  for (i, j) in pairs,  else  own[..., j]

    (Hertz et al. 2022, arXiv:2208.01626, section 3.2: all pairs (j, j) for a word swap, pairs of the shared tokens for
    a refinement.) As there, rows are not normalised again.

    Args:
        source: maps of the source (B, heads, positions, tokens), or of one sample for all, (1, ...).
        own: maps of the edited caption (B, heads, positions, tokens), of any number of tokens.
        pairs: (token of source, token of own), as positions in the maps; see `shared_tokens`.

    Raises:
        ValueError: shapes that do not fit, a token that is not there, or one of own named twice.
    """
    checks.state(source, name="source")
    checks.state(own, name="own")
    if source.ndim != 4 or own.ndim != 4 or source.shape[1:3] != own.shape[1:3] or len(source) not in (1, len(own)):
        raise ValueError(
            f"source has shape {tuple(source.shape)} and own {tuple(own.shape)}; expected (B, heads, positions, "
            "tokens) with the same heads and positions, and as many samples, or one in source."
        )
    pairs = [_pair(pair, source.shape[3], own.shape[3]) for pair in _listed(pairs)]
    targets = [j for _, j in pairs]
    if len(set(targets)) < len(targets):
        raise ValueError(f"pairs={pairs}: a token of own is named twice; give it one token of source.")
    columns = list(own.unbind(3))
    for i, j in pairs:
        columns[j] = source[..., i].to(own.dtype).expand_as(columns[j])
    return torch.stack(columns, 3)


def _listed(pairs: object) -> Iterable[Any]:
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable) or getattr(pairs, "ndim", 1) == 0:
        raise TypeError(f"pairs must be a list of pairs (token of source, token of own), got {checks.got(pairs)}.")
    return pairs


def _pair(pair: object, source: int, own: int) -> tuple[int, int]:
    """Two tokens, one of so many of the source and one of so many of the other."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"pairs must hold pairs (token of source, token of own), got {checks.got(pair)}.")
    i, j = (checks.whole(token, name="each token of pairs") for token in pair)
    if not (0 <= i < source and 0 <= j < own):
        raise ValueError(f"pairs hold {(i, j)}: source has tokens 0 to {source - 1} and own 0 to {own - 1}; use those.")
    return i, j


def reweight_tokens(own: Tensor, factors: Mapping[int, float]) -> Tensor:
    """Return maps with the columns of some tokens scaled, to strengthen or weaken what a word does.

        M[..., j] = factors[j] own[..., j]

    (Hertz et al. 2022, arXiv:2208.01626, section 3.2, attention re-weighting.) Rows are not normalised again.

    Args:
        own: maps (B, heads, positions, tokens).
        factors: factor of each token, by position in the map; from about -2 to 2.

    Raises:
        ValueError: a token that is not there.
    """
    checks.state(own, name="own")
    checks.instance(factors, Mapping, name="factors", hint="It maps tokens to numbers, {2: 1.5}.")
    chosen = {checks.whole(j, name="each token of factors"): _factor(j, factor) for j, factor in factors.items()}
    wrong = [j for j in chosen if not 0 <= j < own.shape[-1]]
    if wrong:
        raise ValueError(f"factors name the tokens {wrong}; the map has tokens 0 to {own.shape[-1] - 1}: use those.")
    return own * own.new_tensor([chosen.get(j, 1.0) for j in range(own.shape[-1])])


def _factor(token: int, factor: float) -> float:
    given = checks.number(factor, name=f"factors[{token}]")
    if not math.isfinite(given):
        raise ValueError(f"factors[{token}] must be finite, got {given:g}.")
    return given


def shared_tokens(source: Tensor, own: Tensor, first: int = 0) -> list[tuple[int, int]]:
    """Return the pairs for `map_tokens` of the words that two captions share, in order, and of their learned token.

    Words are aligned by the longest matching runs; words of own that source lacks, and padding, are in no pair.

    Args:
        source, own: tokens (L,) of the two captions, as given to the network.
        first: position in the map of the caption's learned token: 0 for the first condition, and for each one before
            it 1 + its length more.

    Raises:
        ValueError: tokens are not of shape (L,).
    """
    first = checks.count(first, name="first", least=0)
    for name, tokens in {"source": source, "own": own}.items():
        found = checks.integers(tokens, name=name, least=0, most=2**63 - 1)
        if not isinstance(tokens, Tensor) or found.ndim != 1 or tokens.layout is not torch.strided:
            raise ValueError(f"{name} must be a tensor of tokens (L,), expected one caption; got {checks.got(tokens)}.")
    a, b = source.tolist(), own.tolist()
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    matches = [(block.a + k, block.b + k) for block in blocks for k in range(block.size)]
    return [(first, first), *((first + 1 + i, first + 1 + j) for i, j in matches if a[i] != 0)]
