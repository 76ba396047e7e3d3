"""What `watch` and the live display say of how far agents are apart, on rows of our choice."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from recorded import STEPS, begin, mix_rows, update_rows, write
from rich.console import Console

from gala_mpi import display, watch
from gala_mpi.config import Config
from gala_mpi.job.resume import Origin
from gala_mpi.mpi.live_board import COLUMNS

UPDATES_PER_SECOND = 100


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr("recorded.ROOM", 2000)


def rows_until(last: int, staleness: int = 0) -> np.ndarray:
    rows = update_rows(1, last)
    rows["hours"] = rows["update"] / UPDATES_PER_SECOND / 3600
    rows["staleness"][-1], rows["age"] = staleness, np.nan
    return rows


def run_of(path: Path, lasts: list[int], **settings) -> Path:
    """A run that goes on, whose agents have written so many updates."""
    begin(path, len(lasts), **{"total_steps": 10**9, **settings})
    for rank, last in enumerate(lasts):
        write(path, rank, 0, updates=rows_until(last))
    return path


def said(run: Path) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(watch.panel(run, watch.read_status(run)))
    return re.sub(r" +", " ", console.file.getvalue())


def test_agents_are_compared_at_one_moment(tmp_path):
    """All do 100 updates a second; rank 1 has not written for 1.5 s, and rank 2 is hung."""
    seen = watch.read_status(run_of(tmp_path / "r", [1000, 850, 300]))
    assert seen.state == "running" and {rank: int(row["update"]) for rank, row in seen.newest.items()} == {
        0: 1000,
        1: 850,
        2: 300,
    }
    assert seen.updates == {0: 799, 1: 799, 2: 300}
    assert "behind 499 updates, rank 2 the slowest agent, behind the fastest" in said(tmp_path / "r")
    assert "updates 300 to 799 slowest and fastest agent" in said(tmp_path / "r")


def test_when_a_run_has_ended_all_its_rows_are_there(tmp_path):
    run = run_of(tmp_path / "r", [1000, 850])
    for path in run.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    assert watch.read_status(run).updates == {0: 1000, 1: 850}
    assert "behind 150 updates, rank 1" in said(run)


def test_an_agent_that_is_lost_is_not_the_slowest(tmp_path):
    run = run_of(tmp_path / "r", [1000, 1000, 10])
    (run / "ends").mkdir()
    (run / "ends" / "rank00002.json").write_text('{"rank": 2, "lost": true}')
    assert "behind 0 updates the slowest agent" in said(run) and "lost: rank 2" in said(run)


@pytest.mark.parametrize("exchange", ["gossip", "none"])
def test_the_lag_of_messages_is_how_far_they_are_behind(tmp_path, exchange):
    """Whatever the exchange is called: rows of mixes are there. A message from ahead counts 0."""
    run = begin(tmp_path / "r", total_steps=10**9, exchange=exchange)
    for rank, lag in enumerate((6, -6)):
        mixes = mix_rows(1, 50)
        mixes["version"] = mixes["update"] - lag
        write(run, rank, 0, updates=rows_until(50, staleness=5 * rank), mixes=mixes)
    assert "lag 3.0 updates, at most 6 peer behind reader; ahead is 0" in said(run)
    assert "staleness 5 updates, rank 1 the most since an agent's last mix" in said(run)


def test_agents_that_wait_for_a_first_message(tmp_path):
    run = begin(tmp_path / "r", total_steps=10**9)
    for rank in range(2):
        write(run, rank, 0, updates=rows_until(50, staleness=50))
    assert "staleness 50 updates, rank 0" in said(run) and "lag" not in said(run)


@pytest.mark.parametrize("exchange", ["gossip", "allreduce"])
def test_without_messages_nothing_is_said_of_them(tmp_path, exchange):
    words = said(run_of(tmp_path / "r", [50, 50], exchange=exchange))
    assert "behind 0 updates the slowest" in words and "staleness" not in words and "lag" not in words
    assert "behind" not in said(run_of(tmp_path / "alone", [50]))


def test_a_run_is_finished_by_the_agents_that_can_be_read(tmp_path):
    run = run_of(tmp_path / "r", [100, 100, 100], total_steps=300 * STEPS)
    (run / "metrics" / "rank00001.h5").write_bytes(b"no HDF5")
    seen = watch.read_status(run)
    assert (seen.state, seen.steps, seen.readable) == ("finished", 200 * STEPS, 2)


# The live display


def board(**columns: list[float]) -> np.ndarray:
    rows = np.zeros((len(columns["updates"]), len(COLUMNS)))
    for name, values in columns.items():
        rows[:, COLUMNS.index(name)] = values
    return rows


def line(rows: np.ndarray, capsys, total: int = 10**6) -> str:
    shown = display.Display(Config(total_steps=total, run_dir=Path("runs/one")), 0, frames_per_step=None)
    shown.show(rows)
    return capsys.readouterr().out


def panel(rows: np.ndarray) -> str:
    shown, console = (
        display.Display(Config(total_steps=10**6, run_dir=Path("runs/one")), 0, frames_per_step=None),
        Console(width=100, file=io.StringIO()),
    )
    console.print(shown._panel(dict(zip(COLUMNS, rows.T)), 0.0, 0.0, 0.0, np.inf))
    return re.sub(r" +", " ", console.file.getvalue())


def test_the_slowest_agent_and_the_stalest(capsys):
    rows = board(updates=[1200, 1190, 1188], mixes=[5, 5, 0], staleness=[0, 3, 7])
    assert "  rank 2 is 12 updates behind  7 updates since a mix at most  " in line(rows, capsys)
    assert "behind 12 updates, rank 2 the slowest agent, behind the fastest" in panel(rows)
    assert "staleness 7 updates, rank 2 the most since an agent's last mix" in panel(rows)
    assert "updates 1,188 to 1,200 slowest and fastest agent" in panel(rows)


def test_agents_in_step_without_messages(capsys):
    rows = board(updates=[1200, 1200])
    words = line(rows, capsys)
    assert "no rank behind" in words and "mix" not in words
    assert "staleness" not in panel(rows) and "behind 0 updates the slowest" in panel(rows)


def test_one_update_is_no_plural(capsys):
    rows = board(updates=[8, 7], mixes=[1, 1], staleness=[1, 0])
    assert "rank 1 is 1 update behind  1 update since a mix at most" in line(rows, capsys)


def test_an_agent_alone_is_behind_nobody(capsys):
    rows = board(updates=[8])
    assert "behind" not in line(rows, capsys) and "behind" not in panel(rows)


def test_no_time_is_left_once_more_than_all_steps_are_done(capsys):
    """Agents that wait for nobody stop some steps later than that."""
    assert line(board(updates=[8], steps=[1100]), capsys, total=1000).endswith("  0:00:00 left\n")


def test_updates_that_were_skipped_are_told(capsys):
    rows = board(updates=[8, 8])
    assert "skipped" not in line(rows, capsys) + panel(rows)
    rows = board(updates=[8, 8], skipped=[1, 2])
    assert "no rank behind  3 updates skipped  " in line(rows, capsys)
    assert "skipped 3 updates, most by rank 1 a number was not finite" in panel(rows)


@pytest.mark.parametrize("total, done", [(9000, True), (8999, True), (9001, False)])
def test_a_resume_that_has_nothing_to_do_says_so(total, done, capsys):
    origin = Origin(number=2, steps=9000, agents=1, shares=np.eye(1))
    display.welcome(Config(total_steps=total, run_dir=Path("runs/one"), resume=True), 1, "MPICH", 1, origin, [])
    assert (f"nothing is left to train: --total-steps {total:,} have been done" in capsys.readouterr().out) == done
