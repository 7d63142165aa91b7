"""SIGTERM: the step under way is done, a checkpoint written, the process ends with 143, and the run goes on exactly."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_train import Plain, mlp, points, weights

from scoresde.cli import train as train_module
from scoresde.train import Callback, Run, Terminated, describe, load_model, train

OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 4, "progress": False, "ema": 0.9}


@pytest.fixture(autouse=True)
def nobody_else_listens() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread hears signals")
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)


class Sends(Callback):
    """SIGTERM in the middle of a step: while it is reported."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, run: Any, record: Any) -> None:
        if record.step == self.at:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # as a scheduler and torchrun may both do


def run(**options: Any) -> Run:
    return train(mlp(), points(), **{**OPTIONS, **options})


@pytest.mark.parametrize("folder", [True, False])
def test_the_step_under_way_is_finished(folder: bool, tmp_path: Path) -> None:
    where = {"folder": tmp_path} if folder else {}
    whole, seen = run(), []
    list(whole)
    stopped = run(callbacks=[Sends(3)], **where)
    with pytest.raises(Terminated) as told:
        seen.extend(record.step for record in stopped)
    assert told.value.code == 143 and told.value.step == stopped.step == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if folder:
        assert told.value.path is not None and describe(told.value.path).step == 3
        assert f"after step 3; go on from {told.value.path}" in str(told.value)
        resumed = run(resume=True, **where)
        list(resumed)
        assert torch.equal(weights(resumed.model), weights(whole.model))
        assert torch.equal(weights(resumed.ema_model()), weights(whole.ema_model()))
    else:
        assert told.value.path is None and "it has no folder" in str(told.value)
        list(stopped)  # caught, it goes on in the same process
        assert torch.equal(weights(stopped.model), weights(whole.model))


def test_between_two_steps_it_is_heeded_at_once(tmp_path: Path) -> None:
    """For nobody may ask for another step: the loop may have been left by break."""
    made = run(folder=tmp_path)
    for record in made:
        if record.step == 2:
            break
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    assert describe(tmp_path).step == 2
    assert [record.step for record in made] == [3, 4, 5, 6]


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_while_an_average_is_applied_it_waits_for_the_next_step(decay: float, tmp_path: Path) -> None:
    made = run(folder=tmp_path, ema=(0.9, 0.5))
    next(made)
    with made.averages[decay].applied():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Terminated):
        next(made)
    assert describe(tmp_path).step == made.step == 1
    assert torch.equal(weights(load_model(tmp_path, ema=False)), weights(made.model))


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    heard: list[int] = []
    for own in (lambda number, frame: heard.append(number), signal.SIG_IGN):
        before = signal.signal(signal.SIGTERM, own)
        try:
            assert [record.step for record in run(callbacks=[Sends(2)])] == [1, 2, 3, 4, 5, 6]
            assert signal.getsignal(signal.SIGTERM) is own
        finally:
            signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * 2


def test_one_that_came_meanwhile_stays() -> None:
    def own(number: int, frame: object) -> None: ...

    made = run()
    try:
        for record in made:
            if record.step == 2:
                signal.signal(signal.SIGTERM, own)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_in_another_thread_nobody_listens() -> None:
    made, found = run(), []

    def iterate() -> None:
        next(made)
        found.append(signal.getsignal(signal.SIGTERM))
        list(made)

    thread = threading.Thread(target=iterate)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL] and made.step == 6


def test_a_child_that_was_forked_dies_of_it_and_touches_nothing(tmp_path: Path) -> None:
    made = run(folder=tmp_path)
    next(made)
    child = os.fork()
    if not child:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not list(tmp_path.glob("step-*"))
    made.close()


def test_a_run_that_was_let_go_listens_no_more(tmp_path: Path) -> None:
    made = run(folder=tmp_path)
    next(made)
    told = made._told
    del made
    gc.collect()
    child = os.fork()
    if not child:
        told._process = os.getpid()  # as if it were the process that began
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not list(tmp_path.glob("step-*"))
    told.end()


@pytest.mark.parametrize("dropped", [True, False])
def test_a_run_that_was_left_in_the_middle_keeps_no_other_from_hearing(dropped: bool, tmp_path: Path) -> None:
    left = run(folder=tmp_path / "left")
    next(left)
    if dropped:
        del left
        gc.collect()
    with pytest.raises(Terminated) as told:
        list(run(callbacks=[Sends(2)], folder=tmp_path / "run"))
    assert told.value.step == 2 and describe(tmp_path / "run").step == 2
    if not dropped:  # it has its turn again
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert describe(tmp_path / "left").step == 1


def test_it_is_told_in_words_that_travel() -> None:
    told = pickle.loads(pickle.dumps(Terminated(3, Path("a"))))
    assert (told.step, told.path, told.code) == (3, Path("a"), 143) and isinstance(told, SystemExit)


def test_the_command_line_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy.save(tmp_path / "x.npy", points().data.numpy())
    flags = {"batch_size": 8, "width": 8, "depth": 1, "progress": False, "cpu": True}
    config = train_module.TrainConfig(data=tmp_path / "x.npy", out=tmp_path / "run", steps=9, **flags)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as told:
        patch.setattr(train_module.Watch, "done", lambda watch, step: step == 3 and signal.raise_signal(signal.SIGTERM))
        train_module.main(config)
    assert told.value.code == 143 and describe(tmp_path / "run").step == 3
    assert "SIGTERM: step 3 of 9 is saved; go on by the same command with --resume" in capsys.readouterr().out
    train_module.main(replace(config, resume=True))
    assert describe(tmp_path / "run").step == 9


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_train import Plain, mlp, points
from scoresde.train import train
more = dict(folder={folder!r}, num_workers={workers})
run = train(mlp(), {data}, steps=100000, batch_size=4, progress=False, ema=0.9, **more)
for record in run:
    if record.step == 3:
        print('ready', flush=True)
    if record.step >= 3:
        time.sleep(0.005)
"""


def killed(folder: Path, data: str, workers: int, group: bool) -> int:
    """The status of a process that trains, and is sent SIGTERM after its third step."""
    text = SCRIPT.format(here=str(Path(__file__).parent), folder=str(folder), data=data, workers=workers)
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
        return process.wait(60)


@pytest.mark.parametrize(("data", "workers", "group"), [("points()", 0, False), ("Plain(points())", 1, True)])
def test_a_process_that_is_told_to_end_goes_on_exactly(data: str, workers: int, group: bool, tmp_path: Path) -> None:
    """Alone, and where the worker is killed by the same signal."""
    assert killed(tmp_path, data, workers, group) == 143
    step = describe(tmp_path).step
    assert step >= 3
    same = Plain(points()) if workers else points()
    options = {**OPTIONS, "steps": step + 2}
    resumed, whole = train(mlp(), same, folder=tmp_path, resume=True, **options), train(mlp(), same, **options)
    list(resumed), list(whole)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(weights(resumed.ema_model()), weights(whole.ema_model()))
