"""The machine as a process sees it, and its memory allocator. Reads files of Linux only: no MPI, no child process."""

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
BYTES_OF_MPI = 8 << 20  # of /dev/shm that MPI itself takes per rank: 5.2 MiB for MPICH 5 with UCX, and more at times
# Environment variables by which launchers tell a rank how many ranks are on its host, and which of them it is.
LOCAL_SIZE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True)
class HostView:
    """A host as one rank sees it. Sizes in bytes; cores may be fractions, because of a quota.

    Attributes:
        host: its name.
        cores: those that the affinity masks of its ranks allow, within the cgroup's quota.
        share: this rank's share of these cores; a core is split evenly over the ranks that may use it.
        shm_free, shm_size: of /dev/shm, where the windows of ranks on one host lie.
        shm_problem: why /dev/shm cannot be written; empty if it can.
        memory_free: memory that can still be used, within the cgroup's limit.
        memory_size: memory of the host.
        memory_held: memory that this rank has already, and shares with no other process.
    """

    host: str
    cores: float
    share: float
    shm_free: int
    shm_size: int
    shm_problem: str
    memory_free: int
    memory_size: int
    memory_held: int = 0

    @property
    def threads(self) -> int:
        """The number of threads for this rank: the whole cores in its share, 1 or more."""
        return max(1, int(self.share + 1e-9))


def imports_main_again() -> bool:
    """Return whether multiprocessing has started this process and imports the main program in it (spawn, forkserver)."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and getattr(process.current_process(), "_inheriting", False)


def view(host: str, masks: list[set[int]], own_mask: set[int]) -> HostView:
    """Return this host's present state.

    Args:
        host: its name.
        masks: for each rank on it, the cores that the rank may use.
        own_mask: the cores that this rank may use.
    """
    cores = min(len(set.union(*masks)), cgroup_cores())
    share = min(sum(1 / sum(core in mask for mask in masks) for core in own_mask), cgroup_cores() / len(masks))
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        free, size = usage.free, usage.total
    except OSError:
        free, size = 0, 0
    memory = memory_free(), _memory("MemTotal"), memory_held()
    return HostView(host, cores, share, free, size, _write_problem(SHARED_MEMORY), *memory)


def idle_cores(views: list[HostView]) -> dict[str, float]:
    """Return how many cores of each host no rank has for its threads, by the views of all ranks; less than 0: there are not
    enough."""
    threads: dict[str, int] = {}
    for each in views:
        threads[each.host] = threads.get(each.host, 0) + each.threads
    return {each.host: each.cores - threads[each.host] for each in views}


def rank_on_this_host() -> int:
    """Return this rank's number among those of its host, from the launcher, before MPI has started; 0 without a launcher."""
    return next((int(os.environ[name]) for name in LOCAL_RANK if name in os.environ), 0)


def refuse_tiny_shared_memory(status: int) -> None:
    """End this process with a message if /dev/shm is so small that MPI would crash at its start (SIGSEGV or SIGBUS).

    To be called before MPI is imported.

    Raises:
        SystemExit: with `status`.
    """
    text = next((os.environ[name] for name in LOCAL_SIZE if name in os.environ), "1")
    ranks = int(re.sub(r"\D.*", "", text))  # Slurm writes 4(x2) for two hosts
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
    """Return how many cores this process's cgroup may use at a time (cgroup v2's cpu.max); infinite without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return float("inf")


def memory_free() -> int:
    """Return the bytes that can be used without swapping, within the cgroup's limit (cgroup v2's memory.max)."""
    free = _memory("MemAvailable")
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        return min(free, limit - used)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return free


def memory_held() -> int:
    """Return the bytes of this process that no other one shares; 0 where the kernel does not say."""
    try:
        with open("/proc/self/smaps_rollup") as file:
            return sum(1024 * int(line.split()[1]) for line in file if line.startswith("Private_"))
    except OSError:
        return 0


def _memory(name: str) -> int:
    """Return an entry of /proc/meminfo, in bytes."""
    with open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def file_system(path: Path) -> str:
    """Return the type of the file system at `path`, such as ext4, nfs4 or lustre; "unknown" if it is not mounted."""
    with open("/proc/self/mounts") as file:
        mounts = {Path(line.split()[1]): line.split()[2] for line in file}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "unknown")


def _write_problem(folder: Path) -> str:
    """Return the error message of creating a file in `folder`; empty if that works."""
    path = folder / f"gala_mpi.{socket.gethostname()}.{os.getpid()}"
    try:
        path.touch()
        path.unlink()
        return ""
    except OSError as error:
        return error.strerror or str(error)


# Memory.
#
# glibc's aligned allocation (2.36) cannot reuse a free block of exactly the size asked for, so a gradient of 3 MB that is
# allocated and freed at every step leaves holes in the heap as soon as a small block lies behind it. Seen: 11 GB of free
# blocks of one size, on one rank of two, after 23,000 updates. Large blocks that are mapped instead of taken from the heap go
# back to the system when they are freed. The small blocks were MPICH's records of gets (`mpi/window.py`); they are flushed by
# now and the heap no longer grows, but other small blocks could do the same.
#
# Smaller blocks are better kept: glibc gives the end of the heap back when 128 kB of it are free, and a gradient of 2 MB
# that is allocated there and freed at every update costs 500 page faults.

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 21  # bytes
SPARE = 1 << 23  # bytes


def tune_malloc() -> None:
    """Map blocks of 2 MiB and more from now on, and keep up to 8 MiB of the heap's end. Without glibc, do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, SPARE)
