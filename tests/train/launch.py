"""Several processes of one script, on the CPU, as torchrun starts them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def launched(count: int, *command: str, fails: bool = False) -> list[str]:
    """Run ``python command`` in each of so many processes; what they wrote to stderr, in order of rank.

    Args:
        count: of processes.
        command: a script, or -m and a module, and its arguments.
        fails: whether all are to end with an error; else none may.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    here = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **world, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**here, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [child.communicate(timeout=600)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert all((child.returncode != 0) == fails for child in children), said
    return said


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` has filled, the same for all workers of pytest-xdist: the first to come makes it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder
