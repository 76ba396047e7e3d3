"""`--network MODULE:FUNCTION` from start to end: trained, continued and played, wherever its module is; by ranks that agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from commandline import SMALL, TRAIN, complaints, states, table
from gala_mpi import errors
from launch import ROOT, mpirun

HERE = ROOT / "tests"  # where nets.py is
LEARNERS = {
    "a2c": ("--exchange", "gossip", "--staleness", 0),
    "ppo": ("--learner", "ppo", "--exchange", "allreduce", "--rollout-length", 32, "--ppo.minibatches", 2),
}


def evaluated(run: Path, cwd: Path, *flags: object):
    return mpirun(1, "-m", "gala_mpi.evaluate", run, "--episodes", 2, *flags, cwd=cwd)


@pytest.mark.parametrize(("network", "learner"), [("Apart", "ppo"), pytest.param("features", "a2c", marks=pytest.mark.long)])
def test_trained_continued_and_played_from_another_directory(tmp_path, network, learner):
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    for folder, name in ((here, "nets.py"), (there, "moved.py")):
        folder.mkdir()
        shutil.copy(HERE / "nets.py", folder / name)
    flags = (*SMALL, *LEARNERS[learner], "--network", f"nets:{network}")
    begun = mpirun(2, *TRAIN, *flags, "--total-steps", 2000, "--run-dir", run, cwd=here)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    moved = f"moved:{network}"
    resume = (*TRAIN, "--resume", "--run-dir", run, "--total-steps", 4000)
    lost = mpirun(2, *resume, cwd=there)
    (line,) = complaints(lost)
    assert lost.returncode == errors.REFUSED and line.startswith(
        f"gala_mpi: --network nets:{network}: there is no module nets;"
    )
    again = mpirun(2, *resume, "--network", moved, cwd=there)
    assert again.returncode == 0, again.stdout + again.stderr
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= 4000
    for rank, state in enumerate(states(run, 2)):
        assert state.network == state.policy["network"] == moved
        assert np.isfinite(table(run, rank, "updates")["policy_loss"]).all()
    played = evaluated(run, there)
    assert played.returncode == 0, played.stderr
    gone = evaluated(run, here)
    (line,) = complaints(gone)
    assert gone.returncode == errors.REFUSED and line.endswith(
        f"the run has it: --network MODULE:{network} names a module that defines it"
    )
    assert evaluated(run, here, "--network", f"nets:{network}").returncode == 0
    (line,) = complaints(evaluated(run, here, "--network", "nets:convolved"))
    assert line == f"gala_mpi: --network nets:convolved: MODULE:{network} is expected"


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("another", "its encoder.0.weight is (9, 4) here, (8, 4) on rank 0; one network on all ranks is expected"),
        pytest.param(
            "activated",
            "it computes other numbers here than on rank 0; one network on all ranks is expected",
            marks=pytest.mark.long,
        ),
        pytest.param("lost", "it cannot be made (OSError: no such file: weights.pt, in ", marks=pytest.mark.long),
    ],
)
def test_a_network_that_is_another_on_some_rank_ends_the_job(tmp_path, network, words):
    """As where a host has another version of its module."""
    run = tmp_path / "run"
    done = mpirun(2, *TRAIN, *SMALL, "--network", f"nets:{network}", "--total-steps", 2000, "--run-dir", run, cwd=HERE)
    assert done.returncode == errors.FAILED
    (line,) = complaints(done)
    assert line.startswith("gala_mpi: rank 1 on ") and f"--network nets:{network}: {words}" in line
