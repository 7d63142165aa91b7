"""Who writes into the folder of a run: a small file that keeps a second process out while the first is alive.

:class:`Owner` claims a folder for this process by a file ``.owner.json`` in it, until ``release``;
:class:`~scoresde.train.Run` makes one before it writes::

    owner = Owner(folder)               # CheckpointError where a live process of this host trains into it
    owner.release()

:func:`refuse_if_owned` only asks; :func:`~scoresde.train.save` calls it before it writes a checkpoint. What a process
that was killed left behind does not count, so no file ever has to be removed by hand.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from scoresde.train.folder import CheckpointError

FILE = ".owner.json"


class Owner:
    """The claim of this process on a folder, until ``release``.

    A claim of a process that is dead, killed for instance, does not count; neither does one of another host, of whose
    processes nothing is known here (a job that was moved must be able to resume), nor one of this very process.

    Args:
        folder: of the run, writable.

    Raises:
        CheckpointError: another process of this host, alive, writes into the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._pid, self._token = folder / FILE, os.getpid(), secrets.token_hex(8)
        mine = {"pid": self._pid, "host": socket.gethostname(), "started": _started(self._pid), "token": self._token}
        draft = folder / f".partial-owner-{self._pid}"
        draft.write_text(json.dumps(mine) + "\n", encoding="utf-8")
        try:
            os.link(draft, self._path)  # of two processes at once, one gets a FileExistsError
        except OSError:  # there is one already, or the file system has no hard links
            refuse_if_owned(folder)
            os.replace(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the folder up, if it has not been claimed anew since; a forked child gives nothing up."""
        if os.getpid() == self._pid and _read(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)


def refuse_if_owned(folder: Path) -> None:
    """Raise if another process of this host that is alive has claimed ``folder``.

    Raises:
        CheckpointError: so it is.
    """
    found = _read(folder / FILE)
    pid = found.get("pid")
    if not isinstance(pid, int) or pid == os.getpid() or found.get("host") != socket.gethostname():
        return
    if alive(pid) and _started(pid) == found.get("started"):
        raise CheckpointError(
            f"{folder} is in use: process {pid} is training into it. Wait for it to end, stop it, or choose another "
            "folder."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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


def _started(pid: int) -> str | None:
    """When the process started, where the system tells: numbers of processes are used again."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field (the state) on; empty where there is no such file."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
