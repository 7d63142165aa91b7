"""Ctrl-C, errors and time that is up: what a run is afterwards, and what iterating it again does."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from test_train import Plain, mlp, points, trained, weights
from torch import Tensor, nn

import scoresde.train.loop as loop_module
from scoresde.models import ScoreModel
from scoresde.sde import VP
from scoresde.train import CheckpointError, Run, load_model, train
from scoresde.train.atomic import Buffers, uninterrupted
from scoresde.train.draws import seeded

OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 4, "progress": False, "ema": 0.9}


class Normed(nn.Module):
    """Batch statistics, dropout and a counter: all that a forward pass changes."""

    null_conditions = {"label": 3}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        with seeded(torch.device("cpu"), 0):
            self.norm, self.dropout, self.head = nn.BatchNorm1d(2), nn.Dropout(0.3), nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        self.calls = self.calls + 1  # replaced, not written into
        return self.head(self.dropout(self.norm(x)))


class Interrupt:
    """Presses Ctrl-C at a certain line of the training code, counted over all that is traced."""

    def __init__(self, at: int) -> None:
        self.left, self.where = at, ""

    def __enter__(self) -> Interrupt:
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if "scoresde/train/" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self.trace


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "folder"])
def test_a_run_that_is_interrupted_at_any_line_goes_on_exactly(folder: bool, tmp_path: Path) -> None:
    """In each step Ctrl-C is pressed a few lines further on than in the step before, until steps have no such line."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread hears signals")

    def run(path: Path, steps: int, save_every: int = 1) -> Run:
        extra = {"folder": path, "log_every": 1, "save_every": save_every, "keep": 1} if folder else {}
        return train(ScoreModel(Normed(), VP()), Plain(points()), **{**OPTIONS, "steps": steps, **extra})

    steps = 100  # more than there are places
    made, pressed, heard, inside = run(tmp_path / "a", steps), 0, 0, 0
    places, line = set(), 1
    while made.step < steps:
        if made._done is not None:  # applied when it was interrupted, and yet to be reported
            next(made)
        before = made.step
        try:
            with Interrupt(line) as interrupt:
                next(made)
        except KeyboardInterrupt:
            heard += 1
            inside += made.step > before  # heard at the end of applying the step, or while it was logged or saved
            assert all(p.grad is None for p in made.model.parameters())
        if not interrupt.where:
            break
        places.add(interrupt.where)
        pressed += 1
        line += 4 if not folder else 17
    assert pressed == heard > 30 and inside > 1 and len(places) > 20, (pressed, heard, inside, len(places))
    done = made.step
    whole = run(tmp_path / "b", steps, save_every=steps)
    while whole.step < done:
        next(whole)
    for one, other in ((made.model, whole.model), (made.ema_model(), whole.ema_model())):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    assert made.ema.updates == whole.ema.updates == done
    if folder:
        lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in "ab"]
        steps_of = [[line.split(",")[0] for line in one] for one in lines]
        assert len(lines[0]) in (done - 1, done) and steps_of[0] == steps_of[1][: len(lines[0])]
        path = made.save()
        assert torch.equal(weights(load_model(path, ema=False, net=Normed())), weights(whole.model))


def test_the_last_step_is_saved_though_its_saving_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(mlp(), points(), folder=tmp_path, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.checkpoint, "save_by", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            list(run)
    assert run.step == OPTIONS["steps"] and not list(tmp_path.glob("step-*"))
    (record,) = list(run)  # the record that was not reported
    assert record.step == OPTIONS["steps"]
    assert torch.equal(weights(load_model(tmp_path, ema=False)), weights(trained(**OPTIONS).model))
    assert list(run) == []


class Interrupting(Plain):
    """Raises once, where a sample is asked for, in a worker or not."""

    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__(points())
        self.error, self.left = error, after

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), OSError("gone for a moment")], ids=repr)
def test_after_an_error_of_the_data_the_same_step_is_done_again(error: BaseException) -> None:
    run = train(mlp(dropout=0.5), Interrupting(error, 1 + 1 + 4 + 2), **OPTIONS)
    with pytest.raises(type(error)):
        list(run)
    assert run.step in (0, 1)
    left = OPTIONS["steps"] - run.step
    assert len(list(run)) == left
    assert torch.equal(weights(run.model), weights(trained(mlp(dropout=0.5), **OPTIONS).model))


