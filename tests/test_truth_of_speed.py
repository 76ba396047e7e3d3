"""What `throughput.py` and `simulate.py` say of runs whose pace follows from how they were made (`synthetic.py`)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import Synthetic, energy, paced, updates

import simulate
import throughput
from gala_mpi.run import RunError, open_run
from gala_mpi.run.steps import from_its_beginning
from groups import incomplete
from script import Options


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rows(*paths) -> list[dict]:
    said = throughput.answer([open_run(path) for path in paths], Options(runs=()))
    return [dict(zip(said.table.headings, row)) for row in said.table.rows]


def test_rates_are_over_the_time_of_the_run(tmp_path):
    """Four agents of equal shares, one ten times slower, on one node of 100 W: three are done after a tenth of the time."""
    run = paced(tmp_path / "r", [1, 1, 1, 10], [100] * 4, watts=100)
    [row] = rows(run.path)
    assert row["frames/s"] == pytest.approx(4 * 80 * 400 / 1000, rel=1e-6) == 128
    assert (row["watts"], row["mJ a frame"]) == (pytest.approx(100), pytest.approx(100_000 / 128))
    assert row["cores used"] == pytest.approx((3 * 100 + 1000) / 1000, rel=1e-6)
    assert row["ms an update"] == pytest.approx(1000 * (3 * 1 + 10) / 4)  # mean over agents


def test_a_lost_rank_does_nothing_any_more_and_is_named(tmp_path):
    """One of four is lost after a tenth of 1,000 s."""
    run = paced(tmp_path / "r", [1] * 4, [1000, 1000, 1000, 100]).lose(3, 100)
    [row] = rows(run.path)
    assert row["frames/s"] == pytest.approx(4 * 80 * 3100 / 1000, rel=1e-6) == 992
    assert row["cores used"] == pytest.approx(3.1, rel=1e-6)
    assert any("agent 3 has been lost" in line for line in incomplete([open_run(run.path)]))


def test_who_comes_late_did_nothing_before(tmp_path):
    """An agent's first update ends after 500 s of 1,000."""
    run = paced(tmp_path / "r", [1], [1000], agents=2)
    run.write(1, updates=updates(500, begin=500 / 3600))
    assert rows(run.path)[0]["frames/s"] == pytest.approx(4 * 80 * 1500 / 1000, rel=1e-6)


def test_the_start_of_the_program_does_not_count(tmp_path):
    run = Synthetic(tmp_path / "r", agents=1)
    took = [60.0, *[1.0] * 99]
    run.write(0, updates=updates(100, took, cpu=took))
    [row] = rows(run.path)
    assert (row["frames/s"], row["cores used"]) == (pytest.approx(320), pytest.approx(1))


def test_agents_that_cannot_be_read_count_as_the_others(tmp_path):
    run = paced(tmp_path / "r", [1, 1, 1, 1], [100] * 4)
    (run.path / "metrics" / "rank00002.h5").unlink()
    [row] = rows(run.path)
    assert (row["frames/s"], row["cores used"]) == (pytest.approx(4 * 320), pytest.approx(4))


def test_each_stretch_has_its_own_settings(tmp_path):
    """500 updates of 8 environments take 50 ms each; resumed, 50 of 32 take 200 ms. (All together: 63.6 ms.)"""
    run = Synthetic(tmp_path / "r", agents=1, num_envs=8, exchange="none")
    run.write(0, updates=updates(500, 0.05, steps=40), energy=energy(5, 100, seconds=5))
    run.resume(checkpoint=3, num_envs=32)
    later = updates(50, 0.2, steps=160, after=500, before=500 * 40, begin=25 / 3600)
    run.write(0, after_update=500, updates=later, energy=energy(2, 300, seconds=5, begin=25 / 3600, after=500))
    found = {row["environments a rank"]: row for row in rows(run.path)}
    assert {n: row["ms an update"] for n, row in found.items()} == {8: pytest.approx(50), 32: pytest.approx(200)}
    assert {n: row["frames/s"] for n, row in found.items()} == {8: pytest.approx(3200), 32: pytest.approx(3200)}
    assert {n: row["watts"] for n, row in found.items()} == {8: pytest.approx(100), 32: pytest.approx(300)}
    assert f"{run.path}: was resumed with other settings after 20,000 steps: num_envs 8 → 32" in incomplete(
        [open_run(run.path)]
    )


