"""Runs of EnvPool's environments."""

from __future__ import annotations

import numpy as np
import pytest

from commandline import TRAIN, complaints, parameters, train
from gala_mpi.errors import REFUSED
from launch import mpirun

pytest.importorskip("envpool", reason='pip install "gala_mpi[envpool]"; make test-envpool')

SMALL = ("--num-envs", 4, "--precision", "fp32")
IN_STEP = ("--exchange", "allreduce", "--exact-resume", "--checkpoint-updates", 10)


def test_a_run_resumes_exactly_and_is_evaluated(tmp_path):
    env, whole, parts = "envpool:CartPole-v1", tmp_path / "whole", tmp_path / "parts"
    train(2, whole, "--env", env, *SMALL, *IN_STEP, "--total-steps", 800)
    done = train(2, parts, "--env", env, *SMALL, *IN_STEP, "--total-steps", 400)
    assert not complaints(done)
    train(2, parts, "--resume", "--total-steps", 800)
    assert np.array_equal(parameters(whole, 2), parameters(parts, 2))
    played = mpirun(2, "-m", "gala_mpi.evaluate", whole, "--episodes", 2, "--policies", "mean")
    assert played.returncode == 0 and "±" in played.stdout, played.stderr


def test_muscles_that_move_while_others_are_chosen(tmp_path):
    done = train(2, tmp_path / "run", "--env", "envpool:HalfCheetah-v4", *SMALL, "--overlap", "--total-steps", 400)
    assert not complaints(done)


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--env", "envpool:CartPole-v1", "--env-workers", 2), "--env-workers 2: envpool:CartPole-v1 steps its environments"),
        (("--env", "envpool:CartPoel-v1"), "did you mean envpool:CartPole-v1"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path, flags, said):
    done = mpirun(2, *TRAIN, *flags, "--run-dir", tmp_path / "run")
    assert done.returncode == REFUSED and len(complaints(done)) == 1 and said in done.stderr, done.stderr
