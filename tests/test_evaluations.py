"""Evaluations while a run trains, without MPI: which checkpoint is played, when, by whom, and what is made of the result."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from recorded import EPISODES, begin
from test_checkpoint import new_state

from gala_mpi import host
from gala_mpi.config import Config
from gala_mpi.host import HostView
from gala_mpi.job import evaluations as job
from gala_mpi.job import schedule
from gala_mpi.run import checkpoints, evaluations, layout, writer


class Process:
    """In place of one that plays."""

    made: ClassVar[list[Process]] = []

    def __init__(self, config: Config, number: int, agents: int, cores: set[int]):
        self.number, self.over, self.killed = number, False, False
        Process.made.append(self)

    def ended(self) -> bool:
        return self.over

    def close(self) -> tuple[str, list[str]]:
        return "", []

    def kill(self) -> None:
        self.killed = True

    def said(self) -> str:
        return ""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(job, "Playing", Process)
    monkeypatch.setattr(job, "SECONDS_BETWEEN_LOOKS", 0)
    Process.made = []
    return begin(tmp_path / "run", evaluate_minutes=10)


def rank_of(run: Path, rank: int = 0, urgent: bool = False, idle: tuple[float, ...] = (0, 0)) -> job.Evaluations:
    """A rank of two, on hosts of their own with so many idle cores."""
    world = SimpleNamespace(rank=rank, size=2, hosts=["a", "b"], idle_cores=dict(zip("ab", idle)), cores={0})
    world.all, world.largest = bool, bool
    config = Config(run_dir=run, evaluate_minutes=10)
    return job.Evaluations(config, world, SimpleNamespace(urgent=urgent), None)


def save(run: Path, number: int, *ranks: int) -> None:
    for rank in ranks:
        checkpoints.write(run, number, rank, new_state(agents=2))


def evaluated(run: Path, number: int, score: float, **about) -> None:
    said = {"checkpoint": number, "score": score, "error": 0.5, "games": 1, "steps": 80, "while_training": True} | about
    writer.write_evaluation(run, np.array([(-1, 0, score, 9)], EPISODES), said)


def played() -> list[int]:
    return [process.number for process in Process.made]


def test_the_first_checkpoint_after_the_minutes_is_played_once_all_have_saved_it(run, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(job.time, "monotonic", lambda: now)
    rank, began = rank_of(run), now
    for number, minutes in ((1, 5), (2, 9.9), (3, 15)):
        now = began + 60 * minutes
        save(run, number, 0)
        rank.saved(number)
        rank.look()
        assert played() == []
    save(run, 1, 1)
    rank.look()
    assert played() == []
    save(run, 2, 1)
    rank.look()
    assert played() == [2]


def test_one_is_played_at_a_time_and_a_newer_one_after_it(run):
    rank = rank_of(run)
    for number in (1, 2):
        save(run, number, 0, 1)
        rank._due = 0.0
        rank.saved(number)
        rank.look()
    assert played() == [1]
    save(run, 3, 0, 1)
    Process.made[0].over = True
    rank.look()
    assert played() == [1, 3]


@pytest.mark.parametrize("idle, who", [((0, 0), 0), ((1, 1), 0), ((0, 2), 1), ((3, 2), 0)])
def test_the_rank_on_the_host_with_most_idle_cores_plays(run, idle, who):
    save(run, 1, 0, 1)
    for rank in range(2):
        each = rank_of(run, rank, idle=idle)
        each._due = 0.0
        each.saved(1)
        each.look()
        assert played() == ([1] if rank >= who else [])


def test_another_rank_plays_where_that_one_is_lost(run):
    save(run, 1, 1)
    layout.end_file(run, 0).parent.mkdir()
    layout.end_file(run, 0).write_text('{"rank": 0, "lost": true}')
    rank = rank_of(run, 1)
    rank._due = 0.0
    rank.saved(1)
    rank.look()
    assert played() == [1]


def test_the_last_checkpoint_is_played_unless_it_has_been(run):
    save(run, 7, 0, 1)
    evaluated(run, 7, 3.0)
    rank_of(run).conclude(7)
    assert played() == []


def test_nobody_waits_for_ever_at_the_end(run, monkeypatch, capsys):
    monkeypatch.setattr(job, "SECONDS_AT_THE_END", 0.1)
    save(run, 7, 0, 1)
    rank_of(run).conclude(7)
    assert played() == [7] and Process.made[0].killed
    assert "warning: the evaluation of checkpoint 7 is given up" in capsys.readouterr().err


def test_a_signal_ends_it_without_a_word(run, capsys):
    save(run, 7, 0, 1)
    rank = rank_of(run)
    rank._begin(7)
    rank._stop = SimpleNamespace(urgent=True)
    rank.look()
    assert Process.made[0].killed and capsys.readouterr().err == ""
    rank.saved(8)
    rank.conclude(8)
    assert played() == [7]


def test_idle_cores_are_those_that_no_rank_has_for_its_threads():
    def view(name: str, cores: float, share: float) -> HostView:
        return HostView(name, cores, share, 0, 0, "", 0, 0)

    views = [view("a", 8, 8 / 3)] * 3 + [view("b", 2, 2 / 3)] * 3
    assert host.idle_cores(views) == {"a": 2, "b": -1}


# What is made of the results


def test_the_best_is_the_one_that_scores_most_in_evaluations_while_training(run):
    for number, score in enumerate((1.0, 9.0, 2.0, 3.0), 1):
        checkpoints.write(run, number, 0, replace(new_state(score), games=100))
    assert checkpoints.best(run) == 2
    evaluated(run, 3, 50.0)
    evaluated(run, 2, 99.0, while_training=False)
    assert checkpoints.best(run) == 3
    evaluated(run, 4, 50.0)
    assert checkpoints.best(run) == 4  # the later one of two that are alike
    evaluated(run, 4, 40.0)
    assert checkpoints.best(run) == 3  # the newest score of each counts
    begin(run, evaluate_minutes=None)
    assert checkpoints.best(run) == 2


def test_a_checkpoint_that_is_evaluated_is_kept(run):
    saving = schedule.Checkpoints(run, 0, Config(keep_checkpoints=1), 0)
    saving.save(new_state(1.0))
    layout.evaluation_mark(run, 1).touch()
    for score in (2.0, 3.0):
        saving.save(new_state(score))
    assert checkpoints.numbers(run) == [1, 3]
    layout.evaluation_mark(run, 1).unlink()
    evaluated(run, 1, 9.0)
    saving.save(new_state(4.0))
    assert checkpoints.numbers(run) == [1, 4] and checkpoints.best(run) == 1


@pytest.mark.parametrize("minutes, seconds", [(2.0, 120), (60.0, 300), (None, 300)])
def test_checkpoints_are_saved_for_evaluations(tmp_path, minutes, seconds):
    saving = schedule.Checkpoints(tmp_path, 0, Config(evaluate_minutes=minutes), 0)
    assert saving._due - time.monotonic() == pytest.approx(seconds, abs=5)


def test_news_are_told_once_with_the_best(run, tmp_path):
    said: list[str] = []
    shown: list[tuple] = []
    logs = SimpleNamespace(
        evaluation=lambda each: shown.append(each.score), film=lambda step, gif: shown.append((step, gif.name))
    )
    evaluated(run, 1, 1.0)
    save(run, 2, 0, 1)
    news = job.News(run, said.append, logs)
    layout.films(run).mkdir()
    layout.film_file(run, 2).touch()
    news.take()
    assert said == shown == []
    evaluated(run, 2, 2.0)
    for _ in range(2):
        news.take()
    assert said == ["evaluation: checkpoint 2 scores 2.0 ± 0.5 in 1 game; best: checkpoint 2"]
    assert shown == [2.0, (80, "000002.gif")] and not layout.film_file(run, 2).exists()


def test_evaluations_of_older_versions_say_no_score(run):
    writer.write_evaluation(run, np.zeros(1, EPISODES), {"checkpoint": 3, "arg_max": True})
    assert evaluations.read(run) == [] and evaluations.number(run) == 1 and evaluations.scores(run) == {}
    evaluated(run, 4, 2.0, error=math.nan)
    (only,) = evaluations.read(run)
    assert str(only) == "checkpoint 4 scores 2.0 in 1 game"


# The process


def test_one_that_cannot_start_lets_go_of_its_checkpoint(run, monkeypatch, capfd):
    class Full(Process):
        def __init__(self, config: Config, number: int, *others):
            layout.evaluation_mark(config.directory, number).touch()
            raise OSError("no more processes")

    monkeypatch.setattr(job, "Playing", Full)
    save(run, 1, 0, 1)
    rank = rank_of(run)
    rank._begin(1)
    assert capfd.readouterr().err == "gala_mpi: warning: checkpoint 1 is not evaluated (no more processes)\n"
    assert not layout.evaluation_mark(run, 1).exists()


def test_it_is_no_rank(monkeypatch):
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MY_GAME", "here")
    told = job._environment()
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"} & told.keys()
    assert told["MY_GAME"] == "here" and told["MPI4PY_RC_INITIALIZE"] == "0"
