"""A tokenizer of any text: byte pairs, learned from captions. Needs the extra ``tokenizers``::

    pairs = BytePairs.of(["a red three", "a blue four"], size=300)
    tokens = pairs.encode(["a red four", "ein blaues Haus"], length=16)     # (2, 16) int64, padded with 0
    pairs.decode(tokens)                                                    # the texts, in lower case
    net = UNet(3, captions={"caption": {"vocabulary": len(pairs), "length": 16}})

Where a :class:`~scoresde.nn.Vocabulary` knows the words that it was told and refuses others, this one makes pieces of
whatever is written: frequent words one piece each, others several, down to single bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.extras import needs
from scoresde.nn.captions import check_texts, listed_texts, token_rows

BYTES = 256
"""Pieces of one byte, which are there whatever else is learned."""


@dataclass(frozen=True)
class BytePairs:
    """The pieces of a byte-pair encoding; piece k of them, from 1, has token k, and 0 is padding.

    `BytePairs.of(texts, size)` learns them (Sennrich et al. 2016, arXiv:1508.07909; on bytes, Radford et al. 2019).
    Text is taken in lower case and in Unicode's composed form, a word with the blank before it. `words` and `merges`
    are all there is to save, and checkpoints hold them.

    Args:
        words: the pieces, bytes written as the letters of GPT-2; all 256 single bytes among them.
        merges: "left right" for each two pieces that become one, the most frequent first.

    Raises:
        TypeError: no lists of texts.
        ValueError: pieces that repeat, a single byte that is missing, a merge of or to what is no piece.
        ModuleNotFoundError: tokenizers is not installed.
    """

    words: Sequence[str]
    merges: Sequence[str]

    def __post_init__(self) -> None:
        for name in ("words", "merges"):
            check_texts(getattr(self, name), name, "those of BytePairs.of(texts, size=300)")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.words:
            raise ValueError(f"words must hold the {BYTES} single bytes at least, got none of them, {self.words!r}.")
        known = set(self.words)
        if len(known) < len(self.words):
            raise ValueError("words repeat; each piece must be there once.")
        pairs: list[tuple[str, str]] = []
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            if not known.issuperset((left, right, left + right)):
                raise ValueError(
                    f"merges hold {merge!r}, expected 'left right', two of the words that joined are one, too."
                )
            pairs.append((left, right))
        with needs("tokenizers"):
            from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
        missing = set(pre_tokenizers.ByteLevel.alphabet()) - known
        if missing:
            raise ValueError(
                f"words lack {len(missing)} of the {BYTES} single bytes, so that some texts would have no tokens; take "
                "BytePairs.of(texts, size)."
            )
        model = models.BPE(vocab={word: k for k, word in enumerate(self.words)}, merges=pairs)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        object.__setattr__(self, "_tokenizer", tokenizer)

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> BytePairs:
        """Return at most ``size`` pieces learned from texts: the 256 bytes, then the most frequent pairs in turn.

        Raises:
            TypeError: no list of texts.
            ValueError: fewer than 256 pieces.
            ModuleNotFoundError: tokenizers is not installed.
        """
        listed = listed_texts(texts, "BytePairs.of(['a red three', 'a blue four'], size=300)")
        size = checks.count(size, name="size", least=BYTES)
        with needs("tokenizers"):
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(listed, trainer)
        found = json.loads(tokenizer.to_str())["model"]
        words = sorted(found["vocab"], key=found["vocab"].get)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in found["merges"]]
        return cls(words, merges)

    def __len__(self) -> int:
        """Number of pieces; padding is not one of them."""
        return len(self.words)

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return the tokens of each text, (B, length) int64, padded with 0; an empty text is all padding.

        Raises:
            TypeError: a single text instead of a list, or something that is no text.
            ValueError: more than length tokens.
        """
        length = checks.count(length, name="length")
        check_texts(texts, "texts", "encode(['a red three'], length)")
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        for row, found in enumerate(self._own.encode_batch([text.strip() for text in texts])):
            ids = found.ids if texts[row].strip() else []
            if len(ids) > length:
                raise ValueError(
                    f"{texts[row]!r} has {len(ids)} tokens; expected at most length={length}. Learn more pieces, allow "
                    "more tokens, or shorten it."
                )
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long) + 1
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the text of each row of tokens (B, L), in lower case, padding left out.

        Raises:
            TypeError: tokens are not int64.
            ValueError: not of shape (B, L), or a token is out of range.
        """
        rows = token_rows(tokens, len(self))
        return [self._own.decode([token - 1 for token in row if token]).strip() for row in rows]

    @property
    def _own(self) -> Any:
        return self.__dict__["_tokenizer"]
