"""`mpirun -n N python -m gala_mpi.train`, as a user starts it."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest

import launch
from commandline import (
    SMALL,
    STEPS_PER_UPDATE,
    assert_complete,
    complaints,
    flushed,
    parameters,
    plain,
    start,
    states,
    table,
    train,
)
from gala_mpi import errors
from gala_mpi.run import checkpoints, files, layout, reader
from launch import mpirun

GOSSIP = ("--exchange", "gossip")
LOCKSTEP = (*GOSSIP, "--staleness", 0, "--topology", "exponential")
USR1 = signal.SIGUSR1
EVERY_EXCHANGE = {
    "gossip": GOSSIP,
    "bounded": (*GOSSIP, "--staleness", 3, "--topology", "one-peer-exponential"),
    "lockstep": LOCKSTEP,
    "allreduce": ("--exchange", "allreduce"),
    "periodic": ("--exchange", "periodic", "--sync-updates", 5),
    "server": ("--exchange", "server"),
    "none": ("--exchange", "none"),
}
KILLED = ["gossip", "lockstep", "allreduce", "periodic"]
every_exchange = pytest.mark.parametrize("exchange", EVERY_EXCHANGE.values(), ids=EVERY_EXCHANGE)
OFTEN = ("gossip", "lockstep")
often_each = pytest.mark.parametrize(
    "exchange",
    [pytest.param(flags, marks=[pytest.mark.long] * (name not in OFTEN)) for name, flags in EVERY_EXCHANGE.items()],
    ids=EVERY_EXCHANGE,
)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_pong_on_two_ranks(run):
    result = train(2, run, "--env", "pong", "--total-steps", 3200, "--precision", "fp32")
    assert_complete(run, 2, updates=20)
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= 3200
    assert sorted(path.name for path in (run / "metrics").iterdir()) == ["rank00000.h5", "rank00001.h5"]
    assert not list(run.rglob("*.tmp"))
    config = reader.read_config(run)
    assert (config.env, config.network, config.run_dir) == ("pong", "gala", run)
    assert reader.read_agents(run) == 2
    assert plain(result.stdout) and plain(result.stderr)
    for said_once in ("2 agents", f"run directory: {run}", f"finished: {run}"):
        assert result.stdout.count(said_once) == 1, result.stdout
    for rank in range(2):
        assert {peer for peer in table(run, rank, "mixes")["peer"]} <= {1 - rank}
    assert any(len(table(run, rank, "mixes")) for rank in range(2))


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.long), 2])  # two threads each on two cores, and one
def test_mean_squares_do_not_end_as_denormal_numbers(run, n):
    train(n, run, "--env", "pong", "--num-envs", 4, "--total-steps", n * 2000, "--a2c.rms-alpha", 0.3, "--precision", "fp32")
    for state in states(run, n):
        squares = state.learner["square_average"]
        assert len(squares) and not ((squares > 0) & (squares < np.finfo(np.float32).tiny)).any()


@pytest.mark.parametrize("n", [1, 3])
def test_other_numbers_of_ranks(run, n):
    result = train(n, run, *SMALL, "--total-steps", 10 * n * STEPS_PER_UPDATE)
    assert f"{n} agent{'s' * (n > 1)} ×" in result.stdout
    assert_complete(run, n, updates=10)


def test_box_actions(run):
    train(2, run, "--env", "Pendulum-v1", "--num-envs", 4, "--total-steps", 400)
    assert_complete(run, 2, updates=10)
    assert all(np.isfinite(vector).all() for vector in parameters(run, 2))


def test_total_steps_are_rounded_up_to_whole_updates(run):
    train(2, run, *SMALL, *LOCKSTEP, "--total-steps", 2 * STEPS_PER_UPDATE + 1)
    assert_complete(run, 2, updates=2)


@pytest.mark.parametrize("exchange", ["gossip", *(pytest.param(name, marks=pytest.mark.long) for name in ("server", "none"))])
def test_a_run_does_not_wait_for_a_slow_rank(run, exchange):
    """All stop when their steps add up, whoever did them."""
    total = 1000 * STEPS_PER_UPDATE
    flags = (*EVERY_EXCHANGE[exchange], "--slow-rank", "1:50ms", "--total-steps", total)
    train(2, run, *SMALL, *flags)
    rows = [table(run, rank, "updates") for rank in range(2)]
    assert total <= sum(table["steps"][-1] for table in rows) < total + 10 * STEPS_PER_UPDATE
    assert 0 < len(rows[1]) < len(rows[0]) / 2
    for table_of_one in rows:
        heard, own = table_of_one["run_steps"], table_of_one["steps"]
        assert (np.diff(heard) > 0).all() and (heard >= own).all() and heard[-1] >= total


CARTPOLE = (
    *("--env", "CartPole-v1", "--num-envs", 16, "--rollout-length", 8, "--total-steps", 120_000, "--precision", "fp32"),
    *("--lr", 5e-3, "--a2c.decay-lr", "--a2c.discount", 0.97, "--a2c.gae-lambda", 0.9),
)


@pytest.mark.long
@every_exchange
def test_cartpole_is_solved(run, exchange):
    """A pole that is held for 195 steps on average counts as solved (as CartPole-v0 had it)."""
    train(2, run, *CARTPOLE, *exchange)
    scores = [table(run, rank, "episodes")["score"][-20:].mean() for rank in range(2)]
    assert min(scores) >= 195, scores


FOUR_PONGS = ("--env", "pong", "--num-envs", 4)


@pytest.mark.parametrize(
    "n, flags", [(3, SMALL), (2, FOUR_PONGS), pytest.param(1, (*FOUR_PONGS, "--overlap"), marks=pytest.mark.long)]
)
def test_lockstep_repeats_bit_for_bit(tmp_path, n, flags):
    first, again = tmp_path / "first", tmp_path / "again"
    for run in (first, again):
        train(n, run, *flags, *LOCKSTEP, "--total-steps", 20 * n * STEPS_PER_UPDATE, "--precision", "fp32")
    for one, other in zip(parameters(first, n), parameters(again, n), strict=True):
        assert np.array_equal(one, other)
    for rank in range(n):
        mixes = table(first, rank, "mixes")
        assert mixes["version"].tolist() == mixes["update"].tolist() == np.repeat(range(1, 21), n - 1).tolist()
        for name in ("mixes", "episodes"):
            one, other = table(first, rank, name), table(again, rank, name)
            assert all((one[column] == other[column]).all() for column in one.dtype.names if column != "hours")


@pytest.mark.parametrize("flags", [SMALL, pytest.param(("--env", "pong", "--num-envs", 2), marks=pytest.mark.long)])
def test_sketches_of_eight_agents_tell_their_distances(run, flags):
    """Against the parameters in the checkpoints, which are saved at some of the sketched updates."""
    often = ("--sketch-updates", 1, "--checkpoint-minutes", 0.01, "--keep-checkpoints", 1000)
    train(8, run, *flags, *GOSSIP, "--staleness", 0, *often, "--total-steps", 8 * 25 * STEPS_PER_UPDATE)
    compared = 0
    for number in checkpoints.complete(run):
        learners = [checkpoints.load(run, number, rank).learner for rank in range(8)]
        update = learners[0]["updates"]
        exact = np.array([learner["parameters"] for learner in learners], float)
        rows = [table(run, rank, "sketches") for rank in range(8)]
        sketches = np.array([row["parameters"][row["update"] == update][0] for row in rows], float)
        for i, j in itertools.combinations(range(8), 2):
            distance = np.linalg.norm(exact[i] - exact[j])
            assert np.linalg.norm(sketches[i] - sketches[j]) == pytest.approx(distance, rel=0.05)
            compared += distance > 0
    assert compared >= 28


def test_a_graph_from_a_file_outlives_it(tmp_path):
    graph, run = tmp_path / "my.txt", tmp_path / "run"
    graph.write_text("# 0 reads 2, 1 reads 0, 2 reads 1\n0 2 0.5\n0 0 0.5\n1 0 0.25\n1 1 0.75\n2 1 1\n")
    train(3, run, *SMALL, "--topology", graph, "--staleness", 0, "--total-steps", 3 * 5 * STEPS_PER_UPDATE)
    graph.unlink()
    train(3, run, "--resume", "--total-steps", 3 * 10 * STEPS_PER_UPDATE)
    assert_complete(run, 3, updates=10)
    for rank, peer in enumerate((2, 0, 1)):
        mixes = table(run, rank, "mixes")
        assert mixes["peer"].tolist() == [peer] * 10 and mixes["version"].tolist() == list(range(1, 11))


def test_a_checksum_changes_nothing_but_what_it_finds(tmp_path):
    flags = (*SMALL, *LOCKSTEP, "--total-steps", 20 * 3 * STEPS_PER_UPDATE)
    without, checked = tmp_path / "without", tmp_path / "checked"
    train(3, without, *flags)
    train(3, checked, *flags, "--checksum")
    for one, other in zip(parameters(without, 3), parameters(checked, 3), strict=True):
        assert np.array_equal(one, other)
    assert all((table(checked, rank, "updates")["corrupt"] == 0).all() for rank in range(3))


def test_a_slow_rank_is_slow_alone(run):
    train(3, run, *SMALL, "--total-steps", 10 * 3 * STEPS_PER_UPDATE, "--slow-rank", "1:500ms", "--staleness", 5)
    seconds = [table(run, rank, "updates")["simulate"] for rank in range(3)]
    assert seconds[1].min() >= 0.5
    assert max(np.median(seconds[0]), np.median(seconds[2])) < 0.5


# Ending early and going on.

LONG = ("--total-steps", 100_000_000)


def interrupt(run, n, flags, kill) -> tuple[int, str]:
    """Start a long run, interrupt it when it is on its way and has saved if it shall; its exit status and output."""
    with start(n, run, *SMALL, *LONG, *flags) as job:
        job.wait_until(lambda: all(flushed(run, rank) > 0 for rank in range(n)))
        if "--checkpoint-minutes" in flags:
            job.wait_until(lambda: checkpoints.newest(run))
        kill(job)
        ended = job.wait()
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.returncode, ended.stdout


def go_on(run, n, further: int, *flags) -> None:
    """Resume for `further` updates more than the one that is furthest."""
    before = max(int(state.learner["updates"]) for state in states(run, n))
    number = checkpoints.newest(run)
    updates = before + further
    total = updates * n * STEPS_PER_UPDATE
    result = train(n, run, "--resume", "--total-steps", total, *flags)
    assert f"resumed from checkpoint {number} in {run}" in result.stdout
    assert f"finished: {run}" in result.stdout
    assert_complete(run, n, updates)
    assert sum(int(state.learner["steps"]) for state in states(run, n)) >= total
    for rank in range(n):
        steps, hours = (table(run, rank, "updates")[column] for column in ("steps", "hours"))
        assert (np.diff(steps) == STEPS_PER_UPDATE).all() and steps[0] == STEPS_PER_UPDATE
        assert (np.diff(hours) > 0).all()


@often_each
def test_usr1_saves_and_stops(run, exchange):
    """Sent to one rank: all of them stop, at a common checkpoint, and ask to be resumed."""
    status, said = interrupt(run, 3, exchange, lambda job: os.kill(job.ranks()[1], USR1))
    assert status == errors.RESUME
    assert f"stopped early (SIGUSR1): {run}" in said
    go_on(run, 3, further=30)


@pytest.fixture
def no_nohup():
    """Ranks that do not inherit that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGINT, signal.SIGHUP))]
)
def test_term_int_and_hup_save_and_stop_for_good(run, number, no_nohup):
    """Sent to all ranks, as scancel does; USR1 besides is not heard."""

    def end(job):
        os.kill(job.ranks()[0], USR1)
        for rank in job.ranks():
            os.kill(rank, number)

    status, said = interrupt(run, 2, GOSSIP, end)
    assert status == 128 + number
    assert f"stopped early ({number.name}): {run}" in said
    go_on(run, 2, further=30)


