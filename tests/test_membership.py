"""How ranks' parts end, agreed upon by files; and how the dead are replaced."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gala_mpi.config import Config
from gala_mpi.job import resume
from gala_mpi.job.membership import End, Membership
from gala_mpi.job.schedule import Checkpoints
from gala_mpi.run import checkpoints, files, layout
from gala_mpi.run.checkpoints import State


def world(rank: int, size: int = 3) -> SimpleNamespace:
    """All of a World that a Membership uses."""
    return SimpleNamespace(rank=rank, size=size, host=f"host{rank}", hosts=[f"host{other}" for other in range(size)])


def state(rank: int, updates: int, agents: int = 3) -> State:
    learner = {"parameters": np.full(4, rank, np.float32), "square_average": np.full(4, updates, np.float32)}
    learner |= {"updates": np.int64(updates), "steps": np.int64(80 * updates)}
    return State("mlp", agents, 1.0, 2.0, learner)


def save(run: Path, number: int, ranks: list[int]) -> None:
    for rank in ranks:
        checkpoints.write(run, number, rank, state(rank, 10 * number))


def lose(run: Path, rank: int) -> None:
    files.first(layout.end_file(run, rank), json.dumps({"rank": rank, "lost": True}))


def try_it(path: Path, number: int) -> int | None:
    return number if files.first(path, str(number)) else None


def test_one_of_many_is_first(tmp_path):
    for attempt in range(5):
        path = tmp_path / "ends" / f"{attempt}"
        with multiprocessing.get_context("fork").Pool(4) as pool:
            (winner,) = {*pool.starmap(try_it, [(path, number) for number in range(4)], chunksize=1)} - {None}
        assert path.read_text() == str(winner)
    assert len(list(path.parent.iterdir())) == 5


def test_all_see_the_same_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gala_mpi.job.membership.SECONDS_BETWEEN_CHECKS", 0.0)
    memberships = [Membership(tmp_path, world(rank)) for rank in range(3)]
    memberships[0].report_lost({2: 41})
    memberships[1].report_lost({2: 40})  # later, and less is known
    memberships[0].record_end(100, 4)
    assert not memberships[0].complete({2: 41})
    memberships[2].record_end(50, 3)  # it was not dead, but too late
    memberships[1].record_end(100, 5)
    expected = [End(0, "host0", False, 100, 4), End(1, "host1", False, 100, 5), End(2, "host2", True, 41)]
    for rank, membership in enumerate(memberships):
        assert membership.complete({} if rank == 2 else {2: 41})
        assert membership.ends == expected and membership.lost == expected[2:]
    assert [membership.first_survivor for membership in memberships] == [True, False, False]
    assert layout.lost(tmp_path) == {2}
    assert capsys.readouterr().err.count("rank 2 on host2 is lost, last seen at update 41") == 1


def test_who_has_left_can_still_be_missed_while_others_train(tmp_path, monkeypatch):
    monkeypatch.setattr("gala_mpi.job.membership.SECONDS_BETWEEN_CHECKS", 0.0)
    memberships = [Membership(tmp_path, world(rank)) for rank in range(3)]
    for rank in (2, 0):
        memberships[rank].leave()
        assert not memberships[rank].all_left({})
    memberships[0].report_lost({2: 100})  # it dies after its last update
    assert not memberships[0].all_left({2: 100})
    memberships[1].leave()
    for rank in (0, 1):
        assert memberships[rank].all_left({2: 100})
        memberships[rank].record_end(100, 5)
    assert memberships[0].complete({2: 100}) and [end.rank for end in memberships[0].lost] == [2]


def test_who_is_left_waits_for_the_others_last_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("gala_mpi.job.membership.SECONDS_TO_SAVE", 0.5)
    membership = Membership(tmp_path, world(0))
    membership.ends = [End(0, "host0", False, 100), End(1, "host1", False, 100), End(2, "host2", True, 41)]
    save(tmp_path, 5, [0])
    began = time.monotonic()
    membership.wait_for_checkpoints(5)
    assert time.monotonic() - began >= 0.5
    monkeypatch.setattr("gala_mpi.job.membership.SECONDS_TO_SAVE", 240.0)
    threading.Timer(0.3, save, [tmp_path, 5, [1]]).start()
    membership.wait_for_checkpoints(5)
    assert checkpoints.ranks(tmp_path, 5) == [0, 1] and time.monotonic() - began < 200


def test_nobody_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("gala_mpi.job.membership.SECONDS_BETWEEN_CHECKS", 0.0)
    memberships = [Membership(tmp_path, world(rank, 2)) for rank in range(2)]
    for membership in memberships:
        assert not membership.complete({})
        membership.record_end(7, 1)
    assert all(membership.complete({}) and membership.lost == [] for membership in memberships)
    assert layout.lost(tmp_path) == set()
    layout.forget_ends(tmp_path)
    assert not memberships[0]._run.joinpath("ends").exists()


def test_a_checkpoint_without_the_dead_is_complete(tmp_path):
    save(tmp_path, 1, [0, 1, 2])
    save(tmp_path, 2, [0, 1])
    assert checkpoints.complete(tmp_path) == [1]
    lose(tmp_path, 2)
    assert checkpoints.complete(tmp_path) == [1, 2] and checkpoints.newest(tmp_path) == 2
    assert checkpoints.ranks(tmp_path, 2) == [0, 1]


def test_the_dead_go_on_from_their_own_last_checkpoint(tmp_path):
    save(tmp_path, 1, [0, 1, 2])
    save(tmp_path, 2, [0, 1, 2])
    save(tmp_path, 3, [0, 1])
    lose(tmp_path, 2)
    resume.replace_lost(tmp_path)
    layout.forget_ends(tmp_path)
    assert checkpoints.newest(tmp_path) == 3
    assert [int(checkpoints.load(tmp_path, 3, rank).learner["updates"]) for rank in range(3)] == [30, 30, 20]
    assert checkpoints.load(tmp_path, 3, 2).learner["parameters"].tolist() == [2] * 4


@pytest.mark.parametrize("lost, neighbour", [(2, 1), (0, 2)])
def test_without_a_checkpoint_of_its_own_a_neighbour_lends_its_parameters(tmp_path, lost, neighbour):
    save(tmp_path, 1, [rank for rank in range(3) if rank != lost])
    lose(tmp_path, lost)
    resume.replace_lost(tmp_path)
    layout.forget_ends(tmp_path)
    replaced = checkpoints.load(tmp_path, 1, lost)
    assert checkpoints.newest(tmp_path) == 1
    assert replaced.learner["parameters"].tolist() == [neighbour] * 4
    assert (int(replaced.learner["updates"]), int(replaced.learner["steps"])) == (0, 0)


def test_the_dead_of_a_start_that_saved_nothing_are_not_put_into_older_checkpoints(tmp_path):
    """Three agents saved; a start with four lost the last one and was killed before its first checkpoint."""
    save(tmp_path, 1, [0, 1, 2])
    lose(tmp_path, 3)
    resume.replace_lost(tmp_path)
    assert checkpoints.ranks(tmp_path, 1) == [0, 1, 2]


def test_the_dead_are_replaced_in_the_newest_sound_checkpoint(tmp_path):
    save(tmp_path, 1, [0, 1, 2])
    save(tmp_path, 2, [0, 1])
    save(tmp_path, 3, [0, 1])
    layout.checkpoint_file(tmp_path, 3, 0).write_bytes(b"damaged")
    lose(tmp_path, 2)
    resume.replace_lost(tmp_path)
    layout.forget_ends(tmp_path)
    assert checkpoints.newest(tmp_path) == 2 and checkpoints.ranks(tmp_path, 3) == [0, 1]


def test_what_the_dead_saved_among_other_agents_does_not_count(tmp_path):
    """Its steps are of another dealing."""
    for rank in range(2):
        checkpoints.write(tmp_path, 1, rank, state(rank, 10, agents=2))
    save(tmp_path, 2, [0, 2])
    lose(tmp_path, 1)
    resume.replace_lost(tmp_path)
    assert checkpoints.load(tmp_path, 2, 1).learner["parameters"].tolist() == [0] * 4


def test_nothing_is_replaced_where_nobody_died(tmp_path):
    save(tmp_path, 1, [0, 1, 2])
    save(tmp_path, 2, [0, 1])
    resume.replace_lost(tmp_path)
    assert checkpoints.ranks(tmp_path, 2) == [0, 1]


def test_where_the_first_rank_is_dead_the_next_one_deletes(tmp_path):
    lose(tmp_path, 0)
    schedule = Checkpoints(tmp_path, 1, Config(keep_checkpoints=2), 0)
    for number in range(1, 8):
        schedule.save(state(1, number, agents=2))
    assert checkpoints.numbers(tmp_path) == [6, 7]


def test_what_somebody_still_writes_is_not_deleted(tmp_path):
    schedule = Checkpoints(tmp_path, 0, Config(keep_checkpoints=1), 0)
    for number in range(1, 5):
        schedule.save(state(0, number, agents=1))
        if number == 1:
            (layout.checkpoint_file(tmp_path, 1, 1).parent / ".rank00001.h5.host.1.tmp").touch()
    assert checkpoints.numbers(tmp_path) == [1, 4]


def test_the_last_checkpoint_of_the_dead_is_kept(tmp_path):
    lose(tmp_path, 1)
    config = Config(keep_checkpoints=2)
    first = Checkpoints(tmp_path, 1, config, 0)
    for _ in range(2):
        first.save(state(1, 1, agents=2))
    schedule = Checkpoints(tmp_path, 0, config, 0)
    for number in range(1, 8):
        schedule.save(state(0, number, agents=2))
    assert checkpoints.numbers(tmp_path) == [2, 6, 7]
