"""Which conditions a network takes beside x and c: names, kinds, sizes and null values, and the check of a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.nn.inputs import check_floating, check_positive, check_rows, check_tokens

# What a call passes besides conditions: net(x, c, label=...), model(x, t, ...), and the options of classifier_free and
# projected, which take conditions as keywords, too. scoresde.data has the same names.
RESERVED = (
    "self", "x", "c", "t", "label",
    "model", "scale", "null", "negative", "interval", "rescale", "parallel", "norm",
)  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A condition that is a row of tokens, with the size of the encoder that reads it.

    Attributes:
        vocabulary: number of words; their tokens are 1 ... vocabulary, and 0 is padding.
        length: most tokens in a caption.
        width: channels of the caption encoder.
        layers: its transformer blocks.
    """

    vocabulary: int
    length: int
    width: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        check_positive(**asdict(self))


class Given(NamedTuple):
    """The conditions of one call, kind by kind in the order of construction; None where left out."""

    vectors: list[Tensor | None]
    images: list[Tensor | None]
    captions: list[Tensor | None]
    embeddings: list[Tensor | None]


@dataclass(frozen=True)
class Conditions:
    """All conditions of one network, by name.

    Attributes:
        num_classes: number of classes of the condition "label"; None for no such condition.
        vectors: sizes d of conditions (B, d), or (B,) where d = 1.
        images: channels k of conditions (B, k, *spatial), spatial sizes dividing those of x.
        captions: conditions (B, L) of int64 tokens, L up to `Caption.length`.
        embeddings: sizes E of conditions (B, L, E), any L.

    Raises:
        TypeError, ValueError: a size is not a positive whole number; a name is no identifier, reserved, or given twice.
    """

    num_classes: int | None = None
    vectors: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    captions: Mapping[str, Caption] = field(default_factory=dict)
    embeddings: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        num_classes: int | None = None,
        vectors: Mapping[str, int] | None = None,
        images: Mapping[str, int] | None = None,
        captions: Mapping[str, Mapping[str, int]] | None = None,
        embeddings: Mapping[str, int] | None = None,
    ) -> Conditions:
        """Read a network's arguments."""
        kinds = {"vectors": vectors, "images": images, "captions": captions, "embeddings": embeddings}
        for kind, given in kinds.items():
            if given is not None and not isinstance(given, Mapping):
                example = "{'caption': {'vocabulary': 24, 'length': 6}}" if kind == "captions" else "{'name': 2}"
                raise TypeError(f"{kind}={given!r}: expected a mapping by name, e.g. {kind}={example}.")
        described = {name: _caption(name, options) for name, options in (captions or {}).items()}
        return cls(num_classes, dict(vectors or {}), dict(images or {}), described, dict(embeddings or {}))

    def __post_init__(self) -> None:
        if self.num_classes is not None:
            check_positive(num_classes=self.num_classes)
        seen: dict[str, str] = {}
        for kind in ("vectors", "images", "captions", "embeddings"):
            for name, size in getattr(self, kind).items():
                if not isinstance(name, str) or not name.isidentifier():
                    raise ValueError(f"{kind} has the name {name!r}; expected a word, as in net(x, c, size=...).")
                if name in RESERVED:
                    raise ValueError(
                        f"{kind} has the name {name!r}, which calls of networks or of guidance use; choose another "
                        f"than {', '.join(RESERVED)}."
                    )
                if name in seen:
                    raise ValueError(
                        f"the condition {name!r} is in {seen[name]} and in {kind}; give each its own name."
                    )
                seen[name] = kind
                if kind != "captions":
                    check_positive(**{f"{kind}[{name!r}]": size})

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `of` except num_classes, ready for JSON; kinds without conditions are left out."""
        kinds: dict[str, dict[str, Any]] = {
            "vectors": dict(self.vectors),
            "images": dict(self.images),
            "captions": {name: asdict(caption) for name, caption in self.captions.items()},
            "embeddings": dict(self.embeddings),
        }
        return {kind: given for kind, given in kinds.items() if given}

    @property
    def nulls(self) -> dict[str, float]:
        """What means "not given": num_classes for the label, 0 (padding) for tokens, NaN for all other kinds."""
        label = {} if self.num_classes is None else {"label": self.num_classes}
        return {**label, **{name: 0 if name in self.captions else math.nan for name in self._names}}

    @property
    def stem_channels(self) -> int:
        """Channels that the image conditions add to x: their own, and one each that says whether it was given."""
        return sum(channels + 1 for channels in self.images.values())

    @property
    def tokens(self) -> bool:
        """Whether any condition is a sequence, to be attended to."""
        return bool(self.captions or self.embeddings)

    @property
    def _names(self) -> list[str]:
        return [*self.vectors, *self.images, *self.captions, *self.embeddings]

    def read(self, given: Mapping[str, Tensor | None], x: Tensor) -> Given:
        """Check the conditions of a call against their descriptions and against x (B, *event).

        Values are looked at in main memory only.

        Raises:
            TypeError: an unknown name, no tensor, or a dtype that does not fit.
            ValueError: a shape or a value that does not fit.
        """
        for name in given:
            if name not in self._names:
                known = list(self.nulls)
                takes = f"takes {', '.join(known)}" if known else "was built without any"
                raise TypeError(
                    f"unknown condition {name!r}: this network {takes}. Check the spelling, leave it out, or build "
                    "the network with it (vectors=, images=, captions= or embeddings=)."
                )
        for name, value in given.items():
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name} is of type {type(value).__name__}; expected a tensor of {len(x)} rows.")
            if value is not None and value.device != x.device:
                raise ValueError(f"{name} is on {value.device} but x is on {x.device}; pass {name}.to(x.device).")
        return Given(
            [_vector(name, given.get(name), size, x) for name, size in self.vectors.items()],
            [_image(name, given.get(name), channels, x) for name, channels in self.images.items()],
            [_tokens(name, given.get(name), caption, x) for name, caption in self.captions.items()],
            [_embedding(name, given.get(name), size, x) for name, size in self.embeddings.items()],
        )


def _caption(name: str, options: Mapping[str, int]) -> Caption:
    if not isinstance(options, Mapping):
        raise TypeError(f"captions[{name!r}]={options!r}: expected e.g. {{'vocabulary': 24, 'length': 6}}.")
    try:
        return Caption(**options)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"captions[{name!r}]={dict(options)}: expected positive whole numbers for 'vocabulary' and 'length', and "
            f"optionally 'width' and 'layers' ({error})."
        ) from error


def _vector(name: str, value: Tensor | None, size: int, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    column = value[:, None] if size == 1 and value.ndim == 1 else value
    if column.shape != (len(x), size):
        short = f" or ({len(x)},)" if size == 1 else ""
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected ({len(x)}, {size}){short}, a row for each sample. For "
            f"one value for all, pass {name}.expand({len(x)}, {size})."
        )
    check_floating(column, name)
    check_rows(column, name, "row")
    return column


def _image(name: str, value: Tensor | None, channels: int, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    sizes = tuple(x.shape[2:])
    if value.ndim != x.ndim or value.shape[:2] != (len(x), channels):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected ({len(x)}, {channels}, *spatial) with {len(sizes)} "
            f"spatial sizes, those of x ({sizes}) or sizes that divide them."
        )
    if not all(small > 0 and size % small == 0 for size, small in zip(sizes, value.shape[2:], strict=True)):
        raise ValueError(
            f"{name} has spatial sizes {tuple(value.shape[2:])}, which do not divide those of x, {sizes}; a smaller "
            f"condition is enlarged by whole factors only. Resize {name} first, for example to {sizes} with "
            "torch.nn.functional.interpolate."
        )
    check_floating(value, name)
    check_rows(value, name, "row")
    return value


def _tokens(name: str, value: Tensor | None, caption: Caption, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    if value.dtype != torch.long:
        raise TypeError(
            f"{name} has dtype {value.dtype}; expected torch.int64 tokens (B, L), as Vocabulary.encode gives them."
        )
    if value.ndim != 2 or len(value) != len(x) or value.shape[1] > caption.length:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected ({len(x)}, L), tokens of each sample, with L at most "
            f"length={caption.length}."
        )
    check_tokens(value, name, caption.vocabulary)
    return value


def _embedding(name: str, value: Tensor | None, size: int, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    if value.ndim != 3 or len(value) != len(x) or value.shape[2] != size:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected ({len(x)}, L, {size}): for each sample any number of "
            f"tokens, each a vector of size {size}. A single vector per sample is {name}[:, None]."
        )
    check_floating(value, name)
    check_rows(value, name, "token")
    return value
