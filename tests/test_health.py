"""Alarms: raised where something was made to go wrong, and nowhere else."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from recorded import command
from synthetic import Synthetic, updates

import health
from alarms import alarms
from gala_mpi.run import RunError, open_run
from groups import incomplete
from script import Options

N = 1000
NOISE = np.random.default_rng(0).uniform(0.5, 1.5, N)
GOOD = {"grad_norm": 20 * NOISE, "step_norm": 0.1 * NOISE, "entropy": np.linspace(0.69, 0.06, N), "rss": 300 + NOISE}


def one(path, agents: int = 2, sick: int = 1, **columns) -> Synthetic:
    """A run of which one agent has these columns."""
    run = Synthetic(path, agents=agents, total_steps=80 * N * agents, a2c={"max_grad_norm": 0.5, "gae_lambda": 1.0})
    for rank in range(agents):
        run.write(rank, updates=updates(N, **(GOOD | (columns if rank == sick else {}))))
    return run


def with_values(column: str, where: slice, value: float) -> dict[str, np.ndarray]:
    values = np.array(GOOD.get(column, np.zeros(N)), float)
    values[where] = value
    return {column: values}


def ramp(column: str, factor: float) -> dict[str, np.ndarray]:
    """From update 501 on so many times as large."""
    return {column: GOOD[column] * np.where(np.arange(N) < 500, 1, factor)}


SICK = [
    (with_values("policy_loss", slice(700, 703), np.nan), "policy_loss is not finite: agent 1 in 3 updates from 701 on"),
    (with_values("value_loss", slice(10, 11), np.inf), "value_loss is not finite: agent 1 in 1 updates from 11 on"),
    (
        {"value_loss": np.full(N, np.nan), "skipped": np.arange(N)},
        "value_loss is not finite: agent 1 in 1,000 updates from 1 on",
    ),
    (with_values("entropy", slice(-100, None), 0.009), "the entropy has collapsed to 0: agent 1 at update 1,000"),
    (ramp("grad_norm", 1000), "grad_norm explodes: agent 1 to "),
    (ramp("step_norm", 1000), "step_norm explodes: agent 1 to "),
    ({"rss": np.linspace(300, 600, N)}, "memory grows: agent 1 from 412 to 563 MiB"),
]


@pytest.mark.parametrize("columns, said", SICK)
def test_what_went_wrong_is_told(tmp_path, columns, said):
    run = open_run(one(tmp_path / "r", **columns).path)
    [alarm] = alarms(run)
    assert alarm.startswith(f"ALARM: {said}")
    if "explodes" in said:
        assert alarm.endswith("highest level before, from update 501 on")
    assert f"{run.path}: {alarm}" in incomplete([run])


WELL = [
    {},
    with_values("entropy", slice(-99, None), 0.0),  # for 99 updates
    with_values("entropy", slice(-100, None), -0.5),  # of continuous actions
    ramp("grad_norm", 60),
    with_values("grad_norm", slice(500, 540), 1e6),  # less than half of a window: it is clipped
    {"grad_norm": np.where(np.arange(N) < 500, 1e-4, 1.0)},  # the first rewards
    {"rss": np.where(np.arange(N) < 50, 300, 900.0)},  # the start
    {"rss": np.linspace(300, 320, N)},
    {"rss": np.full(N, np.nan), "grad_norm": np.full(N, np.nan)},  # an older version did not record them
]


@pytest.mark.parametrize("columns", WELL, ids=range(len(WELL)))
def test_a_good_run_raises_no_alarm(tmp_path, columns):
    run = open_run(one(tmp_path / "r", **columns).path)
    assert alarms(run) == []
    said = health.answer([run], Options(runs=()))
    plt.close("all")
    assert said.sentence == "No update was skipped, and no alarm is raised, in 1 run."


def test_many_sick_agents_are_one_line(tmp_path):
    run = Synthetic(tmp_path / "r", agents=7, total_steps=80 * 100 * 7)
    for rank in range(7):
        run.write(rank, updates=updates(100, entropy=0.0))
    [alarm] = alarms(open_run(run.path))
    assert alarm.count("agent ") == 4 and alarm.endswith("; and 3 more agents")


def test_memory_of_a_resumed_run_is_that_of_its_newest_start(tmp_path):
    run = one(tmp_path / "r", rss=np.full(N, 100.0)).resume(checkpoint=1)
    for rank in range(2):
        run.write(rank, N, updates=updates(N, after=N, begin=N / 3600, **(GOOD | {"rss": np.full(N, 800.0)})))
    assert alarms(open_run(run.path)) == []


def test_the_table_and_the_points_are_the_columns(tmp_path):
    skipped = np.minimum(np.arange(N) // 100, 3)
    run = open_run(one(tmp_path / "r", skipped=skipped, entropy=np.linspace(1, 0.1, N)).path)
    said = health.answer([run], Options(runs=()))
    plt.close("all")
    row = dict(zip(said.table.headings, said.table.rows[0]))
    entropies = [GOOD["entropy"], np.linspace(1, 0.1, N)]
    assert row["entropy, first"] == pytest.approx(np.mean([column[:100].mean() for column in entropies]), rel=1e-6)
    assert row["entropy, last"] == pytest.approx(np.mean([column[-100:].mean() for column in entropies]), rel=1e-6)
    assert (row["updates"], row["skipped"], row["alarms"]) == (2 * N, 3, 0)
    assert row["median gradient"] == pytest.approx(np.median(GOOD["grad_norm"]), rel=1e-6)
    points = [dict(zip(said.points.headings, point)) for point in said.points.rows]
    mine = [point for point in points if point["agent"] == 1]
    assert [point["update"] for point in mine] == list(range(10, N + 1, 10))
    assert mine[-1]["skipped"] == 3 and mine[0]["skipped"] == 0
    assert mine[4]["grad_norm"] == pytest.approx(GOOD["grad_norm"][40:50].mean(), rel=1e-6)
    assert "0 of 1 runs raise an alarm, and 3 updates were skipped" in said.sentence


def test_every_script_says_that_a_run_went_wrong(tmp_path):
    run = one(tmp_path / "r", **ramp("grad_norm", 1000))
    done = command("throughput", run.path, cwd=tmp_path)
    assert done.returncode == 0 and f"note: {run.path}: ALARM: grad_norm explodes: agent 1" in done.stderr


def test_without_updates_it_is_said(tmp_path):
    with pytest.raises(RunError, match="no update is there yet"):
        health.answer([open_run(Synthetic(tmp_path / "r").path)], Options(runs=()))
