"""Memory of the processor, kept by the process once it has it: what a command asks of the C library.

    keep_freed_memory()                 # before the first large tensor

A tensor of a few MiB is by default fetched from the kernel when it is made and given back when it is freed, page by
page: a network that makes the same ones at every evaluation spends a fifth of its time in the kernel, and one run at
twice the samples takes more than twice as long. Kept, the same pages serve again; the most that is ever held is the
same.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""By which a user says how memory is to be handled, or brings another allocator."""


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, up to 32 MiB a piece, for the rest of the process.

    Sets M_MMAP_THRESHOLD to its greatest value, 32 MiB, and M_TRIM_THRESHOLD to as good as never (mallopt(3)). Does
    nothing where the C library is not the GNU one, or where an environment variable of `VARIABLES` has decided: a
    program that imports the library as a part of its own is not touched, only one that is run as a command.

    Returns:
        Whether it was done.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(MMAP_THRESHOLD, 32 << 20) and mallopt(TRIM_THRESHOLD, (1 << 31) - 1))
