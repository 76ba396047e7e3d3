"""Influence: whose parameters made up the final policy, against products computed forwards, one vector after the other."""

from __future__ import annotations

import math
import re
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from mixed import forwards, gossip_run
from synthetic import Synthetic, mixes, updates

import influence
from gala_mpi import topology
from gala_mpi.run import RunError, open_run
from gala_mpi.topology import Graph
from mixing import Mixing
from script import Options


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr("recorded.ROOM", 1000)
    yield
    plt.close("all")


def row_of(*paths: Path) -> tuple[dict[str, object], list[str], str]:
    said = influence.answer([open_run(path) for path in paths], Options(runs=()))
    return dict(zip(said.table.headings, said.table.rows[0])), said.notes, said.sentence


@pytest.mark.parametrize("name, n", [("ring", 5), ("exponential", 4), ("one-peer-exponential", 4)])
def test_in_lock_step_all_have_the_same(tmp_path, name, n):
    path = gossip_run(tmp_path / "r", topology.build(Graph(name), n), 40)
    found = influence.influence(open_run(path))
    np.testing.assert_allclose(found.moments, 1 / n)
    row, _, sentence = row_of(path)
    assert row["effective agents"] == pytest.approx(n) and row["entropy (nats)"] == pytest.approx(math.log(n))
    assert "in equal parts" in sentence


