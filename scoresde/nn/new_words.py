"""New words for a network that reads captions, learned with all else frozen: textual inversion::

    word = learn_words(net, "sks", vocabulary, like="red")          # all else is frozen
    tokens = word.vocabulary.encode(["a sks three"], length=8)      # captions of pictures of the subject
    ...                                                             # train(...): only the new vector learns
    learned_words(net)                                              # {"sks": ...}, of a loaded network or a copy, too

A word of several vectors is several words, written one after the other: ``learn_words(net, ["sks", "sks2"], ...)`` and
``word.phrase``, "sks sks2", in captions. :func:`scoresde.train.save_adapter` writes them alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Caption, Conditions
from scoresde.nn.captions import Vocabulary, words_of
from scoresde.nn.context import ContextEncoder
from scoresde.nn.low_rank_adapters import check_new_name
from scoresde.nn.network import ConditionalNetwork


class LearnedVectors(nn.Module):
    """The vectors of some new words, (K, width), each no longer than ``longest``.

    Args:
        vectors: to begin with.
        words: that they stand for.
        longest: the largest norm of one; None for any.
    """

    def __init__(self, vectors: Tensor, words: tuple[str, ...], longest: float | None) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.words, self.longest = words, longest

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten what has become too long; called after each step of the optimizer, as of `MagnitudeConv`."""
        if self.longest is not None and self.vectors.requires_grad:
            self.vectors.copy_(self.vectors.renorm(2, 0, self.longest))


class GrownEmbedding(nn.Embedding):
    """An embedding whose table goes on: tokens beyond its own are those of the learned words, in their order."""

    learned: nn.ModuleDict
    words: tuple[str, ...]
    """Those that the table itself has vectors for."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L) int64 to (B, L, width)."""
        last = self.num_embeddings - 1
        known = F.embedding(tokens.clamp(max=last), self.weight, self.padding_idx)
        parts: Any = self.learned.values()
        new = torch.cat([one.vectors for one in parts]).to(known.dtype)
        beyond = tokens > last
        return torch.where(beyond[..., None], F.embedding((tokens - last - 1).clamp(min=0), new), known)


class LearnedWords:
    """Some words that were learned beside a network's own; made by :func:`learn_words`, found by :func:`learned_words`.

    It holds nothing itself: copies of the network have copies of the words.

    Args:
        net: the network.
        name: the first of the words.

    Raises:
        ValueError: the network has learned no words of that name.
    """

    def __init__(self, net: ConditionalNetwork, name: str) -> None:
        self.net: ConditionalNetwork = checks.instance(net, ConditionalNetwork, name="net")
        self.name = checks.instance(name, str, name="name")
        self._place()

    def __repr__(self) -> str:
        return f"LearnedWords({self.phrase!r}, {self.count} parameters)"

    @property
    def condition(self) -> str:
        """The caption condition that they are words of."""
        return self._place()[0]

    @property
    def words(self) -> tuple[str, ...]:
        """The words, one for each vector."""
        return self._held.words

    @property
    def phrase(self) -> str:
        """The words as they are written in a caption."""
        return " ".join(self.words)

    @property
    def vectors(self) -> nn.Parameter:
        """The vectors (K, width)."""
        return self._held.vectors

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The vectors, for an optimizer of your own."""
        return [self.vectors]

    @property
    def count(self) -> int:
        """How many numbers were learned."""
        return self.vectors.numel()

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the network with all that it has learned: what captions are encoded by."""
        _, table = self._place()
        return Vocabulary([*table.words, *(word for one in table.learned.values() for word in one.words)])  # type: ignore[union-attr]

    def remove(self) -> None:
        """Forget the words. Those that were learned after them take their tokens: encode captions anew."""
        condition, table = self._place()
        gone = len(self.words)
        del table.learned[self.name]
        if not len(table.learned):
            plain: Any = table
            del plain.learned, plain.words
            plain.__class__ = nn.Embedding
        _grow(self.net, condition, -gone)

    def state(self) -> dict[str, Tensor]:
        """The vectors by name."""
        return {"vectors": self.vectors.detach()}

    def describe(self) -> dict[str, Any]:
        """All that makes them again in another network, but for the vectors, ready for JSON."""
        condition, table = self._place()
        told = {"kind": "words", "name": self.name, "condition": condition, "words": list(self.words)}
        return {**told, "vocabulary": list(table.words), "longest": self._held.longest}

    @property
    def _held(self) -> LearnedVectors:
        return self._place()[1].learned[self.name]  # type: ignore[return-value]

    def _place(self) -> tuple[str, GrownEmbedding]:
        for condition, table in tables(self.net).items():
            if isinstance(table, GrownEmbedding) and self.name in table.learned:
                return condition, table
        there = ", ".join(map(repr, learned_words(self.net))) or "none"
        raise ValueError(f"name must be that of words which this network learned, got {self.name!r}; there: {there}.")


