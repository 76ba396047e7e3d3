"""A rank dies, and the others go on: Open MPI with its fault tolerance. tests/slurm has MPICH under Slurm."""

from __future__ import annotations

import pytest

import launch
from commandline import SMALL, STEPS_PER_UPDATE, assert_complete, train
from gala_mpi.run import layout
from lost_rank import is_whole_again, loses_a_rank, loses_a_rank_that_is_done


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def sparing(tmp_path, monkeypatch):
    """A launcher that lets survivors live."""
    if not launch.OPEN_MPI:
        pytest.skip("MPICH's mpirun ends all ranks with the first that dies")
    script = tmp_path / "mpirun"
    script.write_text(f'#!/bin/sh\nexec {launch.LAUNCHER} --with-ft ulfm "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(launch, "LAUNCHER", script)


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [(), ("--learner", "vtrace", "--rollout-length", 5, "--lag", 1), ("--learner", "ppo", "--rollout-length", 5)],
    ids=["a2c", "vtrace", "ppo"],
)
def test_a_rank_is_killed(run, sparing, flags):
    loses_a_rank(run, 4, 3, 5_000 if "ppo" in flags else 20_000, *flags)
    is_whole_again(run, n=4, victim=3, updates=800)


@pytest.mark.long
def test_a_rank_that_is_done_is_killed(run, sparing):
    loses_a_rank_that_is_done(run, n=3, victim=2)


def test_nobody_dies(run):
    """Then the run ends as any other."""
    result = train(3, run, *SMALL, "--survive", 120, "--staleness", 2, "--total-steps", 30 * 3 * STEPS_PER_UPDATE)
    assert f"finished: {run}" in result.stdout and "lost" not in result.stderr
    assert_complete(run, 3, updates=30)
    assert layout.lost(run) == set()