def test_usr1_to_the_launcher_is_passed_on(run):
    """As a batch script does it before its time is over."""
    status, _ = interrupt(run, 2, GOSSIP, lambda job: os.kill(job.launcher.pid, USR1))
    assert status == errors.RESUME
    go_on(run, 2, further=30)


@pytest.mark.parametrize(
    "first, later, statuses",
    [
        (USR1, signal.SIGTERM, {errors.RESUME, 143}),
        pytest.param(signal.SIGUSR2, signal.SIGINT, {errors.RESUME, 130}, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, signal.SIGTERM, {143}, marks=pytest.mark.long),
    ],
)
def test_signals_that_come_later_leave_checkpoint_and_status(run, first, later, statuses):
    """One while the ranks save, and more until the last of them is gone."""

    def send(job, number):
        for rank in job.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)

    def end(job):
        send(job, first)
        time.sleep(0.1)
        send(job, later)
        job.wait_until(lambda: checkpoints.newest(run))
        while job.launcher.poll() is None:
            send(job, later)
            time.sleep(0.01)

    status, _ = interrupt(run, 2, GOSSIP, end)
    assert status in statuses
    go_on(run, 2, further=30)


JOB_OF_A_MINUTE = """
import os, sys, time
from gala_mpi import train  # which takes its time on a busy machine
os.environ["SLURM_JOB_END_TIME"] = str(int(time.time()) + 60)
print("the job ends at", os.environ["SLURM_JOB_END_TIME"])
train.main(sys.argv[1:])
"""


