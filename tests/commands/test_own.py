"""A learner and networks of the user's own, one file and one line each, under the user's command (tests/own.py)."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from commandline import SMALL, assert_complete, complaints, parameters, states, table
from launch import mpirun

OWN = Path(__file__).parents[1] / "own.py"
POLE = ("--env", "CartPole-v1", "--precision", "fp32")


def train(n: int, run: Path, *flags: object) -> CompletedProcess:
    result = mpirun(n, OWN, "--run-dir", run, *flags, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.mark.parametrize("exchange", ["gossip", pytest.param("allreduce", marks=pytest.mark.long)])
def test_a_learner_of_ones_own_learns(tmp_path, exchange):
    run, how = tmp_path / "run", ("--num-envs", 8, "--rollout-length", 32, "--lr", 3e-3)
    train(2, run, *POLE, "--learner", "reinforce", "--exchange", exchange, *how, "--total-steps", 50_000)
    for rank in range(2):
        scores, updates = table(run, rank, "episodes")["score"], table(run, rank, "updates")
        assert np.isfinite(updates["policy_loss"]).all()
        assert np.isnan(updates["value_loss"]).all() and np.isnan(updates["entropy"]).all()  # it has none
        assert scores[-10:].mean() > 2 * scores[:30].mean()
    assert_complete(run, 2, updates=98)
    one, other = parameters(run, 2)
    assert np.array_equal(one, other) == (exchange == "allreduce")
    assert len(table(run, 0, "mixes")) > 0 or exchange == "allreduce"


@pytest.mark.parametrize(
    ("network", "game"),
    [pytest.param("residual", SMALL, marks=pytest.mark.long), ("skipping", ("--env", "pong", "--num-envs", 2))],
)
def test_a_network_of_ones_own_is_trained_and_resumed(tmp_path, network, game):
    run = tmp_path / "run"
    train(2, run, *game, "--network", network, "--precision", "fp32", "--total-steps", 400)
    train(2, run, "--resume", "--total-steps", 800)
    for state in states(run, 2):
        assert state.network == state.policy["network"] == network
        last = state.policy["parameters"][-1]
        assert last["name"] == "value.bias" and last["offset"] + 1 == len(state.learner["parameters"])
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= 800


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--network", "counting"), "--network counting: it keeps encoder.passes, which agents neither share nor save"),
        pytest.param(
            ("--network", "skipping"),
            "--network skipping: CartPole-v1 shows no images; mlp or residual or counting is expected",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("--env", "pong", "--network", "residual"),
            "--network residual: pong shows images; gala or nature or small or impala or mlp or",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_a_line(tmp_path, flags, words):
    result = mpirun(2, OWN, "--run-dir", tmp_path / "run", *POLE, *flags)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = complaints(result)
    assert words in line
