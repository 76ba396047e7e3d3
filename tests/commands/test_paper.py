"""benchmarks/paper.py on a small table: runs are done, gone on with, taken up from elsewhere, and never done twice."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import paper as table
import pytest

import network
from gala_mpi import config, config_checks, open_run
from gala_mpi.topology import build, resolve
from launch import HANGS, ROOT, environment

TABLE = """\
[methods]
ring = ["GALA, ring", "--exchange gossip --topology ring"]
half = ["GALA, half the rate", "--exchange gossip --topology ring --base-lr 3.5e-4"]
none = ["independent agents", "--exchange none"]

[[parts]]
name = "poles"
envs = ["CartPole-v1"]
methods = ["ring", "half", "none"]
agents = [2]
seeds = 1
flags = "--total-steps 20000 --sketch-updates 10"
games = 3
longest = 9
"""
NETWORK = """
[[parts]]
name = "hosts"
envs = ["CartPole-v1"]
methods = ["ring"]
agents = [2]
seeds = 1
network = "--delay-ms 1"
flags = "--total-steps 60000 --sketch-updates 10"
"""


class Paper:
    """benchmarks/paper.py in a folder, with a table of its own."""

    def __init__(self, folder, more=""):
        (folder / "table.toml").write_text(TABLE + more)
        self.folder = folder
        self.command = [sys.executable, ROOT / "benchmarks/paper.py", "--table", folder / "table.toml"]
        self.command += ["--results", folder / "results", "--runs", folder / "runs"]

    def start(self, *flags, **options):
        return subprocess.Popen(
            [*map(str, self.command), *flags],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=self.folder,
            start_new_session=True,
            **options,
        )

    def do(self, *flags):
        process = self.start(*flags)
        said, _ = process.communicate(timeout=HANGS)
        return process.returncode, said

    def rows(self, name="runs", part="poles"):
        path = self.folder / "results" / part / f"{name}.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    def status(self):
        return self.do("--status")[1]


def test_a_part_s_time_is_known_by_its_own_runs(tmp_path):
    """With as many agents, where there are some."""
    results = tmp_path / "results"
    (results / "poles").mkdir(parents=True)
    done = [("ring", 2, 1), ("half", 2, 3), ("none", 4, 10)]
    lines = ["env,method,agents,seed,hours,games", *(f"CartPole-v1,{name},{n},0,{hours},3" for name, n, hours in done)]
    (results / "poles" / "runs.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "table.toml").write_text(TABLE + NETWORK)
    options = table.Options(table=tmp_path / "table.toml", results=results)
    left = table.missing(options)
    assert [task.part for task in left] == ["poles", "hosts"]
    unknown = "as yet nobody knows how long 1 of them take"
    assert table.time_left(left, options) == f"2.0 h left, and {unknown}"
    assert table.status(options) == f"poles: 2 of 3 runs, 2.0 h left\nhosts: 0 of 1 runs, {unknown}"
    assert table.time_left([replace(left[0], agents=8)], options) == "3.0 h left"
    assert table.time_left([replace(left[0], agents=8)] * 2, options, 0.5) == "7.0 h left"


def test_stopped_gone_on_with_and_not_done_twice(tmp_path):
    paper = Paper(tmp_path)
    assert paper.status().startswith("poles: 0 of 3 runs, as yet nobody knows how long 3 of them take")
    process, first = paper.start(), tmp_path / "runs" / "poles" / "CartPole-v1-ring-2x16-seed0"
    while not (first / "run.h5").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not paper.rows()

    assert paper.do("--minutes", "0.001")[0] == 0  # one run is begun, and done
    assert [row["method"] for row in paper.rows()] == ["ring"]
    assert not first.exists()
    assert "1 of 3 runs" in paper.status() and "nobody knows" not in paper.status()
    status, said = paper.do()
    assert (status, len(paper.rows()), len(paper.rows("curves"))) == (0, 3, 60), said
    assert "ring" not in said.replace("GALA", "")
    kept = [(tmp_path / "results" / "poles" / f"{name}.csv").read_bytes() for name in ("runs", "curves")]
    assert paper.do()[1].startswith("poles: 3 of 3 runs, 0.0 h left")
    assert kept == [(tmp_path / "results" / "poles" / f"{name}.csv").read_bytes() for name in ("runs", "curves")]
    for row in paper.rows():
        assert float(row["steps"]) >= 20000
        assert (row["games"], row["agents"]) == ("4" if row["method"] == "none" else "3", "2")  # independent agents: all, twice
        assert float(row["played"]) <= 9
        assert np.isfinite([float(row[name]) for name in ("hours", "score", "area", "played", "distance", "cosine")]).all()
        assert row["commit"] or not (ROOT / ".git").exists()
    assert np.isfinite(float(paper.rows()[-1]["lag"]))


@pytest.mark.long
def test_runs_that_were_made_elsewhere_are_taken_up(tmp_path):
    """By what they were told, for which another method's run, and one of another length, is none."""
    paper = Paper(tmp_path)
    elsewhere = tmp_path / "sweep" / "7"
    told = "--env CartPole-v1 --seed 0 --exchange gossip --topology ring --base-lr 3.5e-4 --sketch-updates 10"
    for steps, name in ((20000, "half"), (10000, "short")):
        command = ["mpirun", "-n", "2", sys.executable, "-m", "gala_mpi.train", *told.split()]
        flags = ["--total-steps", str(steps), "--run-dir", str(elsewhere / name)]
        subprocess.run([*command, *flags], check=True, capture_output=True, env=environment())
    status, said = paper.do("--collect", str(elsewhere))
    (row,) = paper.rows()
    assert (status, row["method"], said.count("\n")) == (0, "half", 1), said
    episodes = open_run(elsewhere / "half").scores
    last = episodes["score"][episodes["steps"] > 18000]
    assert float(row["score"]) == pytest.approx(last.mean(), rel=1e-5)
    ends = np.minimum(np.ceil(episodes["steps"] / 1000), 20)  # the twentieth in which each ended
    means = [episodes["score"][ends == k].mean() for k in range(1, 21)]
    assert float(row["area"]) == pytest.approx(np.mean(means), rel=1e-5)
    assert [float(point["score"]) for point in paper.rows("curves")] == pytest.approx(means, rel=1e-5)
    updates = [open_run(elsewhere / "half").updates(rank) for rank in (0, 1)]
    assert float(row["updates"]) == np.mean([rows["update"][-1] for rows in updates])
    ages = np.concatenate([rows["age"][np.isfinite(rows["age"])] for rows in updates])
    assert float(row["lag"]) == np.median(ages)
    assert paper.do("--collect", str(elsewhere))[1].startswith(f"{elsewhere}: no finished run that is missing")


