"""Freed memory of the processor, kept: counted in page faults, of which each new page of 4 KiB costs one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from scoresde.cli.allocator import VARIABLES

COUNT = """
import json, resource, sys
import numpy as np
from scoresde.cli.allocator import keep_freed_memory
from scoresde.cli.command import command

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        kept = [np.empty(2 << 20, np.uint8) for _ in range(20)]
        for one in kept:
            one[::4096] = 1      # every page is asked for
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

before = faults()
done = keep_freed_memory()
once = faults()
print(json.dumps({"done": done, "before": before, "once": once, "after": faults()}))
"""
PAGES = 20 * (2 << 20) // os.sysconf("SC_PAGE_SIZE")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def count(**environment: str) -> dict[str, int]:
    mine = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", COUNT], env={**mine, **environment}, capture_output=True, text=True, check=True
    )
    said: dict[str, int] = json.loads(run.stdout)
    return said


@glibc
def test_pages_that_were_freed_serve_again():
    """20 rounds of 20 arrays ask for 20 * 20 * 512 pages where each is given back; kept, for none after the first."""
    said = count()
    assert said["done"]
    # glibc gives back what lies on top, whatever the threshold that it has settled on by then: most of 40 MiB a round.
    assert said["before"] > 10 * PAGES
    # The pages of two rounds, as one is dropped once the next is made, and few of what Python itself makes.
    assert said["once"] < 2.1 * PAGES
    assert said["after"] < 0.01 * PAGES


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_what_a_user_has_decided_stays(name):
    assert not count(**{name: "131072"})["done"]
