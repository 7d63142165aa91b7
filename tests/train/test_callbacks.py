"""Callbacks: when they are called, that none of their errors loses a run, and TensorBoard's files read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import mlp, points, weights
from torch import Tensor, nn

from scoresde.data import from_tensors
from scoresde.models import ScoreModel
from scoresde.sde import VP
from scoresde.train import Callback, Run, TensorBoard, train
from scoresde.train.tensorboard import as_pictures

OPTIONS: dict[str, Any] = {"steps": 5, "batch_size": 8, "progress": False, "ema": 0.9, "cpu": True}


class Heard(Callback):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, run: Any) -> None:
        self.said.append(f"begin {run.step}")

    def step(self, run: Any, record: Any) -> None:
        assert record.step == run.step
        self.said.append(f"step {record.step}")

    def log(self, run: Any, record: Any, loss: float) -> None:
        self.said.append(f"log {record.step}")

    def checkpoint(self, run: Any, path: Path) -> None:
        assert path.is_dir()
        self.said.append(f"checkpoint {run.step}")

    def end(self, run: Any) -> None:
        self.said.append(f"end {run.step}")


def test_each_occasion_is_told_in_its_place(tmp_path: Path) -> None:
    heard = Heard()
    for _ in train(mlp(), points(), folder=tmp_path, save_every=2, log_every=3, callbacks=[heard], **OPTIONS):
        pass
    assert heard.said == [
        "begin 0", "step 1", "step 2", "checkpoint 2", "step 3", "log 3", "step 4", "checkpoint 4", "step 5", "log 5",
        "checkpoint 5", "end 5",
    ]  # fmt: skip
    heard.said.clear()
    list(train(mlp(), points(), folder=tmp_path, resume=True, callbacks=[heard], **{**OPTIONS, "steps": 6}))
    assert heard.said == ["begin 5", "step 6", "log 6", "checkpoint 6", "end 6"]


def test_a_run_with_callbacks_is_the_run_without(tmp_path: Path) -> None:
    def rude(run: Any, record: Any) -> None:
        run.model.eval()
        torch.manual_seed(record.step)
        torch.rand(3)
        with run.ema.applied():
            run.model(torch.zeros(1, 2), 0.5, {"label": torch.zeros(1, dtype=torch.long)})
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)

    run, other = train(mlp(dropout=0.5), points(), **OPTIONS), None
    list(run)
    other = train(mlp(dropout=0.5), points(), callbacks=[rude], **OPTIONS)
    list(other)
    assert torch.equal(weights(run.model), weights(other.model))


def test_an_error_in_a_callback_is_told_once_and_loses_nothing() -> None:
    calls: list[int] = []

    def bad(run: Any, record: Any) -> None:
        calls.append(record.step)
        raise KeyError("no such figure")

    with pytest.warns(UserWarning) as caught:
        run = train(mlp(), points(), callbacks=[bad], **OPTIONS)
        list(run)
    told = [str(one.message) for one in caught if "callback" in str(one.message)]
    assert len(told) == 1 and calls == [1, 2, 3, 4, 5]
    assert re.search(
        r"callback .*bad failed at 'step': KeyError: 'no such figure', in .*test_callbacks.py, line", told[0]
    )
    expected = train(mlp(), points(), **OPTIONS)
    list(expected)
    assert torch.equal(weights(run.model), weights(expected.model))


def test_ctrl_c_in_a_callback_leaves_the_run_after_the_step() -> None:
    calls: list[int] = []

    def interrupt(run: Any, record: Any) -> None:
        calls.append(record.step)
        if record.step == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt

    run = train(mlp(), points(), callbacks=[interrupt], **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert run.step == 2
    assert [record.step for record in run] == [2, 3, 4, 5]  # the record that was not handed out
    assert calls == [1, 2, 3, 4, 5]


def test_a_callback_may_stop_the_run_and_it_goes_on_in_a_new_for(tmp_path: Path) -> None:
    heard = Heard()

    def stop(run: Run[ScoreModel], record: Any) -> None:
        if record.step == 3:
            run.stop()

    run = train(mlp(), points(), folder=tmp_path, callbacks=[stop, heard], **OPTIONS)
    assert [record.step for record in run] == [1, 2, 3]
    assert (tmp_path / "step-00000003").is_dir() and heard.said[-2:] == ["checkpoint 3", "end 3"]
    assert [record.step for record in run] == [4, 5]
    expected = train(mlp(), points(), **OPTIONS)
    list(expected)
    assert torch.equal(weights(run.model), weights(expected.model))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda run, record: None, r"must be a list, got .*; write \["),
        (Heard(), "must be a list"),
        ([Heard], "add its parentheses"),
        ([3], "must be a function .*have one of the methods begin, step"),
        ([lambda run: None], r"called as function\(run, record\).*takes other arguments"),
        ("step", "must be a list"),
        (7, "must be a list"),
    ],
)
def test_what_is_no_callback_is_refused_before_training(callbacks: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train(mlp(), points(), callbacks=callbacks, **OPTIONS)


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def scalars(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_holds_the_numbers_of_the_steps(tmp_path: Path) -> None:
    records = list(train(mlp(), points(), callbacks=[TensorBoard(tmp_path, every=2)], warmup=4, **OPTIONS))
    kept = {record.step: record for record in records if record.step in (2, 4, 5)}
    for name in ("loss", "grad_norm", "lr"):
        # TensorBoard keeps float32
        wanted = {step: pytest.approx(getattr(record, name), rel=1e-6) for step, record in kept.items()}
        assert scalars(tmp_path, name) == wanted
    assert all(rate > 0 for rate in scalars(tmp_path, "steps_per_second").values())


def test_tensorboard_of_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    options = {"folder": tmp_path / "run", "save_every": 2, **OPTIONS}
    run = train(mlp(), points(), callbacks=[TensorBoard(tmp_path / "logs", every=1)], **options)
    for record in run:
        if record.step == 3:
            break
    run.close()
    list(train(mlp(), points(), callbacks=[TensorBoard(tmp_path / "logs", every=1)], resume=True, **options))
    assert list(scalars(tmp_path / "logs", "loss")) == [1, 2, 3, 4, 5]


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.weight * x


def test_tensorboard_shows_pictures_in_the_units_of_the_data(tmp_path: Path) -> None:
    data = from_tensors(torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8))
    asked: list[int] = []

    def pictures(run: Any) -> Tensor:
        asked.append(run.step)
        return data[:3]["x"]

    board = TensorBoard(tmp_path / "logs", pictures=pictures)
    list(train(ScoreModel(Pixels(), VP()), data, callbacks=[board], folder=tmp_path / "run", save_every=2, **OPTIONS))
    assert asked == [2, 4, 5]
    images = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0}).Reload().Images("samples")
    assert [(one.step, one.width, one.height) for one in images] == [(2, 12, 4), (4, 12, 4), (5, 12, 4)]
    model = ScoreModel(Pixels(), VP())
    model.scaling = data.scaling
    assert torch.equal(as_pictures(data[:3]["x"], model), data.data[:3])
    for wrong in (torch.zeros(3, 4), torch.zeros(1, 2, 4, 4), "x"):
        with pytest.raises((TypeError, ValueError), match="pictures must return images"):
            as_pictures(wrong, model)


def test_a_folder_that_cannot_be_written_is_refused_when_the_callback_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write into"):
        TensorBoard(tmp_path / "file" / "logs")
    with pytest.raises(ValueError, match="pictures_every needs pictures"):
        TensorBoard(tmp_path / "logs", pictures_every=3)
