"""Runs that are stopped, killed and resumed, on other numbers of ranks too: what must come out."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from commandline import SMALL, STEPS_PER_UPDATE, complaints, flushed, start, states, table, train
from gala_mpi.run import checkpoints, files, layout, reader
from launch import is_stopped, mpirun

KILLS = int(os.environ.get("KILLS", "4"))
LOCKSTEP = ("--staleness", 0, "--topology", "exponential")
EXACT = ("--exact-resume", "--checkpoint-updates")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


# Exact


def assert_same(one: Path, other: Path, n: int) -> None:
    """Bit for bit: what the agents have become, and everything that they recorded but the time and memory it took."""
    for mine, theirs in zip(states(one, n), states(other, n), strict=True):
        assert mine.learner.keys() == theirs.learner.keys() and mine.recent == theirs.recent
        assert all(np.array_equal(value, theirs.learner[name]) for name, value in mine.learner.items())
    columns = {"updates": ("update", "steps", "policy_loss", "value_loss", "entropy", "grad_norm", "age")}
    columns |= {"episodes": ("update", "steps", "simulator", "length", "score"), "mixes": ("update", "peer", "version")}
    for rank in range(n):
        for name, compared in columns.items():
            mine, theirs = table(one, rank, name), table(other, rank, name)
            assert all(np.array_equal(mine[column], theirs[column], equal_nan=True) for column in compared), name


def resumed(folder: Path, *flags: object, slow: str = "0:200ms") -> tuple[Path, int]:
    """Do a run of two ranks that stops at a checkpoint and goes on, and one that never stops; assert that they are the same.

    Args:
        slow: whom --slow-rank slows down, so that the signal comes in the middle.

    Returns:
        The run that never stopped, and the update at which the other one did.
    """
    whole, parts = folder / "whole", folder / "parts"
    with start(2, parts, *flags, "--slow-rank", slow) as job:
        job.wait_until(lambda: checkpoints.newest(parts))
        os.kill(job.ranks()[-1], signal.SIGUSR1)
        job.wait()
    stopped = int(states(parts, 2)[0].learner["updates"])
    train(2, parts, "--resume", "--slow-rank", "None")
    train(2, whole, *flags)
    assert_same(whole, parts, 2)
    return whole, stopped


WAYS = {
    "one rank": (1, SMALL, signal.SIGUSR1),
    "lock-step": (3, (*SMALL, "--staleness", 0, "--topology", "base", "--ema", 0.9), signal.SIGUSR1),
    "lock-step killed": (2, (*SMALL, *LOCKSTEP), signal.SIGKILL),
    "allreduce": (2, (*SMALL, "--exchange", "allreduce"), signal.SIGUSR1),
    "periodic": (2, (*SMALL, "--exchange", "periodic", "--sync-updates", 5), signal.SIGUSR1),
    "periodic, checkpoints between averages": (2, (*SMALL, "--exchange", "periodic", "--sync-updates", 7), signal.SIGUSR1),
    "outer steps": (
        *(2, (*SMALL, "--exchange", "periodic", "--sync-updates", 7, "--outer-momentum", 0.9, "--outer-lr", 0.1)),
        signal.SIGUSR1,
    ),
    "periodic killed": (2, (*SMALL, "--exchange", "periodic", "--sync-updates", 7), signal.SIGKILL),
}
PONG = pytest.param(1, ("--env", "pong", "--num-envs", 4, "--precision", "fp32"), signal.SIGUSR1, marks=pytest.mark.long)


RARE = ("one rank", "lock-step killed", "periodic", "periodic, checkpoints between averages", "periodic killed")


def ways() -> list:
    """WAYS, and pong; the rarer ones are long."""
    return [*(pytest.param(*way, marks=[pytest.mark.long] * (name in RARE)) for name, way in WAYS.items()), PONG]


@pytest.mark.parametrize("n, flags, number", ways(), ids=[*WAYS, "pong"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, n, flags, number):
    """One agent is slowed down, so that the signal comes in the middle."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (*flags, *EXACT, 20, "--a2c.decay-lr", "--total-steps", 130 * n * STEPS_PER_UPDATE)
    with start(n, parts, *flags, "--slow-rank", "0:100ms") as job:
        job.wait_until(lambda: checkpoints.newest(parts))
        os.kill(job.ranks()[-1], number)
        job.wait()
    stopped_at = int(states(parts, n)[0].learner["updates"])
    assert 20 <= stopped_at < 130 and stopped_at % 20 == 0
    said = train(n, parts, "--resume", "--slow-rank", "None").stdout
    assert "exactly as if it had not stopped" in said
    train(n, whole, *flags)
    assert_same(whole, parts, n)
    assert len(table(whole, 0, "episodes")) > 0 or "pong" in flags


