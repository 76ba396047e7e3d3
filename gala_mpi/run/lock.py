"""One job at a time trains in a run directory: two would write the same checkpoint numbers.

Who trains holds a lock of the file `.lock`, in which it says who it is. The system lets go of it when the process ends, however
it does. Not every file system has locks, and some only among processes of one host; so the holder also touches the file every
ten seconds. A holder on another host that does not show by a lock counts as long as it is seen to do that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from gala_mpi.errors import SettingError

SECONDS_BETWEEN_BEATS = 10.0
SECONDS_TO_WATCH = 25.0  # for a beat of a holder on another host
SECONDS_OF_A_CORPSE = 120.0  # without a beat, after which it is not watched for; more than clocks differ

_held: list[int] = []  # file descriptors; closing one would give up the lock


def take(run: Path) -> None:
    """Become the job that trains in `run`, a directory that is there, until this process ends or calls `release`.

    Raises:
        SettingError: another job trains there; nothing was written.
        OSError: the directory cannot be written.
    """
    path = run / ".lock"
    holder = _holder(path)
    file, locked = _locked(path, run, holder)
    if holder and (holder["host"] != socket.gethostname() or not locked):
        os.close(file)  # watching opens the file again, and closes it, which gives up every lock of this process
        if _lives(path, holder):
            raise _refusal(run, holder)
        file, locked = _locked(path, run, holder)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
    text = json.dumps(me | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode()
    os.ftruncate(file, 0)
    os.pwrite(file, text, 0)
    _hold(file)


def share(run: Path) -> None:
    """Hold the lock with the rank that has taken it, and may die before this one. To be called once it has."""
    _hold(os.open(run / ".lock", os.O_RDWR))


def release() -> None:
    """Say that nobody trains here any more."""
    while _held:
        file = _held.pop()
        with suppress(OSError):
            os.ftruncate(file, 0)
        os.close(file)


def _hold(file: int) -> None:
    """Hold the lock together with others, against those who want it for themselves, and touch the file from now on."""
    with suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    _held.append(file)
    threading.Thread(target=_beat, args=[file], daemon=True, name="lock").start()


def _beat(file: int) -> None:
    while file in _held:
        with suppress(OSError):
            os.utime(file)
        time.sleep(SECONDS_BETWEEN_BEATS)


def _locked(path: Path, run: Path, holder: dict) -> tuple[int, bool]:
    """Open the file and lock it for this process alone; return whether the file system can do that, too."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file, True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return file, False
        os.close(file)
        raise _refusal(run, holder or _holder(path)) from None


def _holder(path: Path) -> dict:
    """Return who holds the lock by what the file says; empty: nobody, or it says nothing yet."""
    try:
        holder = json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and {"host", "pid", "since"} <= holder.keys() else {}


def _lives(path: Path, holder: dict) -> bool:
    """Return whether a holder that no lock shows is there all the same."""
    first = _last_beat(path)
    if time.time() - first / 1e9 > SECONDS_OF_A_CORPSE:
        return False
    if holder["host"] == socket.gethostname():
        return Path(f"/proc/{holder['pid']}").exists()
    until = time.monotonic() + SECONDS_TO_WATCH
    while time.monotonic() < until:
        time.sleep(1)
        if _last_beat(path) != first:
            return True
    return False


def _last_beat(path: Path) -> int:
    """Return when the file was last touched, in ns. It is opened, since NFS then asks its server."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _refusal(run: Path, holder: dict) -> SettingError:
    job = f", Slurm job {holder['job']}" if holder.get("job") else ""
    who = f"process {holder['pid']} on {holder['host']}{job}, since {holder['since']}" if holder else "another process"
    return SettingError(f"--run-dir {run}: a job trains there ({who}); a run that no job trains is expected")
