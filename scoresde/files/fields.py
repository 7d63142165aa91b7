"""The fields of a JSON object that came from a file: each is asked for by name, kind and range, or refused by name.

``fail`` makes the error of a text, so that every reader answers with one kind of error, which names file and field::

    fields = Fields(content, fail := refusing(path))        # ValueErrors that begin with the path
    fields.whole("steps", least=1, most=1000)               # "...: steps must be a whole number from 1 to 1000, got 0"
    fields.object("model").number("sigma_data", above=0)    # "...: model.sigma_data must be ..., got ..."
    None if fields.null("event") else fields.wholes("event", most_items=16)

Fields that nobody asks for are passed over; :meth:`Fields.only` refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

Fail = Callable[[str], Exception]
"""From what is wrong, in words, to the error to raise."""


def refusing(path: Path) -> Fail:
    """ValueErrors about a file."""
    return lambda text: ValueError(f"{path}: {text}")


class Fields:
    """The fields of a JSON object.

    Args:
        content: the object.
        fail: makes the error that is raised.
        at: where in the file it stands, as "model.net"; empty for the file itself.
    """

    def __init__(self, content: Any, fail: Fail, at: str = "") -> None:
        self._fail, self._at = fail, at
        if not isinstance(content, Mapping):
            raise self._wrong(at, "a JSON object", content)
        self._content: Mapping[str, Any] = content

    def names(self, *, most: int = 1000) -> list[str]:
        """The names of its fields, in order, of which there may be ``most``."""
        if len(self._content) > most:
            raise self._fail(f"{self._at or 'the file'} has {len(self._content)} fields; the limit is {most}.")
        return list(self._content)

    def only(self, allowed: Collection[str]) -> None:
        """Refuse other fields than those."""
        for name in self._content:
            if name not in allowed:
                raise self._fail(f"{self.place(name)} is no field of it; those are {', '.join(sorted(allowed))}.")

    def null(self, name: str) -> bool:
        """Whether a field is null or missing."""
        return self._content.get(name) is None

    def value(self, name: str) -> Any:
        """Any JSON."""
        if name not in self._content:
            raise self._fail(f"the field {self.place(name)} is missing.")
        return self._content[name]

    def object(self, name: str) -> Fields:
        """An object."""
        return Fields(self.value(name), self._fail, self.place(name))

    def objects(self, name: str, *, most: int) -> dict[str, Fields]:
        """An object of objects, by their names."""
        outer = self.object(name)
        return {key: outer.object(key) for key in outer.names(most=most)}

    def text(self, name: str, *, most: int = 1000) -> str:
        """A text of at most so many characters."""
        return self._text(self.place(name), self.value(name), most)

    def texts(self, name: str, *, most_items: int, most: int = 1000) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self._text(at, value, most) for at, value in self._items(name, most_items))

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        """One of a few texts."""
        found = self.value(name)
        if not isinstance(found, str) or found not in allowed:
            raise self._wrong(self.place(name), f"one of {', '.join(allowed)}", found)
        return found

    def flag(self, name: str) -> bool:
        """True or false."""
        found = self.value(name)
        if not isinstance(found, bool):
            raise self._wrong(self.place(name), "true or false", found)
        return found

    def whole(self, name: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
        """A whole number in a range; 2.0 is none."""
        return self._whole(self.place(name), self.value(name), least, most)

    def wholes(
        self, name: str, *, most_items: int, items: int | None = None, least: int = 0, most: int = 2**63 - 1
    ) -> tuple[int, ...]:
        """A list of whole numbers in a range; ``items`` says how many, where that is known."""
        return tuple(self._whole(at, value, least, most) for at, value in self._items(name, most_items, items))

    def number(self, name: str, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> float:
        """A finite number in a range."""
        return self._number(self.place(name), self.value(name), least, above, most)

    def numbers(
        self,
        name: str,
        *,
        most_items: int,
        items: int | None = None,
        least: float = -math.inf,
        above: float = -math.inf,
        most: float = math.inf,
    ) -> tuple[float, ...]:
        """A list of finite numbers in a range; ``items`` says how many, where that is known."""
        return tuple(self._number(at, value, least, above, most) for at, value in self._items(name, most_items, items))

    def rows(self, name: str, *, most_items: int, items: int | None = None) -> tuple[tuple[float, ...], ...]:
        """A list of lists of finite numbers; ``most_items`` and ``items`` are of each."""
        outer = self._items(name, most_items)
        return tuple(Fields({at: row}, self._fail).numbers(at, most_items=most_items, items=items) for at, row in outer)

    def place(self, name: str) -> str:
        """The name of a field, with those of the objects around it."""
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        return f"{self._at}.{shown}" if self._at else shown

    def refused(self, name: str, reason: str) -> Exception:
        """The error for a field that is of the right kind, but does not do."""
        return self._fail(f"{self.place(name)}: {reason}")

    def _items(self, name: str, most_items: int, items: int | None = None) -> list[tuple[str, Any]]:
        found = self.value(name)
        if not isinstance(found, list):
            raise self._wrong(self.place(name), "a list", found)
        if items is not None and len(found) != items:
            raise self._fail(f"{self.place(name)} must be a list of {items}, got {len(found)} entries.")
        if len(found) > most_items:
            raise self._fail(f"{self.place(name)} has {len(found)} entries; the limit is {most_items}.")
        return [(f"{self.place(name)}[{i}]", value) for i, value in enumerate(found)]

    def _text(self, at: str, value: Any, most: int) -> str:
        if not isinstance(value, str):
            raise self._wrong(at, "a text", value)
        if len(value) > most:
            raise self._fail(f"{at} has {len(value)} characters; the limit is {most}.")
        return value

    def _whole(self, at: str, value: Any, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(at, f"a whole number from {least} to {most}", value)
        return value

    def _number(self, at: str, value: Any, least: float, above: float, most: float) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found = float(value)
            if above < found and least <= found <= most:
                return found
        ends = {"above": above, "of at least": least, "of at most": most}
        words = " and ".join(f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end))
        raise self._wrong(at, f"a finite number {words}".rstrip(), value)

    def _wrong(self, at: str, expected: str, value: Any) -> Exception:
        return self._fail(f"{at or 'the file'} must be {expected}, got {value!r:.80}.")
