"""From sentences to the tokens of a caption condition, and back::

    words = Vocabulary.of(["a red three", "a blue four"])          # a, blue, four, red, three
    tokens = words.encode(["a red four", ""], length=4)            # (2, 4) int64, padded with 0
    words.decode(tokens)                                           # ["a red four", ""]
    net = UNet(3, captions={"caption": {"vocabulary": len(words), "length": 4}})

A word that is not in the vocabulary is refused, and the nearest one that is gets named.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks

# Letters, digits and accents hang together; whitespace and punctuation, underscores too, part words.
_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """The words that captions may use; word k of them, from 1, has token k, and 0 is padding.

    `Vocabulary(words)` from the words in order, `Vocabulary.of(texts)` from sentences. `words` is all there is to
    save: `Vocabulary(json.loads(json.dumps(vocabulary.words)))` is the same. A network takes its size as
    captions={"caption": {"vocabulary": len(vocabulary), "length": ...}}.

    Args:
        words: the words, all different; case is lost.

    Raises:
        TypeError: words is a single text, or holds something that is no text.
        ValueError: no words, a repeated one, or one with spaces or punctuation inside.
    """

    words: Sequence[str]

    def __post_init__(self) -> None:
        check_texts(self.words, "words", "Vocabulary(['a', 'red', 'three']), or Vocabulary.of(texts) for sentences")
        words = [word.lower() for word in self.words]
        if not words:
            raise ValueError(f"words must hold at least one word, got {self.words!r}.")
        for word in words:
            if words_of(word) != [word]:
                raise ValueError(
                    f"words holds {word!r}, which is not a single word; build one of sentences by Vocabulary.of."
                )
        repeated = sorted({word for word in words if words.count(word) > 1}) if len(set(words)) < len(words) else []
        if repeated:
            raise ValueError(
                f"words repeat: {', '.join(map(repr, repeated[:5]))}; each must be there once (case is ignored)."
            )
        object.__setattr__(self, "words", tuple(words))
        object.__setattr__(self, "_tokens", {word: token for token, word in enumerate(words, start=1)})

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """Return the vocabulary of all words in texts, in alphabetic order."""
        listed = listed_texts(texts, "Vocabulary.of(['a red three', 'a blue four'])")
        return cls(sorted({word for text in listed for word in words_of(text)}))

    def __len__(self) -> int:
        """Number of words; padding is not one of them."""
        return len(self.words)

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return the tokens of each text, (B, length) int64, padded with 0; an empty text is all padding.

        Raises:
            TypeError: a single text instead of a list, or something that is no text.
            ValueError: a word that is not in the vocabulary, or more than length words.
        """
        length = checks.count(length, name="length")
        check_texts(texts, "texts", "encode(['a red three'], length)")
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in enumerate(texts):
            words = words_of(text)
            if len(words) > length:
                raise ValueError(f"{text!r} has {len(words)} words; expected at most length={length}.")
            for column, word in enumerate(words):
                tokens[row, column] = self.token(word)
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the text of each row of tokens (B, L), words joined by spaces, padding left out.

        Raises:
            TypeError: tokens are not int64.
            ValueError: not of shape (B, L), or a token is out of range.
        """
        rows = token_rows(tokens, len(self))
        return [" ".join(self.words[token - 1] for token in row if token) for row in rows]

    def token(self, word: str) -> int:
        """Return the token of one word.

        Raises:
            ValueError: the word is not in the vocabulary; the message names the nearest that is.
        """
        tokens: dict[str, int] = self._tokens  # type: ignore[attr-defined]
        known = tokens.get(word.lower())
        if known is None:
            near = difflib.get_close_matches(word.lower(), self.words, n=1, cutoff=0.5)
            some = ", ".join(self.words[:8]) + (", …" if len(self) > 8 else "")
            hint = f"did you mean {near[0]!r}?" if near else f"known are {some}."
            raise ValueError(f"{word!r} is not among the {len(self)} words of this vocabulary: {hint}")
        return known


def check_texts(texts: object, name: str, example: str) -> None:
    """Raises TypeError unless these are texts in a list; ``example`` shows how to write that."""
    if isinstance(texts, (str, bytes, bytearray)) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} is {checks.got(texts)}; expected a list of texts, e.g. {example}.")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} holds {text!r}; expected texts only.")


def listed_texts(texts: Iterable[str], example: str) -> list[str]:
    """Texts of any iterable; raises TypeError unless it is one, of texts; ``example`` shows how to write that."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
        raise TypeError(f"texts is {checks.got(texts)}; expected a list of texts.")
    listed = list(texts)
    check_texts(listed, "texts", example)
    return listed


def token_rows(tokens: Tensor, count: int) -> list[list[int]]:
    """The numbers in tokens (B, L), 0 for padding and 1 to ``count`` for words or pieces of words.

    Raises:
        TypeError: tokens are not int64.
        ValueError: not of shape (B, L), or a token is out of range.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.long or tokens.layout is not torch.strided:
        what = f"{tokens.dtype}, {tokens.layout}" if isinstance(tokens, Tensor) else checks.got(tokens)
        raise TypeError(f"tokens are {what}; expected a dense tensor of torch.int64.")
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected (B, L).")
    rows: list[list[int]] = tokens.tolist()
    wrong = next((token for row in rows for token in row if not 0 <= token <= count), None)
    if wrong is not None:
        raise ValueError(f"tokens hold {wrong}, which is out of range; expected 1 to {count}, or 0 for padding.")
    return rows
