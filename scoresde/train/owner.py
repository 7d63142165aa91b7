"""Who writes into the folder of a run: one run at a time, and no file ever has to be removed by hand.

:class:`Owner` claims a folder by a file ``.owner.json`` in it, until ``release``; :class:`~scoresde.train.Run` makes
one before it writes, and :func:`~scoresde.train.save` holds one while it writes::

    owner = Owner(folder)               # CheckpointError where a run that is alive writes into it
    owner.release()
    with claimed(folder):               # as Owner, unless this process has the folder already
        ...

The claim is a lock (``flock``) on that file, which the system takes back from a process that dies, however it dies.
Where the file system has no locks, the file is made in one step, and holds the number and the start of its process.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scoresde.files import PARTIAL, Fields, read_json
from scoresde.train.folder import CheckpointError, sweep

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".owner.json"
_MOST = 1 << 16  # bytes of such a file


class Owner:
    """The claim of this process on a folder, until ``release``.

    A claim without a lock, by an older version or where there are none, holds while its process lives. That of another
    host does not count then: of its processes nothing is known here, and a job that was moved must be able to resume.
    A child that is forked has no part in its parent's claims.

    What a process that is gone left half-written is swept as soon as the folder is ours, before any room is needed.

    Args:
        folder: of the run, writable.

    Raises:
        CheckpointError: another run, of this process or another one, writes into the folder; or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._token = folder / FILE, secrets.token_hex(8)
        self._lock: int | None = None
        try:
            self._claim(folder)
        except OSError as error:
            self._give_up()
            raise CheckpointError(
                f"cannot claim {folder}: {error}. Choose a folder that you may write, on a disk that has room."
            ) from error
        except BaseException:
            self._give_up()
            raise
        _HELD.add(self)

    def _claim(self, folder: Path) -> None:
        try:
            locked = self._take_lock()
        except _Busy:
            found = _read(self._path)
            if found.get("pid") != os.getpid():
                raise in_use(folder, found) from None
            gc.collect()  # perhaps a run of this process that is out of use, but not yet forgotten
            try:
                locked = self._take_lock()
            except _Busy:
                raise in_use(folder, found) from None
        if locked:
            found = _read(self._path)
            if not found.get("locked") and _lives(found):  # of an older version, which knew no locks
                self._forget()  # and leave the file as it is
                raise in_use(folder, found)
            sweep(folder)
            assert self._lock is not None
            os.ftruncate(self._lock, 0)
            os.write(self._lock, self._content(locked=True))
        else:
            self._take_name(folder)
            sweep(folder)

    def _take_lock(self) -> bool:
        """Lock the file at the path, made where it is missing; False where the file system has no locks.

        Raises:
            _Busy: somebody has.
        """
        if fcntl is None:
            return False
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            foreign = CheckpointError(f"{self._path} is no regular file: remove it.")
            try:
                descriptor = os.open(self._path, flags, 0o666)
            except OSError as error:
                if self._path.is_symlink() or self._path.is_dir():
                    raise foreign from error
                raise
            try:
                kind = os.fstat(descriptor)
                if not stat.S_ISREG(kind.st_mode):
                    raise foreign
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _Busy from None
                except OSError:
                    return False
                if self._is_at_path(descriptor):
                    if kind.st_nlink == 1:
                        self._lock, descriptor = descriptor, -1
                        return True
                    self._path.unlink()  # a name of some other file, or a copy by links: not to be written into
            finally:  # else it was given up, and removed, since it was opened
                if descriptor >= 0:
                    os.close(descriptor)

    def _take_name(self, folder: Path) -> None:
        """Without locks: the file is made whole, in one step, by who comes first."""
        draft = folder / f"{PARTIAL}owner-{self._token}"
        draft.write_bytes(self._content(locked=False))
        try:
            for _ in range(100):
                try:
                    os.link(draft, self._path)
                    return
                except FileExistsError:
                    pass
                found = _read(self._path)
                if _lives(found) or any(owner.holds(folder) for owner in tuple(_HELD)):
                    raise in_use(folder, found)
                stale = folder / f"{PARTIAL}owner-{self._token}-stale"
                with suppress(FileNotFoundError):  # somebody else took it away
                    os.rename(self._path, stale)
                    moved = _read(stale)
                    if moved != found:  # it is the new claim of somebody who was faster: give it back
                        os.rename(stale, self._path)
                        raise in_use(folder, moved)
                    stale.unlink()
            raise in_use(folder, {})
        finally:
            draft.unlink(missing_ok=True)

    def _content(self, *, locked: bool) -> bytes:
        pid = os.getpid()
        mine = {"pid": pid, "host": socket.gethostname(), "started": started(pid), "token": self._token}
        return (json.dumps({**mine, "locked": locked}) + "\n").encode()

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def holds(self, folder: Path) -> bool:
        """Whether it is the claim on that folder, and has not been lost with its file."""
        try:
            if not os.path.samestat(os.stat(folder), os.stat(self._path.parent)):
                return False
        except OSError:
            return False
        if self._lock is not None:
            return self._is_at_path(self._lock)
        return _read(self._path).get("token") == self._token

    def release(self) -> None:
        """Give the folder up, if it has not been claimed anew since; never raises, for it ends what went wrong."""
        if self in _HELD:  # else given up already, or by a forked child, whose it is not
            _HELD.discard(self)
            self._give_up()

    def _give_up(self) -> None:
        with suppress(OSError):
            mine = _read(self._path).get("token") == self._token if self._lock is None else self._is_at_path(self._lock)
            if mine:
                self._path.unlink()  # before the lock is gone: later it may be another's
        self._forget()

    def _forget(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, the folder is this process's: by a run that has it already, or by a claim for the block.

    Raises:
        CheckpointError: another process has it.
    """
    if any(owner.holds(folder) for owner in tuple(_HELD)):
        yield
        return
    owner = Owner(folder)
    try:
        yield
    finally:
        owner.release()


def in_use(folder: Path, found: dict[str, Any]) -> CheckpointError:
    """The error for a folder with that claim on it."""
    pid, host = found.get("pid"), found.get("host")
    if pid == os.getpid() and host == socket.gethostname():
        return CheckpointError(
            f"{folder} is in use: another run of this process trains into it. End it by run.close(), or choose another "
            "folder."
        )
    where = "" if host in (None, socket.gethostname()) else f" of the host {host}"
    return CheckpointError(
        f"{folder} is in use: {'another process' if pid is None else f'process {pid}'}{where} is training into it. "
        "Wait for it to end, stop it, or choose another folder."
    )


_HELD: set[Owner] = set()
"""The claims of this process."""


class _Busy(Exception):
    """Somebody has the lock."""


def _forked() -> None:
    """In a forked child: its copies of the locks would outlive the parent."""
    for owner in _HELD:
        owner._forget()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _lives(found: dict[str, Any]) -> bool:
    """Whether a claim is of another process of this host that is alive."""
    pid = found.get("pid")
    if pid is None or pid == os.getpid() or found["host"] != socket.gethostname():
        return False
    return alive(pid) and started(pid) == found["started"]


def _read(path: Path) -> dict[str, Any]:
    """What an owner's file says; nothing where it is missing or makes no sense."""
    try:
        fields = Fields(read_json(path, ValueError, most=_MOST), ValueError)
        return {
            "pid": fields.whole("pid", least=1, most=2**31 - 1),
            "host": fields.text("host"),
            "started": None if fields.null("started") else fields.text("started"),
            "token": fields.text("token"),
            "locked": False if fields.null("locked") else fields.flag("locked"),
        }
    except (OSError, ValueError):
        return {}


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this host; False where that cannot be known."""
    if os.name != "posix":  # elsewhere signal 0 is not harmless
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return _stat(pid)[:1] not in (["Z"], ["X"])  # killed, but its parent has not taken notice yet


def started(pid: int) -> str | None:
    """When the process started, where the system tells: numbers of processes are used again."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field (the state) on; empty where there is no such file."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