def learn_words(
    net: ConditionalNetwork,
    words: str | Sequence[str],
    vocabulary: Vocabulary,
    *,
    condition: str | None = None,
    like: str | Sequence[str] | None = None,
    longest: float | None = 1.0,
    seed: int = 0,
) -> LearnedWords:
    """Give a network a vector for each of some new words, and freeze all else.

    Textual inversion (Gal et al. 2022, arXiv:2208.01618, equation 2): the vectors alone are learned, by the loss of the
    network, from a few pictures of a subject whose captions hold the new words. As only what the network can draw
    already can be named, begin at a word of the kind (``like``), train at the noise levels at which captions decide,
    and look at what is drawn: the loss is mostly that of other levels. A vector that grows long drowns the other words
    of a caption, see ``longest``.

    A word that is to be learned with the whole network, as in DreamBooth (arXiv:2208.12242), is made the same way:
    ``net.requires_grad_(True)`` frees the network again.

    Args:
        net: a network with captions; changed in place, its own weights are not.
        words: a new word, or several, each with a vector of its own.
        vocabulary: the words that the network was trained with.
        condition: the name of the caption condition; the only one, unless told.
        like: a text whose words' mean vector to begin at, for all or for each of the words; by default they are drawn
            like the vectors of the network's words: normal, of their mean square.
        longest: the largest norm of a vector, in units of the largest among the network's words, kept by
            ``after_step``, which :func:`~scoresde.train.train` calls; None for any.
        seed: that they are drawn from.

    Returns:
        What tells of the words, with the vocabulary that has them.

    Raises:
        TypeError: no network of captions, or no words.
        ValueError: a word that the vocabulary has already, words of ``like`` that it has not, or another vocabulary
            than the network's.
    """
    checks.instance(net, ConditionalNetwork, name="net", hint="One with captions, such as UNet(..., captions=...).")
    checks.instance(vocabulary, Vocabulary, name="vocabulary", hint="Vocabulary.of(texts), that of the training.")
    condition, table = _chosen(net, condition)
    named = [words] if isinstance(words, str) else words
    if not isinstance(named, (list, tuple)) or not named or not all(isinstance(one, str) for one in named):
        raise TypeError(f"words must be a new word or a list of them, got {checks.got(words)}.")
    size = _vocabulary_of(net, condition)
    if len(vocabulary) != size:
        raise ValueError(
            f"vocabulary must be that of the network's {condition!r}, which has {size} words, got a Vocabulary "
            f"of {len(vocabulary)}: take model.vocabularies[{condition!r}], or that of the words learned last."
        )
    for known in learned_words(net).values():
        if known.condition == condition and known.vocabulary != vocabulary:
            raise ValueError(
                f"vocabulary must be that of the words learned last, which ends with {known.vocabulary.words[-1]!r}, "
                f"got a Vocabulary that ends with {vocabulary.words[-1]!r}."
            )
    both = Vocabulary([*vocabulary.words, *_new(named, vocabulary)])
    fresh = tuple(both.words[size:])
    check_new_name(net, fresh[0])
    longest = None if longest is None else checks.positive(longest, name="longest")
    generator = torch.Generator().manual_seed(checks.seed(seed))
    with torch.no_grad():
        own = table.weight[1:].detach()
        bound = None if longest is None else longest * float(own.float().norm(dim=1).amax())
        if like is None:
            drawn = torch.randn(len(fresh), own.shape[1], generator=generator, device="cpu")
            vectors = drawn.to(own.device) * own.float().square().mean().sqrt()
        else:
            vectors = torch.stack([_mean_of(table, vocabulary, text) for text in _texts(like, len(fresh))])
        if bound is not None:
            vectors = vectors.renorm(2, 0, bound)
    dtype = torch.promote_types(own.dtype, torch.float32)  # in which they train
    base = table.words if isinstance(table, GrownEmbedding) else vocabulary.words
    net.requires_grad_(False)
    put_words(net, condition, tuple(base), LearnedVectors(vectors.to(dtype), fresh, bound))
    return LearnedWords(net, fresh[0])


