"""The course: lessons keep its rules, their outputs are those of their code, and the runner notices what changes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

COURSE = Path(__file__).parents[2] / "docs" / "course"


def _runner() -> ModuleType:
    """docs/course/run.py, a script beside the pages."""
    spec = importlib.util.spec_from_file_location("course_run", COURSE / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run = _runner()
LESSONS: list[Path] = run.lessons()
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in LESSONS}
each = pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)

QUICK = 4.5
"""Seconds of processor time, most of them imports, up to which a lesson runs in every suite."""


def quick(page: Path) -> bool:
    return bool(run.Record.read(run.outputs_of(page)).seconds <= QUICK)


# -- the lessons ---------------------------------------------------------------------------------------------------


def test_there_are_eight() -> None:
    assert [page.name[:2] for page in LESSONS] == [f"{number:02}" for number in range(1, 9)]
    assert sorted(folder.name for folder in (COURSE / "outputs").iterdir()) == [page.name[:2] for page in LESSONS]
    index = (COURSE / "index.md").read_text(encoding="utf-8")
    assert all(f"]({page.name})" in index for page in LESSONS)


@each
def test_length(page: Path) -> None:
    assert 20 <= run.lines_of_code(TEXTS[page.name]) <= run.MOST_LINES


@each
def test_outputs_are_of_the_present_code(page: Path) -> None:
    """A block that changed without a new run fails here; so does a page whose printed text was edited by hand."""
    assert not run.stale(page), f"python docs/course/run.py {page.name[:2]} makes its outputs anew"
    assert run.rendered(TEXTS[page.name], run.Record.read(run.outputs_of(page))) == TEXTS[page.name]


@each
def test_pictures(page: Path) -> None:
    """Every picture is shown below the block that draws it, says in words what is on it, and is small."""
    record, folder = run.Record.read(run.outputs_of(page)), run.outputs_of(page)
    found = re.findall(r"!\[([^\]]+)\]\(outputs/\d\d/([\w.-]+)\)", TEXTS[page.name])
    shown = {name: description for description, name in found}
    drawn = [name for output in record.outputs for name in output.pictures]
    assert drawn and sorted(shown) == sorted(drawn) == sorted(path.name for path in folder.glob("*.png"))
    for name in drawn:
        assert (folder / name).stat().st_size <= run.MOST_BYTES
        assert len(shown[name]) > 60, f"{name} needs a description"
        width, height = Image.open(folder / name).size
        assert 600 <= width <= 1200 and 200 <= height <= 700


@each
def test_time_is_told(page: Path) -> None:
    said = re.findall(r"<!-- time -->(\d+) s on two cores<!-- end of time -->", TEXTS[page.name])
    assert len(said) == 1 and int(said[0]) <= 60


@each
def test_parts(page: Path) -> None:
    """Formulas, sources, a box, exercises with hidden answers, and the way on."""
    text, number = TEXTS[page.name], int(page.name[:2])
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(re.findall(r"^\$\$ .+ \$\$$", prose, re.MULTILINE)) >= 1
    assert "arxiv.org/abs/" in prose and re.search(r"\beq\. \d+|Algorithm \d", prose)
    assert text.startswith(f"# {number} · ") and f"Lesson {number} of 8" in text
    assert prose.count("> **What to remember.**") == 1
    assert re.search(
        r"## Exercises\n\n1\. .+?<details>\n<summary>Answers</summary>\n\n1\. .+?</details>", prose, re.DOTALL
    )
    following = f"]({LESSONS[number].name})" if number < len(LESSONS) else "This was the last lesson"
    assert following in prose.partition("**Reference:**")[2]


@each
def test_claims_are_asserted(page: Path) -> None:
    """Code that shows an equality or a law says so by an assertion, and imports the library."""
    code = "".join(block.code for block in run.blocks(TEXTS[page.name]))
    assert code.count("assert ") >= 3 and "import scoresde as ss" in code


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if quick(page) else pytest.mark.thorough, id=page.stem) for page in LESSONS],
)
def test_fresh_run_agrees(page: Path) -> None:
    assert run.check(page) == []


def test_some_run_in_every_suite() -> None:
    assert any(map(quick, LESSONS))


# -- the runner ----------------------------------------------------------------------------------------------------

PAGE = """# 9 · A lesson

> <!-- time --><!-- end of time -->

```python
import numpy as np
from PIL import Image

x = 2
print(f"x = {x}, a third is {1 / 3:.4f}")
```

```bash
ls
```

```python
assert __name__ == "__main__" and x == 2
Image.fromarray(np.full((4, 6), 100, dtype=np.uint8)).save("grey.png")
```

