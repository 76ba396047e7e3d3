"""`--learner vtrace` and `--lag 1`: runs equal each other bit for bit, resumed and replayed, too."""

from __future__ import annotations

import pytest
from test_cartpole import EXCHANGES, POLE, VTRACE
from test_replaying import assert_same as assert_same_run
from test_replaying import matters
from test_resume import assert_same, resumed

from commandline import states, table, train
from gala_mpi.run import reader

QUICK = (*POLE, *VTRACE)
STEPS_PER_UPDATE = 8 * 20


def test_defaults_of_the_field_are_stored_with_the_run(tmp_path):
    train(1, tmp_path / "run", *POLE, "--learner", "vtrace", "--vtrace.c-bar", "inf", "--total-steps", 2 * STEPS_PER_UPDATE)
    config = reader.read_config(tmp_path / "run")
    assert (config.rollout_length, config.base_lr, config.lag) == (20, 2e-3, 0)
    assert config.normalise_observations and config.normalise_rewards
    assert (config.vtrace.rho_bar, config.vtrace.c_bar, config.vtrace.entropy_coefficient) == (1.0, float("inf"), 0.01)
    assert [int(state.learner["updates"]) for state in states(tmp_path / "run", 1)] == [2]


@pytest.mark.parametrize(
    "n, exchange",
    [(2, "lockstep"), *(pytest.param(*each, marks=pytest.mark.long) for each in ((1, "gossip"), (2, "allreduce")))],
)
def test_two_runs_with_a_lag_are_one(tmp_path, n, exchange):
    """Bit for bit, though two threads of each rank go as fast as they can."""
    runs = tmp_path / "one", tmp_path / "other"
    for run in runs:
        train(n, run, *QUICK, *EXCHANGES[exchange], "--lag", 1, "--total-steps", 60 * n * STEPS_PER_UPDATE)
    assert_same(*runs, n)
    for rank in range(n):
        rows, episodes = table(runs[0], rank, "updates"), table(runs[0], rank, "episodes")
        assert rows["policy_lag"].tolist() == [0, *[1] * 59] and rows["kl"][1:].min() > 0
        assert rows["steps"].tolist() == [STEPS_PER_UPDATE * k for k in range(1, 61)]
        assert 0 < episodes["length"].sum() <= rows["steps"][-1]  # each once


@pytest.mark.parametrize("lag", [pytest.param(0, marks=pytest.mark.long), 1])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, lag):
    exact = ("--exact-resume", "--checkpoint-updates", 10, "--total-steps", 2 * 40 * STEPS_PER_UPDATE)
    flags = (*QUICK, "--lag", lag, *EXCHANGES["lockstep"], *exact)
    whole, stopped = resumed(tmp_path, *flags)
    assert stopped in (10, 20, 30)
    lags = table(whole, 0, "updates")["policy_lag"].tolist()
    assert lags == [float(lag and k % 10 > 0) for k in range(40)]  # new episodes are played first, not ahead


def test_an_asynchronous_run_with_a_lag_repeats_bit_for_bit(tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    flags = (*QUICK, "--lag", 1, "--staleness", 2, "--slow-rank", "1:20ms")
    train(2, run, *flags, "--total-steps", 2 * 40 * STEPS_PER_UPDATE)
    matters(run, 2)
    said = train(2, again, "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    assert_same_run(run, again, 2)
