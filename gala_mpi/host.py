"""What a process sees of the machine that it runs on. Files of Linux alone: no MPI, no child process."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
ENLARGE = "mount -o remount,size=8G /dev/shm; in a container --shm-size=8g or --ipc=host"
BYTES_OF_MPI = 8 << 20  # that MPI itself takes there for each rank of a host: MPICH 5 with UCX 5.2 MiB, and more at times
# What launchers tell a rank: how many are on its host, and which of them it is.
ON_THIS_HOST = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
WHICH_OF_THEM = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True)
class HostView:
    """One rank's view. Bytes, and cores as a number that a quota may make broken.

    Attributes:
        host: its name.
        cores: that the affinity mask allows, within the cgroup's quota.
        share: of these cores that are this rank's own, each core split over the ranks that may use it.
        shm_free, shm_size: of /dev/shm, where the windows of ranks on one host lie; shm_problem: why nothing can be
            written there, or empty.
        memory_free: what can still be used, within the cgroup's limit; memory_size: what the host has.
    """

    host: str
    cores: float
    share: float
    shm_free: int
    shm_size: int
    shm_problem: str
    memory_free: int
    memory_size: int

    @property
    def threads(self) -> int:
        """Of a rank: as many as whole cores are its own, 1 or more."""
        return max(1, int(self.share + 1e-9))


def view(host: str, masks: list[set[int]], mine: set[int]) -> HostView:
    """This machine now.

    Args:
        host: its name.
        masks: the cores that each rank on it may use.
        mine: those that I may use.
    """
    cores = min(len(set.union(*masks)), cgroup_cores())
    share = min(sum(1 / sum(core in mask for mask in masks) for core in mine), cgroup_cores() / len(masks))
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        free, size = usage.free, usage.total
    except OSError:
        free, size = 0, 0
    return HostView(host, cores, share, free, size, _why_not_writable(SHARED_MEMORY), memory_free(), _memory("MemTotal"))


def rank_on_this_host() -> int:
    """Which of this host's ranks I am, as the launcher says, before MPI does; 0 without one."""
    return next((int(os.environ[name]) for name in WHICH_OF_THEM if name in os.environ), 0)


def refuse_tiny_shared_memory(status: int) -> None:
    """End this process, with a word, where MPI would crash at its start (SIGSEGV or SIGBUS). To be called before."""
    told = next((os.environ[name] for name in ON_THIS_HOST if name in os.environ), "1")
    ranks = int(re.sub(r"\D.*", "", told))  # Slurm says 4(x2) for two hosts
    if ranks == 1 or not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, ranks * BYTES_OF_MPI
    if free >= needed:
        return
    if rank_on_this_host() == 0:
        print(
            f"gala_mpi: {SHARED_MEMORY} on {socket.gethostname()} has {free / 2**20:.0f} MiB free; MPI alone needs "
            f"{needed / 2**20:.0f} MiB for {ranks} ranks: enlarge it ({ENLARGE})",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(status)


def cgroup_cores() -> float:
    """Cores that this process's cgroup may use at a time (cgroup v2's cpu.max); infinite without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return float("inf")


def memory_free() -> int:
    """Bytes that new processes can use without swapping, within the cgroup's limit (cgroup v2's memory.max)."""
    free = _memory("MemAvailable")
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        return min(free, limit - used)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return free


def _memory(name: str) -> int:
    """A line of /proc/meminfo, bytes."""
    with open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def file_system(path: Path) -> str:
    """Of which type it is there: ext4, nfs4, lustre."""
    with open("/proc/self/mounts") as file:
        mounts = {Path(line.split()[1]): line.split()[2] for line in file}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "unknown")


def _why_not_writable(folder: Path) -> str:
    """What the system says to a new file there; empty: it takes one."""
    path = folder / f"gala_mpi.{socket.gethostname()}.{os.getpid()}"
    try:
        path.touch()
        path.unlink()
        return ""
    except OSError as error:
        return error.strerror or str(error)


# Memory.
#
# glibc's aligned allocation cannot reuse a free block of exactly the size asked for (2.36), so a gradient of 3 MB that is
# allocated and freed at every step leaves holes in the heap as soon as something small comes to lie behind it. Seen: 11 GB of
# free blocks of one size, on one rank of two, after 23,000 updates. Large blocks that are mapped instead of carved from the
# heap go back to the system when they are freed. Such small things were MPICH's notes of gets (`mpi/window.py`); without
# them the heap stays as it is, and this guards against others.
#
# Smaller ones are better kept: glibc gives the end of the heap back when 128 kB of it are free, and a gradient of 2 MB
# that is allocated there and freed at every update costs 500 page faults.

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 21  # bytes
SPARE = 1 << 23  # bytes


def tune() -> None:
    """Map blocks of 2 MiB and more from now on, and keep up to 8 MiB of the heap's end. Without glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, SPARE)
