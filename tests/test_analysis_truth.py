"""What is read of runs whose right answers follow from how they were made (`synthetic.py`), by no code of ours."""

from __future__ import annotations

import json
import math

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import DTYPES, Synthetic, energy, episodes, paced, updates

import learning_curves
from gala_mpi.run import RunError, open_run
from gala_mpi.run.tables import TABLES
from groups import incomplete


def test_the_synthetic_format_is_the_programs(tmp_path):
    assert DTYPES == TABLES
    run = paced(tmp_path / "r", seconds=[1, 10], numbers=[100, 10]).resume(agents=3, num_envs=32).evaluate(1, {-1: [1.0, 3.0]})
    for rank, number in enumerate((0, 0, 4)):
        run.write(rank, after_update=100, updates=updates(number, after=100))
    read = open_run(run.path)
    assert (read.agents, read.config["num_envs"], len(read.starts)) == (3, 32, 2)
    assert [len(read.updates(rank)) for rank in range(3)] == [100, 10, 4] and read.problems == []
    assert read.evaluations[0][0]["score"].tolist() == [1, 3]


# Steps of all agents.


def done(hours: np.ndarray, seconds: list[float], numbers: list[int]) -> np.ndarray:
    """Return the steps of all agents of `paced` at some hours: each does 80 in so many seconds, up to its share."""
    return sum(np.minimum(80 * 3600 * hours / took, 80 * number) for took, number in zip(seconds, numbers))


@pytest.mark.parametrize(
    "seconds, numbers",
    [
        ([1, 1, 1, 10], [100, 100, 100, 100]),  # equal shares: the fast ones are done when a tenth is
        ([1, 1, 1, 10], [100, 100, 100, 10]),  # all stop together
        ([1, 2], [100, 50]),
        ([1, 1, 1, 1], [100, 100, 100, 10]),  # one is lost
    ],
)
def test_steps_are_the_sum_over_agents_of_what_each_had_done_then(tmp_path, seconds, numbers):
    read = open_run(paced(tmp_path / "r", seconds, numbers).path)
    np.testing.assert_allclose(read.scores["steps"], done(read.scores["hours"], seconds, numbers), rtol=1e-9)
    assert read.scores["steps"].max() == read.steps == 80 * sum(numbers)
    assert (np.diff(read.scores["steps"]) >= 0).all()


def test_agents_in_step_have_all_done_the_same(tmp_path):
    """A2C: agents end an update within a third of it."""
    run, random = Synthetic(tmp_path / "r", agents=3, exchange="allreduce"), np.random.default_rng(0)
    for rank in range(3):
        rows = updates(100)
        rows["hours"] += random.uniform(0, 0.3, 100) / 3600
        run.write(rank, updates=rows, episodes=episodes(rows))
    read = open_run(run.path)
    assert sorted(read.scores["steps"]) == sorted(3 * 80 * np.repeat(np.arange(1, 101), 3))


def test_a_long_start_of_the_program_is_no_training(tmp_path):
    """One agent begins after 50 s, at the pace of the other: half-way through its first update it has done half of it."""
    run = Synthetic(tmp_path / "r", agents=2)
    for rank, took in enumerate((np.ones(100), np.array([51.0, *np.ones(49)]))):
        rows = updates(len(took), took)
        run.write(rank, updates=rows, episodes=episodes(rows))
    read = open_run(run.path)
    after = 3600 * read.scores["hours"]
    np.testing.assert_allclose(read.scores["steps"], 80 * (after + np.maximum(0, after - 50)), rtol=1e-9)


