"""Self-test of the transport: latency, bandwidth, whether a busy target is served, whether gets return the right data.

Nothing here waits for ever, because a stopped rank and an MPI that never completes a get are among the faults to be found.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.mailbox import HEADER_BYTES, Mailbox
from gala_mpi.mpi.window import as_bytes

TAG = 4711
SECONDS_FOR_A_GET = 5.0  # after which it counts as never complete
SECONDS_TOGETHER = 10.0  # for all ranks to reach the same barrier
SECONDS_BUSY = 0.4  # for which a target computes without a call into MPI
HEADERS, PAYLOADS = 20, 5  # how often each is read; the fastest counts, which other processes disturb least
WORDS = 4096  # float32 that the first gets read from every neighbour


class NoAnswer(Exception):
    """A get, or another rank, took longer than its limit."""


@dataclass
class Readings:
    """What one rank measured. Times in seconds.

    Attributes:
        error: MPI's message if it could not make a window; empty if it could.
        faults: what was wrong with the gets, one text each.
        timed_out: whether a get, or another rank, took longer than its limit.
        latency: peer → the shortest time to read a header.
        bandwidth: peer → the highest rate of reading a message, bytes/s.
        busy: how long a get took from a rank that computes outside MPI; nan if this rank read none.
        busy_with_progress: the same where that rank makes progress while it computes, as agents do.
        target: the rank that was read for the last two; -1 if none.
    """

    error: str = ""
    faults: list[str] = field(default_factory=list)
    timed_out: bool = False
    latency: dict[int, float] = field(default_factory=dict)
    bandwidth: dict[int, float] = field(default_factory=dict)
    busy: float = float("nan")
    busy_with_progress: float = float("nan")
    target: int = -1


def run(comm: MPI.Intracomm, length: int, neighbours: Iterable[int]) -> Readings:
    """Read `neighbours` in every way that training does. Collective, but a rank that never comes is not waited for.

    Args:
        length: how many float32 a message holds.
    """
    readings, neighbours = Readings(), list(neighbours)
    try:
        readings.faults = _first_gets(comm, neighbours)
        if any(comm.allgather(bool(readings.faults))):
            return readings  # the transport itself would wait for ever
        mailbox = Mailbox(comm, length)
        mailbox.meet(neighbours)
        _measure(mailbox, neighbours, readings)
        _busy_target(mailbox, readings)
        mailbox.close()
    except MPI.Exception as error:
        readings.error = error.Get_error_string()
    except NoAnswer:
        readings.timed_out = True
    return readings


def _pattern(rank: int, length: int) -> np.ndarray:
    """Return float32 [length] that differ from those of every other rank, also where either is shifted."""
    return np.arange(length, dtype=np.float32) * (rank + 1) + rank


def _first_gets(comm: MPI.Intracomm, neighbours: list[int]) -> list[str]:
    """Read all neighbours at the same time by request-based gets, and return what was wrong with them. Collective."""
    window = MPI.Win.Allocate(4 * WORDS, 1, comm=comm)
    window.Lock_all(MPI.MODE_NOCHECK)
    as_bytes(window.tomemory()).view(np.float32)[:] = _pattern(comm.rank, WORDS)
    window.Sync()
    _together(comm)
    faults, received = [], {peer: np.full(WORDS, np.nan, np.float32) for peer in neighbours}
    requests = {
        peer: window.Rget([into, WORDS, MPI.FLOAT], peer, target=[0, WORDS, MPI.FLOAT]) for peer, into in received.items()
    }
    deadline = time.monotonic() + SECONDS_FOR_A_GET
    for peer, request in requests.items():
        while not (complete := request.Test()) and time.monotonic() < deadline:
            comm.Iprobe()
            time.sleep(0.0005)
        window.Sync()
        if not complete:
            faults.append(f"a get from rank {peer} was not complete after {SECONDS_FOR_A_GET:g} s")
        elif not np.array_equal(received[peer], _pattern(peer, WORDS)):
            faults.append(f"a get from rank {peer} was complete but returned something else than what its memory holds")
    _together(comm)
    if not any(comm.allgather(bool(faults))):
        window.Unlock_all()
        window.Free()
    return faults


def _measure(mailbox: Mailbox, neighbours: list[int], readings: Readings) -> None:
    """Measure latency and bandwidth, on all ranks at the same time as in training."""
    mailbox.publish(_pattern(mailbox.comm.rank, mailbox.length), 1)
    _together(mailbox.comm, mailbox)
    header, payload = np.zeros(HEADER_BYTES // 8, np.int64), np.zeros(mailbox.length, np.float32)
    for peer in neighbours:
        readings.latency[peer] = min(_timed(mailbox, mailbox.get_header, peer, header) for _ in range(HEADERS))
        best = min(_timed(mailbox, mailbox.get_payload, peer, 1, payload) for _ in range(PAYLOADS))
        readings.bandwidth[peer] = payload.nbytes / best
        if not np.array_equal(payload, _pattern(peer, mailbox.length)):
            readings.faults.append(f"a message from rank {peer} was complete but is not what it has published")
        _, slots = mailbox.shared_view(peer) or (None, [])
        if slots and not np.array_equal(slots[1], _pattern(peer, mailbox.length)):
            readings.faults.append(f"rank {peer}'s memory, as MPI_Win_shared_query shows it, is not what it has published")


def _busy_target(mailbox: Mailbox, readings: Readings) -> None:
    """Measure gets from ranks that compute.

    The second half of the ranks computes, first outside MPI and then making progress; each of the first half reads one of them.
    """
    rank, half = mailbox.comm.rank, mailbox.comm.size // 2
    reads, computes = rank < half, half <= rank < 2 * half
    payload = np.zeros(mailbox.length, np.float32)
    for name in ("busy", "busy_with_progress"):
        _together(mailbox.comm, mailbox)
        end = time.monotonic() + SECONDS_BUSY
        if computes:
            while time.monotonic() < end:
                if name == "busy_with_progress":
                    mailbox.progress()
        elif reads:
            time.sleep(SECONDS_BUSY / 4)  # until the target has left MPI
            readings.target = rank + half
            setattr(readings, name, _timed(mailbox, mailbox.get_payload, rank + half, 1, payload))
    _together(mailbox.comm, mailbox)


def _timed(mailbox: Mailbox, get: Callable[..., MPI.Request], *arguments) -> float:
    """Return how long a get takes, in seconds.

    Raises:
        NoAnswer: it is not complete after SECONDS_FOR_A_GET.
    """
    began = time.perf_counter()
    request = get(*arguments)
    while not request.Test():
        mailbox.progress()
        if time.perf_counter() - began > SECONDS_FOR_A_GET:
            raise NoAnswer
    return time.perf_counter() - began


def _together(comm: MPI.Intracomm, mailbox: Mailbox | None = None) -> None:
    """Wait until all ranks are here, making progress for the others.

    Raises:
        NoAnswer: they are not here after SECONDS_TOGETHER.
    """
    everybody, deadline = comm.Ibarrier(), time.monotonic() + SECONDS_TOGETHER
    while not everybody.Test():
        if mailbox:
            mailbox.progress()
        time.sleep(0.0005)
        if time.monotonic() > deadline:
            raise NoAnswer


def gather(comm: MPI.Intracomm, answer: Any, seconds: float) -> dict[int, Any]:
    """Return rank → answer on rank 0, of the ranks that answer within `seconds`; nothing elsewhere.

    Every rank must call this equally often.
    """
    if comm.rank:
        comm.isend(answer, dest=0, tag=TAG).wait()  # small enough to be sent at once
        return {}
    answers, deadline = {0: answer}, time.monotonic() + seconds
    while len(answers) < comm.size and time.monotonic() < deadline:
        for rank in set(range(comm.size)) - answers.keys():
            if comm.iprobe(source=rank, tag=TAG):
                answers[rank] = comm.recv(source=rank, tag=TAG)
        time.sleep(0.001)
    return answers


def memory_refused(node: MPI.Comm) -> str:
    """Return why this rank may not read the memory of the next one on its host (process_vm_readv, "CMA"); empty if it may.

    Collective.
    """

    class Vector(ctypes.Structure):  # struct iovec
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    word, copy = ctypes.c_int64(node.rank), ctypes.c_int64(-1)
    pid, address = node.allgather((os.getpid(), ctypes.addressof(word)))[(node.rank + 1) % node.size]
    local, remote = Vector(ctypes.addressof(copy), 8), Vector(address, 8)
    libc = ctypes.CDLL(None, use_errno=True)
    read = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    problem = "" if read == 8 else os.strerror(ctypes.get_errno())
    node.Barrier()  # no rank may leave while its memory is read
    return problem