def test_tables_of_sweeps_make_the_same_runs(tmp_path):
    paper = Paper(tmp_path)
    status, said = paper.do("--sweep", str(tmp_path / "tables"))
    assert (status, said.split()[:3]) == (0, ["sbatch", "--ntasks=2", "--array=0-2"])
    lines = (tmp_path / "tables" / "0-poles.txt").read_text().splitlines()
    assert [len(line.split(" | ")) for line in lines] == [1, 3, 1, 1]


def test_training_takes_all_that_the_table_asks_for():
    told = {(task.flags, task.agents) for task in table.tasks(table.Options())}
    for flags, agents in told:
        settings = config.parse(shlex.split(flags))
        config_checks.check(settings)
        build(resolve(settings.topology, ["host"] * agents), agents)


def test_a_part_that_there_is_not(tmp_path):
    status, said = Paper(tmp_path).do("--part", "atari")
    assert (status, said) == (2, "--part atari: no such part; one of poles is expected\n")


def test_over_a_network_every_agent_has_a_host(tmp_path):
    """Where none can be made, that is said and the rest is done."""
    paper = Paper(tmp_path, NETWORK)
    status, said = paper.do("--part", "hosts")
    rows = paper.rows(part="hosts")
    if lack := network.missing():
        assert (status, rows) == (0, []) and f"runs over a network are left out: {lack}" in said
    else:
        assert (status, len(rows)) == (0, 1), said
        assert "hosts: 1 of 1 runs" in said
        (task,) = table.tasks(table.Options(part="hosts", table=tmp_path / "table.toml"))
        assert table.launcher(task)[1:4] == [str(ROOT / "benchmarks/network.py"), "--hosts", "2"]
        assert np.isfinite(float(rows[0]["lag"]))  # messages have come through