def test_a_job_that_ends_soon_is_stopped_in_time(run):
    """Its end is known, no signal comes: half a minute is left for all that follows."""
    result = mpirun(2, "-c", JOB_OF_A_MINUTE, "--run-dir", run, *SMALL, *LONG)
    ended = time.time()
    assert result.returncode == errors.RESUME and "stopped early (the job ends in 3" in result.stdout
    assert ended < min(map(int, re.findall(r"the job ends at (\d+)", result.stdout)))
    go_on(run, 2, further=30)


def test_ctrl_c(run):
    """A terminal sends SIGINT to the launcher. MPICH's asks the ranks to end; Open MPI's gives them a moment, then kills."""
    flags = (*GOSSIP, "--checkpoint-minutes", 0.01)
    _, said = interrupt(run, 2, flags, lambda job: os.kill(job.launcher.pid, signal.SIGINT))
    if not launch.OPEN_MPI:
        assert "stopped early (SIG" in said
    go_on(run, 2, further=30)


def test_wall_minutes(run):
    began = time.monotonic()
    result = train(2, run, *SMALL, *LONG, "--wall-minutes", 0.05, status=errors.RESUME)
    assert time.monotonic() - began > 3
    assert f"stopped early (0.05 minutes of wall time are over): {run}" in result.stdout
    go_on(run, 2, 30, "--wall-minutes", 10)


