"""The program ``scoresde``: its commands, each in a file of its own that is loaded when it is named.

    scoresde --help
    scoresde sample --checkpoint runs/my-images

:func:`main` is what the console script and ``python -m scoresde`` call.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a model on your own data",
    "sample": "generate from a model, with any solver",
    "likelihood": "how likely data are: bits/dim or nats",
    "posterior": "p(theta | x) from two files of simulations",
    "edit": "samples of your own towards a class, or between them",
    "inverse": "what samples may have been, given measurements",
    "evaluate": "how far samples are from data, with error bars",
    "fit": "a sampler of few evaluations for one model",
    "convert": "a model as one folder to keep or share",
    "info": "what a model, a file of data or a sampler is",
}
"""The commands, each a module of this package with its class of flags, and what they do in a line."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names.

    Args:
        arguments: words of the command line; default those of the program.

    Raises:
        SystemExit: when all is said: code 0 after help or version, else 1 with a message.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        raise SystemExit(0 if words else 1)
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"{importlib.import_module('scoresde').__version__}\n")
        raise SystemExit(0)
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        raise SystemExit(f"error: scoresde has no command {name!r}; {hint} `scoresde --help` says what they do.")
    try:
        module = importlib.import_module(f"scoresde.cli.{name}")
        command = importlib.import_module("scoresde.cli.command").command
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}") from error
    command(module.main, getattr(module, f"{name.capitalize()}Config"), rest, prog=f"scoresde {name}")


def usage() -> str:
    """The commands in a few lines."""
    lines = [f"  {name:12s}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Score-based diffusion in continuous time.",
            "",
            "usage: scoresde COMMAND [flags]          scoresde COMMAND --help tells all of a command",
            "",
            *lines,
            "",
            "Each takes --config FILE, a YAML file of flags, and writes the one that repeats it beside its results.",
            "",
        ]
    )
