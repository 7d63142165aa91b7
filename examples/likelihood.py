"""How likely data are under a trained model: `scoresde likelihood`, from a checkout that is not installed.

    python examples/likelihood.py --checkpoint runs/my-images --data held-out-images

What it does and how is in scoresde/cli/likelihood.py.
"""

from __future__ import annotations

from scoresde.cli.command import command
from scoresde.cli.likelihood import LikelihoodConfig, main

if __name__ == "__main__":
    command(main, LikelihoodConfig)
