"""Generate from a trained model: `scoresde sample`, from a checkout that is not installed.

    python examples/sample.py --checkpoint runs/my-images

What it does and how is in scoresde/cli/sample.py.
"""

from __future__ import annotations

from scoresde.cli.command import command
from scoresde.cli.sample import SampleConfig, main

if __name__ == "__main__":
    command(main, SampleConfig)
