"""Every rank knows every rank's row, soon, and never counts steps that nobody has done."""

from __future__ import annotations

import math
import time
from contextlib import closing

import pytest
from test_mailbox import wait_for

from gala_mpi.mpi.live_board import COLUMNS, STEPS, LiveBoard


def row(rank: int, update: int) -> dict[str, float]:
    """Every number differs, and says whose it is and when."""
    return {column: 1e6 * update + 10 * rank + place for place, column in enumerate(COLUMNS)}


def taken(board: LiveBoard) -> bool:
    """Take what has come, without another question; return whether nothing is on its way."""
    for peer in list(board._asked):
        board._take(peer)
    return not board._asked


def test_all_know_all_from_the_start(comm):
    with closing(LiveBoard(comm, updates=comm.rank, steps=7 * comm.rank)) as board:
        assert board.steps == 7 * sum(range(comm.size))


def test_a_row_gets_to_all_in_log2_n_rounds(comm):
    """Ranks that take turns: a round is a read by each of them. Over a network a read takes several."""
    hops = math.ceil(math.log2(comm.size))
    with closing(LiveBoard(comm)) as board:
        board.post(**row(comm.rank, 1))
        comm.Barrier()
        for _ in range(hops):
            board.poll()
            wait_for(lambda: taken(board))
            comm.Barrier()
        assert board.rows.tolist() == [list(row(rank, 1).values()) for rank in range(comm.size)]


def test_the_count_only_grows_and_is_never_too_high(comm):
    """Of ranks that post at their own pace."""
    updates = 200
    with closing(LiveBoard(comm)) as board:
        counted = [0]
        for update in range(1, updates + 1):
            board.post(**dict.fromkeys(COLUMNS, 0.0) | {"updates": update, "steps": 10 * update})
            board.poll()
            counted.append(board.steps)
            time.sleep(0.0005 * (comm.rank + 1))
        assert counted == sorted(counted)
        assert counted[-1] <= 10 * updates * comm.size
        wait_for(lambda: board.poll() or board.steps == 10 * updates * comm.size)


def test_who_has_ended_passes_on_what_others_do(comm):
    """Rank 0 posts no more, and waits for the others with an eye on the board, as at the end of a run."""
    with closing(LiveBoard(comm)) as board:
        if comm.rank:
            board.post(**row(comm.rank, 2))
        expected = [row(rank, 2) if rank else dict.fromkeys(COLUMNS, 0.0) for rank in range(comm.size)]
        wait_for(lambda: board.poll() or board.rows.tolist() == [list(each.values()) for each in expected])


def test_a_row_that_is_being_written_is_not_taken(comm):
    """Its number of steps is new already, and others are not: it would stay so until the next one."""
    if comm.size == 1:
        pytest.skip("one rank reads nobody")
    with closing(LiveBoard(comm)) as board:
        if comm.rank == 1:
            board._table[1, STEPS] = 5e6
            board._window.sync()
        comm.Barrier()
        for _ in range(20):
            board.poll()
            time.sleep(0.001)
        wait_for(lambda: taken(board))
        assert board.rows[1, STEPS] == (5e6 if comm.rank == 1 else 0)
        comm.Barrier()
        if comm.rank == 1:
            board.post(**row(1, 5))
        wait_for(lambda: board.poll() or board.rows[1].tolist() == list(row(1, 5).values()))


def test_rows_that_are_written_all_the_time_are_read_whole(comm):
    """Every number of a row says when it was posted."""
    last = 20_000
    with closing(LiveBoard(comm)) as board:
        if comm.rank == comm.size - 1:
            for update in range(1, last + 1):
                board.post(**row(comm.rank, update))
        seen = 0
        while seen < last:
            board.poll()
            numbers = board.rows[-1].tolist()
            seen = int(numbers[0] // 1e6)
            assert numbers == (list(row(comm.size - 1, seen).values()) if seen else [0] * len(COLUMNS))