@pytest.mark.long
def test_metrics_say_where_games_began_anew(run):
    train(1, run, *SMALL, "--total-steps", 400)
    train(1, run, "--resume", "--total-steps", 800)
    train(1, run, "--resume", "--total-steps", 1200, "--exact-resume")
    said = []
    for path in layout.metrics_files(run, 0):
        with files.reading(path) as file:
            said.append((int(file.attrs["after_update"]), int(file.attrs["resumed_from"]), bool(file.attrs["new_episodes"])))
    assert said == [(0, 0, True), (20, 1, True), (40, 2, False)]


def test_an_exact_run_may_go_on_freely(run):
    train(1, run, *SMALL, "--exact-resume", "--total-steps", 400)
    train(1, run, "--resume", "--no-exact-resume", "--total-steps", 800)
    assert [int(state.learner["steps"]) for state in states(run, 1)] == [800]


# Elastic


def test_a_start_on_another_graph_that_saved_nothing_changes_nothing(run):
    (run.parent / "two.txt").write_text("0 1\n1 0\n")
    train(3, run, *SMALL, "--total-steps", 3000)
    job = start(2, run, "--resume", "--topology", run.parent / "two.txt", "--total-steps", 100_000_000)
    job.wait_until(lambda: flushed(run, 0) > 60)
    job.kill()
    train(2, run, "--resume", "--total-steps", 6000)
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= 6000


@pytest.mark.long
def test_four_ranks_then_two_then_six(run):
    """In lock-step, which would hang or refuse if the agents did not stand at the same update."""

    def steps(n):
        return sum(int(state.learner["steps"]) for state in states(run, n))

    train(4, run, *SMALL, "--staleness", 0, "--topology", "complete", "--total-steps", 2000)
    train(4, run, "--resume", "--topology", "ring", "--total-steps", 4000)  # this graph says who takes in whom
    four = [state.learner["parameters"] for state in states(run, 4)]
    said = train(2, run, "--resume", "--total-steps", 4001).stdout
    assert "4 agents before, 2 now: agent 0 is the mean of 0, 2, 3; learning rate 0.002 before, 0.00141 now" in said
    assert steps(2) == 4040
    train(2, run, "--resume", "--total-steps", 8000)
    assert steps(2) == 8000
    said = train(6, run, "--resume", "--total-steps", 14_000).stdout
    assert "2 agents before, 6 now: agent 2 is a copy of 0; agent 3 is a copy of 1;" in said
    assert steps(6) == 14_000
    six = [state.learner["parameters"] for state in states(run, 6)]
    assert all(np.isfinite(x).all() and not np.array_equal(x, y) for x, y in pairwise(six))
    assert max(np.linalg.norm(x - four[0]) for x in six) < np.linalg.norm(four[0])
    assert table(run, 2, "updates")["update"].tolist() == [*range(1, 51), *range(151, 201)]
    assert table(run, 1, "updates")["update"].tolist() == [*range(1, 201)]


# Killed


def assert_readable(run: Path, n: int) -> None:
    """No file that a reader rejects."""
    reader.read_config(run)
    for rank in range(n):
        flushed(run, rank)
    for number in checkpoints.numbers(run):
        for rank, path in enumerate(sorted((run / "checkpoints" / f"{number:06d}").glob("rank*.h5"))):
            checkpoints.load(run, number, int(path.stem.removeprefix("rank")))
            assert rank < n


INTERVAL = 50
FREE_INTERVAL = 0.15  # minutes: more than ranks may start one after the other, or one may wait for a core or a disk


