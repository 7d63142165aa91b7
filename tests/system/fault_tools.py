"""Processes to be killed, disks to be filled and files to be spoilt: what test_faults.py is made of."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde.train.owner as owner_module
from scoresde.data import Dataset, from_tensors
from scoresde.models import ScoreModel
from scoresde.nn import MLP
from scoresde.sde import VP
from scoresde.train import CheckpointError, Run, describe, train
from scoresde.train.contents import read_tensors
from scoresde.train.owner import Owner

# Children are forked from one process that has trained already: what that imports takes seconds.
PROCESSES: Any = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fault_warm"])

NAMES = ["config.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "training.json"]


# -- a small run -------------------------------------------------------------------------------------------------------


def points() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=generator)
    return from_tensors(x, torch.arange(30) % 3, class_names=["one", "two", "three"])


def small(width: int = 4) -> ScoreModel:
    net = MLP(2, width=width, depth=1, num_classes=3, dropout=0.2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ScoreModel(net, VP())


OPTIONS: dict[str, Any] = {
    "steps": 24, "batch_size": 4, "lr": 1e-2, "decay": "cosine", "warmup": 2, "ema": 0.5, "log_every": 1,
    "save_every": 2, "progress": False, "cpu": True,
}  # fmt: skip


def start(folder: Path, *, width: int = 4, **options: Any) -> Run[ScoreModel]:
    torch.set_num_threads(1)  # sums over several round differently, and forks have none
    return train(small(width), points(), folder=folder, resume=True, **{**OPTIONS, **options})


def finish(folder: Path, **options: Any) -> int:
    """Train to the end; how many steps that took."""
    return len(list(start(folder, **options)))


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    described = describe(checkpoint)
    found = {}
    for name in NAMES[1:4]:
        if name in described.files:
            found.update({f"{name}:{key}": value for key, value in read_tensors(described, name).items()})
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def filled(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


# -- processes ---------------------------------------------------------------------------------------------------------


def child(job: Callable[..., Any], *args: Any) -> Any:
    """A process that runs a function; it is started."""
    with pytest.MonkeyPatch.context() as patch:  # where the process that forks finds what it is to import
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]))
        forkserver.ensure_running()
    process = PROCESSES.Process(target=job, args=args, daemon=True)
    process.start()
    return process


def within(job: Callable[..., Any], *args: Any, seconds: float = 300) -> Any:
    """What a function returns in a process of its own; AssertionError where it raises, crashes or does not end."""
    receive, send = PROCESSES.Pipe(duplex=False)
    process = child(_answer, send, job, args)
    send.close()
    try:
        assert receive.poll(seconds), f"{job.__name__}{args} does not end"
        result, failure = receive.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{job.__name__}{args} crashed: exit status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    assert failure is None, failure
    return result


def _answer(send: Any, job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        send.send((job(*args), None))
    except BaseException:
        send.send((None, traceback.format_exc()))


def killed_while(job: Callable[..., Any], *args: Any, after: float) -> bool:
    """Start a function in a process and kill that so many seconds later; whether it was killed before its end."""
    process = child(job, *args)
    process.join(after)
    process.kill()
    process.join()
    return bool(process.exitcode == -9)


def forked(job: Callable[[], Any]) -> int:
    """Run a function in a forked child of this very process, which shares its mounts; the wait status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            job()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def claims(folder: str, rounds: int, locks: bool, barrier: Any, won: Any, index: int) -> None:
    """In each round both processes find a stale claim, and claim the folder at once; who got it is noted in ``won``."""
    if not locks:
        owner_module.fcntl = None  # type: ignore[assignment]
    stale = {"pid": 2**31 - 1, "host": socket.gethostname(), "started": "1", "token": "x"}
    for turn in range(rounds):
        if index == 0:
            (Path(folder) / ".owner.json").write_text(json.dumps(stale))
        barrier.wait(60)
        owner = None
        with suppress(CheckpointError):
            owner = Owner(Path(folder))
        won[2 * turn + index] = owner is not None
        barrier.wait(60)  # both have tried
        if owner is not None:
            owner.release()
        barrier.wait(60)


# -- small disks -------------------------------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER, PRIVATE, BIND, REMOUNT, READ_ONLY, DETACH = 0x20000, 0x10000000, 0x44000, 0x1000, 0x20, 0x1, 0x2


def call(name: str, *args: Any) -> None:
    """A function of the C library, or its error as an OSError."""
    if getattr(LIBC, name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount_small(folder: Path, megabytes: int = 3) -> None:
    """A disk of a few MB at ``folder``, for this process and its children; OSError where the user may not."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEW_MOUNTS | (NEW_USER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call("mount", b"none", b"/", None, PRIVATE, None)
    folder.mkdir(parents=True, exist_ok=True)
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=%dm" % megabytes)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing below a folder can be written."""
    name = os.fsencode(folder)
    call("mount", name, name, None, BIND, None)
    call("mount", None, name, None, BIND | REMOUNT | READ_ONLY, None)
    try:
        yield
    finally:
        call("umount2", name, DETACH)


def may_mount(folder: str) -> str:
    """Why this user may not mount; empty where it may."""
    try:
        mount_small(Path(folder))
    except OSError as error:
        return str(error)
    return ""


@contextmanager
def room(folder: Path, free: int) -> Iterator[None]:
    """Inside, the disk has about so many bytes left."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            disk = os.statvfs(folder)
            left = disk.f_bavail * disk.f_frsize - free
            while left > 0:
                left -= file.write(b"\0" * min(left, 1 << 16))
        yield
    finally:
        ballast.unlink()


def stat_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def restored(folder: Path, before: dict[str, bytes]) -> None:
    """Bring a folder back to what ``stat_of`` saw."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if str(path.relative_to(folder)) not in before:
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink()
    for name, content in before.items():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        spoilt = path.is_symlink() or not path.is_file() or path.stat().st_size != len(content)
        if spoilt or path.read_bytes() != content:
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def moments(seed: int, count: int, longest: float) -> list[float]:
    """When to kill."""
    draw = random.Random(seed)
    return [draw.uniform(0.0, longest) for _ in range(count)]


def took(job: Callable[..., Any], *args: Any) -> float:
    """Seconds that a function takes in a process of its own, its start included."""
    before = time.perf_counter()
    within(job, *args)
    return time.perf_counter() - before
