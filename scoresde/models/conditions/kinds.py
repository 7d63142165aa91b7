"""The kinds of conditions: what a network says of one of its conditions, and how the value of a call is checked::

    Label(10)                # (B,) int64: class 0 ... 9, or 10 for "no class"
    Vector(2)                # (B, 2), or (B,) for Vector(1); a row of NaN is not given
    Image(3)                 # (B, 3, *spatial), sizes that divide those of x; a row of NaN is not given
    Caption(24, length=6)    # (B, L) int64, L <= 6: words 1 ... 24, and 0 for padding
    Embedding(512)           # (B, L, 512), any L; a token of NaN is padding
    Set(3)                   # (B, N, 3), any N: observations without an order; a member of NaN is padding
    Series(3)                # (B, T, 3), any T: steps in time; a step of NaN is missing, at the end padding

Another kind is a frozen dataclass that derives from :class:`Condition`, says its ``argument`` and checks a value. The
network that uses it puts it among its :class:`~scoresde.models.conditions.Conditions`; nothing else has to know of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.conditions.rows import check_name, check_rows


@dataclass(frozen=True)
class Condition(ABC):
    """What a network says of one of its conditions, which has a name there. Fields are positive whole numbers.

    Attributes:
        argument: the argument of a network's constructor that describes the conditions of this kind.
        example: what stands there for one condition, for messages.
    """

    argument: ClassVar[str]
    example: ClassVar[Any]

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, checks.count(value, name=name))

    @property
    def null(self) -> float:
        """What stands for "not given" in a row: NaN, or a whole number."""
        return math.nan

    @property
    def config(self) -> Any:
        """The fields by name, or the only one itself, as JSON."""
        fields = asdict(self)
        return next(iter(fields.values())) if len(fields) == 1 else fields

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The condition that has this :attr:`config`."""
        made: Any = cls
        return made(**config) if isinstance(config, Mapping) else made(config)

    @classmethod
    def named(cls, described: Any) -> dict[str, Self]:
        """The conditions by name that a network's ``argument`` describes; None for none.

        Raises:
            TypeError, ValueError: not a mapping from names to what :meth:`from_config` takes.
        """
        if not isinstance(described, Mapping | None):
            raise TypeError(
                f"{cls.argument}={described!r}: expected a mapping by name, e.g. {{'name': {cls.example}}}."
            )
        found = {}
        for name, config in (described or {}).items():
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"{cls.argument}: {error}") from error
            try:
                found[name] = cls.from_config(config)
            except (TypeError, ValueError) as error:
                where = f"{cls.argument}[{name!r}]={config!r}"
                raise type(error)(f"{where}: expected positive whole numbers, e.g. {cls.example} ({error})") from error
        return found

    @classmethod
    def described(cls, named: Mapping[str, Any]) -> Any:
        """The network's ``argument`` as JSON: the inverse of :meth:`named`."""
        return {name: one.config for name, one in named.items()}

    def read(self, name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
        """The value of one call, checked against x (B, *event), with a row for each sample.

        None, for a condition that is left out, becomes :meth:`absent`. Values are looked at in main memory only.

        Raises:
            TypeError: no tensor, or a dtype that does not fit.
            ValueError: a shape, a device or a value that does not fit.
        """
        if value is None:
            return self.absent(x)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor of {len(x)} rows, got {checks.got(value)}.")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but x is on {x.device}; pass {name}.to(x.device).")
        return self.check(name, value, x)

    @abstractmethod
    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        """The value (B, ...) if it fits; raises as :meth:`read` does."""

    def absent(self, x: Tensor) -> Tensor | None:
        """What a network is given where the condition is left out for all; None where it knows by itself what to do."""
        return None

    def check_values(self, name: str, values: Tensor, where: str = "") -> None:  # noqa: B027 - most have none to check
        """Raise ValueError unless whole numbers in main memory are in range: on a GPU they stop it without a word.

        Args:
            name: of the condition.
            values: of a batch or of a whole data set.
            where: which, for the message.
        """


