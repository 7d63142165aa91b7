"""What the package says of itself agrees with itself; .ci/package builds it and installs it in a clean environment."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import scoresde

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == scoresde.__version__  # type: ignore[index]
    assert f"## {scoresde.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_pythons_named_are_those_allowed() -> None:
    told = project()
    named = {c.rpartition(" ")[2] for c in told["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    least = told["requires-python"].removeprefix(">=")
    assert named == {"3.11", "3.12", "3.13"} and min(named) == least
    assert sys.version_info[:2] >= tuple(map(int, least.split(".")))
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert all(f'"{version}"' in workflow for version in named)


def test_what_is_pinned_is_what_is_asked_for() -> None:
    """Each package of an extra that the tests use has a pinned version, and the pins name no package twice."""
    told = project()
    names = [
        re.match(r"[\w-]+", need)[0].lower().replace("_", "-")  # type: ignore[index]
        for needs in (told["dependencies"], *told["optional-dependencies"].values())
        for need in needs
        if not need.startswith("scoresde[")
    ]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line]
    assert len(pins) == len(set(pins))
    assert not set(names) - set(pins), set(names) - set(pins)


def test_the_community_files_are_there_and_say_what_they_must() -> None:
    for name, words in {
        "CONTRIBUTING.md": ("deprecat", ".ci/run", "semantic versioning"),
        "SECURITY.md": ("Report", "pickle"),
        "CITATION.cff": ("cff-version", "license: MIT"),
        "LICENSE": ("MIT",),
    }.items():
        text = (ROOT / name).read_text("utf-8")
        assert all(word in text for word in words), name
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(project()["urls"])
