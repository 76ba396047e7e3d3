"""What is said of runs that went on: whose newest metrics were lost, with fewer ranks, or that have just begun again."""

from __future__ import annotations

import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import Synthetic, energy, episodes, mixes, sketches, updates

import consensus
import export
import health
import influence
import staleness
import throughput
from gala_mpi.run import open_run
from groups import incomplete
from script import Options


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


def asked(script, *paths) -> tuple[list[dict], str, list[str]]:
    said = script.answer([open_run(path) for path in paths], Options(runs=()))
    return [dict(zip(said.table.headings, row)) for row in said.table.rows], said.sentence, said.notes


def went_on(path, agents: int = 2, later: int = 100) -> Synthetic:
    """Agents do 100 updates of 1 s and, after a resume, `later` more; each ends an episode in each and mixes its neighbour."""
    run = Synthetic(path, agents=agents, total_steps=80 * agents * (100 + later))
    for begun, number in ((0, 100), (100, later)):
        if begun:
            run.resume()
        for rank in range(agents):
            rows = updates(number, after=begun, begin=begun / 3600)
            peer = mixes(rows, peer=(rank + 1) % agents)
            run.write(rank, after_update=begun, updates=rows, episodes=episodes(rows), mixes=peer)
    return run


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("harm, said", [("lost", "missing"), ("damaged", "cannot be read")])
def test_a_newest_file_that_cannot_be_read_is_named_and_its_agent_counts_as_the_others(tmp_path, rank, harm, said):
    run = went_on(tmp_path / "r")
    file = run.path / "metrics" / f"rank{rank:05d}-1.h5"
    file.unlink() if harm == "lost" else file.write_bytes(b"x" * 100)
    read = open_run(run.path)
    assert read.state == "finished, metrics of 1 of 2 agents" and read.early == {}
    assert read.scores["steps"].max() == 2 * 200 * 80
    assert [problem for problem in read.problems if problem.startswith(f"{file}: {said}")] == read.problems != []
    [row], *_ = asked(throughput, run.path)
    assert row["frames/s"] == pytest.approx(2 * 4 * 80) and row["ms an update"] == pytest.approx(1000)
    with pytest.raises(influence.RunError, match=f"the newest metrics of agent {rank} cannot be read whole"):
        asked(influence, run.path)
    run.resume(checkpoint=2, total_steps=2 * 300 * 80)  # whose files are all there
    for each in range(2):
        rows = updates(100, after=200, begin=200 / 3600)
        run.write(each, after_update=200, updates=rows, episodes=episodes(rows))
    read = open_run(run.path)
    assert read.state == "finished"
    np.testing.assert_allclose(read.scores["steps"], 2 * 80 * 3600 * read.scores["hours"])