def misfit(name: str, value: Tensor, expected: str) -> ValueError:
    """What to raise where a shape does not fit."""
    return ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}.")


def floating(name: str, value: Tensor, *, tokens: bool = False) -> Tensor:
    """The value, if it is floating, and each row (or token) finite or NaN throughout."""
    checks.state(value, name=name)
    check_rows(value, name, tokens=tokens)
    return value


def ends(values: Tensor) -> tuple[int, int] | None:
    """The least and the largest of whole numbers; None where there are none, or none that can be looked at."""
    if values.is_floating_point() or not values.numel() or not checks.readable(values):
        return None
    low, high = (int(end) for end in values.aminmax())
    return low, high


def check_classes(labels: Tensor, classes: int, *, what: str = "labels", null: bool = False) -> None:
    """Raise ValueError unless labels lie in 0 ... classes - 1, or with ``null`` in 0 ... classes, "no class"."""
    found = ends(labels)
    if found is not None and (found[0] < 0 or found[1] > classes - (not null)):
        also = f", or {classes} for the null label (no class)" if null else ""
        raise ValueError(
            f"{what} run from {found[0]} to {found[1]}; expected 0 to {classes - 1}{also}, as the network was built "
            f"for {classes} classes. Correct the labels, or build it with num_classes={max(found[1], 0) + 1}."
        )


def _labels(name: str, where: str) -> str:
    of = [] if name == "label" else [name]
    return " of ".join(["labels", *of, *([where] if where else [])])


@dataclass(frozen=True)
class Label(Condition):
    """A class (B,) int64, from 0 to num_classes - 1, or num_classes for "no class"."""

    num_classes: int

    argument: ClassVar[str] = "num_classes"
    example: ClassVar[Any] = 10

    @property
    def null(self) -> int:
        return self.num_classes

    @classmethod
    def named(cls, described: int | None) -> dict[str, Self]:
        """The one condition "label" of a network with so many classes."""
        return {} if described is None else {"label": cls(described)}

    @classmethod
    def described(cls, named: Mapping[str, Any]) -> Any:
        (label,) = named.values()
        return label.config

    def absent(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.num_classes, dtype=torch.long, device=x.device)

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        if value.dtype != torch.long:
            raise TypeError(f"{name} has dtype {value.dtype}; expected torch.int64. Convert it with {name}.long().")
        if value.shape != (len(x),):
            raise misfit(name, value, f"({len(x)},), one class per sample")
        self.check_values(name, value)
        return value

    def check_values(self, name: str, values: Tensor, where: str = "") -> None:
        check_classes(values, self.num_classes, what=_labels(name, where), null=True)


@dataclass(frozen=True)
class Vector(Condition):
    """Numbers (B, size), or (B,) for one; a row of NaN is not given."""

    size: int

    argument: ClassVar[str] = "vectors"
    example: ClassVar[Any] = 2

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        column = value[:, None] if self.size == 1 and value.ndim == 1 else value
        shape = (len(x), self.size)
        if column.shape != shape:
            short = f" or ({len(x)},)" if self.size == 1 else ""
            each = f"a row for each sample; one value for all is {name}.expand{shape}"
            raise misfit(name, value, f"{shape}{short}, {each}")
        return floating(name, column)


@dataclass(frozen=True)
class Image(Condition):
    """A picture (B, channels, *spatial), whose spatial sizes divide those of x; a row of NaN is not given."""

    channels: int

    argument: ClassVar[str] = "images"
    example: ClassVar[Any] = 3

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        sizes = tuple(x.shape[2:])
        if value.ndim != x.ndim or value.shape[:2] != (len(x), self.channels):
            spatial = f"{len(sizes)} spatial sizes, those of x ({sizes}) or ones that divide them"
            raise misfit(name, value, f"({len(x)}, {self.channels}, *spatial) with {spatial}")
        if not all(small > 0 and size % small == 0 for size, small in zip(sizes, value.shape[2:], strict=True)):
            raise ValueError(
                f"{name} has spatial sizes {tuple(value.shape[2:])}, which do not divide those of x, {sizes}; a "
                f"smaller condition is enlarged by whole factors only. Resize {name} first, for example to {sizes} "
                "with torch.nn.functional.interpolate."
            )
        return floating(name, value)


