"""Faults of the field: killed processes, full and read-only disks, two processes at once, damaged and foreign files.

A few of each here; ``pytest -m thorough tests/system/test_faults.py`` runs 40 kills and 20,000 spoilt files.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import fault_tools as tools
import pytest
import torch
from fault_fuzzer import edited, fuzz
from fault_tools import NAMES, within
from torch import Tensor

import scoresde.train.folder as folder_module
from scoresde.files import MOST_JSON, append_line, read_json, refusing, replacing, write_json
from scoresde.solvers.adapted import Adapted, AdaptedReport
from scoresde.solvers.fitted import FitReport, Fitted, FittedLevels
from scoresde.solvers.spectral import Tuning
from scoresde.spectrum import Spectrum
from scoresde.train import EMA, CheckpointError, describe, load_model, save, train
from scoresde.train.owner import Owner, alive

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, and killed by signals")


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    assert within(tools.finish, folder) == 24
    return tools.tensors(describe(folder).path)


def survives(folder: Path, delays: list[float], whole: dict[str, Tensor]) -> int:
    """Kill a run after each of these times, going on with it in between; how many kills hit it before its end."""
    hits = 0
    for delay in delays:
        hits += tools.killed_while(tools.finish, folder, after=delay)
        for path in folder_module.checkpoints(folder):  # whatever is there is whole
            assert tools.tensors(path)
    within(tools.finish, folder)
    assert tools.same(tools.tensors(describe(folder).path), whole)
    lines = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 25))
    assert {p.name for p in folder.iterdir()} == {"log.jsonl", "step-00000022", "step-00000024"}
    return hits


def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    longest = tools.took(tools.finish, tmp_path / "timed")
    delays = tools.moments(seed=0, count=6, longest=longest)
    hits = sum(survives(tmp_path / f"{i}", delays[i : i + 3], uninterrupted) for i in (0, 3))
    assert hits > 0


@pytest.mark.thorough
def test_killed_runs_end_as_if_they_had_not_been_40_kills(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    longest = tools.took(tools.finish, tmp_path / "timed")
    hits = count = 0
    while hits < 40:
        hits += survives(tmp_path / f"{count}", tools.moments(count, 4, longest), uninterrupted)
        count += 1
        assert count < 80
    print(f"{hits} kills in {count} runs")  # noqa: T201


# -- two at once -------------------------------------------------------------------------------------------------------


def rounds_with_one_winner(folder: Path, rounds: int, locks: bool) -> list[int]:
    barrier, won = tools.PROCESSES.Barrier(2), tools.PROCESSES.Array("b", 2 * rounds)
    both = [tools.child(tools.claims, str(folder), rounds, locks, barrier, won, index) for index in (0, 1)]
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    return [won[2 * i] + won[2 * i + 1] for i in range(rounds)]


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_of_two_at_once_that_find_a_stale_claim_one_gets_the_folder(tmp_path: Path, locks: bool) -> None:
    assert rounds_with_one_winner(tmp_path, 40, locks) == [1] * 40


@pytest.mark.thorough
@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_of_two_at_once_one_gets_the_folder_5000_rounds(tmp_path: Path, locks: bool) -> None:
    assert rounds_with_one_winner(tmp_path, 5000, locks) == [1] * 5000


def test_of_many_threads_one_gets_the_folder(tmp_path: Path) -> None:
    for _ in range(20):
        got: list[Owner] = []
        start = threading.Barrier(8)

        def claim(got: list[Owner] = got, start: threading.Barrier = start) -> None:
            start.wait()
            with suppress(CheckpointError):
                got.append(Owner(tmp_path))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()


def _killed_with_a_child(folder: Path) -> None:
    """Claim, fork a child that lives on, and die."""
    Owner(folder)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # in any case
        signal.pause()
    (folder.parent / "child").write_text(str(pid))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_does_not_keep_the_folder_of_a_parent_that_died(tmp_path: Path) -> None:
    """As the workers of a data loader would, for some seconds."""
    (tmp_path / "run").mkdir()
    process = tools.child(_killed_with_a_child, tmp_path / "run")
    process.join(60)
    pid = int((tmp_path / "child").read_text())
    try:
        assert process.exitcode == -signal.SIGKILL and alive(pid)
        Owner(tmp_path / "run").release()
    finally:
        os.kill(pid, signal.SIGKILL)


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    reason = within(tools.may_mount, str(tmp_path_factory.mktemp("mount")))
    if reason:
        pytest.skip(f"a small disk cannot be mounted here: {reason}")


def _every_amount_of_room(folder: Path, width: int, mounted: bool) -> dict[str, int]:
    """With every amount of room, a save is done or refused, and what was there before is there.

    The room is that of a disk of 3 MB, or else a limit to the size of a file.
    """
    if mounted:
        tools.mount_small(folder)
    run, counts = folder / "run", {"done": 0, "refused": 0}
    model = tools.small(width)
    ema = EMA(model, 0.5)
    tools.filled(model, 1.0)
    need = sum(p.stat().st_size for p in save(run, model, step=1, ema=ema).iterdir())
    before = tools.stat_of(run)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for share in (0.0, 0.001, 0.01, 0.1, 0.3, 0.45, 0.5, 0.55, 0.8, 0.95, 1.0, 1.05, 2.0):
        free = int(share * need) // 4096 * 4096
        tools.filled(model, 2.0)
        try:
            if mounted:
                with tools.room(folder, free):
                    save(run, model, step=2, ema=ema)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
                try:
                    save(run, model, step=2, ema=ema)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            counts["done"] += 1
            loaded = load_model(run, ema=False)
            assert all(bool((p == 2).all()) for p in loaded.parameters())
            shutil.rmtree(run / "step-00000002")
        except CheckpointError as error:
            counts["refused"] += 1
            assert "No space left" in str(error) or "File too large" in str(error), error
        assert tools.stat_of(run) == before, share  # byte for byte, and nothing half-written beside
    return counts


def _a_run_that_meets_a_full_disk(folder: Path, width: int, mounted: bool) -> None:
    """It ends with one clear error, and goes on to the same end when there is room."""
    if mounted:
        tools.mount_small(folder)
    whole, run = folder / "whole", folder / "run"
    tools.finish(whole, width=width, steps=6, keep=1)
    wanted = tools.tensors(describe(whole).path)
    shutil.rmtree(whole)
    training = tools.start(run, width=width, steps=6, keep=1)
    while training.step < 3:
        next(training)
    before = tools.stat_of(run / "step-00000002")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    ballast = tools.room(folder, 0) if mounted else None
    try:
        if ballast is not None:
            ballast.__enter__()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        try:
            for _ in training:
                pass
        except CheckpointError as error:
            assert "No space left" in str(error) or "File too large" in str(error), error
        else:
            raise AssertionError("the disk was not full")
        try:  # again, without any room
            tools.finish(run, width=width, steps=6, keep=1)
        except CheckpointError as error:
            assert "No space left" in str(error) or "File too large" in str(error), error
        else:
            raise AssertionError("the disk was not full")
    finally:
        if ballast is not None:
            ballast.__exit__(None, None, None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert tools.stat_of(run / "step-00000002") == before
    assert {p.name for p in run.iterdir()} == {"log.jsonl", "step-00000002"}
    tools.finish(run, width=width, steps=6, keep=1)
    assert tools.same(tools.tensors(describe(run).path), wanted)
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == list(range(1, 7))


def _killed_in_mid_write_on_a_full_disk(folder: Path) -> None:
    """What the dead process left takes all the room there is: it is swept before anything else is written."""
    tools.mount_small(folder)
    run = folder / "run"
    tools.finish(run, steps=2)

    def half() -> None:
        Owner(run)
        os.truncate(run / ".owner.json", 0)  # between making the file and writing it
        (run / ".partial-step-00000004").mkdir()
        with (run / ".partial-step-00000004" / "model.safetensors").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(tools.forked(half))
    assert os.statvfs(folder).f_bavail == 0 and (run / ".owner.json").exists()
    assert tools.finish(run, steps=4) == 2
    assert {p.name for p in run.iterdir()} == {"log.jsonl", "step-00000002", "step-00000004"}


def _files_on_a_full_disk(folder: Path, mounted: bool) -> None:
    """Each way in which the library writes a file: an OSError, and the file of before."""
    if mounted:
        tools.mount_small(folder)
    folder.mkdir(exist_ok=True)
    report, log, sampler = folder / "report.json", folder / "log.jsonl", folder / "sampler.json"
    write_json(report, {"a": 1})
    append_line(log, "first")
    fitted().save(sampler)
    before = tools.stat_of(folder)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    writes: list[Any] = [
        lambda: write_json(report, {"a": "b" * 10_000}),
        lambda: append_line(log, "c" * 10_000),
        lambda: fitted(steps=100).save(sampler),
        lambda: _replace(report),
    ]
    for write in writes:
        ballast = tools.room(folder, 4096) if mounted else None
        if ballast is not None:
            ballast.__enter__()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            write()
        except OSError as error:
            assert error.errno in (27, 28), error
        else:
            raise AssertionError("the disk was not full")
        finally:
            if ballast is not None:
                ballast.__exit__(None, None, None)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert tools.stat_of(folder) == before


def _replace(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(b"d" * 10_000)


def _read_only_in_mid_run(folder: Path) -> str:
    tools.mount_small(folder)
    message, run = "", tools.start(folder / "run", log_every=50)
    while run.step < 3:
        next(run)
    with tools.read_only(folder / "run"):
        try:
            next(run)
        except CheckpointError as error:
            message = str(error)
    assert tools.finish(folder / "run") == 22  # the same process goes on, though it could not give up the folder
    return message


@pytest.mark.usefixtures("mounts")
class TestASmallDisk:
    """Of 3 MB, in a mount of its own."""

    def test_with_every_amount_of_room_a_save_is_whole_or_refused(self, tmp_path: Path) -> None:
        counts = within(_every_amount_of_room, tmp_path, 96, True)
        assert counts["done"] >= 2 and counts["refused"] >= 8

    def test_a_run_that_meets_a_full_disk_goes_on_when_there_is_room(self, tmp_path: Path) -> None:
        within(_a_run_that_meets_a_full_disk, tmp_path, 64, True)

    def test_a_run_killed_in_mid_write_on_a_full_disk_goes_on(self, tmp_path: Path) -> None:
        within(_killed_in_mid_write_on_a_full_disk, tmp_path)

    def test_every_way_to_write_a_file_leaves_the_one_of_before(self, tmp_path: Path) -> None:
        within(_files_on_a_full_disk, tmp_path, True)

    def test_a_disk_that_becomes_read_only_is_what_the_error_says(self, tmp_path: Path) -> None:
        message = within(_read_only_in_mid_run, tmp_path)
        assert "Read-only file system" in message and ".owner" not in message


class TestALimitToTheSizeOfFiles:
    """Where no disk can be mounted, and everywhere else."""

    def test_with_every_amount_of_room_a_save_is_whole_or_refused(self, tmp_path: Path) -> None:
        counts = within(_every_amount_of_room, tmp_path, 32, False)
        assert counts["done"] >= 2 and counts["refused"] >= 3

    def test_a_run_that_meets_the_limit_goes_on_without_it(self, tmp_path: Path) -> None:
        within(_a_run_that_meets_a_full_disk, tmp_path, 16, False)

    def test_every_way_to_write_a_file_leaves_the_one_of_before(self, tmp_path: Path) -> None:
        within(_files_on_a_full_disk, tmp_path / "files", False)


def test_an_error_is_not_hidden_by_a_folder_that_cannot_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system")

    run = tools.start(tmp_path, log_every=50)
    while run.step < 3:
        next(run)
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write", refuse)
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(folder_module, "prepare", lambda folder: None)
        with pytest.raises(CheckpointError, match=r"checkpoint of step 4.*Read-only file system"):
            next(run)


# -- who may read ------------------------------------------------------------------------------------------------------


def _with_umask(folder: Path, umask: int) -> None:
    os.umask(umask)
    tools.finish(folder / "run", steps=2)
    write_json(folder / "report.json", {})
    fitted().save(folder / "sampler.json")
    adapted().save(folder / "grid.json")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_of_the_users_umask(tmp_path: Path, umask: int) -> None:
    within(_with_umask, tmp_path / "out", umask)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert set(modes) == {*NAMES, "log.jsonl", "report.json", "sampler.json", "grid.json"}
    assert set(modes.values()) == {0o666 & ~umask}, modes


# -- damaged and foreign files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt") / "run"
    within(_two_steps, folder)
    return folder


def _two_steps(folder: Path) -> None:
    tools.finish(folder, steps=2)


def test_spoilt_files_come_back_whole_or_are_refused(checkpoint: Path) -> None:
    wrong, counts = within(fuzz, str(checkpoint), 0, 400)
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > 250 and counts["accepted"] > 20  # other settings, names that nobody asks for


@pytest.mark.thorough
def test_20_000_spoilt_files_come_back_whole_or_are_refused(checkpoint: Path) -> None:
    for first in range(1000, 21_000, 2000):
        wrong, counts = within(fuzz, str(checkpoint), first, 2000, seconds=3000)
        assert not wrong, "\n".join(wrong)
        print(first, counts)  # noqa: T201


KINDS = ["pipe", "folder", "socket", "device", "link to a pipe", "link to a device", "link to itself", "ten GB"]


def in_place_of(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    beside = path.with_name("beside")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zeros without end
        except OSError:  # only root makes devices
            path.symlink_to("/dev/zero")
    elif kind == "link to a pipe":
        os.mkfifo(beside)
        path.symlink_to(beside)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        path.touch()
        os.truncate(path, 10 << 30)


def _refused(folder: Path, name: str, kind: str) -> str:
    signal.alarm(60)  # a pipe would be waited for for ever, zeros without end be read
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))
    path = folder / name if name == "log.jsonl" else folder / "step-00000002" / name
    in_place_of(path, kind)
    messages = []
    for act in (lambda: tools.finish(folder, steps=3), lambda: load_model(folder)):
        try:
            act()
        except CheckpointError as error:
            messages.append(str(error))
        if name in ("optimizer.safetensors", "training.json", "log.jsonl"):  # a model needs none of these
            break
    return "\n".join(m if name in m else "?" for m in messages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NAMES, "log.jsonl"])
def test_what_is_no_plain_file_is_not_read(checkpoint: Path, tmp_path: Path, name: str, kind: str) -> None:
    shutil.copytree(checkpoint, tmp_path / "run")
    message = within(_refused, tmp_path / "run", name, kind)
    assert message and "?" not in message


# -- fitted samplers and adapted grids ---------------------------------------------------------------------------------


def fitted(steps: int = 3) -> Fitted:
    report = FitReport(
        "fitted", 0.1, 0.1, 0.1, 0.1, 0.2, 0.2, "heun", None, "ddim", 1e-6, (8, 4, 4), (2,), 5, 1.0, 0
    )  # fmt: skip
    times = torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64).tolist()
    levels = FittedLevels("VP()", (0.5,) * (2 * steps + 1), (0.5,) * (2 * steps + 1))
    weights = tuple((0.1,) * (i + 1) for i in range(steps))
    return Fitted(tuple(times), tuple(times[:-1]), (1.0,) * (steps + 1), weights, levels, report)


def adapted() -> Adapted:
    report = AdaptedReport("default", (0.1, 0.05), (0.2, 0.1), (0.1, 0.04), 1e-6, (8, 2), 100, 1.0, 0, (0.5, 0.25))
    tuning = Tuning((5, 10), ((0.0, 0.1, 0.2),) * 2)
    return Adapted((5, 10), ((0.0,) * 4,) * 2, (100.0, 0.01), Spectrum(1.0, 2.0), tuning, report)


@pytest.mark.parametrize("made", [fitted(), adapted()], ids=["fitted", "adapted"])
def test_edited_files_of_numbers_are_refused_by_name_or_make_sense(tmp_path: Path, made: Fitted | Adapted) -> None:
    path = made.save(tmp_path / "numbers.json")
    content, refused = json.loads(path.read_text()), 0
    assert type(made).load(path) == made
    for version in (True, 1.0, 2.0, "1", None, [1], -1, 10**9):
        path.write_text(json.dumps({**content, "version": version}))
        with pytest.raises(ValueError, match=r"numbers\.json: the file has version"):
            type(made).load(path)
    for seed in range(400):
        path.write_text(json.dumps(edited(random.Random(seed), content)))
        try:
            str(type(made).load(path).report)
        except ValueError as error:
            assert "numbers.json" in str(error)
            refused += 1
    assert refused > 200


def test_json_of_a_stranger_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    table: list[tuple[bytes, str]] = [
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 900 + b"]" * 900, "nested deeper than 16 levels"),
        (b'{"a": ' * 20 + b"1" + b"}" * 20, r"a\.a\.a.* is nested deeper than 16"),
        (b'{"a": {"b": 1e999}}', r"a\.b must be finite, got inf"),
        (b'{"a": [1, NaN]}', r"a\[1\] must be finite, got nan"),
        (b'{"a": [1, -Infinity]}', r"a\[1\] must be finite"),
        (b'{"a": 1' + b"0" * 400 + b"}", r"a is a whole number of more than 64 bits"),
        (b'{"a": -' + b"9" * 1_000_000 + b"}", r"a is a whole number of more than 64 bits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', r"the field 'c' stands twice"),
        (b'{"a": "\\ud800"}', r"a is no text"),
        (b'{"\\ud800": 1}', r"is no text"),
        (b'{"a": "\xff"}', "not JSON .*utf-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"", "not JSON"),
        (b"null", "must be a JSON object, got None"),
        (b'"a"', "must be a JSON object"),
        (b" " * (MOST_JSON + 1), f"the limit is {MOST_JSON}"),
    ]
    for content, match in table:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            read_json(path, refusing(path))
        assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 500
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent", refusing(path))


# -- sizes from outside ------------------------------------------------------------------------------------------------

HUGE: list[tuple[str, Any]] = [
    ("model.net.config.depth", 10**9),
    ("model.net.config.depth", 4000),
    ("model.net.config.width", 10**9),
    ("model.net.config.dim", 2**62),
    ("model.net.config.num_classes", 10**9),
    ("model.net.config.out_dim", 10**9),
    ("model.net.config.vectors", {"v": 10**9}),
    ("model.net.config.vectors", {f"v{i}": 1 for i in range(5000)}),
    ("model.net.config.vectors", {f"v{i}": 1 for i in range(1000)}),
    ("model.net.config.time_features", "x" * 10**6),
    ("data.class_names", ["a"] * 200_000),
    ("data.class_names", ["a" * 10**6]),
    ("data.event_shape", [2] * 1000),
    ("data.event_shape", [2**20, 2**20]),
    ("data.conditions", {f"c{i}": {"shape": [1], "dtype": "float32"} for i in range(2000)}),
    ("data.conditions", {"c": {"shape": [2**40], "dtype": "float32"}}),
    ("files", {f"f{i}": {"bytes": 1, "sha256": ""} for i in range(1000)}),
    ("version", "v" * 10**6),
    ("step", 2**63),
]
UNETS: list[dict[str, Any]] = [
    {"multipliers": [1] * 10**5},
    {"multipliers": [1] * 1000},
    {"multipliers": [10**9]},
    {"blocks": 10**9},
    {"blocks": 3000},
    {"channels": 10**9},
    {"width": 4096, "time_features": "fourier"},
    {"captions": {"c": {"vocabulary": 10**9, "length": 6}}},
    {"captions": {"c": {"vocabulary": 6, "length": 10**9}}},
    {"captions": {"c": {"vocabulary": 6, "length": 6, "layers": 10**9}}},
    {"captions": {"c": {"vocabulary": 6, "length": 6, "layers": 4000}}},
    {"images": {"c": 10**9}},
    {"embeddings": {"c": 10**9}},
    {"head_width": 10**9},
    {"attention_levels": [0] * 10**5},
]


def _all_refused(folder: Path) -> list[str]:
    """What was built, or took long or much memory; nothing else than numbers and names may be."""
    signal.alarm(200)
    checkpoint = folder / "step-00000002"
    content = json.loads((checkpoint / "config.json").read_text())
    limit = 32 << 30  # of addresses, most of which torch takes without using them
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sizes = {"channels": 1, "width": 4}
    unets = [{**content["model"], "net": {"class": "scoresde.nn.UNet", "config": {**sizes, **one}}} for one in UNETS]
    changes = [*HUGE, *(("model", unet) for unet in unets)]
    through = []
    for place, value in changes:
        changed: Any = copy.deepcopy(content)
        holder = changed
        *above, last = place.split(".")
        for key in above:
            holder = holder[key]
        holder[last] = value
        (checkpoint / "config.json").write_text(json.dumps(folder_module.sealed(changed)))
        before = resource.getrusage(resource.RUSAGE_SELF)
        try:
            load_model(folder, ema=False)
            through.append(f"{place} {value!r:.60}: loaded")
        except CheckpointError as error:
            after = resource.getrusage(resource.RUSAGE_SELF)
            if "config.json" not in str(error) and "do not fit" not in str(error):
                through.append(f"{place} {value!r:.60}: {error}")
            if len(str(error)) > 2000 or after.ru_maxrss - before.ru_maxrss > 200 << 10:  # in KB
                through.append(f"{place} {value!r:.60}: {after.ru_maxrss - before.ru_maxrss} KB, {error!s:.300}")
            if after.ru_utime - before.ru_utime > 5:  # of the processor: a thousand times what it takes
                through.append(f"{place} {value!r:.60}: {after.ru_utime - before.ru_utime} s")
    return through


def test_sizes_from_outside_are_bounded_before_anything_is_built(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "run")
    assert within(_all_refused, tmp_path / "run") == []


def test_what_a_checkpoint_could_not_hold_is_refused_before_training(tmp_path: Path) -> None:
    data = tools.points()
    object.__setattr__(data, "class_names", tuple("abc") * 50_000)
    with pytest.raises(ValueError, match=r"class_names has 150000 entries; the limit is 100000"):
        train(tools.small(), data, steps=2, batch_size=4, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
