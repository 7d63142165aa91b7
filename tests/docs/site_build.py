"""Builds the site as docs/README.md says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(folder: Path, seed: str = "0") -> Path:
    """The site in ``folder``, by the command that docs/README.md gives; a warning is an error."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "-d", str(folder / "trees")]
    ran = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "site")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, f"the site was not built:\n{ran.stderr}"
    assert not ran.stderr.strip(), f"the site was built with:\n{ran.stderr}"
    return folder / "site"
