"""Numbers that are not finite: nothing is learnt from them, they are named, and the others train on."""

from __future__ import annotations

import socket
from pathlib import Path

import h5py
import numpy as np
import pytest
from not_finite import SICK_STEPS
from overflowing import OVERFLOWS

from commandline import STEPS_PER_UPDATE, assert_complete, complaints, parameters, states, table, train
from gala_mpi import open_run, watch
from gala_mpi.run import checkpoints, layout
from launch import mpirun

SICK = Path(__file__).with_name("not_finite.py")
SMALL = ("--num-envs", 4, "--precision", "fp32")
UPDATES = 60
LOSSES = ("policy_loss", "value_loss", "entropy")
# That of each step, the one after it that begins with such an observation, and the one whose gradient overflows
SKIPPED = sorted({-(-step // 5) for step in SICK_STEPS} | {37, OVERFLOWS})
EXCHANGES = {
    "gossip": ("--exchange", "gossip"),
    "bounded": ("--exchange", "gossip", "--staleness", 1, "--a2c.optimiser", "adam"),
    "lockstep": ("--exchange", "gossip", "--staleness", 0),
    "allreduce": ("--exchange", "allreduce"),
    "periodic": ("--exchange", "periodic", "--sync-updates", 5),
    "server": ("--exchange", "server"),
    "none": ("--exchange", "none"),
}
IN_STEP = ("lockstep", "allreduce", "periodic")
FREE = 10 * UPDATES  # where no rank has to do its share: so many that rank 1 does what matters here
OFTEN = ("gossip", "allreduce")  # the others: make test-long


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def assert_finite(run: Path, n: int) -> None:
    """Every vector of every checkpoint is."""
    assert checkpoints.numbers(run)
    for number in checkpoints.numbers(run):
        for rank in range(n):
            with h5py.File(layout.checkpoint_file(run, number, rank)) as file:
                assert all(np.isfinite(vector).all() for vector in file["learner"].values())


@pytest.mark.parametrize(
    "exchange", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in EXCHANGES]
)
def test_a_number_that_is_not_finite_goes_no_further(run, exchange, capsys):
    """NaN, ∞ and −∞ as reward, observation and gradient of rank 1; each is skipped, and the others learn at every update."""
    flags = ("--env", "SickPole-v0", *SMALL, "--learner", "overflowing", *EXCHANGES[exchange])
    updates = UPDATES if exchange in IN_STEP else FREE
    result = mpirun(4, SICK, "--run-dir", run, *flags, "--total-steps", updates * 4 * STEPS_PER_UPDATE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_complete(run, 4, updates)
    assert_finite(run, 4)
    for rank in range(4):
        rows = table(run, rank, "updates")
        skips = rows["update"][np.diff(rows["skipped"], prepend=0) > 0].tolist()
        assert skips == (SKIPPED if rank == 1 else [])
        learnt = np.isin(rows["update"], skips, invert=True)
        assert np.isfinite(rows["policy_loss"][learnt]).all() and (rows["step_norm"][learnt] > 0).all()
        assert np.isfinite(rows["step_norm"]).all()
        assert ((rows["step_norm"] == 0) == ~learnt).all() or exchange == "allreduce"  # where it goes by the others'
        assert np.isfinite(table(run, rank, "episodes")["score"]).all()
    if exchange == "allreduce":
        assert len({vector.tobytes() for vector in parameters(run, 4)}) == 1
    first = f"gala_mpi: rank 1 on {socket.gethostname()} skips update 7: environment 0 gave a reward of nan at its step 33"
    assert complaints(result)[0] == first  # those that follow soon are not all told
    *between, last = complaints(result)[1:]
    assert all(line.startswith(f"gala_mpi: rank 1 on {socket.gethostname()} skips update ") for line in between)
    assert last.startswith(f"gala_mpi: rank 1 on {socket.gethostname()} has skipped {len(SKIPPED)} of ")
    assert open_run(run).skipped == {1: len(SKIPPED)}
    watch.main([str(run), "--once"])
    assert f"skipped  {len(SKIPPED)} updates, most by rank 1" in capsys.readouterr().out


def test_a_gradient_that_overflows_is_named_with_its_loss(run):
    flags = ("--env", "CartPole-v1", *SMALL, "--learner", "overflowing", "--total-steps", FREE * 2 * STEPS_PER_UPDATE)
    (line,) = complaints(mpirun(2, SICK, "--run-dir", run, *flags))
    start = f"gala_mpi: rank 1 on {socket.gethostname()} skips update {OVERFLOWS}: its loss or gradient is not finite; losses: "
    rows = table(run, 1, "updates")
    losses = {name: rows[column][OVERFLOWS - 1] for name, column in zip(("policy", "value", "entropy"), LOSSES)}
    assert line == start + ", ".join(f"{name} {value:g}" for name, value in losses.items())


@pytest.mark.parametrize("exchange", ["gossip", pytest.param("allreduce", marks=pytest.mark.long)])
def test_too_many_in_a_row_end_the_job_and_leave_the_last_checkpoint(run, exchange):
    """From which the run is resumed once it is cured."""
    flags = ("--env", "LostPole-v0", *SMALL, "--exchange", exchange, "--max-skipped", 5, "--checkpoint-minutes", 0.02)
    result = mpirun(4, SICK, "--run-dir", run, *flags, env={"LOST": str(run)})
    assert result.returncode == 1
    first, last = complaints(result)
    who = f"gala_mpi: rank 1 on {socket.gethostname()}"
    assert first.startswith(f"{who} skips update ") and "gave an observation of nan at its step " in first
    assert last.startswith(f"{who}: 6 updates in a row up to ") and "--max-skipped 5 are allowed" in last
    assert last.endswith("; the job ends.") and "Traceback" not in result.stderr
    newest = checkpoints.newest(run)
    assert newest is not None
    assert all(np.isfinite(vector).all() for vector in parameters(run, 4))
    steps = sum(int(state.learner["steps"]) for state in states(run, 4))
    result = mpirun(4, SICK, "--resume", "--run-dir", run, "--total-steps", steps + 20 * 4 * STEPS_PER_UPDATE)
    assert result.returncode == 0 and f"resumed from checkpoint {newest}" in result.stdout


@pytest.fixture
def damaged(run) -> Path:
    """A run of an older version, so to say, whose newest checkpoint and best one is not finite."""
    train(2, run, "--env", "CartPole-v1", *SMALL, "--total-steps", 2 * 100 * STEPS_PER_UPDATE)
    train(2, run, "--resume", "--total-steps", 2 * 200 * STEPS_PER_UPDATE)
    assert checkpoints.complete(run) == [1, 2]
    for rank in range(2):
        with h5py.File(layout.checkpoint_file(run, 2, rank), "r+") as file:
            file.attrs["score"] = 500.0
            if rank:
                file["learner/parameters"][7] = np.inf
    return run


def passed_over(run: Path) -> str:
    return f"gala_mpi: {layout.checkpoint_file(run, 2, 1)} is damaged and passed over (not finite: parameters)"


def test_a_resume_takes_the_checkpoint_before(damaged):
    result = train(2, damaged, "--resume", "--total-steps", 2 * 300 * STEPS_PER_UPDATE)
    assert passed_over(damaged) in complaints(result)
    assert "resumed from checkpoint 1" in result.stdout
    assert_complete(damaged, 2, 300)
    assert all(np.isfinite(vector).all() for vector in parameters(damaged, 2))


def test_evaluate_takes_the_checkpoint_before(damaged):
    for wanted in ("newest", "best"):
        result = mpirun(1, "-m", "gala_mpi.evaluate", damaged, "--episodes", 1, "--checkpoint", wanted)
        assert result.returncode == 0 and complaints(result) == [passed_over(damaged)]
        assert "checkpoint 1" in result.stdout
    refused = mpirun(1, "-m", "gala_mpi.evaluate", damaged, "--episodes", 1, "--checkpoint", 2)
    (line,) = complaints(refused)
    assert refused.returncode == 2 and "rank00001.h5" in line and "not finite: parameters" in line
