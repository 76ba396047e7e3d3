"""`python -m gala_mpi.bench`, as a user starts it. How fast things are is no matter for tests; that figures add up is."""

import json

import pytest

from commandline import complaints
from gala_mpi.clock import SECTIONS
from launch import mpirun

BENCH = ("-m", "gala_mpi.bench")
SMALL = ("--env", "CartPole-v1", "--precision", "fp32")
ATARI = ("--env", "pong", "--num-envs", 4, "--precision", "fp32")


def figures(n: int, *arguments: object) -> dict:
    result = mpirun(n, *BENCH, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["ranks"] == n and found["hosts"] == 1
    return found


@pytest.mark.parametrize("exchange", ["gossip", pytest.param("allreduce", marks=pytest.mark.long)])
def test_train(exchange):
    found = figures(2, "train", *SMALL, "--exchange", exchange, "--rounds", 1, "--updates", 30)
    one, both = found["one_rank"], found["all_ranks"]
    assert found["passes"] == "cached"
    assert found["ratio"] == pytest.approx(both["steps_per_second"] / one["steps_per_second"])
    for turn, ranks in ((one, 1), (both, 2)):
        assert 0 < sum(turn[section] for section in SECTIONS) <= 1.01 * turn["update"]
        steps = found["settings"]["num_envs"] * found["settings"]["rollout_length"]
        # A sum of rates times a mean of times: ranks × steps where all are as fast, more where they are not.
        assert 0.999 <= turn["steps_per_second"] * turn["update"] / (ranks * steps) < (1.001 if ranks == 1 else 10)
        limit = 1 / (1 / turn["environments"] + turn["flops_per_step"] / turn["flops_per_second"])
        assert turn["limit"] == pytest.approx(limit)
        assert turn["reached"] == pytest.approx(turn["steps_per_second"] / limit)
    # 4 → 64 → 64 → 2 actions and a value. Forward: once a step, once more a rollout, the heads again with a gradient.
    # Backward: the gradients of all weights, and of all inputs but the first.
    forward = [2 * 4 * 64, 2 * 64 * 64, heads := 2 * 64 * 3]
    assert one["flops_per_step"] == sum(forward) * 6 / 5 + heads + sum(forward) + sum(forward[1:])


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        (("--hidden", "16,8", "--activation", "relu"), "cached"),
        pytest.param(("--learner", "ppo", "--rollout-length", 8), "recomputed", marks=pytest.mark.long),
        (("--memory", "gru", "--memory-size", 8), "stored"),
    ],
)
def test_the_path_that_ran_is_in_the_table(flags, passes):
    said = mpirun(1, *BENCH, "train", *SMALL, *flags, "--rounds", 1, "--updates", 2)
    assert said.returncode == 0, said.stderr
    (row,) = (line for line in said.stdout.splitlines() if "forward passes of a rollout" in line)
    assert row.count(passes) == 2


def test_exchange():
    found = figures(2, "exchange", *ATARI, "--updates", 20)
    assert found["bytes"] == 4 * 866_439  # 32-64-32 convolutions, 512 units, 6 actions and a value
    assert min(found[name] for name in ("copy", "exchange", "mixing_exchange", "update")) > 0
    assert found["share"] == pytest.approx(found["exchange"] / found["update"])
    assert found["copies"] == pytest.approx(found["mixing_exchange"] / found["copy"])
    assert found["allreduce"] > 0 and 0 < found["messages"] <= 1
    assert abs(found["age"]) <= 40  # updates measured; below zero where the neighbour is ahead of the one who reads


@pytest.mark.long
def test_frozen():
    """Three ranks on a ring: 0 reads the frozen one."""
    found = figures(3, "frozen", *ATARI, "--seconds", 3)
    assert found["frozen"] == 2
    for others in found["others"].values():
        assert set(others) == {"0", "1"}
        for other in others.values():
            assert 0 <= other["stall"] < 1.5 and 0 < other["longest"]["wall"] < 1.5
            assert other["steps_per_second"] > 0


@pytest.mark.long
def test_straggler():
    """A2C goes at the straggler's pace; under gossip the others leave it behind."""
    found = figures(2, "straggler", *ATARI, "--seconds", 3, "--slow-rank", "1:500ms")
    gossip, allreduce = found["gossip"], found["allreduce"]
    for rates in (gossip["uneven"], allreduce["uneven"]):
        assert rates[1] < found["settings"]["num_envs"] * 5 / 0.5
    assert gossip["uneven"][0] > 2 * gossip["uneven"][1]
    assert allreduce["uneven"][0] == pytest.approx(allreduce["uneven"][1], rel=0.2)
    assert gossip["kept"] == pytest.approx(gossip["uneven"][0] / gossip["even"][0])
    assert found["steps"] == round(3 * sum(gossip["uneven"]))
    assert allreduce["seconds_to_finish"] == pytest.approx(found["steps"] / sum(allreduce["uneven"]))
    assert gossip["seconds_to_finish"] < allreduce["seconds_to_finish"]


@pytest.mark.long
def test_agents():
    """Each number of agents beside one agent with all their environments."""
    found = figures(3, "agents", *SMALL, "--rounds", 1, "--seconds", 1.2, "--num-envs", 4)["rows"]
    assert [(row["who"], row["agents"], row["environments"]) for row in found] == [
        ("GALA", 1, 4),
        ("A2C", 1, 4),
        ("GALA", 2, 4),
        ("A2C", 1, 8),
        ("GALA", 3, 4),
        ("A2C", 1, 12),
    ]
    for row in found:
        assert row["steps_per_second"] > 0 and 0 < row["cores_busy"] <= 1
        for watts in ("cpu_watts", "gpu_watts", "node_watts"):
            assert row[watts] is None or row[watts] > 0
        assert row["gpus_busy"] is None or 0 <= row["gpus_busy"] <= 1


@pytest.mark.parametrize(
    "n, arguments, words",
    [
        pytest.param(
            *(
                2,
                ("agents", *SMALL, "--rounds", 1, "--seconds", 0.5),
                ("agents × environments", "GALA", "A2C", "2 × 16", "1 × 32"),
            ),
            marks=pytest.mark.long,
        ),
        (2, ("train", *SMALL, "--rounds", 1, "--updates", 20), ("one rank", "2 ranks", "limit", "cached", *SECTIONS)),
        pytest.param(
            *(2, ("exchange", *SMALL, "--updates", 20), ("Allreduce", "copies", "share of an update")), marks=pytest.mark.long
        ),
        (3, ("frozen", *SMALL, "--seconds", 0.5, "--frozen", 1), ("rank 1 frozen", "before", "after", "stall")),
        (2, ("straggler", *SMALL, "--seconds", 0.5), ("gossip", "allreduce", "straggler")),
    ],
)
def test_tables(n, arguments, words):
    result = mpirun(n, *BENCH, *arguments)
    assert result.returncode == 0, result.stderr
    for word in words:
        assert word in result.stdout


@pytest.mark.parametrize(
    "n, arguments, words",
    [
        (2, ("train", "--rounds", 0), "--rounds 0"),
        (2, ("straggler", "--slow-rank", "2:1s"), "--slow-rank 2:1s: a rank from 0 to 1"),
    ],
)
def test_bad_input_is_one_line(n, arguments, words):
    result = mpirun(n, *BENCH, *arguments, *SMALL)
    assert result.returncode == 2
    (line,) = complaints(result)
    assert words in line
