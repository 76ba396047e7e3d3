"""A run that loses a rank, under a launcher that spares the others."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import numpy as np

from commandline import SMALL, STEPS_PER_UPDATE, flushed, start, states, table, train
from gala_mpi import watch
from gala_mpi.run import checkpoints, files, layout, reader

SECONDS = 10.0  # without a sign of life; a rank that waits for a core shows none either


def loses_a_rank(run: Path, n: int, victim: int, updates: int, *more: object) -> None:
    """`victim` is killed in the middle: the others do all that is left, save, say who is missing, and end.

    Args:
        updates: of the run, over all ranks.
        more: flags; with rollouts of 5 steps.
    """
    flags = ("--survive", SECONDS, "--total-steps", updates * STEPS_PER_UPDATE, "--checkpoint-minutes", 0.02)
    reader = (victim + 1) % n
    flags = (*flags, "--slow-rank", f"{reader}:60ms")  # so that it still trains when it misses the dead one
    with start(n, run, *SMALL, *flags, *more) as job:
        job.wait_until(lambda: all(_begun(run, rank) for rank in range(n)) and checkpoints.complete(run))
        os.kill(job.ranks()[victim], signal.SIGKILL)
        result = job.wait()
    said = [line for line in result.stderr.splitlines() if "is lost" in line]
    assert len(said) == 1, result.stderr
    seen = re.search(rf"rank {victim} on {socket.gethostname()} is lost, last seen at update (\d+)", said[0])
    assert seen, said
    assert int(seen[1]) > 20
    assert result.stdout.count(f"ended without rank {victim} on ") == 1, result.stdout
    assert "Traceback" not in result.stderr
    assert layout.lost(run) == {victim}
    newest = checkpoints.newest(run)
    living = [rank for rank in range(n) if rank != victim]
    assert checkpoints.ranks(run, newest) == living
    seen = watch.read_status(run)
    assert (seen.lost, seen.checkpoint, [*seen.saved]) == ({victim}, newest, living)
    done = {rank: int(checkpoints.load(run, newest, rank).learner["updates"]) for rank in living}
    for rank in living:
        assert table(run, rank, "updates")["update"].tolist() == list(range(1, done[rank] + 1))
        # They have heard of all that the dead one did, but for its last moments.
        assert table(run, rank, "updates")["run_steps"][-1] >= updates * STEPS_PER_UPDATE
    assert sum(done.values()) < updates
    # Who read the dead one reads on: the one that it would have read.
    read = table(run, reader, "mixes")["peer"]
    assert set(read) == {victim, (victim - 1) % n} and read[-1] == (victim - 1) % n


def loses_a_rank_that_is_done(run: Path, n: int, victim: int) -> None:
    """All steps are done when it is killed, and rank 0 still is in its last update: that run ends without it too."""
    flags = ("--survive", SECONDS, "--total-steps", 200 * n * STEPS_PER_UPDATE, "--slow-rank", "0:30s")
    with start(n, run, *SMALL, *flags) as job:
        job.wait_until(lambda: layout.left_file(run, victim).exists())
        os.kill(job.ranks()[victim], signal.SIGKILL)
        result = job.wait()
    assert f"rank {victim} on {socket.gethostname()} is lost, last seen at update " in result.stderr
    assert result.stdout.count(f"ended without rank {victim} on ") == 1, result.stdout
    newest = checkpoints.newest(run)
    assert checkpoints.ranks(run, newest) == [rank for rank in range(n) if rank != victim]


def is_whole_again(run: Path, n: int, victim: int, updates: int) -> None:
    """A resume with all ranks for so many updates more: the dead one goes on from its own last checkpoint."""
    before = max(
        int(checkpoints.load(run, number, victim).learner["updates"])
        for number in checkpoints.numbers(run)
        if victim in checkpoints.ranks(run, number)
    )
    assert before > 0
    newest = checkpoints.newest(run)
    hours = max(checkpoints.load(run, newest, rank).hours for rank in checkpoints.ranks(run, newest))
    total = reader.read_config(run).total_steps + updates * STEPS_PER_UPDATE
    train(n, run, "--resume", "--slow-rank", "None", "--total-steps", total)
    assert layout.lost(run) == set()
    assert sum(int(state.learner["steps"]) for state in states(run, n)) >= total
    assert len({state.learner["parameters"].tobytes() for state in states(run, n)}) == n
    done = table(run, victim, "updates")["update"]
    assert done.tolist() == list(range(1, len(done) + 1)) and len(done) > before
    with files.reading(layout.metrics_files(run, victim)[-1]) as file:
        assert file.attrs["after_update"] == before
        assert file["updates"][0]["hours"] > hours  # the run's, not those of its own last checkpoint
    assert np.isfinite(states(run, n)[victim].learner["parameters"]).all()


def _begun(run: Path, rank: int) -> bool:
    try:
        return flushed(run, rank) > 20
    except (OSError, KeyError, ValueError):  # files that are not there yet
        return False