def test_stretches_on_fewer_and_on_more_ranks(tmp_path):
    """Four agents take 1 s an update, then two 0.5 s, then eight 2 s."""
    run = paced(tmp_path / "r", [1] * 4, [60] * 4)
    for checkpoint, (agents, took) in enumerate([(2, 0.5), (8, 2)], start=1):
        run.resume(agents=agents, checkpoint=checkpoint)
        for rank in range(agents):
            before = (50 + 50 * (checkpoint - 1) // 2) * 80 * 4 // agents
            begin = (50 + 25 * (checkpoint - 1)) / 3600
            run.write(rank, 50 * checkpoint, updates=updates(50, took, after=50 * checkpoint, before=before, begin=begin))
    found = {row["ranks"]: row["frames/s"] for row in rows(run.path)}
    assert found == {4: pytest.approx(1280), 2: pytest.approx(1280), 8: pytest.approx(1280)}


def test_a_resume_that_changed_nothing_is_one_stretch(tmp_path):
    run = paced(tmp_path / "r", [1], [100]).resume(checkpoint=1, total_steps=16_000, seed=3)
    run.write(0, after_update=100, updates=updates(100, after=100, begin=100 / 3600))
    assert [row["frames/s"] for row in rows(run.path)] == [pytest.approx(320)]
    assert incomplete([open_run(run.path)]) == []


@pytest.mark.parametrize("hours", [0.0, -1.0])
def test_clocks_that_stand_or_go_back_are_no_rate(tmp_path, hours):
    run = paced(tmp_path / "r", [1], [100])
    odd, wrong = Synthetic(tmp_path / "s", agents=1), updates(20)
    wrong["hours"] = 1 + hours * wrong["hours"]
    odd.write(0, updates=wrong)
    said = throughput.answer([open_run(run.path), open_run(odd.path)], Options(runs=()))
    assert f"{odd.path}: its updates do not follow each other in time; left out" in said.notes
    with pytest.raises(RunError, match="its updates do not follow each other in time"):
        rows(odd.path)


# The model.


def simulated(path, **options) -> list[dict]:
    said = simulate.answer([open_run(path)], simulate.Simulate(runs=(), updates=60, topologies=("ring",), **options))
    return [dict(zip(said.table.headings, row)) for row in said.table.rows]


@pytest.mark.parametrize("cores", [4, 8, 64])
def test_efficiency_is_of_the_cores_that_the_ranks_have(tmp_path, cores):
    """Of 100 ms an update, 10 are its exchange: 90%, if ranks share cores or not. (A node has room for 64 ranks.)"""
    run = paced(tmp_path / "r", [0.1] * 2, [100] * 2)
    [row] = simulated(run.path, ranks=(8,), cores=cores)
    assert row["updates/s"] == pytest.approx(8 / 0.1 / max(1, 8 / cores), rel=0.03)
    assert row["efficiency (%)"] == pytest.approx(90, rel=0.03)


def test_the_newest_settings_are_simulated(tmp_path):
    run = paced(tmp_path / "r", [0.1] * 2, [100] * 2, num_envs=8).resume(checkpoint=1, num_envs=32)
    for rank in range(2):
        run.write(rank, 100, updates=updates(50, 0.4, after=100, steps=320, begin=10 / 3600))
    [row] = simulated(run.path, ranks=(8,), cores=64)
    assert row["updates/s"] == pytest.approx(8 / 0.4, rel=0.03)


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("ranks", (0,), "--ranks 0: a number of 1 or more is expected"),
        ("cores", 0, "--cores 0: a number of 1 or more"),
        ("cores", -8, "--cores -8: a number of 1 or more"),
        ("ranks_per_node", 0, "--ranks-per-node 0: a number of 1 or more"),
        ("bandwidth", 0.0, "--bandwidth 0: a number above 0"),
        ("latency", -1.0, "--latency -1: a number of 0 or more"),
        ("latency", float("nan"), "--latency nan: a number of 0 or more"),
        ("straggler", float("inf"), "--straggler inf: a number of 0 or more"),
        ("mtbf_hours", -1.0, "--mtbf-hours -1: a number above 0"),
        ("seed", -1, "--seed -1: a number of 0 or more"),
    ],
)
def test_senseless_numbers_are_refused(tmp_path, option, value, said):
    run = paced(tmp_path / "r", [0.1] * 2, [10] * 2)
    with pytest.raises(RunError, match=said):
        simulated(run.path, **{option: value})


def test_an_update_that_took_no_time_is_refused(tmp_path):
    run = Synthetic(tmp_path / "r")
    for rank in range(2):
        run.write(rank, updates=updates(20, cpu=0))
    with pytest.raises(RunError, match="no processor times beside the exchange are there"):
        simulated(run.path)


def test_measured_rates_are_those_while_all_train(tmp_path):
    """Two agents of equal shares, one of which takes ten times as long."""
    run = paced(tmp_path / "r", [1, 10], [200, 200])
    assert simulate.rate(open_run(run.path)) == pytest.approx(1.1, rel=0.02)


def test_a_rollout_that_several_updates_learn_from_counts_once():
    """Three updates each, the first of which plays 80 steps: before its first row an agent has played none."""
    rows = updates(12)
    rows["steps"] = 80 * (1 + np.arange(12) // 3)
    assert from_its_beginning(rows)["steps"].tolist() == [0, *rows["steps"]]
    assert from_its_beginning(rows)["update"].tolist() == list(range(13))