def learned_words(net: nn.Module) -> dict[str, LearnedWords]:
    """What words a network has learned beside its own, by the first of those learned together, in their order.

    Raises:
        TypeError: no module.
    """
    checks.instance(net, nn.Module, name="net")
    if not isinstance(net, ConditionalNetwork):
        return {}
    grown = [table for table in tables(net).values() if isinstance(table, GrownEmbedding)]
    return {name: LearnedWords(net, name) for table in grown for name in table.learned}


def tables(net: nn.Module) -> dict[str, nn.Embedding]:
    """The embedding of words of each caption condition, by its name."""
    found: dict[str, nn.Embedding] = {}
    for module in net.modules():
        if isinstance(module, ContextEncoder):
            found.update({name: one.words for name, one in zip(module.names, module.captions, strict=False)})  # type: ignore[misc]
    return found


def put_words(net: ConditionalNetwork, condition: str, base: tuple[str, ...], vectors: LearnedVectors) -> None:
    """Have the table of a condition go on by some vectors."""
    table: Any = tables(net)[condition]
    if not isinstance(table, GrownEmbedding):
        table.learned, table.words = nn.ModuleDict(), base
        table.__class__ = GrownEmbedding
    table.learned[vectors.words[0]] = vectors.to(table.weight.device)
    _grow(net, condition, len(vectors.words))


def _grow(net: ConditionalNetwork, condition: str, by: int) -> None:
    """Have a network take so many more tokens. Its config stays that of its own words."""
    known = {name: net.conditions[name] for name in net.conditions}
    caption = known[condition]
    assert isinstance(caption, Caption)
    known[condition] = dataclasses.replace(caption, vocabulary=caption.vocabulary + by)
    net.conditions = Conditions(known)


def _chosen(net: ConditionalNetwork, condition: str | None) -> tuple[str, nn.Embedding]:
    found = tables(net)
    if not found:
        raise TypeError(f"net must be a network with captions, got {checks.got(net)}, which was built without any.")
    if condition is None and len(found) == 1:
        return next(iter(found.items()))
    if not isinstance(condition, str) or condition not in found:
        raise ValueError(f"condition must name one of the captions {', '.join(found)}, got {checks.got(condition)}.")
    return condition, found[condition]


def _vocabulary_of(net: ConditionalNetwork, condition: str) -> int:
    caption = net.conditions[condition]
    assert isinstance(caption, Caption)
    return caption.vocabulary


def _new(words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    for word in words:
        if words_of(word) != [word.lower()]:
            raise ValueError(f"words must be single words of letters and digits, got {word!r:.80}.")
        if word.lower() in vocabulary.words:
            raise ValueError(f"words must be new, and {word!r} is in the vocabulary already.")
    return [word.lower() for word in words]


def _texts(like: object, count: int) -> list[str]:
    texts = [like] * count if isinstance(like, str) else like
    if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
        raise TypeError(f"like must be a text of known words, or one for each new word, got {checks.got(like)}.")
    if len(texts) != count:
        raise ValueError(
            f"like must be one text for all, or one for each of the {count} new words, got {checks.got(texts)}."
        )
    return list(texts)


def _mean_of(table: nn.Embedding, vocabulary: Vocabulary, text: str) -> Tensor:
    try:
        tokens = [vocabulary.token(word) for word in words_of(text)]
    except ValueError as error:
        raise ValueError(f"like must hold words of the vocabulary, got {text!r:.80}: {error}") from error
    if not tokens:
        raise ValueError(f"like must hold words of the vocabulary, got {text!r:.80}.")
    return table(torch.tensor([tokens], device=table.weight.device))[0].float().mean(0)
