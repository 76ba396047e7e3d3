"""`--learner ppo`: its defaults are stored, runs resume and repeat bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from test_cartpole import EXCHANGES, POLE, PPO
from test_replaying import assert_same as assert_same_run
from test_replaying import matters
from test_resume import resumed

from commandline import parameters, states, table, train
from gala_mpi.run import reader

LENGTH = 64
STEPS_PER_UPDATE = 8 * LENGTH
QUICK = (*POLE, *PPO)


def test_defaults_of_the_field_are_stored_with_the_run(tmp_path):
    train(2, tmp_path / "run", *POLE, "--learner", "ppo", "--total-steps", 2 * 2048)
    config = reader.read_config(tmp_path / "run")
    assert (config.rollout_length, config.base_lr, config.ppo.clip) == (256, 3e-4, 0.2)
    assert (config.ppo.epochs, config.ppo.minibatches) == (10, 32)
    assert config.normalise_observations and config.normalise_rewards
    for state in states(tmp_path / "run", 2):
        assert state.learner["optimiser_steps"] == 10 * 32 * state.learner["updates"]


@pytest.mark.long
@pytest.mark.parametrize("exchange", ["lockstep", "allreduce", "periodic"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, exchange):
    exact = ("--exact-resume", "--checkpoint-updates", 4, "--total-steps", 2 * 12 * STEPS_PER_UPDATE)
    flags = (*QUICK, *EXCHANGES[exchange], *exact)
    _, stopped = resumed(tmp_path, *flags)
    assert stopped in (4, 8)


@pytest.mark.long
def test_agents_that_mix_within_rollouts_in_step_do_equal_shares(tmp_path):
    """Ten rollouts of each, of four epochs in three updates; what was recorded of them says so."""
    run = tmp_path / "run"
    train(2, run, *QUICK, "--staleness", 0, "--ppo.epochs", 4, "--mix-steps", 6, "--total-steps", 2 * 10 * STEPS_PER_UPDATE)
    for rank in range(2):
        rows, mixes = table(run, rank, "updates"), table(run, rank, "mixes")
        assert rows["update"].tolist() == mixes["update"].tolist() == mixes["version"].tolist() == list(range(1, 31))
        assert rows["steps"].tolist() == [STEPS_PER_UPDATE * (1 + update // 3) for update in range(30)]
        assert (rows["age"] == 0).all() and (rows["staleness"] == 0).all()
        assert set(table(run, rank, "episodes")["update"] % 3) == {1}
        assert states(run, 2)[rank].learner["optimiser_steps"] == 10 * 4 * 4


def test_preempted_ranks_stop_together_once_their_steps_add_up(tmp_path):
    """What is counted is what was played, also by a run that goes on."""
    run = tmp_path / "run"
    flags = (*QUICK, "--exchange", "allreduce", "--preempt", 0.5, "--slow-rank", "1:60ms")
    for total, told in ((4000, flags), (7000, ("--resume",))):
        train(2, run, *told, "--total-steps", total)
        one, other = (table(run, rank, "updates") for rank in range(2))
        assert one["update"].tolist() == other["update"].tolist()
        done = one["steps"] + other["steps"]
        assert one["run_steps"].tolist() == other["run_steps"].tolist() == done.tolist()
        assert done[-2] < total <= done[-1]
        lengths = np.diff([one["steps"], other["steps"]], prepend=0) / 8
        assert lengths.min() >= LENGTH / 4 and (lengths.max(0) == LENGTH).all()
        for state in states(run, 2):
            assert state.learner["optimiser_steps"] == 6 * 4 * len(one)
        assert np.array_equal(*parameters(run, 2))


@pytest.mark.parametrize("mixes", [(), pytest.param(("--mix-steps", 5), marks=pytest.mark.long)], ids=["", "mixes"])
def test_an_asynchronous_run_repeats_bit_for_bit(tmp_path, mixes):
    """With a KL stop, by which agents differ in their numbers of steps."""
    run, again = tmp_path / "run", tmp_path / "again"
    stop = ("--ppo.target-kl", 0.005, "--staleness", 2, *mixes)
    train(2, run, *QUICK, *stop, "--slow-rank", "1:50ms", "--total-steps", 2 * 20 * STEPS_PER_UPDATE)
    matters(run, 2)
    rollouts = [state.learner["steps"] / STEPS_PER_UPDATE for state in states(run, 2)]
    done = [state.learner["optimiser_steps"] / (4 * rollouts[rank]) for rank, state in enumerate(states(run, 2))]
    assert all(0.5 < epochs < 6 for epochs in done)  # the last may not have been learnt from to its end
    assert all(mixes == () or state.learner["updates"] > number for state, number in zip(states(run, 2), rollouts))
    said = train(2, again, "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    assert_same_run(run, again, 2)