def test_workers_end_with_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(mlp(), Plain(points()), num_workers=1, **OPTIONS)
    next(run)
    session = run._session
    assert session is not None and session.fetched is not None
    (worker,) = session.fetched._pending._workers  # type: ignore[union-attr]
    assert worker.is_alive()
    monkeypatch.setattr(run._gradient, "compute", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:  # which holds on to all frames
        next(run)
    worker.join(5)
    assert not worker.is_alive() and session.progress.disable and caught.value is not None
    monkeypatch.undo()
    assert len(list(run)) == OPTIONS["steps"] - 1


# -- where it cannot go on ---------------------------------------------------------------------------------------------


def test_a_run_that_cannot_go_on_says_why_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*_: Any, **__: Any) -> Any:
        raise CheckpointError("no space left")

    run = train(mlp(), points(), folder=tmp_path, save_every=2, **OPTIONS)
    next(run)
    monkeypatch.setattr(loop_module.checkpoint, "save_by", bad)
    with pytest.raises(CheckpointError, match="no space left"):
        next(run)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"stopped after step 2 and cannot go on: .*no space left.*train anew"
        ):
            next(run)
    monkeypatch.undo()
    run = train(mlp(), points(), **{**OPTIONS, "lr": 1e30})
    with pytest.raises(FloatingPointError):
        list(run)
    with pytest.raises(FloatingPointError, match=r"cannot go on: FloatingPointError: the loss.*no folder to resume"):
        list(run)


def test_an_error_in_the_middle_of_applying_a_step_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(mlp(), points(), folder=tmp_path, save_every=2, **OPTIONS)
    next(run), next(run)
    monkeypatch.setattr(run.ema, "update", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(run)
    with pytest.raises(RuntimeError, match=r"stopped in step 3 .*middle of applying.*step-00000002.*resume=True"):
        next(run)
    with pytest.raises(RuntimeError, match="middle of applying step 3"):
        run.save()


def test_a_run_that_is_done_just_ends() -> None:
    run = trained()
    for _ in range(2):
        assert list(run) == []
        with pytest.raises(StopIteration):
            next(run)


def test_time_that_is_up_is_given_anew_by_another_for(tmp_path: Path) -> None:
    run = train(mlp(), points(), max_seconds=1e-9, folder=tmp_path, **OPTIONS)
    assert [step.step for step in run] == [1]
    with pytest.raises(StopIteration):  # an iterator that has ended stays so
        next(run)
    assert [step.step for step in run] == [2]
    while run.step < OPTIONS["steps"]:
        list(run)
    assert list(run) == []
    assert torch.equal(weights(run.model), weights(trained(**OPTIONS).model))
    assert torch.equal(weights(load_model(tmp_path, ema=False)), weights(run.model))


# -- the pieces --------------------------------------------------------------------------------------------------------


def test_signals_wait_for_the_end_of_the_block() -> None:
    heard: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert not heard
        assert heard == [signal.SIGTERM]
        inside = False
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            inside = True
        assert inside and signal.getsignal(signal.SIGINT) is kept[signal.SIGINT]
        with pytest.raises(ValueError, match="own"), uninterrupted():
            raise ValueError("own")
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    done: list[bool] = []

    def elsewhere() -> None:
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [True]


def test_training_in_a_thread() -> None:
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(weights(trained(**OPTIONS).model)))
    thread.start()
    thread.join()
    assert torch.equal(made[0], weights(trained(**OPTIONS).model))


def test_buffers_are_restored_whether_written_or_replaced() -> None:
    module = nn.Module()
    module.register_buffer("written", torch.tensor([1.0]))
    module.register_buffer("replaced", torch.tensor([2.0]))
    module.register_buffer("nothing", None)
    kept = Buffers(module)
    original = module.replaced
    module.written.add_(1)
    module.replaced = torch.tensor([5.0])
    kept.restore()
    assert module.written.item() == 1 and module.replaced is original and module.replaced.item() == 2
    module.written.add_(3)
    kept.keep()
    module.written.add_(1)
    kept.restore()
    assert module.written.item() == 4


def test_gradients_of_somebody_else_are_not_added() -> None:
    model = mlp()
    for _ in (run := train(model, points(), **OPTIONS)):
        model(torch.ones(1, 2), torch.tensor(0.5), {"label": torch.zeros(1).long()}).sum().backward()
    assert run.step and torch.equal(weights(model), weights(trained(**OPTIONS).model))


def test_seconds_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(mlp(), points(), **OPTIONS)
    first = next(run)
    run.close()
    start = time.perf_counter
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: start() + 1000)  # a long pause
    assert next(run).seconds < first.seconds + 500
