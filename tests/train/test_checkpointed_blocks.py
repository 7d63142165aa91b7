"""A run may go on with blocks that keep less, or more, than before: it is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import scoresde as ss
from scoresde import data
from scoresde.nn import UNet
from scoresde.train import CheckpointError, Run, TrainOptions, describe, train
from scoresde.train.folder import sealed


def run(folder: Path, *, stop: int | None = None, resume: bool = False, **network: Any) -> Run:
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), dropout=0.3, **network)
    x = torch.randint(0, 17, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    options = TrainOptions(batch_size=4, steps=6, save_every=3, flip=True, progress=False, folder=folder)
    going = train(ss.ScoreModel(net, ss.VP()), data.from_tensors(x, levels=17), options, resume=resume)
    for step in going:
        if step.step == stop:
            break
    return going


@pytest.mark.parametrize("older", [False, True], ids=["as written", "of before the option"])
def test_a_run_goes_on_with_checkpointed_blocks(tmp_path: Path, older: bool) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=4)
    path = describe(tmp_path / "parts").path / "config.json"
    if older:
        written = json.loads(path.read_text("utf-8"))
        assert written["model"]["net"]["config"].pop("checkpoint") is False
        path.write_text(json.dumps(sealed(written)), "utf-8")
    parts = run(tmp_path / "parts", resume=True, checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name


def test_another_option_is_another_model(tmp_path: Path) -> None:
    run(tmp_path, stop=4)
    with pytest.raises(CheckpointError, match="another model"):
        run(tmp_path, resume=True, conditioning="add")