@pytest.mark.long
@pytest.mark.parametrize("exchange", [EVERY_EXCHANGE[name] for name in KILLED], ids=KILLED)
def test_killed_runs_go_on(run, exchange):
    """SIGKILL of all ranks at any moment: no row that was written is lost, and the run goes on from its last checkpoint."""
    dice = random.Random(0)
    flags = (*SMALL, *LONG, *exchange, "--checkpoint-minutes", 0.01)
    for attempt in range(2):
        number = (checkpoints.newest(run) or 0) if attempt else 0
        with start(2, run, *(("--resume",) if attempt else flags)) as job:
            job.wait_until(lambda: (checkpoints.newest(run) or 0) > number)
            time.sleep(dice.uniform(0, 1.5))
            written = [flushed(run, rank) for rank in range(2)]
            for rank in job.ranks():
                os.kill(rank, signal.SIGKILL)
            job.wait()
        for rank in range(2):
            assert flushed(run, rank) >= written[rank] > 0
            for path in layout.metrics_files(run, rank):
                with files.reading(path) as file:
                    assert (file["updates"][: file["rows/updates"][()]]["update"] > 0).all()
        updates = [int(state.learner["updates"]) for state in states(run, 2)]
        if exchange is not GOSSIP:
            assert len(set(updates)) == 1
    go_on(run, 2, 30)


def test_a_run_directory_that_goes_ends_the_job(run):
    """Nothing appears in its place, which would be half a run."""
    with start(2, run, *SMALL, *LONG, "--checkpoint-minutes", 0.02) as job:
        job.wait_until(lambda: checkpoints.newest(run))
        run.rename(run.with_name("elsewhere"))
        ended = job.wait()
    assert ended.returncode == errors.FAILED and "Traceback" not in ended.stderr
    assert all(f"{run / 'run.h5'} is gone" in line for line in complaints(ended)) and complaints(ended)
    assert not run.exists() and checkpoints.newest(run.with_name("elsewhere"))


def test_files_of_an_incomplete_checkpoint_do_not_mix_with_later_ones(run):
    """A kill between two ranks' saves leaves such files; under the same number later ones would seem to complete them."""
    train(2, run, *SMALL, "--total-steps", 400)
    left_over, temporary = layout.checkpoint_file(run, 2, 0), run / "checkpoints" / "000002" / ".rank00001.h5.host.1.tmp"
    left_over.parent.mkdir()
    shutil.copy(layout.checkpoint_file(run, 1, 0), left_over)
    temporary.touch()
    result = train(2, run, "--resume", "--total-steps", 800)
    assert "resumed from checkpoint 1" in result.stdout and not temporary.exists()
    assert checkpoints.complete(run) == [1, 3]


def test_resume_of_a_finished_run_does_nothing_more(run):
    train(2, run, *SMALL, "--total-steps", 400)
    before = parameters(run, 2)
    result = train(2, run, "--resume")
    assert f"finished: {run}" in result.stdout
    assert all(map(np.array_equal, before, parameters(run, 2)))
    assert_complete(run, 2, updates=10)
