"""What a reader understood of the files it read, and what it left out: told by ``str(dataset)``::

    Source("pictures", notes=("sub-folders are classes",), skipped=(("pictures/a.png", "it is empty"),))

:func:`warn_of` warns of what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoresde.warning import warn_user

NAMED = 20
"""How many names a message lists."""


@dataclass(frozen=True)
class Source:
    """Where data come from.

    Attributes:
        path: of the file or folder.
        notes: how it was understood: axes, columns, classes.
        skipped: what could not be read and was left out by ``skip_bad=True``: pairs of a name and the reason.
        passed_over: what is there but was not taken for data: names of files, arrays or columns.
    """

    path: str
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"from {shown(self.path)}", *self.notes]
        if self.passed_over:
            parts.append(f"passed over {listed(self.passed_over)}")
        if self.skipped:
            parts.append(f"left out {listed([f'{name} ({reason})' for name, reason in self.skipped])}")
        return "; ".join(parts)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The number of things and the names of the first."""
    return f"{len(names)}: {', '.join(map(shown, names[:most]))}{', ...' if len(names) > most else ''}"


def shown(name: str) -> str:
    """A name from outside as it may go to a terminal: one line, nothing that a terminal obeys, cut where it is long."""
    plain = name if name.isprintable() else repr(name)[1:-1]
    return plain if len(plain) <= 200 else f"{plain[:100]}...{plain[-97:]}"


def warn_of(skipped: Sequence[tuple[str, str]], count: int, what: str) -> None:
    """One warning for all that was left out, where anything was."""
    if skipped:
        reasons = [f"{name} ({reason})" for name, reason in skipped]
        warn_user(
            f"{len(skipped)} of {count} {what} cannot be read and were left out, {listed(reasons)}. "
            "All of them are in dataset.skipped."
        )
