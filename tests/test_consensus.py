"""Consensus and gradients, of real mixing of real vectors."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from mixed import SIZE, forwards, gossip_run
from recorded import begin, mix_rows, update_rows, write

import consensus
import gradients
from gala_mpi import topology
from gala_mpi.run import RunError, open_run
from gala_mpi.run.tables import TABLES
from gala_mpi.topology import Graph
from groups import grouped
from script import Options


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr("recorded.ROOM", 1000)


@pytest.mark.parametrize("name, n", [("ring", 4), ("exponential", 4), ("one-peer-exponential", 4), ("base", 5)])
def test_the_bound_of_lock_step_is_the_papers(tmp_path, name, n):
    """A_s is (I - 11ᵀ/n) times the product of the matrices from s on: computed here as such."""
    graph, updates = topology.build(Graph(name), n), 60
    run = open_run(gossip_run(tmp_path / "r", graph, updates))
    found = consensus.drift(run)
    squares = sum(run.updates(rank)["step_norm"].astype(float) ** 2 for rank in range(n))
    for k, distance, bound in zip(found.updates, found.distance, found.bound):
        total, product = 0.0, np.eye(n) - 1 / n
        for s in range(k, 0, -1):
            product = product @ graph.mixing_matrix(s)
            total += np.linalg.norm(product, 2) * squares[s - 1] ** 0.5
        assert bound == pytest.approx(total, rel=1e-6)
        parameters = [run.sketches(rank)["parameters"][k - 1].astype(float) for rank in range(n)]
        mean = sum(parameters) / n
        assert distance == pytest.approx(sum(((p - mean) ** 2).sum() for p in parameters) ** 0.5)
        assert distance <= bound <= found.prior
    assert 0.05 < found.ratio.max() <= 1
    if name == "ring":
        beta = math.cos(math.pi / 4)
        assert found.beta == pytest.approx(beta, abs=1e-12)
        last = sum(beta ** (updates + 1 - s) * squares[s - 1] ** 0.5 for s in range(1, updates + 1))
        assert found.bound[-1] == pytest.approx(last, rel=1e-6)
        assert found.prior == pytest.approx(beta / (1 - beta) * squares.max() ** 0.5)


GRAPHS = [("ring", 5), ("one-peer-exponential", 6), ("base", 5), ("base:2", 7), ("hierarchical:3", 4), ("hierarchical:3", 6)]


@pytest.mark.parametrize("name, n", GRAPHS)
def test_the_bound_a_priori_is_of_rounds_from_any_on(name, n):
    """Σ_m ‖(I - 11ᵀ/n) P_(k+m) ... P_k‖₂ at the worst k, with the matrices of the rounds."""
    graph = topology.build(Graph(name, nodes=tuple(agent // 2 for agent in range(n)) if ":3" in name else ()), n)
    beta = topology.mixing_rate(graph)
    worst = 0.0
    for k in range(graph.period):
        product, total = np.eye(n) - 1 / n, 0.0
        for m in range(1000):  # the last matrix is the same in all terms, as in a run: it goes back in time
            product = product @ graph.mixing_matrix(k - m)
            total += np.linalg.norm(product, 2)
        worst = max(worst, total)
    assert worst <= consensus.a_priori(graph, beta) * (1 + 1e-9)
    one_order = graph.period - 1 + graph.period * beta / (1 - beta)
    assert graph.commutes == (consensus.a_priori(graph, beta) == pytest.approx(one_order))


@pytest.mark.parametrize("name, n", [("ring", 4), ("exponential", 4), ("ring", 3)])
def test_with_late_and_missing_messages_the_bound_is_of_what_happened(tmp_path, name, n):
    """Coefficients computed forwards, each vector as a sum of all steps: what the script computes backwards."""
    run = open_run(gossip_run(tmp_path / "r", topology.build(Graph(name), n), 40, late=0.3, seed=2))
    found = consensus.drift(run)
    steps = {(rank, s): run.sketches(rank)["gradient"][s - 1].astype(float) for rank in range(n) for s in range(1, 41)}
    numbers = {node: i for i, node in enumerate(steps)}
    made = forwards(run, {node: np.eye(len(steps))[number] for node, number in numbers.items()}, np.zeros((n, len(steps))))
    checked = 0
    for k, distance, bound in zip(found.updates, found.distance, found.bound):
        x = np.array([made(rank, k) for rank in range(n)])
        vectors = np.array([run.sketches(rank)["parameters"][k - 1] for rank in range(n)], float)
        np.testing.assert_allclose(x @ np.array(list(steps.values())), vectors, atol=1e-6)
        a = x - x.mean(axis=0)
        total = 0.0
        for s in range(1, 41):
            block = a[:, [numbers[rank, s] for rank in range(n)]]
            total += np.linalg.norm(block, 2) * sum(np.linalg.norm(steps[rank, s]) ** 2 for rank in range(n)) ** 0.5
        assert bound == pytest.approx(total, rel=1e-5) and distance <= bound * (1 + 1e-6)
        checked += 1
    assert checked == 40


def test_without_a_peer_s_rows_there_is_no_bound(tmp_path):
    """A live run whose ranks have written unequally far."""
    run_dir = gossip_run(tmp_path / "r", topology.build(Graph("ring"), 3), 30)
    with h5py.File(run_dir / "metrics" / "rank00001.h5", "r+", locking=False) as file:
        file["rows/updates"][()] = 20
    bound = consensus.drift(open_run(run_dir)).bound
    assert np.isfinite(bound[:20]).all() and np.isnan(bound[20:]).all()


@pytest.mark.parametrize("module", [consensus, gradients])
def test_without_common_updates_it_is_said(tmp_path, module):
    """A live run that has just grown: its agents have sketches, but not of the same updates yet."""
    run_dir = begin(tmp_path / "r")
    for rank in range(2):
        sketches = np.ones(1, TABLES["sketches"])
        sketches["update"] = 10 + rank
        write(run_dir, rank, 0, updates=update_rows(1, 20), sketches=sketches)
    with pytest.raises(RunError, match="no two agents have sketches of equal updates yet"):
        module.answer([open_run(run_dir)], Options(runs=()))


@pytest.mark.parametrize("beta", [1.0, 1.12])
def test_a_graph_that_need_not_agree_has_no_bound_a_priori(tmp_path, beta):
    run_dir = gossip_run(tmp_path / "r", topology.build(Graph("ring"), 3), 20)
    with h5py.File(run_dir / "run.h5", "r+") as file:
        file["starts/0"].attrs["beta"] = beta
    drift = consensus.drift(open_run(run_dir))
    assert drift.prior == np.inf and np.isfinite(drift.bound).all()
    consensus.answer([open_run(run_dir)], Options(runs=()))
    plt.close("all")


def test_correlations_are_cosines(tmp_path):
    run_dir = begin(tmp_path / "r", agents=3)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(5, 3, SIZE)) + random.normal(size=(5, 1, SIZE))
    for rank in range(3):
        sketches = np.zeros(5, TABLES["sketches"])
        sketches["update"], sketches["gradient"] = np.arange(1, 6) * 10, vectors[:, rank]
        mixes = mix_rows(1, 3)
        mixes["peer"] = (rank - 1) % 3
        write(run_dir, rank, 0, updates=update_rows(1, 60), sketches=sketches, mixes=mixes)
    run = open_run(run_dir)
    [c] = gradients.correlations(grouped([run], "exchange")[0])
    for i in range(3):
        for j in range(3):
            a, b = vectors[:, i], vectors[:, j]
            cosine = [u @ v / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in zip(a, b)]
            assert c.mean[i, j] == pytest.approx(sum(cosine) / 5, abs=1e-6)
    assert c.peers.tolist() == [[False, False, True], [True, False, False], [False, True, False]]


# Alarms.


def notes_of(run_dir: Path) -> tuple[dict[str, object], list[str], str]:
    said = consensus.answer([open_run(run_dir)], Options(runs=()))
    plt.close("all")
    return dict(zip(said.table.headings, said.table.rows[0])), said.notes, said.sentence


@pytest.mark.parametrize("agents, offset, alarm", [(4, 0.0, False), (7, 0.0, False), (7, 0.1, True)])
def test_where_the_bound_is_0_rounding_is_no_alarm(tmp_path, agents, offset, alarm):
    """A complete graph in lock-step: all agents are equal after every update, but for the rounding of float32. Seven weights of
    1/7 do not add up to 1: the bound is next to 0 there, and the distance many times as large."""
    run_dir = gossip_run(tmp_path / "r", topology.build(Graph("complete"), agents), 20)
    random = np.random.default_rng(0)
    for rank in range(agents):
        with h5py.File(run_dir / f"metrics/rank{rank:05d}.h5", "r+", locking=False) as file:
            sketches = file["sketches"][:]
            common = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
            sketches["parameters"] += common * (1 + random.uniform(-1, 1, SIZE) * 2.0**-24).astype(np.float32)
            sketches["parameters"][-1, 0] += offset * (rank == 0)
            file["sketches"][:] = sketches
    drift = consensus.drift(open_run(run_dir))
    assert (drift.bound < 1e-9).all() and (drift.distance > 0).all() and (drift.bound > 0).any() == (agents == 7)
    row, notes, sentence = notes_of(run_dir)
    assert math.isnan(row["largest ratio (%)"])
    assert ("rules out" in sentence) == alarm and ("no more than rounding" in sentence) != alarm
    assert [note for note in notes if "ALARM" in note] == (
        [f"{run_dir}: ALARM: the distance is above its bound at 1 of 20 updates, first at 20"] if alarm else []
    )


def test_agents_further_apart_than_their_bound_are_an_alarm(tmp_path):
    run_dir = gossip_run(tmp_path / "r", topology.build(Graph("ring"), 3), 20)
    assert not any("ALARM" in note for note in notes_of(run_dir)[1])
    with h5py.File(run_dir / "metrics/rank00001.h5", "r+", locking=False) as file:
        sketches = file["sketches"][:]
        sketches["parameters"][11:] += 1
        file["sketches"][:] = sketches
    row, notes, _ = notes_of(run_dir)
    assert row["largest ratio (%)"] > 1000 and f"{run_dir}: ALARM: the distance is above its bound at 9 of 20" in " ".join(
        notes
    )


def test_the_a_priori_bound_is_of_lock_step_alone(tmp_path):
    asynchronous = gossip_run(tmp_path / "late", topology.build(Graph("ring"), 3), 20, late=0.3)
    row, notes, _ = notes_of(asynchronous)
    assert math.isnan(row["a priori"]) and row["bound, last"] > 0
    assert f"{asynchronous}: no a priori bound: it holds in lock-step alone, if all steps are of finite length" in notes
    row, notes, _ = notes_of(gossip_run(tmp_path / "step", topology.build(Graph("ring"), 3), 20))
    assert row["a priori"] > 0 and not any("a priori" in note for note in notes)


def test_what_is_not_finite_is_left_out_and_said(tmp_path):
    run_dir = gossip_run(tmp_path / "r", topology.build(Graph("ring"), 3), 20)
    with h5py.File(run_dir / "metrics/rank00001.h5", "r+", locking=False) as file:
        sketches, updates = file["sketches"][:], file["updates"][:]
        sketches["parameters"][4, 7], updates["step_norm"][14] = np.nan, np.nan
        file["sketches"][:], file["updates"][:] = sketches, updates
    row, notes, _ = notes_of(run_dir)
    assert np.isfinite(row["distance, last"])
    assert f"{run_dir}: 1 updates left out: a number of a sketch is not finite" in notes
    assert any(note.startswith(f"{run_dir}: no bound at 6 of 19 updates: ") for note in notes)  # from 15 on
