"""How a command runs: flags from a file and the command line, and errors told in the words of flags.

    command(main, SampleConfig)                       # sys.argv
    command(main, SampleConfig, ["--checkpoint", "runs/a", "--config", "run.yaml"], prog="scoresde sample")

Whatever is wrong ends in one message on stderr and exit code 1.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from scoresde.cli.allocator import keep_freed_memory
from scoresde.cli.config import flags_from, taken_out
from scoresde.cli.flags import DataFlags, as_flag
from scoresde.extras import needs

with needs("cli"):
    import tyro

Config = TypeVar("Config")

WORDS = {
    "Pass resume=True": "Add --resume",
    "path_or_id": "--checkpoint",
    "train(..., snapshots=Snapshots(every=...))": "scoresde train --snapshot-every",
    "ema must be one of": "--ema-decay must be one of",
    ", or a data set with len(d) and d[i]": ", or a file or folder",
}
"""What means a flag of another name."""

EXPECTED = (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError)
"""Errors whose message is for the user."""


def command(
    main: Callable[[Config], object], config: type[Config], arguments: Sequence[str] | None = None, *, prog: str = ""
) -> None:
    """Run ``main`` on the command line's ``config``.

    Args:
        main: of a command.
        config: its flags, a dataclass.
        arguments: words of the command line; default those of the program.
        prog: what the command is called in its help.

    Raises:
        SystemExit: with a message, code 1: the flags or what they name are wrong.
    """
    usual = warnings.formatwarning
    warnings.formatwarning = _in_a_line
    try:
        words, file = taken_out(sys.argv[1:] if arguments is None else arguments)
        words = words if file is None else [*flags_from(file, config, words), *words]  # type: ignore[arg-type]
        keep_freed_memory()
        main(_parsed(config, words, inspect.getdoc(inspect.getmodule(main)), prog))
    except EXPECTED as error:
        raise SystemExit(f"error: {as_flags(str(error), config)}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped.") from None
    finally:
        warnings.formatwarning = usual


def _in_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a user of flags reads it: without the line of code."""
    return f"warning: {as_flags(str(message))}\n"


def _parsed(config: type[Config], words: list[str], description: str | None, prog: str) -> Config:
    more = "\n\n--config FILE takes flags from a YAML file of lines name: value; those given here win."
    try:
        told = [part for part in (description or "").split("\n\n") if ":func:" not in part]  # what is for Python
        return tyro.cli(config, args=words, description="\n\n".join(told) + more, prog=prog or None)
    except SystemExit as stopped:
        raise SystemExit(1 if stopped.code else 0) from None


def as_flags(message: str, config: type[Any] = DataFlags) -> str:
    """The library's words are Python's: skip_bad=True becomes --skip-bad, frames='first' becomes --frames first.

    Args:
        message: of the library.
        config: whose fields are flags; those of two words, such as held_out, become flags wherever they stand.
    """
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    message = re.sub(r"\bcondition '(\w+)'", r"--condition \1", message)
    known = {field.name for kind in (DataFlags, config) for field in fields(kind)}
    parts = re.split(r"(\w\([^()]*\))", message)  # every other one is a call in Python, which stays
    parts[::2] = [_names_as_flags(part, known) for part in parts[::2]]
    return "".join(parts)


def _names_as_flags(text: str, known: set[str]) -> str:
    names, several = "|".join(known), "|".join(name for name in known if "_" in name)
    text = re.sub(rf"(?<![\w.-])({names})=True\b", lambda found: as_flag(found[1]), text)
    text = re.sub(rf"(?<![\w.-])({names})=(['\"])(.*?)\2", lambda found: f"{as_flag(found[1])} {found[3]}", text)
    text = re.sub(rf"(?<![\w.-])({names})=(-?\d)", lambda found: f"{as_flag(found[1])} {found[2]}", text)
    return re.sub(rf"(?<![\w.(/'\"-])({several})\b(?![=(./'\"])", lambda found: as_flag(found[1]), text)
