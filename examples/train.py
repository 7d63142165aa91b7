"""Train a score model on your own data: `scoresde train`, from a checkout that is not installed.

    python examples/train.py --data my-images --network cifar-small --steps 100000

What it does and how is in scoresde/cli/train.py.
"""

from __future__ import annotations

from scoresde.cli.command import command
from scoresde.cli.train import TrainConfig, main

if __name__ == "__main__":
    command(main, TrainConfig)