@dataclass(frozen=True)
class Embedding(Condition):
    """Tokens of another model, (B, L, size) with any L; a token of NaN is padding."""

    size: int

    argument: ClassVar[str] = "embeddings"
    example: ClassVar[Any] = 512

    def absent(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 0, self.size)

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        if value.ndim != 3 or len(value) != len(x) or value.shape[2] != self.size:
            tokens = f"for each sample any number of tokens, each a vector of {self.size}"
            single = f"a single vector per sample is {name}[:, None]"
            raise misfit(name, value, f"({len(x)}, L, {self.size}): {tokens}; {single}")
        return floating(name, value, tokens=True)


@dataclass(frozen=True)
class Caption(Condition):
    """A row of tokens (B, L) int64: words 1 ... vocabulary, and 0 for padding; with the size of its encoder.

    Attributes:
        vocabulary: number of words.
        length: most tokens in a caption.
        width: channels of the caption encoder.
        layers: its transformer blocks.
    """

    vocabulary: int
    length: int
    width: int = 64
    layers: int = 2

    argument: ClassVar[str] = "captions"
    example: ClassVar[Any] = {"vocabulary": 24, "length": 6}

    @property
    def null(self) -> int:
        return 0

    def absent(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 0, dtype=torch.long, device=x.device)

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        if value.dtype != torch.long:
            raise TypeError(
                f"{name} has dtype {value.dtype}; expected torch.int64 tokens (B, L), as Vocabulary.encode gives them."
            )
        if value.ndim != 2 or len(value) != len(x) or value.shape[1] > self.length:
            raise misfit(name, value, f"({len(x)}, L), tokens of each sample, with L at most length={self.length}")
        self.check_values(name, value)
        return value

    def check_values(self, name: str, values: Tensor, where: str = "") -> None:
        found = ends(values)
        if found is not None and (found[0] < 0 or found[1] > self.vocabulary):
            raise ValueError(
                f"tokens of {name}{f' in {where}' if where else ''} run from {found[0]} to {found[1]}; expected 1 to "
                f"{self.vocabulary} for words and 0 for padding, as the network was built for a vocabulary of "
                f"{self.vocabulary}. Encode with the Vocabulary that it was built for, or build it for this one: "
                f"captions={{{name!r}: {{'vocabulary': {max(found[1], 1)}, ...}}}}."
            )


@dataclass(frozen=True)
class _Members(Condition):
    """Rows (B, N, size) of any number N; a row of NaN is none, and a sample without any is one that is not given.

    Attributes:
        size: numbers in a row.
        width: channels of the encoder.
        layers: its blocks.
    """

    size: int
    width: int = 64
    layers: int = 2

    example: ClassVar[Any] = 3
    one: ClassVar[str]

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        if value.ndim != 3 or len(value) != len(x) or value.shape[2] != self.size:
            each = f"for each sample any number of {self.one}s, each of {self.size}"
            single = (
                f"numbers (B, N) are {name}[..., None], and a single {self.one} (B, {self.size}) is {name}[:, None]"
            )
            raise misfit(name, value, f"({len(x)}, N, {self.size}): {each}; {single}")
        return floating(name, value, tokens=True)


@dataclass(frozen=True)
class Set(_Members):
    """Observations (B, N, size) whose order means nothing, any N; a member of NaN is padding. See `nn.SetEncoder`.

    A set without members is a condition that is not given: no observations tell nothing.
    """

    argument: ClassVar[str] = "sets"
    one: ClassVar[str] = "member"


@dataclass(frozen=True)
class Series(_Members):
    """Steps (B, T, size) in their order, any T; a step of NaN is missing, or padding at the end. See
    `nn.SeriesEncoder`.
    """

    argument: ClassVar[str] = "series"
    one: ClassVar[str] = "step"
