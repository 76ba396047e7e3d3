"""The model of runs beyond this machine, against arithmetic and against matrices."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from recorded import measured_run

import model
import simulate
from gala_mpi import topology
from gala_mpi.topology import Graph
from groups import load


def case(exchange="gossip", name="ring", ranks=8, per_node=64, slow=-1, delay=0.0, **options) -> model.Case:
    options = simulate.Simulate(runs=(), **{"updates": 300, **options})
    graph = topology.build(Graph(name), ranks) if exchange == "gossip" else None
    return model.Case(graph, ranks, per_node, slow, delay, options)


CONSTANT = model.Measured(np.full(10, 0.1), 0.0, 0.02)
VARYING = model.Measured(np.random.default_rng(0).gamma(20, 0.1 / 20, 10_000), 0.0, 0.0)


@pytest.mark.parametrize("name", ["ring", "exponential", "one-peer-exponential", "complete", "torus", "base:2"])
def test_the_model_mixes_as_the_training_does(name, monkeypatch):
    """Of every graph that the training knows, whom a rank reads and with which weights."""
    for n in (2, 3, 8, 12):
        graph, read = topology.build(Graph(name), n), set()
        in_peers = topology.Topology.in_peers
        monkeypatch.setattr(topology.Topology, "in_peers", lambda self, r, k: read.add((r, k)) or in_peers(self, r, k))
        assert model.simulate(case(name=name, ranks=n, updates=30), CONSTANT).rate > 0
        monkeypatch.undo()
        assert read == {(rank, k) for rank in range(n) for k in range(graph.period)}


def test_the_model_without_chance_is_arithmetic():
    assert model.simulate(case(), CONSTANT).rate == pytest.approx(80, rel=0.01)
    assert model.simulate(case(cores=2), CONSTANT).rate == pytest.approx(20, rel=0.01)  # four ranks a core
    assert model.simulate(case("allreduce"), CONSTANT).rate == pytest.approx(8 / 0.12, rel=0.01)
    assert model.simulate(case(slow=0, delay=0.9), CONSTANT).rate == pytest.approx(71, rel=0.01)
    assert model.simulate(case("allreduce", slow=0, delay=0.88), CONSTANT).rate == pytest.approx(8, rel=0.01)


def test_cores_are_shared_by_those_who_compute():
    """Three ranks on two cores: until 1.5 s each has 2/3 of a core, then the two that are left have one each."""
    np.testing.assert_allclose(model.shared(np.array([3.0, 1.0, 2.0]), 2), [3.5, 1.5, 2.5])
    np.testing.assert_allclose(model.shared(np.array([3.0, 1.0, 2.0]), 4), [3, 1, 2])
    np.testing.assert_allclose(model.shared(np.full(8, 1.0), 2), 4)


def test_a_straggler_computes_by_the_clock_among_the_others():
    """Eight ranks of 88 ms on two cores, one of which computes 200 ms more after 5/8 of its work. Each has a quarter of a core:
    after 220 ms it has done its 55, at 352 ms the others are done, at 420 ms it goes on, alone, with its last 33."""
    assert model.slowed(np.full(8, 0.088), 2, 3, 0.2, 5 / 8) == pytest.approx(0.453)
    # Sixteen: 440 ms for the rollout; at 640 ms an eighth of a core until the others are done at 704, then its own.
    assert model.slowed(np.full(16, 0.088), 2, 0, 0.2, 5 / 8) == pytest.approx(0.704 + 0.033 - 0.064 / 8)
    work = np.array([3.0, 1.0, 2.0])
    for slow in range(3):
        assert model.slowed(work, 2, slow, 0.0, 0.5) == pytest.approx(model.shared(work, 2).max())


def test_a2c_waits_for_the_slowest_draw():
    rate = model.simulate(case("allreduce", ranks=16, updates=1000), VARYING).rate
    slowest = np.random.default_rng(1).choice(VARYING.work, (2000, 16)).max(axis=1).mean()
    assert rate == pytest.approx(16 / slowest, rel=0.02)


def test_messages_between_nodes_take_time():
    """A node a rank. A message takes 2.5 updates: every third update mixes, and what it mixes is 3 updates old."""
    here = model.simulate(case(per_node=64), VARYING)
    far = model.simulate(case(per_node=1, latency=0.25), CONSTANT)
    assert far.skipped == pytest.approx(2 / 3, abs=0.02) and np.median(far.lags) == 3
    assert here.skipped < 0.2 and abs(np.median(here.lags)) <= 1


def test_failures_cost_gossip_a_node_and_a2c_everything():
    """A failure of a node every 100 s, 8 nodes, 10 s down: each is up 10/11 of the time; A2C stops every 12.5 s."""
    hours = {"mtbf_hours": 100 / 3600, "restart_seconds": 10.0, "checkpoint_seconds": 5.0, "per_node": 1, "updates": 20_000}
    gossip = model.simulate(case(**hours), CONSTANT).rate
    synchronous = model.simulate(case("allreduce", **hours), CONSTANT).rate
    assert gossip == pytest.approx(80 * 10 / 11, rel=0.03)
    assert 8 / 0.12 * 0.3 < synchronous < 8 / 0.12 * 0.56  # 12.5 / 22.5, less what is lost since a checkpoint


def test_the_distance_of_the_model_is_that_of_the_matrices():
    """All ranks at one pace on one node: nearly lock-step, so that Σ β^2m of the spectrum gives the mean square."""
    n, found = 8, []
    eigenvalues = np.abs([(1 + np.exp(2j * np.pi * k / n)) / 2 for k in range(1, n)]) ** 2
    expected = math.sqrt((eigenvalues / (1 - eigenvalues)).sum() / n)
    for seed in range(8):
        found.append(model.simulate(case(ranks=n, seed=seed), CONSTANT).distance)
    assert np.mean(found) == pytest.approx(expected, rel=0.35)


def test_a_validation_states_the_error(tmp_path):
    measured_run(tmp_path / "2", 2, "gossip", 0.1)
    measured_run(tmp_path / "4", 4, "gossip", 0.2)  # as two cores would have it
    measured_run(tmp_path / "4s", 4, "gossip", 0.3, slow_rank="3:100ms")  # all are slow, which the model does not say
    measured_run(tmp_path / "a2", 2, "allreduce", 0.12)
    found, _ = load([tmp_path])
    said = simulate.answer(found, simulate.Simulate(runs=(), cores=2, validate=True))
    errors = {Path(row[0]).name: row[6] for row in said.table.rows}
    assert abs(errors["2"]) < 1 and abs(errors["4"]) < 1 and abs(errors["a2"]) < 1
    assert errors["4s"] == pytest.approx(100 * ((3 / 0.2 + 1 / 0.3) / (4 / 0.3) - 1), abs=1)
    plt.close("all")