![grey](outputs/09/grey.png)
"""


@pytest.fixture
def lesson(tmp_path: Path) -> Path:
    page = tmp_path / "09-lesson.md"
    page.write_text(PAGE, encoding="utf-8")
    return page


def test_update_and_check(lesson: Path) -> None:
    assert run.stale(lesson)
    run.update(lesson)
    text = lesson.read_text(encoding="utf-8")
    assert "```\n\n<!-- output -->\n```text\nx = 2, a third is 0.3333\n```\n<!-- end of output -->\n\n```bash" in text
    assert re.search(r"<!-- time -->\d+ s on two cores<!--", text)
    record = run.Record.read(run.outputs_of(lesson))
    assert [output.pictures for output in record.outputs] == [[], ["grey.png"]] and 0 < record.seconds < 60
    assert run.check(lesson) == []

    # a picture that differs by 6 of 255 grey levels, 2.4 %, is beyond 1 %, and within a tolerance of 3 %
    picture = run.outputs_of(lesson) / "grey.png"
    Image.fromarray(np.full((4, 6), 106, dtype=np.uint8)).save(picture)
    assert run.check(lesson) == ["block 2: grey.png differs by 2.4%, more than 1%"]
    lesson.write_text("<!-- tolerance: numbers 1 %, pictures 3 % -->\n" + text, encoding="utf-8")
    assert run.check(lesson) == []

    path = run.outputs_of(lesson) / "record.json"
    path.write_text(path.read_text(encoding="utf-8").replace("0.3333", "0.4333"), encoding="utf-8")
    assert len(run.check(lesson)) == 1 and "0.3333 where 0.4333 was" in run.check(lesson)[0]
    assert run.rendered(text, run.Record.read(run.outputs_of(lesson))) != text


@pytest.mark.parametrize(
    "change",
    [lambda page: page.write_text(PAGE.replace("x = 2", "x = 3")), lambda page: shutil.rmtree(page.parent / "outputs")],
)
def test_stale(lesson: Path, change: object) -> None:
    """Another block, or outputs that are gone: check says so without a run."""
    folder = run.outputs_of(lesson)
    folder.mkdir(parents=True)
    outputs = [run.Output(block.digest, "", []) for block in run.blocks(PAGE)]
    run.Record(1.0, outputs).write(folder)
    assert not run.stale(lesson)
    change(lesson)  # type: ignore[operator]
    assert run.stale(lesson) and "not those of the present code" in run.check(lesson)[0]


def test_a_lesson_that_fails_names_its_line(lesson: Path) -> None:
    lesson.write_text(PAGE.replace("x == 2", "x == 3"), encoding="utf-8")
    line = PAGE.splitlines().index('assert __name__ == "__main__" and x == 2') + 1
    with pytest.raises(run.LessonError, match=rf'(?s)09-lesson.md", line {line}, .*AssertionError'):
        run.update(lesson)
    assert not run.outputs_of(lesson).exists()


def test_a_large_picture_is_refused(lesson: Path) -> None:
    noise = "np.random.default_rng(0).integers(0, 255, (500, 500)).astype(np.uint8)"  # a quarter of a megabyte
    lesson.write_text(PAGE.replace("np.full((4, 6), 100, dtype=np.uint8)", noise), encoding="utf-8")
    with pytest.raises(run.LessonError, match="at most 150000"):
        run.update(lesson)


@pytest.mark.parametrize(
    ("cached", "fresh", "agree"),
    [
        ("a = 1.00, b", "a = 1.01, b", True),  # one in the last digit
        ("a = 1.00, b", "a = 1.02, b", False),
        ("a = 1000", "a = 1009", True),  # 1 %
        ("a = 1000", "a = 1011", False),
        ("slope -1.00", "slope 1.00", False),
        ("8.1e-04", "8.2e-04", True),
        ("8.1e-04", "8.3e-04", False),
        ("8.1e-04", "8.1e-05", False),
        ("mean 5", "mean 6", False),  # whole numbers are counts
        ("x_0 is 3", "x_1 is 3", False),  # a digit in a name is no number
        ("a  b\n", "a b", True),
        ("a b", "a c", False),
        ("nan", "0.5", False),
        ("1 2", "1", False),
    ],
)
def test_text(cached: str, fresh: str, agree: bool) -> None:
    assert (run.differences_of_text(cached, fresh, 0.01) == []) is agree


def test_blocks() -> None:
    found = run.blocks(PAGE)
    assert [PAGE.splitlines()[block.line - 1] for block in found] == [block.code.splitlines()[0] for block in found]
    assert len(found) == 2 and run.lines_of_code(PAGE) == 6
    with pytest.raises(run.LessonError, match="no end"):
        run.blocks("```python\nx = 1\n")


def test_record(tmp_path: Path) -> None:
    record = run.Record(1.5, [run.Output("ab", "ε = 1\n", ["a.png"])])
    record.write(tmp_path)
    assert run.Record.read(tmp_path) == record
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["seconds"] == 1.5


@pytest.mark.parametrize(("seconds", "told"), [(0.2, 1), (4.1, 5), (10.0, 10), (26.3, 30)])
def test_said(seconds: float, told: int) -> None:
    assert run.said(seconds) == f"{told} s on two cores"


def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --check what is stale is run, or what is asked for; with it nothing is written."""
    updated: list[str] = []
    monkeypatch.setattr(run, "update", lambda page: updated.append(page.name[:2]))
    monkeypatch.setattr(run, "check", lambda page: ["block 1: differs"] if page.name.startswith("02") else [])
    monkeypatch.setattr(run, "stale", lambda page: page.name.startswith("03"))
    with pytest.raises(SystemExit):
        run.main(["12"])
    assert "no lesson 12; there are 01, 02" in capsys.readouterr().err
    assert run.main([]) == 0 and updated == ["03"]
    assert run.main(["02", "01"]) == 0 and updated == ["03", "02", "01"]
    assert run.main(["--check", "01"]) == 0 and run.main(["--check"]) == 1 and len(updated) == 3
    assert "02-ddpm.md: block 1: differs" in capsys.readouterr().out
