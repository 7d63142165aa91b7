"""The lessons of the course: run their code, keep what it prints and draws, and compare with a fresh run.

    python docs/course/run.py                # run the lessons whose code has changed, and write their outputs
    python docs/course/run.py 02 06          # run these, changed or not
    python docs/course/run.py --check        # run all of them afresh and compare: writes nothing, fails if they differ

The Python blocks of a lesson run in order, in one namespace, in a process and an empty folder of their own, on one
thread. ``outputs/NN/record.json`` keeps a digest of each block, the text it printed, the pictures it saved into the
folder, and the processor time of the whole; the pictures lie beside it. The text also stands in the page itself, below
its block, between two comments that this script writes, and so does the time.

Numbers and pictures need not agree to the last digit, since linear algebra rounds in another order on another machine.
Where a lesson trains a network, which carries such roundings far, it says how far in a comment of its own::

    <!-- tolerance: numbers 10 %, pictures 5 % -->

Unless told otherwise a number may differ by 1 % or by one in its last printed digit, a picture by 1 % of the range
from black to white, averaged over its pixels.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parents[1]

MOST_LINES = 60
"""Lines of code that a lesson may have, empty ones apart."""
MOST_BYTES = 150_000
"""Size of a picture."""
MOST_SECONDS = 600
"""After which a lesson is stopped."""

OUTPUT = re.compile(r"\n<!-- output -->\n.*?<!-- end of output -->\n", re.DOTALL)
TIME = re.compile(r"(<!-- time -->).*?(<!-- end of time -->)", re.DOTALL)
TOLERANCE = re.compile(r"<!-- tolerance: numbers (\d+) %, pictures (\d+) % -->")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w])")


class LessonError(Exception):
    """A lesson that does not run, or breaks a rule of the course."""


@dataclass(frozen=True)
class Block:
    """A Python block of a page."""

    line: int
    """Of its first line of code, counted from 1."""
    code: str

    @property
    def digest(self) -> str:
        """By which a change of the code is noticed."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Output:
    """What a block printed and drew."""

    digest: str
    text: str
    pictures: list[str]


@dataclass(frozen=True)
class Record:
    """What a run of a lesson left: its time in seconds, and an output for each block."""

    seconds: float
    outputs: list[Output]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record in an output folder."""
        found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return cls(found["seconds"], [Output(**one) for one in found["outputs"]])

    def write(self, folder: Path) -> None:
        """As ``record.json`` in an output folder."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / "record.json").write_text(text + "\n", encoding="utf-8")


def lessons() -> list[Path]:
    """The pages of the course in their order, its index apart."""
    return sorted(COURSE.glob("[0-9][0-9]-*.md"))


def outputs_of(page: Path) -> Path:
    """The folder of a lesson's outputs."""
    return page.parent / "outputs" / page.name[:2]


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page."""
    found, lines, start = [], text.splitlines(), 0
    for number, line in enumerate(lines, 1):
        if not start and line.startswith("```"):
            start = number + 1
        elif start and line.rstrip() == "```":
            if lines[start - 2].strip() == "```python":
                found.append(Block(start, "\n".join(lines[start - 1 : number - 1]) + "\n"))
            start = 0
    if start:
        raise LessonError(f"the block that starts in line {start - 1} has no end")
    return found


def lines_of_code(text: str) -> int:
    """Lines of code on a page, empty ones apart."""
    return sum(bool(line.strip()) for block in blocks(text) for line in block.code.splitlines())


def tolerances(text: str) -> tuple[float, float]:
    """By how much numbers and pictures may differ, as fractions."""
    said = TOLERANCE.search(text)
    return (int(said[1]) / 100, int(said[2]) / 100) if said else (0.01, 0.01)


# -- running -------------------------------------------------------------------------------------------------------


def execute(page: Path, folder: Path) -> Record:
    """Run a lesson in a fresh process and leave its pictures and record in ``folder``."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--here", str(page.resolve())]
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LessonError(f"{page.name} took more than {MOST_SECONDS} s") from error
    if run.returncode:
        raise LessonError(f"{page.name} failed:\n{run.stderr}")
    record = Record.read(folder)
    for name in (picture for output in record.outputs for picture in output.pictures):
        if (size := (folder / name).stat().st_size) > MOST_BYTES:
            raise LessonError(f"{page.name} draws {name} of {size} bytes; at most {MOST_BYTES} are allowed")
    return record


