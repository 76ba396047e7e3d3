"""`python -m gala_mpi.bench`, as a user starts it. What it measures is no matter for tests; that it adds up is."""

import json

import pytest

from commandline import complaints
from gala_mpi.clock import SECTIONS
from launch import mpirun

BENCH = ("-m", "gala_mpi.bench", "train", "--env", "CartPole-v1", "--precision", "fp32")


@pytest.mark.parametrize("exchange", ["gossip", "allreduce"])
def test_train(exchange):
    result = mpirun(2, *BENCH, "--exchange", exchange, "--rounds", 1, "--updates", 30, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    one, both = figures["one_rank"], figures["all_ranks"]
    assert figures["ranks"] == 2
    assert figures["ratio"] == pytest.approx(both["steps_per_second"] / one["steps_per_second"])
    for turn, ranks in ((one, 1), (both, 2)):
        assert 0 < sum(turn[section] for section in SECTIONS) <= 1.01 * turn["update"]
        steps = figures["settings"]["num_envs"] * figures["settings"]["rollout_length"]
        assert turn["steps_per_second"] * turn["update"] == pytest.approx(ranks * steps, rel=0.5)
    assert figures["simulators_alone"] > 0


def test_tables():
    result = mpirun(2, *BENCH, "--rounds", 1, "--updates", 20)
    assert result.returncode == 0, result.stderr
    for words in ("one rank training", "2 ranks training", *SECTIONS):
        assert words in result.stdout


def test_bad_input_is_one_line():
    result = mpirun(2, *BENCH, "--rounds", 0)
    assert result.returncode == 2
    (line,) = complaints(result)
    assert "--rounds 0" in line