def test_files_of_fewer_and_more_agents_are_all_there(tmp_path):
    run = Synthetic(tmp_path / "r", agents=2)
    for begun, agents in ((0, 2), (10, 4), (20, 1), (30, 3)):
        if begun:
            run.resume(agents=agents, checkpoint=begun // 10)
        for rank in range(agents):
            run.write(rank, after_update=begun, updates=updates(10, after=begun, begin=begun / 3600))
    assert open_run(run.path).problems == []
    (run.path / "metrics" / "rank00002-1.h5").unlink()
    assert open_run(run.path).problems == [f"{run.path}/metrics/rank00002-1.h5: missing"]


def departed(path) -> Synthetic:
    """Four agents do 200 updates; the last one breaks after 50, mixes what is 5 old, and leaves with the third at a resume."""
    run = Synthetic(path, agents=4)
    for rank in range(4):
        rows = updates(200)
        if rank == 3:
            rows["policy_loss"][50:], rows["skipped"][50:], rows["staleness"] = np.nan, np.arange(1, 151), 3
        run.write(rank, updates=rows, mixes=mixes(rows, peer=(rank + 1) % 4, lag=5 * (rank == 3)))
    run.resume(agents=2)
    for rank in range(2):
        rows = updates(100, after=200, begin=200 / 3600)
        run.write(rank, after_update=200, updates=rows, mixes=mixes(rows, peer=1 - rank))
    return run


def test_what_agents_did_that_have_left_is_not_forgotten(tmp_path, capsys):
    path = departed(tmp_path / "r").path
    [row], sentence, _ = asked(health, path)
    assert (row["updates"], row["skipped"], row["alarms"]) == (1000, 150, 1)
    assert sentence == f"1 of 1 runs raise an alarm, and 150 updates were skipped: see {path}."
    lines = incomplete([open_run(path)])
    assert f"{path}: updates skipped because a number was not finite: 150 of agent 3" in lines
    assert f"{path}: ALARM: policy_loss is not finite: agent 3 in 150 updates from 51 on" in lines
    [row], *_ = asked(staleness, path)
    assert (row["messages"], row["largest lag"], row["longest staleness"]) == (1000, 5, 3)
    assert row["skipped (%)"] == pytest.approx(20)
    export.main([str(path), "--to", str(tmp_path / "to"), "--format", "csv"])
    assert sorted(folder.name for folder in (tmp_path / "to" / "r").iterdir()) == [f"rank{rank:05d}" for rank in range(4)]


def test_messages_of_a_run_that_now_has_one_agent(tmp_path):
    run = departed(tmp_path / "r").resume(agents=1, checkpoint=2)
    run.write(0, after_update=300, updates=updates(100, after=300, begin=300 / 3600))
    [row], *_ = asked(staleness, run.path)
    assert row["messages"] == 1000
    with pytest.raises(influence.RunError, match="mixed messages over a graph since its newest start"):
        asked(influence, run.path)


def test_the_time_in_which_an_agent_was_lost_is_in_no_update(tmp_path):
    """The second agent is dead for 50 s; then both go on, where each was."""
    run = Synthetic(tmp_path / "r", total_steps=80 * 350)
    run.write(0, updates=updates(100))
    run.write(1, updates=updates(50))
    run.resume()
    run.write(0, after_update=100, updates=updates(100, after=100, begin=100 / 3600))
    run.write(1, after_update=50, updates=updates(100, after=50, begin=100 / 3600))
    [row], *_ = asked(throughput, run.path)
    assert row["ms an update"] == pytest.approx(1000) and row["frames/s"] == pytest.approx(4 * 350 * 80 / 200)


def test_energy_is_used_from_the_beginning_of_the_first_reading(tmp_path):
    run, rows = Synthetic(tmp_path / "r", agents=1), updates(100)
    run.write(0, updates=rows, episodes=episodes(rows), energy=energy(10, watts=100))
    np.testing.assert_allclose(open_run(run.path).scores["kilojoules"], 0.1 * np.arange(1, 101))


def test_a_run_that_has_done_all_its_steps_is_finished(tmp_path):
    run = Synthetic(tmp_path / "r", agents=11, exchange="none", total_steps=960)
    for rank in range(11):
        run.write(rank, updates=updates(1 + (rank == 0)))
    assert open_run(run.path).state == "finished"


def test_a_slow_agent_in_its_second_update_has_not_ended(tmp_path):
    run = Synthetic(tmp_path / "r")
    run.write(0, updates=updates(50))
    run.write(1, updates=updates(1, 30.0))
    assert open_run(run.path).early == {}
    run.resume(agents=3)  # and one that came later
    run.write(0, after_update=50, updates=updates(1000, after=50, begin=50 / 3600))
    run.write(1, after_update=1, updates=updates(33, 30.0, after=1, begin=50 / 3600))
    run.write(2, after_update=50, updates=updates(1, 600.0, after=50, begin=50 / 3600))
    assert open_run(run.path).early == {}
    short = Synthetic(tmp_path / "short")
    short.write(0, updates=updates(200))
    short.write(1, updates=updates(1))
    assert open_run(short.path).early == {1: pytest.approx(1 / 3600)}


def test_a_run_that_has_just_gone_on_has_no_influence_yet(tmp_path):
    run = went_on(tmp_path / "live")
    run.resume(checkpoint=2)
    for rank in range(2):
        run.write(rank, after_update=200)
    rows, _, notes = asked(influence, run.path, went_on(tmp_path / "other").path)
    assert [row["run"] for row in rows] == [str(tmp_path / "other")]
    assert f"{run.path}: its agents mixed no messages over a graph since its newest start; left out" in notes


def test_parts_are_equal_if_the_largest_is(tmp_path):
    """Two agents whose weights of each other are 0.5 and w: their parts are as 0.5 to w in the long run."""
    for name, weight in (("unequal", 0.4), ("equal", 0.5)):
        run = Synthetic(tmp_path / name)
        for rank in range(2):
            rows = updates(200)
            run.write(rank, updates=rows, mixes=mixes(rows, peer=1 - rank, weight=0.5 if rank else weight))
    [row], sentence, _ = asked(influence, tmp_path / "unequal")
    assert row["largest (%)"] == pytest.approx(100 * 5 / 9, abs=0.2) and "the largest share, 55." in sentence
    assert "in equal parts" in asked(influence, tmp_path / "equal")[1]


def test_a_clock_that_goes_back_is_told_by_every_script(tmp_path):
    run = Synthetic(tmp_path / "r")
    for rank in range(2):
        rows = updates(200)
        rows["hours"][100:] -= (80 if rank else 0) / 3600
        run.write(rank, updates=rows)
    line = f"{run.path}: ALARM: the clock goes back: agent 1 by 79 s at update 101"
    assert line in incomplete([open_run(run.path)])


def test_a_step_of_infinite_length_has_no_bound_and_no_influence(tmp_path):
    run = Synthetic(tmp_path / "r", metadata={"beta": 0.5, "period": 1})
    for rank in range(2):
        rows = updates(100)
        rows["step_norm"][20] = np.inf if rank else 0.01
        run.write(rank, updates=rows, mixes=mixes(rows, peer=1 - rank, weight=0.1), sketches=sketches(rows, seed=rank))
    [row], _, notes = asked(influence, run.path)
    said = influence.influence(open_run(run.path))
    assert said.steps.sum() == pytest.approx(1) and said.steps[0] == pytest.approx(100 / 199, abs=0.01)
    assert any("step_norm of agent 1 is not always finite" in note for note in notes)
    [row], _, notes = asked(consensus, run.path)
    assert math.isnan(row["a priori"]) and any("no bound at 8 of 10 updates" in note for note in notes)
