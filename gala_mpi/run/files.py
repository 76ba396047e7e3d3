"""Writing files that a kill leaves whole: the old one or the new one, never half of one.

* `atomic`: a file is built in memory, written under a temporary name, synced and renamed.
* `replaced`: a file that something else writes, likewise.
* `first`: a small file that one of many creates, whole, and nobody changes.

Tables of metrics, which grow, have a way of their own (`tables.py`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from gala_mpi.errors import DiskError

BLOCK = 4096
SECONDS_TO_CHANGE = 60.0  # a file that others change at the same time; it takes one of them milliseconds
Node = Any  # a file, group or dataset: by h5py's own types each may be any of them, and nothing could be done with it


@contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """Create an HDF5 file that appears at `path`, whole and on disk, when the block ends; if it raises, nothing appears.

    The file is built in memory, because HDF5 itself crashes where a disk is full.

    Raises:
        DiskError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    # The format of HDF5 1.10 has checksums of its own structure, so that damage is an error and not a crash.
    with h5py.File(temporary, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    try:
        with naming(path):
            _write_image(temporary, image)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there appears at `path`, whole and on disk, when the block ends. If
    it raises, nothing appears.

    Raises:
        DiskError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):  # root would replace /dev/null by a file
        raise DiskError(f"{path} cannot be written: it is a device or a pipe")
    try:
        with naming(path):
            temporary.touch()  # whether that is possible is known at once
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.absolute().parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def reading(path: Path) -> Iterator[Node]:
    """Open an HDF5 file, read only. No lock is taken: files never change under a reader, and NFS may refuse locks."""
    with h5py.File(path, "r", locking=False) as file:
        yield file


def try_lock(folder: Path) -> str:
    """Create and lock an HDF5 file in `folder`, as h5py does by default. Return what goes wrong; empty: nothing."""
    path = folder / f".lock.{socket.gethostname()}.{os.getpid()}.h5"
    try:
        h5py.File(path, "w", locking=True).close()
        return ""
    except OSError as error:
        return str(error)
    finally:
        with suppress(OSError):
            path.unlink()


def _write_image(path: Path, image: bytes) -> None:
    """Write a file whose blocks of zeros are holes, which take no space on disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.truncate(file, len(image))
        for start in range(0, len(image), BLOCK):
            block = image[start : start + BLOCK]
            if block.count(0) < len(block):
                write_at(file, block, start)
        os.fsync(file)
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first(path: Path, text: str) -> bool:
    """Create `path` with `text`, whole. Return False if it is there already; it then stays as it is. One of many wins."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with naming(path):
            path.parent.mkdir(exist_ok=True)
            temporary.write_text(text)
            sync(temporary)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` to a file descriptor, from byte `offset` on."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def revised(path: Path) -> Iterator[Any]:
    """Change `path`: yield a copy of its contents, which replaces it atomically when the block ends.

    One process at a time, where the file system has locks: else what another one adds meanwhile would be lost.

    Raises:
        DiskError: it cannot be written, or others have been changing it for a minute.
    """
    with _alone(path), atomic(path) as file:
        if path.exists():
            with reading(path) as old:
                file.attrs.update(old.attrs)
                for name in old:
                    old.copy(name, file)  # external links stay links
        yield file


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for `path`. Raises DiskError after a minute."""
    lock = path.with_name(f".{path.name}.lock")
    with naming(lock):
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        until = time.monotonic() + SECONDS_TO_CHANGE
        while not _locked(file):
            if time.monotonic() > until:
                raise DiskError(f"{path} cannot be written: another process has held {lock} for {SECONDS_TO_CHANGE:.0f} s")
            time.sleep(0.02)
        yield
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    """Return whether the file is now locked by this process, or cannot be by any."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # else a file system without locks
    return True
