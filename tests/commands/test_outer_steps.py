"""Training with --outer-momentum: agents stand where the outer step has led them, and go on from it, more of them too."""

from __future__ import annotations

import numpy as np
import pytest

from commandline import SMALL, STEPS_PER_UPDATE, states, train

OUTER = (*SMALL, "--exchange", "periodic", "--sync-updates", 5, "--outer-momentum", 0.5, "--outer-lr", 0.4)


@pytest.mark.long
def test_all_stand_where_the_outer_step_has_led_them(tmp_path):
    """At updates that are a multiple of --sync-updates; after a resume by more agents from between two as well."""
    run, plain = tmp_path / "run", tmp_path / "plain"
    train(2, run, *OUTER, "--total-steps", 20 * 2 * STEPS_PER_UPDATE)
    train(2, plain, *OUTER[:-4], "--total-steps", 20 * 2 * STEPS_PER_UPDATE)
    vectors = same_on_all(run, 2)
    without = states(plain, 2)[0].learner
    assert np.array_equal(vectors["parameters"], vectors["outer_last"]) and vectors["outer_velocity"].any()
    assert not np.allclose(vectors["parameters"], without["parameters"]) and "outer_last" not in without
    train(2, run, "--resume", "--total-steps", 22 * 2 * STEPS_PER_UPDATE)
    one, other = (state.learner for state in states(run, 2))
    assert not np.array_equal(one["parameters"], other["parameters"])
    assert np.array_equal(one["outer_last"], vectors["outer_last"])
    assert np.array_equal(one["outer_velocity"], vectors["outer_velocity"])
    train(3, run, "--resume", "--total-steps", 22 * 2 * STEPS_PER_UPDATE + 3 * 3 * STEPS_PER_UPDATE)
    later = same_on_all(run, 3)
    assert later["updates"] == 25 and np.array_equal(later["parameters"], later["outer_last"])
    assert not np.array_equal(later["outer_velocity"], vectors["outer_velocity"])


def same_on_all(run, n: int) -> dict:
    first, *others = (state.learner for state in states(run, n))
    for name in ("parameters", "outer_last", "outer_velocity"):
        assert all(np.array_equal(first[name], other[name]) for other in others), name
    return first
