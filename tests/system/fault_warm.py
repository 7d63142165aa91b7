"""Imported by the process that test_faults.py forks its children from: one small training, and all that it imports."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fault_tools

with tempfile.TemporaryDirectory() as folder:
    fault_tools.finish(Path(folder) / "run", steps=2)
