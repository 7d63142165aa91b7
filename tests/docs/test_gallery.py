"""The gallery: every picture is there, with commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
TEXT = (ROOT / "docs" / "gallery.md").read_text("utf-8")
SECTIONS = TEXT.split("\n## ")[1:]
COMMANDS = sorted(set(re.findall(r"^python .*", TEXT, re.MULTILINE)))
PICTURES = sorted(path.name for path in IMAGES.iterdir())


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_there_with_its_command(name: str) -> None:
    holders = [section for section in SECTIONS if f"](images/{name})" in section]
    assert len(holders) == 1, f"docs/gallery.md shows {name} in {len(holders)} sections"
    assert re.search(r"^```bash\npython examples/", holders[0], re.MULTILINE), f"no command makes {name}"


def test_every_picture_shown_is_one() -> None:
    shown = re.findall(r"\]\(images/([^)]+)\)", TEXT)
    assert sorted(shown) == PICTURES


@pytest.mark.parametrize("command", COMMANDS)
def test_every_script_is_there(command: str) -> None:
    assert (ROOT / shlex.split(command)[1]).is_file()


@pytest.mark.site
@pytest.mark.parametrize("script", sorted({shlex.split(command)[1] for command in COMMANDS}))
def test_every_flag_is_one(script: str) -> None:
    """As the script's own help has it."""
    ran = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"--[a-z0-9][\w-]*", ran.stdout))
    for command in COMMANDS:
        words = shlex.split(command)
        if words[1] == script:
            assert (flags := {word for word in words if word.startswith("--")}) <= known, flags - known
