"""The words that tokens stand for, where a data set knows them: checked against the tokens, and kept with them.

    vocabularies = checked_vocabularies({"caption": Vocabulary.of(texts)}, {"caption": tokens})

A vocabulary is anything that has ``words``, of which token k, from 1, is the k-th; :class:`scoresde.nn.Vocabulary` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks


def checked_vocabularies(given: object, conditions: Mapping[str, Tensor]) -> dict[str, Any]:
    """Vocabularies by the name of the condition whose tokens they encode; none for None.

    Raises:
        TypeError: no mapping of vocabularies.
        ValueError: no condition of that name has tokens, or a token is none of the vocabulary's.
    """
    if given is None:
        return {}
    checks.instance(given, Mapping, name="vocabularies", hint="Write {'caption': Vocabulary.of(texts)}.")
    assert isinstance(given, Mapping)
    for name, one in given.items():
        if not isinstance(getattr(one, "words", None), tuple):
            raise TypeError(
                f"vocabularies[{name!r}] must be a vocabulary, such as scoresde.nn.Vocabulary.of(texts), got "
                f"{checks.got(one)}."
            )
        tokens = conditions.get(name)
        if tokens is None or tokens.dtype != torch.long or tokens.ndim != 2:
            known = [key for key, value in conditions.items() if value.dtype == torch.long and value.ndim == 2]
            raise ValueError(
                f"vocabularies names {name!r}, and no condition of that name holds tokens (N, L) int64; those that do: "
                f"{known}."
            )
        low, high = (int(end) for end in tokens.aminmax()) if tokens.numel() else (0, 0)
        if low < 0 or high > len(one.words):
            raise ValueError(
                f"tokens of {name} run from {low} to {high}, and its vocabulary in vocabularies has {len(one.words)} "
                "words: 1 to that number, and 0 for padding. Encode the captions with this vocabulary."
            )
    return dict(given)