def execute_here(page: Path) -> None:
    """Run a lesson in this process and folder, and write its record: what :func:`execute` starts."""
    namespace = {"__name__": "__main__"}
    outputs, before = [], set(Path().glob("*.png"))
    for block in blocks(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        # empty lines before it: a traceback then shows the line of the page
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        pictures = set(Path().glob("*.png"))
        outputs.append(Output(block.digest, printed.getvalue(), sorted(path.name for path in pictures - before)))
        before = pictures
    used = resource.getrusage(resource.RUSAGE_SELF)
    Record(round(used.ru_utime + used.ru_stime, 1), outputs).write(Path())


# -- the page ------------------------------------------------------------------------------------------------------


def said(seconds: float) -> str:
    """A time as the page tells it, rounded up: it is that of one thread, which two cores do not exceed."""
    step = 1 if seconds < 10 else 5
    return f"{max(step, step * math.ceil(seconds / step))} s on two cores"


def rendered(text: str, record: Record) -> str:
    """The page with what the record holds written below each block, and the time."""
    text = OUTPUT.sub("", text)
    lines = text.splitlines()
    for block, output in reversed(list(zip(blocks(text), record.outputs, strict=True))):
        end = block.line - 1 + block.code.count("\n")  # index of the closing fence
        if output.text.strip():
            shown = ["", "<!-- output -->", "```text", *output.text.rstrip().splitlines(), "```"]
            lines[end + 1 : end + 1] = [*shown, "<!-- end of output -->"]
    return TIME.sub(rf"\g<1>{said(record.seconds)}\g<2>", "\n".join(lines) + "\n")


def stale(page: Path) -> bool:
    """Whether the outputs are not those of the present code, or not there."""
    folder = outputs_of(page)
    if not (folder / "record.json").exists():
        return True
    record = Record.read(folder)
    if [block.digest for block in blocks(page.read_text(encoding="utf-8"))] != [one.digest for one in record.outputs]:
        return True
    return not all((folder / name).exists() for output in record.outputs for name in output.pictures)


def update(page: Path) -> None:
    """Run a lesson, and write its outputs beside it and into it."""
    with tempfile.TemporaryDirectory() as temporary:
        record = execute(page, Path(temporary))
        folder = outputs_of(page)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write(folder)
        for name in (picture for output in record.outputs for picture in output.pictures):
            shutil.copy(Path(temporary) / name, folder / name)
    page.write_text(rendered(page.read_text(encoding="utf-8"), record), encoding="utf-8")


# -- comparing -----------------------------------------------------------------------------------------------------


def differences_of_text(cached: str, fresh: str, tolerance: float) -> list[str]:
    """What two printed texts do not agree about: words to the letter, numbers to the tolerance or their last digit."""
    words, new_words = (" ".join(NUMBER.sub("#", text).split()) for text in (cached, fresh))
    if words != new_words:
        return [f"printed {fresh.strip()!r}, not {cached.strip()!r}"]
    found = []
    for old, new in zip(NUMBER.findall(cached), NUMBER.findall(fresh), strict=True):
        mantissa, _, exponent = old.lower().partition("e")
        last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        a, b = float(old), float(new)
        if abs(a - b) > max(tolerance * max(abs(a), abs(b)), last if last < 1 else 0.0) * (1 + 1e-9):
            found.append(f"printed {new} where {old} was, in {cached.strip()!r}")
    return found


def difference_of_pictures(cached: Path, fresh: Path) -> float:
    """Mean difference of two pictures, from 0 to 1; 1 where their sizes differ."""
    a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=float) / 255 for path in (cached, fresh))
    return float(np.abs(a - b).mean()) if a.shape == b.shape else 1.0


def check(page: Path) -> list[str]:
    """Run a lesson afresh; what does not agree with its outputs."""
    text, folder = page.read_text(encoding="utf-8"), outputs_of(page)
    if stale(page):
        return [f"the outputs are not those of the present code; python docs/course/run.py {page.name[:2]} makes them"]
    for_numbers, for_pictures = tolerances(text)
    cached, found = Record.read(folder), []
    with tempfile.TemporaryDirectory() as temporary:
        fresh = execute(page, Path(temporary))
        for number, (old, new) in enumerate(zip(cached.outputs, fresh.outputs, strict=True), 1):
            found += [f"block {number}: {one}" for one in differences_of_text(old.text, new.text, for_numbers)]
            if old.pictures != new.pictures:
                found.append(f"block {number}: drew {new.pictures}, not {old.pictures}")
                continue
            for name in old.pictures:
                far = difference_of_pictures(folder / name, Path(temporary) / name)
                if far > for_pictures:
                    found.append(f"block {number}: {name} differs by {far:.1%}, more than {for_pictures:.0%}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of lessons, such as 02; default all of them")
    parser.add_argument("--check", action="store_true", help="compare a fresh run with the outputs, and write nothing")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.here is not None:
        execute_here(given.here)
        return 0
    numbers = {page.name[:2]: page for page in lessons()}
    if unknown := [number for number in given.lessons if number not in numbers]:
        parser.error(f"no lesson {', '.join(unknown)}; there are {', '.join(numbers)}")
    wrong = 0
    for page in [numbers[number] for number in given.lessons] or list(numbers.values()):
        if not given.check and not given.lessons and not stale(page):
            continue
        try:
            if given.check:
                found = check(page)
            else:
                update(page)
                found = []
        except LessonError as error:
            found = [str(error)]
        wrong += bool(found)
        sys.stdout.write(f"{page.name}: {'; '.join(found) or ('agrees' if given.check else 'written')}\n")
        sys.stdout.flush()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
