"""`python -m gala_mpi.topology`: what it prints, draws and refuses. One process, no MPI."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from launch import HANGS

GRAPH = ("0 0 0.5", "0 1 0.5", "1 1 0.5", "1 0 0.5")


def show(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gala_mpi.topology", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANGS)


def refused(*arguments: object, cwd: Path) -> str:
    result = show(*arguments, cwd=cwd)
    assert result.returncode == 2 and result.stdout == "" and list(cwd.glob("*.png")) == []
    (line,) = result.stderr.splitlines()
    return line


def test_a_ring_is_described_and_drawn(tmp_path):
    result = show("ring", "-n", 32, "--out", "graph.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{math.cos(math.pi / 32):.12g}" in result.stdout and "3,465,756" in result.stdout
    assert result.stdout.count("●") == 1 + 32  # the legend's and the edges
    assert (tmp_path / "graph.png").stat().st_size > 10_000


def test_figures_as_json(tmp_path):
    found = json.loads(show("one-peer-exponential", "-n1000", "--json", cwd=tmp_path).stdout)
    assert (found["topology"], found["agents"], found["period"], found["degree"]) == ("one-peer-exponential", 1000, 10, 1)
    assert found["ratio"] == pytest.approx(found["beta"] / (1 - found["beta"]))


def test_a_file_says_how_many_agents(tmp_path):
    (tmp_path / "my.txt").write_text("\n".join(GRAPH))
    result = show("my.txt", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.startswith("my.txt, 2 agents")


def test_what_is_wrong_is_one_line(tmp_path):
    (tmp_path / "my.txt").write_text("\n".join(GRAPH))
    (tmp_path / "bad.txt").write_text("\n".join([*GRAPH[:3], "1 0 0.4"]))
    assert refused("rinng", "-n", 4, cwd=tmp_path).startswith("gala_mpi: --topology rinng: ring, exponential, ")
    assert refused("ring", cwd=tmp_path) == "gala_mpi: --topology ring: the number of agents is expected (-n 32)"
    assert refused("hierarchical:4", cwd=tmp_path).endswith("hierarchical:4: the number of agents is expected (-n 32)")
    assert refused("hierarchical:1000000", "-n", 4, cwd=tmp_path).startswith("gala_mpi: --topology hierarchical:1000000: ")
    assert refused("ring", "-n", 0, cwd=tmp_path).startswith("gala_mpi: -n 0: ")
    assert refused("my.txt", "-n", 3, cwd=tmp_path).startswith("gala_mpi: --topology my.txt: a graph of 2 agents")
    assert refused("bad.txt", cwd=tmp_path).startswith("gala_mpi: --topology bad.txt, line 4: the weights of agent 1")
    assert refused("ring", "-n", 4, "--out", "/proc/g.png", cwd=tmp_path).startswith("gala_mpi: --out /proc/g.png cannot be")
    assert refused("ring", "-n", 4, "--out", "graph.jpg", cwd=tmp_path).startswith("gala_mpi: --out graph.jpg: ")


def test_no_mpi_is_started(tmp_path):
    run = "runpy.run_module('gala_mpi.topology', run_name='__main__', alter_sys=True)"
    code = f"import runpy, sys; sys.argv[1:] = ['ring', '-n', '4']; {run}"
    check = "; print('mpi4py' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert result.stdout.splitlines()[-1] == "False False", result.stderr
