"""`--memory`: runs resume and repeat bit for bit. (What they learn: test_cartpole.)"""

from __future__ import annotations

import pytest
from test_cartpole import STILL_POLE
from test_replaying import assert_same as assert_same_run
from test_replaying import matters
from test_resume import resumed

from commandline import states, train

pytestmark = pytest.mark.usefixtures("importable_here")
SMALL = (*STILL_POLE, "--memory", "gru", "--memory-size", 8)
SHORT = {"ppo": ("--learner", "ppo", "--rollout-length", 8, "--ppo.epochs", 2), "a2c": ()}
EACH = {"ppo": 8 * 8, "a2c": 5 * 8}  # steps of an update


@pytest.mark.long
@pytest.mark.parametrize("learner", SHORT)
def test_stopped_and_resumed_equals_never_stopped(tmp_path, learner):
    flags = (*SMALL, *SHORT[learner], "--staleness", 0, "--exact-resume", "--checkpoint-updates", 10)
    flags = (*flags, "--total-steps", 2 * 30 * EACH[learner])
    _, stopped = resumed(tmp_path, *flags, slow="0:100ms")
    assert stopped in (10, 20)


@pytest.mark.long
@pytest.mark.parametrize("learner", SHORT)
def test_an_asynchronous_run_with_workers_that_take_turns_repeats_bit_for_bit(tmp_path, learner):
    run, again = tmp_path / "run", tmp_path / "again"
    flags = ("--overlap", "--env-workers", 2, "--staleness", 4, "--slow-rank", "1:20ms")
    train(2, run, *SMALL, *SHORT[learner], *flags, "--total-steps", 2 * 30 * EACH[learner])
    matters(run, 2)
    said = train(2, again, "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    assert_same_run(run, again, 2)


@pytest.mark.long
def test_a_run_keeps_its_memory_on_other_ranks_too(tmp_path):
    """The policy says what it remembers with."""
    run = tmp_path / "run"
    train(2, run, *SMALL, *SHORT["ppo"], "--total-steps", 2 * 5 * EACH["ppo"])
    train(1, run, "--resume", "--total-steps", 2 * 10 * EACH["ppo"])
    (state,) = states(run, 1)
    assert state.policy["memory"] == {"kind": "gru", "size": 8}
    assert {"memory.core.weight_hh_l0", "encoder.0.weight"} <= {entry["name"] for entry in state.policy["parameters"]}