@pytest.mark.parametrize("exact", [pytest.param(True, marks=pytest.mark.long), False], ids=["lock-step", "gossip"])
def test_sigkill_at_random_instants(tmp_path, exact):
    """Of all four ranks, while they start, train or save. No more than one checkpoint's interval is ever lost, and in lock-step
    the run ends as if nothing had happened. KILLS=50 kills more often (make test-kills)."""
    n, run, dice = 4, tmp_path / "run", random.Random(exact)
    how = (*LOCKSTEP, *EXACT, INTERVAL) if exact else ("--checkpoint-minutes", FREE_INTERVAL)
    flags = (*SMALL, *how)
    for _ in range(-(-KILLS // 2)):
        resumed = checkpoints.newest(run) or 0
        last = max(checkpoints.numbers(run), default=0)
        again = ("--resume",) if layout.run_file(run).exists() else (*flags, "--total-steps", 100_000_000)
        with start(n, run, *again) as job:
            if dice.random() < 0.8:  # else it is killed while it starts
                job.wait_until(lambda: (checkpoints.newest(run) or 0) > resumed)
            time.sleep(dice.uniform(0, 2))
            for rank in job.ranks():
                os.kill(rank, signal.SIGKILL)
            ended = job.wait()
        assert "damaged" not in ended.stderr and "Traceback" not in ended.stderr
        if not layout.run_file(run).exists():
            continue
        said = [line for line in ended.stdout.splitlines() if line.startswith(("resumed", "run directory"))]
        if resumed and said:  # it came so far
            assert said[0].startswith(f"resumed from checkpoint {resumed} in {run}")
        assert_readable(run, n)
        newest = checkpoints.newest(run) or 0
        assert len([g for g in checkpoints.numbers(run) if g > max(newest, last)]) <= 1
        if exact and newest:
            # While the slowest rank saves, the others cannot run further ahead than they read.
            saved = int(states(run, n)[0].learner["updates"])
            assert max(flushed(run, rank) for rank in range(n)) - saved <= INTERVAL + n or resumed == newest
    updates = max(int(state.learner["updates"]) for state in states(run, n)) + 30
    total = updates * n * STEPS_PER_UPDATE
    train(n, run, "--resume", "--total-steps", total)
    done = sum(int(state.learner["steps"]) for state in states(run, n))
    assert done == total if exact else done >= total
    if exact:
        train(n, tmp_path / "whole", *flags, "--total-steps", total, timeout=600)
        assert_same(tmp_path / "whole", run, n)


# What stands in the way


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(run):
    for updates in (10, 20):
        train(2, run, *(("--resume",) if updates > 10 else SMALL), "--total-steps", updates * 2 * STEPS_PER_UPDATE)
    damaged = layout.checkpoint_file(run, 2, 1)
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 1
    damaged.write_bytes(contents)
    result = train(2, run, "--resume", "--total-steps", 1600)
    (said,) = complaints(result)
    assert said.startswith(f"gala_mpi: {damaged} is damaged and passed over (")
    assert "resumed from checkpoint 1" in result.stdout
    assert damaged.read_bytes() == contents and checkpoints.newest(run) == 3


LIMITED = """
import resource, sys
from mpi4py import MPI  # which has its memory then: it counts as files
from gala_mpi import train
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
train.main(sys.argv[1:])
"""


def test_a_full_disk_ends_the_job_with_a_word(run):
    """Files that may not grow beyond a limit fail as those on a full disk do."""
    train(2, run, *SMALL, "--total-steps", 400)
    result = mpirun(2, "-c", LIMITED, "--run-dir", run, "--resume", "--total-steps", 800)
    assert result.returncode == 1
    assert all("cannot be written: File too large" in line for line in complaints(result)) and complaints(result)
    assert "Traceback" not in result.stderr
    assert checkpoints.newest(run) == 1
    train(2, run, "--resume", "--total-steps", 800)


def test_a_suspended_rank_saves_once_when_it_wakes(run):
    """The others have gone on; their checkpoints of that time are never completed, and go.

    Each rank counts intervals by its own clock, from its own start. So the time that rank 1 sleeps is told by what rank 0 saves
    meanwhile, and what rank 1 leaves out by its own numbers.
    """
    flags = (*SMALL, "--checkpoint-minutes", 1 / 30, "--keep-checkpoints", 1000, "--total-steps", 100_000_000)
    with start(2, run, *flags) as job:
        job.wait_until(lambda: checkpoints.newest(run))
        sleeper = job.ranks()[1]
        os.kill(sleeper, signal.SIGSTOP)
        job.wait_until(lambda: is_stopped(sleeper))
        before, last = _of_rank(run, 0), max(_of_rank(run, 1))
        # The first save may have begun before. From the second to the end are three intervals at least, and so for rank 1, of
        # whose own one may have been left at the stop: two are missed. It may also have been stopped while it saved last + 1.
        job.wait_until(lambda: len(_of_rank(run, 0) - before) >= 2)
        until = sorted(_of_rank(run, 0) - before)[1] + 4
        job.wait_until(lambda: max(_of_rank(run, 0)) >= until)
        missed = {g for g in _of_rank(run, 0) if last < g <= until}
        os.kill(sleeper, signal.SIGCONT)
        job.wait_until(lambda: (checkpoints.newest(run) or 0) > max(until, last + 2))
        assert last + 2 not in _of_rank(run, 1)
        job.wait_until(lambda: not set(checkpoints.numbers(run)) & (missed - _of_rank(run, 1)))


def _of_rank(run: Path, rank: int) -> set[int]:
    return {g for g in checkpoints.numbers(run) if layout.checkpoint_file(run, g, rank).exists()}
