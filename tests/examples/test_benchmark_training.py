"""The training benchmark: what it matches, counts and writes, without the peers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import report
import training
from peers import networks
from scoresde.nn import UNet

TINY: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1}
CONFIG = training.Config(batch=4, turns=2, formats=("channels-last",))


def test_the_width_is_the_nearest_multiple_of_four() -> None:
    width, net = networks.matched(lambda width: nn.Linear(width, width, bias=False), 41**2)
    assert width == 40 and networks.size(net) == 1600


def test_modules_that_are_not_there_are_pretended_and_gone_again() -> None:
    with networks._pretended("no_such_package", "no_such_package.part", "json"):
        assert importlib.import_module("no_such_package").part is sys.modules["no_such_package.part"]
        assert importlib.import_module("json") is json
    assert "no_such_package" not in sys.modules
    assert training.peer("a peer", lambda width: importlib.import_module("no_such_package"), 1) == {}


def test_rows_of_networks_in_turns(tmp_path: Path) -> None:
    nets: dict[str, nn.Module] = {"kept": UNet(3, **TINY), "again": UNet(3, **TINY, checkpoint=True)}
    rows = training.contend("tiny", nets, 16, CONFIG)
    kept, again = rows
    assert kept.ratio == kept.low == kept.high == 1 and kept.parameters == again.parameters
    assert again.memory < kept.memory and again.gflop > kept.gflop  # what is run again is counted
    training.contest.write_array(tmp_path / "training.json", rows)
    assert report.tables(tmp_path)["training"] == training.table(rows)
    assert "1.00 (1.00 to 1.00)" in training.table(rows)


def test_operations_are_those_of_a_convolution() -> None:
    """2 K^2 C_in C_out a pixel forward; as much again for the weights, and none for the input, which asks for none."""
    net = nn.Conv2d(3, 8, 3, padding=1)

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    assert training.gflop(Called(), torch.zeros(4, 3, 16, 16)) == pytest.approx(2 * 2 * 9 * 3 * 8 * 256 / 1e9)


def test_a_card_s_rate_is_the_one_given_or_known() -> None:
    assert training.rate_of(training.Config(card_rate=2.0)) == 2e12
    assert training.rate_of(CONFIG) == 0.0
