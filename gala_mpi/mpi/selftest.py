"""How well ranks can read each other: latency, bandwidth, whether a busy target is served, whether what comes is right.

Nothing here waits for ever: a rank that is stopped, or an MPI that never completes a get, is what this looks for.
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
SECONDS_FOR_A_GET = 5.0  # before it counts as never complete
SECONDS_TOGETHER = 10.0  # for all to come to the same place
SECONDS_BUSY = 0.4  # that a target computes without a call into MPI
HEADERS, PAYLOADS = 20, 5  # how often each is read; the best counts, which others on the machine disturb least
WORDS = 4096  # float32 that the first gets bring from every neighbour


class Silence(Exception):
    """Somebody has not come within the time."""


@dataclass
class Readings:
    """What one rank found. Seconds, bytes; by rank.

    Attributes:
        error: what MPI said when it could make no window; empty: it could.
        wrong: what was wrong with the first gets.
        latency: of a header. bandwidth: of a message, bytes/s.
        busy: how long a get from a rank that computes took; nan where I was none that reads.
        progressing: the same where it makes progress meanwhile, as agents do.
    """

    error: str = ""
    wrong: list[str] = field(default_factory=list)
    silent: bool = False
    latency: dict[int, float] = field(default_factory=dict)
    bandwidth: dict[int, float] = field(default_factory=dict)
    busy: float = float("nan")
    progressing: float = float("nan")
    target: int = -1  # whom I read in the last two


def run(comm: MPI.Intracomm, length: int, neighbours: Iterable[int]) -> Readings:
    """Read `neighbours` in every way that training does. Collective, but a rank that never comes is not waited for.

    Args:
        length: float32 of a message.
    """
    figures, neighbours = Readings(), list(neighbours)
    try:
        figures.wrong = _first_gets(comm, neighbours)
        if any(comm.allgather(bool(figures.wrong))):
            return figures  # the real transport would wait for what never comes
        mailbox = Mailbox(comm, length)
        mailbox.meet(neighbours)
        _measure(mailbox, neighbours, figures)
        _busy_target(mailbox, figures)
        mailbox.close()
    except MPI.Exception as error:
        figures.error = error.Get_error_string()
    except Silence:
        figures.silent = True
    return figures


def _pattern(rank: int, length: int) -> np.ndarray:
    """float32 [length] that no other rank has, and no shifted part of it."""
    return np.arange(length, dtype=np.float32) * (rank + 1) + rank


def _first_gets(comm: MPI.Intracomm, neighbours: list[int]) -> list[str]:
    """Request-based gets from all neighbours at a time: complete in time, and right. What was wrong."""
    window = MPI.Win.Allocate(4 * WORDS, 1, comm=comm)
    window.Lock_all(MPI.MODE_NOCHECK)
    as_bytes(window.tomemory()).view(np.float32)[:] = _pattern(comm.rank, WORDS)
    window.Sync()
    _together(comm)
    wrong, came = [], {peer: np.full(WORDS, np.nan, np.float32) for peer in neighbours}
    requests = {peer: window.Rget([into, WORDS, MPI.FLOAT], peer, target=[0, WORDS, MPI.FLOAT]) for peer, into in came.items()}
    deadline = time.monotonic() + SECONDS_FOR_A_GET
    for peer, request in requests.items():
        while not (complete := request.Test()) and time.monotonic() < deadline:
            comm.Iprobe()
            time.sleep(0.0005)
        window.Sync()
        if not complete:
            wrong.append(f"a get from rank {peer} was not complete after {SECONDS_FOR_A_GET:g} s")
        elif not np.array_equal(came[peer], _pattern(peer, WORDS)):
            wrong.append(f"a get from rank {peer} was complete and brought something else than what lies there")
    _together(comm)
    if not any(comm.allgather(bool(wrong))):
        window.Unlock_all()
        window.Free()
    return wrong


def _measure(mailbox: Mailbox, neighbours: list[int], figures: Readings) -> None:
    """All ranks at a time, as in training."""
    mailbox.publish(_pattern(mailbox.comm.rank, mailbox.length), 1)
    _together(mailbox.comm, mailbox)
    header, payload = np.zeros(HEADER_BYTES // 8, np.int64), np.zeros(mailbox.length, np.float32)
    for peer in neighbours:
        figures.latency[peer] = min(_timed(mailbox, mailbox.get_header, peer, header) for _ in range(HEADERS))
        best = min(_timed(mailbox, mailbox.get_payload, peer, 1, payload) for _ in range(PAYLOADS))
        figures.bandwidth[peer] = payload.nbytes / best
        if not np.array_equal(payload, _pattern(peer, mailbox.length)):
            figures.wrong.append(f"a message of rank {peer} was complete and is not what it had published")
        _, slots = mailbox.of(peer) or (None, [])
        if slots and not np.array_equal(slots[1], _pattern(peer, mailbox.length)):
            figures.wrong.append(f"rank {peer}'s memory, as MPI_Win_shared_query shows it, is not what it had published")


def _busy_target(mailbox: Mailbox, figures: Readings) -> None:
    """The second half of the ranks computes, without MPI and then with progress; each of the first half reads one of them."""
    rank, half = mailbox.comm.rank, mailbox.comm.size // 2
    reads, computes = rank < half, half <= rank < 2 * half
    payload = np.zeros(mailbox.length, np.float32)
    for name in ("busy", "progressing"):
        _together(mailbox.comm, mailbox)
        end = time.monotonic() + SECONDS_BUSY
        if computes:
            while time.monotonic() < end:
                if name == "progressing":
                    mailbox.progress()
        elif reads:
            time.sleep(SECONDS_BUSY / 4)  # until the target has left MPI
            figures.target = rank + half
            setattr(figures, name, _timed(mailbox, mailbox.get_payload, rank + half, 1, payload))
    _together(mailbox.comm, mailbox)


def _timed(mailbox: Mailbox, get: Callable[..., MPI.Request], *arguments) -> float:
    """Seconds that a get takes."""
    began = time.perf_counter()
    request = get(*arguments)
    while not request.Test():
        mailbox.progress()
        if time.perf_counter() - began > SECONDS_FOR_A_GET:
            raise Silence
    return time.perf_counter() - began


def _together(comm: MPI.Intracomm, mailbox: Mailbox | None = None) -> None:
    """Until all are here, with progress for others; not for ever."""
    everybody, deadline = comm.Ibarrier(), time.monotonic() + SECONDS_TOGETHER
    while not everybody.Test():
        if mailbox:
            mailbox.progress()
        time.sleep(0.0005)
        if time.monotonic() > deadline:
            raise Silence


def gather(comm: MPI.Intracomm, mine: Any, seconds: float) -> dict[int, Any]:
    """On rank 0 what every rank that answers in time gave, elsewhere nothing. Each rank comes here equally often."""
    if comm.rank:
        comm.isend(mine, dest=0, tag=TAG).wait()  # small: it leaves at once
        return {}
    answers, deadline = {0: mine}, time.monotonic() + seconds
    while len(answers) < comm.size and time.monotonic() < deadline:
        for rank in set(range(comm.size)) - answers.keys():
            if comm.iprobe(source=rank, tag=TAG):
                answers[rank] = comm.recv(source=rank, tag=TAG)
        time.sleep(0.001)
    return answers


def memory_refused(node: MPI.Intracomm) -> str:
    """Why the next rank of this host does not let me read its memory (process_vm_readv, "CMA"); empty: it does. Collective."""

    class Vector(ctypes.Structure):  # struct iovec
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    word, copy = ctypes.c_int64(node.rank), ctypes.c_int64(-1)
    pid, address = node.allgather((os.getpid(), ctypes.addressof(word)))[(node.rank + 1) % node.size]
    here, there = Vector(ctypes.addressof(copy), 8), Vector(address, 8)
    libc = ctypes.CDLL(None, use_errno=True)
    read = libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    problem = "" if read == 8 else os.strerror(ctypes.get_errno())
    node.Barrier()  # nobody leaves while it is read
    return problem
