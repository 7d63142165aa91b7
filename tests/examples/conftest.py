"""What the tests of the scripts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.digits import DigitFlags, fit, load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits model of two steps, narrow, in the folder of a run of digits.py."""
    out = tmp_path_factory.mktemp("digits")
    fit(DigitFlags(steps=2, width=8, batch_size=16, cpu=True), load(0)[0], out)
    return out