@pytest.mark.parametrize("agents", [2, 8])
def test_steps_are_dealt_anew_when_the_number_of_agents_changes(tmp_path, agents):
    """Four agents do 50 updates of 1 s; then two or eight deal their steps among themselves and do 50 of 1 and of 2 s."""
    run = paced(tmp_path / "r", [1] * 4, [60] * 4)
    run.resume(agents=agents, checkpoint=5)
    paces = [1, 2] * (agents // 2)
    for rank, took in enumerate(paces):
        rows = updates(50, took, after=50, begin=50 / 3600, before=4 * 50 * 80 // agents)
        run.write(rank, after_update=50, updates=rows, episodes=episodes(rows))
    read = open_run(run.path)
    hours = np.concatenate([read.episodes(rank)["hours"] for rank in range(max(agents, 4))])
    later = done(np.maximum(0, hours - 50 / 3600), paces, [50] * agents)
    expected = done(np.minimum(hours, 50 / 3600), [1] * 4, [50] * 4) + later
    assert sorted(read.scores["steps"]) == pytest.approx(sorted(expected))


def test_agents_that_cannot_be_read_are_as_far_as_the_others(tmp_path):
    run = paced(tmp_path / "r", [1, 1, 1], [100] * 3)
    (run.path / "metrics" / "rank00002.h5").unlink()
    read = open_run(run.path)
    assert read.scores["steps"].max() == 3 * 100 * 80 and read.state == "finished, metrics of 2 of 3 agents"


@pytest.mark.parametrize("seconds, numbers", [([1, 2], [200, 100]), ([1, 1, 1, 10], [100] * 4)])
def test_a_score_that_only_rises_is_drawn_rising(tmp_path, seconds, numbers):
    """The score of an episode is the number of steps that all agents had done when it ended."""
    run = Synthetic(tmp_path / "r", agents=len(seconds), total_steps=80 * sum(numbers))
    for rank, (took, number) in enumerate(zip(seconds, numbers)):
        rows = updates(number, took)
        run.write(rank, updates=rows, episodes=episodes(rows, score=done(rows["hours"], seconds, numbers)))
    said = learning_curves.answer([open_run(run.path)], learning_curves.Curves(runs=()))
    x, value = np.array([(row[3], row[4]) for row in said.points.rows if row[2] == "steps"]).T
    assert (np.diff(value) > 0).all() and x[-1] < 80 * sum(numbers)
    np.testing.assert_allclose(value, x, atol=(x[1] - x[0]) / 2)
    plt.close("all")


# Who is missing, and when.


def test_a_rank_without_rows_has_done_nothing_and_is_named(tmp_path):
    run = paced(tmp_path / "r", [1, 1], [100, 0], total_steps=2 * 100 * 80)
    read = open_run(run.path)
    assert read.state == "50% done" and read.steps == 8000 and math.isnan(read.early[1])
    assert f"{run.path}: agent 1 has done no update" in incomplete([read])


def test_who_ends_early_is_named(tmp_path):
    run = paced(tmp_path / "r", [1] * 4, [1000, 1000, 1000, 100]).lose(3, 100)
    read = open_run(run.path)
    assert read.early == {3: pytest.approx(100 / 3600)}
    assert f"{run.path}: agent 3 has been lost; the last update was at 0.0278 of 0.278 h" in incomplete([read])
    slow = open_run(paced(tmp_path / "s", [1, 1, 10], [1000, 500, 100]).path)
    assert f"{slow.path}: agent 1 has ended before the others; the last update was at 0.139 of 0.278 h" in incomplete([slow])
    assert open_run(paced(tmp_path / "t", [1, 1.1], [100, 90]).path).early == {}
    live = paced(tmp_path / "u", [0.1, 0.1], [200, 180])  # the rows of 2 s wait to be written
    assert open_run(live.path).early == {} and open_run(live.lose(1, 180).path).early == {1: pytest.approx(18 / 3600)}


def test_the_hours_of_a_revived_rank_are_the_run_s(tmp_path):
    """Rank 1 dies after 40 of 100 updates of 1 s. A resume gives it its last checkpoint, of update 30, and that one's hours."""
    run = paced(tmp_path / "r", [1, 1], [100, 40])
    run.resume(checkpoint=7)
    for rank, (after, hours) in enumerate([(100, 100 / 3600), (30, 30 / 3600)]):
        rows = updates(50, after=after, begin=hours)
        run.write(
            rank, after_update=after, updates=rows, episodes=episodes(rows), energy=energy(5, 100, begin=hours, after=after)
        )
    read = open_run(run.path)
    for table in (read.updates, read.episodes):
        assert 3600 * table(1)["hours"][[29, 30, -1]] == pytest.approx([30, 101, 150])
        assert 3600 * table(0)["hours"][[99, 100, -1]] == pytest.approx([100, 101, 150])
    assert 3600 * read.energy(1)["hours"] == pytest.approx([110, 120, 130, 140, 150])
    assert read.early == {} and 3600 * read.newest["hours"] == pytest.approx([150, 150])


# Energy.


def nodes(path, *tables, **settings) -> Synthetic:
    """One start of a run, an agent a node; its tables of energy."""
    run = Synthetic(path, agents=len(tables), **settings)
    for rank, rows in enumerate(tables):
        run.write(rank, updates=updates(100), energy=rows)
    return run


def test_a_missed_reading_counts_as_the_others(tmp_path):
    rows = energy(10, 100)
    rows["cpu_joules"][4] = np.nan
    read = open_run(nodes(tmp_path / "r", rows, energy(10, 50)).path)
    _, joules, whose = read.joules
    assert (whose, joules[-1], read.watts) == ("CPU", pytest.approx(15_000), pytest.approx(150))
    said = "energy of agent 0's node: 1 of 10 readings of CPU are missing; they count as the others' mean power"
    assert read.problems == [f"{read.path}: {said}"]


def test_nodes_that_change_between_starts_are_added(tmp_path):
    """100 s on two nodes of 100 W; 50 s on one of 300 W, whose first rank is another; then 50 s on two of 100 W again."""
    run = nodes(tmp_path / "r", energy(10, 100), energy(10, 100), energy(0, 0))
    run.resume(checkpoint=1, hosts=["b", "b", "b"])
    for rank in range(3):
        power = energy(5, 300, begin=100 / 3600, after=100) if rank == 2 else energy(0, 0)
        run.write(rank, after_update=100, updates=updates(50, after=100, begin=100 / 3600), energy=power)
    run.resume(checkpoint=2)
    for rank in range(3):
        power = energy(5, 100, begin=150 / 3600, after=150) if rank < 2 else energy(0, 0)
        run.write(rank, after_update=150, updates=updates(50, after=150, begin=150 / 3600), energy=power)
    read = open_run(run.path)
    hours, joules, whose = read.joules
    assert whose == "CPU" and np.interp([100, 150, 200], 3600 * hours, joules) == pytest.approx([20_000, 35_000, 45_000])
    assert read.watts == pytest.approx((200 * 100 + 300 * 50 + 200 * 50) / 200)


def test_a_node_without_gpus_has_used_none(tmp_path):
    """First a node of 100 W, then one of 100 W with GPUs of 500 W."""
    run = nodes(tmp_path / "r", energy(10, 100)).resume(checkpoint=1, hosts=["gpu"])
    power = energy(10, 100, begin=100 / 3600, after=100, gpu_joules=5000)
    run.write(0, after_update=100, updates=updates(100, after=100, begin=100 / 3600), energy=power)
    _, joules, whose = open_run(run.path).joules
    assert (joules[-1], whose) == (pytest.approx(10_000 + 60_000), "CPU and GPU")


def test_a_missed_reading_does_not_take_the_energy_of_others(tmp_path):
    """Two runs of 10 readings, one of which was missed; a third, which measured nothing, does."""
    found = []
    for name, missed in (("a", 0), ("b", 1)):
        run, rows, power = Synthetic(tmp_path / name, agents=1), updates(100), energy(10, 100)
        power["cpu_joules"][:missed] = np.nan
        run.write(0, updates=rows, episodes=episodes(rows), energy=power)
        found.append(open_run(run.path))
    options = learning_curves.Curves(runs=())
    said = learning_curves.answer(found, options)
    assert {row[2] for row in said.points.rows} == {"steps", "hours", "kilojoules"} and not any(
        "energy" in n for n in said.notes
    )
    found.append(open_run(paced(tmp_path / "c", [1], [100]).path))
    said = learning_curves.answer(found, options)
    reason = f"not all runs have measured the same (CPU in {found[0].path}, {found[1].path}; nothing in {found[2].path})"
    assert f"energy is not drawn: {reason}" in said.notes
    plt.close("all")


# Odd rows.


def test_episodes_without_a_finite_score_are_left_out_and_counted(tmp_path):
    run, rows = Synthetic(tmp_path / "r", agents=1), updates(100)
    run.write(0, updates=rows, episodes=episodes(rows, score=np.where(np.arange(100) < 3, [np.nan, np.inf, 1][0], 2)))
    read = open_run(run.path)
    assert len(read.scores) == 97 and read.scores["score"].max() == 2
    assert read.problems == [f"{run.path}: 3 of 100 episodes have a score that is not finite; left out"]


def test_rows_without_a_time_are_left_out_and_counted(tmp_path):
    run, rows = Synthetic(tmp_path / "r", agents=1), updates(100)
    rows["hours"][[3, 5]] = np.nan
    path = run.write(0, updates=rows)
    read = open_run(run.path)
    assert len(read.updates(0)) == 98 and np.isfinite(read.hours)
    assert read.problems == [f"{path}: 2 rows do not say when they were written; left out"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"config": "[]"}, "its settings lack env"),
        ({"config": '{"env": "pong"}'}, "its settings lack exchange"),
        ({"config": "no JSON"}, "Expecting value"),
        ({"num_envs": 0}, "num_envs 0; a number of 1 or more is expected"),
        ({"total_steps": None}, "total_steps None; a number of 1 or more is expected"),
        ({"agents": 0}, "agents 0; a number of 1 or more is expected"),
    ],
)
def test_a_run_file_that_makes_no_sense_is_one_line(tmp_path, change, said):
    run = Synthetic(tmp_path / "r")
    settings = {name: value for name, value in change.items() if name in run.settings}
    with h5py.File(run.path / "run.h5", "r+") as file:
        file.attrs.update({"config": json.dumps(run.settings | settings)} if settings else change)
    with pytest.raises(RunError, match=rf"run\.h5: cannot be read \({said}"):
        open_run(run.path)


def test_an_evaluation_of_other_columns_is_one_line(tmp_path):
    run = Synthetic(tmp_path / "r")
    with h5py.File(run.path / "run.h5", "r+") as file:
        file["evaluations/0"] = np.zeros(3, [("points", "<f4")])
    with pytest.raises(RunError, match=r"an evaluation has columns \('points',\); policy and score are expected"):
        open_run(run.path)
