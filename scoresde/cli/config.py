"""The configuration of a run as a file: read as flags, and written beside what the run makes.

    words = flags_from(Path("run.yaml"), SampleConfig)       # ["--steps=40", "--labels", "cat", "dog"]
    remember(config, out)                                  # out/config.yaml: the same command once more

A file is a plain mapping from names of flags to values. What it says is read by the rules of the command line, in front
of the flags there, which win. Nothing in it can name a file to include, or code.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import scoresde as ss
from scoresde.extras import needs
from scoresde.files import opened, replacing
from scoresde.hub.loading import ships

with needs("cli"):
    from tyro.conf import UseAppendAction

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NAME = "config.yaml"
"""What the file beside a run is called."""
COMMAND = "command"
"""The key that says which command a file is for."""
PLACES = ("checkpoint", "condition", "path")
"""Flags that are texts because they may be no path: where they are one, the file beside a run gives it in full. Results
may lie in a folder that is called as the model that ships, which stays a name."""
_MOST = 1_000_000  # bytes


def command_name(config: type[Any]) -> str:
    """Which command a class of flags is for: SampleConfig is for sample."""
    return config.__name__.removesuffix("Config").lower()


def flags_from(path: Path, config: type[DataclassInstance], given: Sequence[str] = ()) -> list[str]:
    """The flags that a file gives, as words of a command line; without those that ``given`` words give otherwise.

    Raises:
        ValueError: no such file, no YAML mapping, a name that is no flag of ``config``, one given twice, a value that
            is neither a text, a number, true or false, nothing, nor a list of those; a file for another command.
    """
    content = _read(path)
    hints = get_type_hints(config, include_extras=True)
    flags = {word.partition("=")[0] for word in given if word.startswith("--")}
    known = {field.name: hints[field.name] for field in fields(config) if field.init}
    wanted = content.pop(COMMAND, None)
    if wanted is not None and command_name(config) not in ("", wanted):
        raise ValueError(
            f"{path} holds the configuration of `scoresde {wanted}`, and this is {command_name(config)}; run that, or "
            f"take the line {COMMAND!r} out."
        )
    words: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}."
            raise ValueError(f"{path} gives {key!r}, which {command_name(config) or 'this'} does not have; {hint}")
        flag = f"--{name.replace('_', '-')}"
        found = _words(flag, value, known[name], f"{path}, {key}")
        if flag not in flags and flag.replace("--", "--no-", 1) not in flags:
            words += found
    return words


def _words(flag: str, value: Any, kind: Any, where: str) -> list[str]:
    repeated = UseAppendAction in getattr(kind, "__metadata__", ())
    if repeated and isinstance(value, list):
        return [f"{flag}={_word(one, where)}" for one in value]
    if isinstance(value, list):
        return [flag, *(_word(one, where) for one in value)]
    if (isinstance(value, bool) and kind is bool) or getattr(kind, "__origin__", None) is bool:
        return [flag if value else flag.replace("--", "--no-", 1)]
    word = _word(value, where)
    return [flag, word] if "tuple" in str(kind) and not repeated else [f"{flag}={word}"]  # one word is a list of one


def _word(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{where}: expected a text, a number, true, false, null or a list of these; got "
            f"{type(value).__name__} {str(value)!r:.80}."
        )
    if isinstance(value, str) and value.startswith("--"):
        raise ValueError(f"{where}: a value does not start with two dashes; got {value!r:.80}.")
    return str(value)


def _read(path: Path) -> dict[str, Any]:
    with needs("cli"):
        import yaml

    def fail(text: str) -> Exception:
        return ValueError(f"--config {path}: {text}")

    with opened(path.expanduser(), fail, most=_MOST) as stream:
        raw = stream.read()
    try:
        text = raw.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        told = " ".join(str(error).split())
        raise fail(f"this is no YAML: {told:.300}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise fail(f"expected lines `name: value`, got {type(content).__name__}.")
    keys = [key.value for key, _ in node.value]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise fail(f"{', '.join(twice)} is given twice.")
    return content


def effective(config: DataclassInstance, **changes: Any) -> dict[str, Any]:
    """The flags of a run as plain values, files that are there by their full path; ``changes`` as they came to be."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    return {name: _plain(value, name) for name, value in {**values, **changes}.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, str) and name in PLACES:
        head, equals, place = value.rpartition("=")
        return value if ships(value) else f"{head}{equals}{_plain(Path(place), name)}"
    if isinstance(value, Path):
        there = value.expanduser()
        return str(there.absolute()) if there.exists() else str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(one, name) for one in value]
    return value


def remember(config: DataclassInstance, out: Path, **changes: Any) -> Mapping[str, Any]:
    """Write ``out/config.yaml``, by which the run is repeated; returns what it holds.

    Args:
        config: the flags of the run.
        out: its folder, which the file gives as ``out``.
        changes: flags that the run itself found a value for.
    """
    with needs("cli"):
        import yaml
    name = command_name(type(config))
    content: dict[str, Any] = {COMMAND: name, **effective(config, out=out, **changes)}
    head = f"# scoresde {ss.__version__}: `scoresde {name} --config {NAME}` repeats this run; flags beside it win.\n"
    with replacing(out / NAME) as partial:
        partial.write_text(head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    return content


def flags_beside(folder: Path) -> dict[str, Any]:
    """The flags that :func:`remember` wrote into a folder, as plain values; none where it did not."""
    path = folder.expanduser() / NAME
    try:
        return _read(path) if path.is_file() else {}
    except (OSError, ValueError):
        return {}


def taken_out(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words of a command line without ``--config FILE``, and the file.

    Raises:
        ValueError: no file after it, or two of them.
    """
    rest: list[str] = []
    files: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
        elif equals:
            files.append(value)
        else:
            files += [next(words, "")]
    if files == []:
        return rest, None
    if len(files) > 1 or not files[0] or files[0].startswith("--"):
        raise ValueError("--config takes one file of flags, such as --config run.yaml.")
    return rest, Path(files[0])
