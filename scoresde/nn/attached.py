"""What was put into a network beside its own weights, of whatever kind: how it is told of and made again.

    told = [one.describe() for one in attached(net).values()]       # JSON
    attach(other, told[0])                                          # the same parts, their numbers yet to be read
    fingerprint(net)                                                # of the network itself, whatever was put into it

Kinds are low-rank adapters (:mod:`scoresde.nn.low_rank_adapters`) and learned words (:mod:`scoresde.nn.new_words`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from scoresde import checks
from scoresde.nn.captions import Vocabulary
from scoresde.nn.low_rank import Factors, drawn_factors
from scoresde.nn.low_rank_adapters import LoRA, adaptable, adapters, check_new_name, put_factors
from scoresde.nn.network import ConditionalNetwork
from scoresde.nn.new_words import LearnedVectors, LearnedWords, learned_words, put_words, tables

Attached = LoRA | LearnedWords
"""A part that was put into a network."""


def attached(net: nn.Module) -> dict[str, Attached]:
    """All that was put into a network, by name.

    Raises:
        TypeError: no module.
    """
    return {**adapters(net), **learned_words(net)}


def fingerprint(net: nn.Module) -> str:
    """SHA-256 of the names and shapes of a network's own parameters, without what was put into it.

    Raises:
        TypeError: no module.
    """
    checks.instance(net, nn.Module, name="net")
    shapes = [[name, list(p.shape)] for name, p in own_parameters(net).items()]
    return hashlib.sha256(json.dumps(sorted(shapes)).encode()).hexdigest()


def own_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network itself, by name."""
    parts = [module for module in net.modules() if isinstance(module, (Factors, LearnedVectors))]
    put = {id(p) for part in parts for p in part.parameters()}
    return {name: p for name, p in net.named_parameters() if id(p) not in put}


def attach(net: nn.Module, told: Mapping[str, Any]) -> Attached:
    """Put a part into a network that ``describe`` told of, its numbers zero.

    Args:
        net: the network; which of its parameters are frozen stays as it is.
        told: of kind "lora" or "words".

    Raises:
        TypeError, ValueError: it does not fit this network, or is no description.
    """
    checks.instance(net, nn.Module, name="net")
    checks.instance(told, Mapping, name="told")
    kind = told.get("kind")
    if not isinstance(kind, str) or kind not in _ATTACH:
        raise ValueError(f"told must be of one of the kinds {', '.join(_ATTACH)}, got {checks.got(kind)}.")
    try:
        return _ATTACH[kind](net, told)
    except KeyError as error:
        raise ValueError(f"told must have the field {error} for its kind {kind!r}, and has not.") from error


def _attach_lora(net: nn.Module, told: Mapping[str, Any]) -> LoRA:
    name, rank = check_new_name(net, told["name"]), checks.count(told["rank"], name="rank")
    alpha, scale = checks.positive(told["alpha"], name="alpha"), checks.number(told["scale"], name="scale")
    on, merged = checks.flag(told["on"], name="on"), checks.flag(told["merged"], name="merged")
    able, layers = adaptable(net), told["layers"]
    if not isinstance(layers, list) or not layers:
        raise ValueError(f"layers must be a list of names of layers, got {checks.got(layers)}.")
    missing = [str(layer) for layer in layers if layer not in able]
    if missing:
        raise ValueError(
            f"layers must be linear maps and convolutions of this network, and {len(missing)} of {len(layers)} are "
            f"none: {', '.join(missing[:5])}. The adapter is of another network."
        )
    for layer in layers:
        weight: Any = able[layer].weight
        factors = drawn_factors(weight, rank, alpha, None)
        factors.scale, factors.on, factors.merged = scale, on, merged
        factors.settle()
        put_factors(able[layer], name, factors)
    return LoRA(net, name)


def _attach_words(net: nn.Module, told: Mapping[str, Any]) -> LearnedWords:
    name, condition = check_new_name(net, told["name"]), told["condition"]
    words, base = tuple(told["words"]), tuple(told["vocabulary"])
    longest = None if told["longest"] is None else checks.positive(told["longest"], name="longest")
    found = tables(net)
    if not isinstance(net, ConditionalNetwork) or condition not in found:
        raise ValueError(
            f"condition must be a caption of this network, one of {', '.join(found) or 'none'}, got {condition!r:.80}."
        )
    table = found[condition]
    known = getattr(table, "words", None)
    if len(base) != table.num_embeddings - 1 or (known is not None and known != base):
        raise ValueError(
            f"the words were learned beside the {len(base)} of another vocabulary; expected that of this network, of "
            f"{table.num_embeddings - 1}."
        )
    Vocabulary([*base, *(word for one in learned_words(net).values() for word in one.words), *words])
    if not words or words[0] != name:
        raise ValueError(f"words must begin with the name, {name!r}, got {list(words)}.")
    width = table.weight.shape[1]
    dtype = torch.promote_types(table.weight.dtype, torch.float32)
    vectors = torch.zeros(len(words), width, dtype=dtype, device=table.weight.device)
    put_words(net, condition, base, LearnedVectors(vectors, words, longest))
    return LearnedWords(net, name)


_ATTACH: Mapping[str, Callable[[nn.Module, Mapping[str, Any]], Attached]] = {
    "lora": _attach_lora,
    "words": _attach_words,
}