@pytest.mark.parametrize("name, n, gone", [("ring", 4, None), ("exponential", 5, None), ("ring", 3, 1)])
def test_influence_is_the_product_of_what_happened(tmp_path, name, n, gone):
    """What all vectors before a moment are replaced by, its agent's unit vector, comes out of the later mixes as the share."""
    updates = 30
    run_dir = gossip_run(tmp_path / "r", topology.build(Graph(name), n), updates, late=0.3, seed=3)
    if gone is not None:
        lose(run_dir, gone)
    run, living = open_run(run_dir), [rank for rank in range(n) if rank != gone]
    found, mixing = influence.influence(run), Mixing(run)
    size = n * -(-len(mixing.rank) // (200 * n))
    cuts = list(range(size, len(mixing.rank), size))[: len(found.moments) - 1][::-1]  # the end may be all of a lost agent
    assert len(found.moments) == len(cuts) + 1 > 25
    nothing = {(rank, version): np.zeros(n) for rank in range(n) for version in range(1, updates + 1)}
    for cut, moment in list(zip(cuts, found.moments))[::7]:
        before = set(zip(mixing.rank[:cut].tolist(), mixing.version[:cut].tolist()))
        x = forwards(run, nothing, np.eye(n), before)
        np.testing.assert_allclose(moment, np.mean([x(rank, updates) for rank in living], axis=0), atol=1e-12)
        assert moment.sum() == pytest.approx(1)
    x = forwards(run, nothing, np.eye(n))
    np.testing.assert_allclose(found.moments[-1], np.mean([x(rank, updates) for rank in living], axis=0), atol=1e-12)
    np.testing.assert_allclose(found.shares, found.moments.mean(axis=0))


def test_the_share_of_the_steps_is_that_of_their_lengths(tmp_path):
    run = open_run(gossip_run(tmp_path / "r", topology.build(Graph("ring"), 3), 20, late=0.3, seed=4))
    nodes = [(rank, version) for rank in range(3) for version in range(1, 21)]
    x = forwards(run, {node: np.eye(60)[i] for i, node in enumerate(nodes)}, np.zeros((3, 60)))
    coefficients = np.mean([x(rank, 20) for rank in range(3)], axis=0)
    lengths = np.concatenate([run.updates(rank)["step_norm"] for rank in range(3)])
    walked = (coefficients * lengths).reshape(3, 20).sum(axis=1)
    np.testing.assert_allclose(influence.influence(run).steps, walked / walked.sum(), rtol=1e-6)


def test_an_agent_that_reads_nobody_has_all_of_it(tmp_path):
    run = Synthetic(tmp_path / "r", agents=2)
    run.write(0, updates=updates(400), mixes=mixes(updates(400), peer=1))
    run.write(1, updates=updates(400))
    row, _, sentence = row_of(run.path)
    assert row["of agent"] == 1 and row["largest (%)"] > 98 and 1 <= row["effective agents"] < 1.1
    assert "that of agent 1" in sentence


def test_of_a_fast_and_a_slow_agent_the_slow_one_has_most(tmp_path):
    """The fast one averages itself ten times with the same vector, and is nearly it when the slow one reads it."""
    run = Synthetic(tmp_path / "r", agents=2)
    fast, slow = updates(1000, 1.0), updates(100, 10.0)
    heard = mixes(fast, peer=1)
    heard["version"] = (heard["update"] - 1) // 10
    read = mixes(slow, peer=0)
    read["version"] = 10 * read["update"] - 1
    run.write(0, updates=fast, mixes=heard[heard["version"] > 0])
    run.write(1, updates=slow, mixes=read)
    row, _, _ = row_of(run.path)
    assert row["slowest's (%)"] > 80 and row["fastest's (%)"] < 20
    assert row["fastest's (%)"] + row["slowest's (%)"] == pytest.approx(100)


def test_a_lost_agent_keeps_what_others_had_mixed(tmp_path):
    """Lost after 20 of 200 updates: of the first moments it has its share, of the later ones next to nothing."""
    run = Synthetic(tmp_path / "r", agents=3)
    for rank in range(3):
        rows = updates(20 if rank == 2 else 200)
        heard = mixes(rows, peer=(rank - 1) % 3)
        if rank == 0:
            heard["peer"][20:] = 1
        run.write(rank, updates=rows, mixes=heard)
    run.lose(2, 20)
    row, notes, _ = row_of(run.path)
    found = influence.influence(open_run(run.path))
    assert f"{run.path}: lost: agent 2" in notes
    np.testing.assert_allclose(found.moments[-1], 1 / 3, atol=0.02)  # the beginning
    assert found.moments[len(found.moments) // 2, 2] == 0
    assert row["lost agents' (%)"] == pytest.approx(100 * found.moments[:, 2].mean()) and 1 < row["lost agents' (%)"] < 8


def test_of_a_resumed_run_the_newest_start_is_looked_at(tmp_path):
    run = Synthetic(tmp_path / "r", agents=2)
    for rank in range(2):
        run.write(rank, updates=updates(50))
    run.resume(checkpoint=1)
    for rank in range(2):
        rows = updates(50, after=40)
        run.write(rank, 40, updates=rows, mixes=mixes(rows, peer=1 - rank))
    row, notes, _ = row_of(run.path)
    assert row["effective agents"] == pytest.approx(2)
    assert influence.influence(open_run(run.path)).updates.tolist() == [50, 50]
    assert f"{run.path}: resumed; the influence is that since its newest start" in notes


def test_messages_newer_than_all_rows_count_as_the_newest_that_is_there(tmp_path):
    """A killed agent had written its rows up to update 20; agent 0 has mixed ten later ones."""
    run = Synthetic(tmp_path / "r", agents=2)
    run.write(0, updates=updates(30), mixes=mixes(updates(30), peer=1))
    run.write(1, updates=updates(20), mixes=mixes(updates(20), peer=0))
    run.lose(1, 30)
    row, notes, _ = row_of(run.path)
    what = "10 messages of agent 1 are newer than its rows that can be read; they count as its newest that is there"
    assert f"{run.path}: {what}" in notes
    found = influence.influence(open_run(run.path))
    np.testing.assert_allclose(found.moments[0], [1 / 8, 7 / 8])  # averaged three times with the same message since then
    assert row["slowest's (%)"] + row["lost agents' (%)"] == pytest.approx(100)


@pytest.mark.parametrize("damage", ["lost", "cut", "mixes", "updates"])
def test_what_an_unreadable_agent_mixed_is_not_known(tmp_path, damage):
    """No number is given for such a run: agent 1 seemed to have 99.8%, of parameters from before all that cannot be read."""
    for name in ("whole", "damaged"):
        run = Synthetic(tmp_path / name, agents=2)
        files = [run.write(rank, updates=updates(400), mixes=mixes(updates(400), peer=1 - rank)) for rank in range(2)]
    if damage == "lost":
        files[1].unlink()
    elif damage == "cut":
        files[1].write_bytes(files[1].read_bytes()[:5000])
    else:
        with h5py.File(files[1], "r+") as file:
            if damage == "mixes":
                file["mixes"][200:] = np.zeros_like(file["mixes"][200:])
            else:
                file["updates"]["hours"] = np.nan
    what = f"{run.path}: the newest metrics of agent 1 cannot be read whole, so that nobody knows what was mixed"
    with pytest.raises(RunError, match=re.escape(what)):
        row_of(run.path)
    row, notes, sentence = row_of(tmp_path / "whole", run.path)
    assert f"{what}; left out" in notes and row["run"] == str(tmp_path / "whole")
    assert sentence == "All agents made up the final policy in equal parts: the largest is less than 1% above its equal share."


def test_runs_that_mix_nothing_are_named(tmp_path):
    gossip = gossip_run(tmp_path / "g", topology.build(Graph("ring"), 3), 5)
    alone = Synthetic(tmp_path / "a", agents=2, exchange="none")
    for rank in range(2):
        alone.write(rank, updates=updates(5))
    assert f"{alone.path}: its agents mixed no messages over a graph; left out" in row_of(gossip, alone.path)[1]
    with pytest.raises(RunError, match="no run whose agents mixed messages over a graph since its newest start is there"):
        row_of(alone.path)


def lose(run_dir: Path, rank: int) -> None:
    (run_dir / "ends").mkdir()
    (run_dir / "ends" / f"rank{rank:05d}.json").write_text(f'{{"rank": {rank}, "lost": true}}')
