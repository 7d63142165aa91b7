"""Several processes of one script, on the CPU, as torchrun starts them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock


class Said(NamedTuple):
    """What a process wrote."""

    out: str
    err: str


def launched(count: int, *command: str, fails: bool = False) -> list[Said]:
    """Run ``python command`` in each of so many processes; what they wrote, in order of rank.

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
    # A script has its own folder on the path, and not this one.
    here["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    children = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**here, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [Said(*child.communicate(timeout=600)) for child in children]
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
