"""Fair timings: memory kept warm, contestants taking turns, the fastest of many turns of each, in processor time.

    warm_up()
    seconds = fastest({"ours": run_ours, "theirs": run_theirs}, repeats=30)

All on one thread.
"""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable

import torch

Work = Callable[[], object]


def warm_up() -> None:
    """Have glibc keep freed memory instead of handing it back, so that no contestant pays for page faults.

    A batch of 64x3x32x32 float32 is 786 kB, which glibc would map afresh for each new tensor: with that, a hand-written
    loop spends most of its time in the kernel. Where the C library has no such switch it says so.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        warm = mallopt(m_mmap_threshold, 1 << 30) and mallopt(m_trim_threshold, 1 << 30)
    except (OSError, AttributeError):
        warm = False
    if not warm:
        print("this C library hands freed memory back: bare loops pay for page faults, and ratios to them flatter us")


def fastest(contestants: dict[str, Work], repeats: int, *, patience: float = 10.0) -> dict[str, float]:
    """Seconds of the fastest of ``repeats`` calls of each, in turns, after a round that does not count.

    Processor time of one thread, which other programs do not lengthen by taking the core away. They still cost by
    emptying the caches, so the least is the nearest to the truth, and turns spread a busy minute over all. A contestant
    that has run for ``patience`` seconds and three turns has no more of them.
    """
    torch.set_num_threads(1)
    best = dict.fromkeys(contestants, float("inf"))
    spent = dict.fromkeys(contestants, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(repeats + 1):
            for name, work in contestants.items():
                if turn > 3 and spent[name] > patience:
                    continue
                start = time.process_time()
                work()
                seconds = time.process_time() - start
                spent[name] += seconds
                if turn:
                    best[name] = min(best[name], seconds)
    return best
