"""One profile for all property-based tests: the same examples on every run, no clock, no database."""

from __future__ import annotations

import gc
import os
import signal

# Before torch is imported: the tests compare with what a CPU computes, bit for bit in places, and train() would
# otherwise choose the GPU of a machine that has one. Child processes inherit it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Nor is a child of a test to take the cores that pytest-xdist fills.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore interrupts, which some tests send themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fast",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("fast"), derandomize=False, max_examples=400)
settings.load_profile("fast")  # `pytest --hypothesis-profile=thorough` looks further

# The tensors of the tests are small: a second thread only waits, and pytest-xdist already fills the cores.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was made up to here stays: a tenth of the run would go into searching it for garbage, again and again."""
    gc.freeze()
