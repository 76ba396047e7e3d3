"""Checkpoints: what is saved comes back, what is damaged or incomplete is passed over, what is old goes."""

import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gala_mpi import topology
from gala_mpi.config import A2CSettings, Config
from gala_mpi.envs.base import Spaces
from gala_mpi.errors import DiskError, JobError, SettingError
from gala_mpi.exchange.base import Order
from gala_mpi.job import elastic, resume
from gala_mpi.job.resume import Origin
from gala_mpi.job.schedule import Checkpoints
from gala_mpi.learners.a2c import A2C
from gala_mpi.networks.policy import Network
from gala_mpi.run import checkpoints, layout, writer
from gala_mpi.run.checkpoints import State
from gala_mpi.topology import Graph

LENGTH = 5000
SCORES = resume.Scores(3.0, 100, (1.0, 3.0, 5.0))


def new_state(score: float = 1.0, agents: int = 1, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    learner = {
        "parameters": rng.normal(size=LENGTH).astype(np.float32),
        "square_average": rng.random(LENGTH).astype(np.float32),
        "updates": np.int64(7),
        "steps": np.int64(560),
    }
    return State("mlp", agents, 1.5, score, learner, {"env": "pole", "parameters": [{"name": "é", "shape": [LENGTH]}]})


def assert_same(one: State, other: State) -> None:
    assert replace(one, learner={}) == replace(other, learner={})
    assert one.learner.keys() == other.learner.keys()
    for name, value in one.learner.items():
        assert np.array_equal(value, other.learner[name]) and value.dtype == other.learner[name].dtype


def save(run: Path, rank: int, numbers: range, agents: int = 1, keep: int = 100, score=lambda number: 1.0) -> None:
    """Rank `rank`'s files of some numbers, which are saved one after another."""
    schedule = Checkpoints(run, rank, Config(keep_checkpoints=keep), numbers[0] - 1)
    for number in numbers:
        schedule.save(new_state(score(number), agents, seed=number))


def file_of(run: Path, number: int, rank: int = 0) -> Path:
    return layout.checkpoint_file(run, number, rank)


def test_what_is_saved_comes_back(tmp_path):
    save(tmp_path, 0, range(1, 3))
    for number in (1, 2):
        assert_same(checkpoints.load(tmp_path, number, 0), new_state(seed=number))


def test_a_checkpoint_without_a_policys_table_comes_back(tmp_path):
    state = replace(new_state(), policy=None)
    checkpoints.write(tmp_path, 1, 0, state)
    assert_same(checkpoints.load(tmp_path, 1, 0), state)


def new_learner(seed: int = 0, updates: int = 0, steps: int = 0, optimiser: str = "rmsprop") -> A2C:
    torch.manual_seed(seed)
    learner = A2C(Network("mlp", Spaces((4,), False, 2)), A2CSettings(optimiser=optimiser), 1e-3)
    learner.flat.grad.normal_()
    learner.step(0.0)
    learner.updates, learner.steps = updates, steps
    return learner


def save_agents(run: Path, *agents: A2C) -> Origin:
    """Checkpoint 1 of some agents, and what a start goes on from."""
    for rank, learner in enumerate(agents):
        Checkpoints(run, rank, Config(), 0).save(resume.take(learner, Config(), len(agents), 2.5, SCORES))
    return resume.resumable(run, "mlp")


def restored(run: Path, origin: Origin, ranks: int, graph: str | None = "ring", optimiser: str = "rmsprop") -> list[A2C]:
    """The agents of a start on so many ranks."""
    graph = graph and topology.build(Graph(graph), origin.agents)
    origin = replace(origin, shares=elastic.shares(graph, origin.agents, ranks))
    learners = [new_learner(99, optimiser=optimiser) for _ in range(ranks)]
    for rank, learner in enumerate(learners):
        assert resume.restore(run, origin, rank, learner) == 2.5
    return learners


def vector(learner: A2C) -> np.ndarray:
    return learner.flat.data.numpy()


def test_a_learner_goes_on_where_it_was_saved(tmp_path):
    saved = [new_learner(seed, updates=9 + seed, steps=720 + seed) for seed in range(2)]
    for learner, other in zip(saved, restored(tmp_path, save_agents(tmp_path, *saved), 2), strict=True):
        assert all(np.array_equal(value, other.state()[name]) for name, value in learner.state().items())


# Another number of agents


def test_fewer_agents_take_in_those_that_leave_and_the_steps_add_up(tmp_path):
    """On a ring agent 2 is read by agent 3 and that by agent 0."""
    saved = [new_learner(seed, updates=100 + seed, steps=1000 + seed) for seed in range(4)]
    first, second = restored(tmp_path, save_agents(tmp_path, *saved), 2)
    np.testing.assert_allclose(vector(first), np.mean([vector(saved[i]) for i in (0, 2, 3)], axis=0), atol=1e-7)
    means = np.mean([saved[i].optimiser.square_average.numpy() for i in (0, 2, 3)], axis=0)
    np.testing.assert_allclose(first.optimiser.square_average.numpy(), means, atol=1e-7)
    assert np.array_equal(vector(second), vector(saved[1]))
    assert (first.updates, second.updates) == (103, 103)
    assert (first.steps, second.steps) == (2003, 2003)


def test_adams_means_are_averaged_and_its_largest_step_counts(tmp_path):
    saved = [new_learner(seed, optimiser="adam") for seed in range(4)]
    for learner in saved[1:]:
        learner.flat.grad.normal_()
        learner.step(0.0)
    first, second = restored(tmp_path, save_agents(tmp_path, *saved), 2, optimiser="adam")
    for name in ("average", "square_average"):
        mean = np.mean([saved[i].state()[name] for i in (0, 2, 3)], axis=0)
        np.testing.assert_allclose(first.state()[name], mean, atol=1e-7)
        assert np.array_equal(second.state()[name], saved[1].state()[name])
    assert [learner.state()["optimiser_steps"] for learner in (*saved, first, second)] == [1, 2, 2, 2, 2, 2]


def test_more_agents_are_copies_and_the_steps_add_up(tmp_path):
    saved = [new_learner(seed, updates=100, steps=1000) for seed in range(2)]
    learners = restored(tmp_path, save_agents(tmp_path, *saved), 6)
    for rank, learner in enumerate(learners):
        assert np.array_equal(vector(learner), vector(saved[rank % 2])) and learner.updates == 100
    assert [learner.steps for learner in learners] == [334, 334, 333, 333, 333, 333]


def test_agents_that_share_nothing_leave_nothing(tmp_path):
    saved = [new_learner(seed, updates=100, steps=1000) for seed in range(3)]
    (learner,) = restored(tmp_path, save_agents(tmp_path, *saved), 1, graph=None)
    assert np.array_equal(vector(learner), vector(saved[0])) and learner.steps == 3000


@pytest.mark.parametrize("graph", ["ring", "exponential", "one-peer-exponential", "complete"])
@pytest.mark.parametrize("agents, ranks", [(2, 1), (4, 2), (6, 4), (8, 3), (32, 5), (3, 3), (3, 7)])
def test_shares_are_means_in_which_everybody_counts(graph, agents, ranks):
    shares = elastic.shares(topology.build(Graph(graph), agents), agents, ranks)
    assert shares.shape == (ranks, agents) and (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares.sum(axis=0) > 0).all()
    if graph == "complete" and ranks < agents:  # everybody hands on to everybody alike
        given = (agents - ranks) / ranks
        expected = np.hstack([np.eye(ranks), np.full((ranks, agents - ranks), 1 / ranks)]) / (1 + given)
        np.testing.assert_allclose(shares, expected)


# When to save


class Clock:
    """In place of the module `time`: what it shows is set, and goes on a little with every look."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr("gala_mpi.job.schedule.time", clock := Clock())
    return clock


def test_checkpoints_fall_due_by_the_clock(tmp_path, clock):
    schedule = Checkpoints(tmp_path, 0, Config(checkpoint_minutes=0.5), 0)
    assert not schedule.due()
    clock.now += 29.9
    assert not schedule.due()
    clock.now += 0.2
    assert schedule.due()
    schedule.save(new_state())
    assert not schedule.due() and schedule.number == 1
    schedule.save(new_state(), number=5)
    assert schedule.number == 5 and checkpoints.numbers(tmp_path) == [1, 5]
    assert 0 < schedule.slowest < 10


@pytest.mark.parametrize("staleness, number", [(None, 4), (0, 1)])
def test_who_was_suspended_does_not_make_up_for_what_it_missed(tmp_path, staleness, number, clock):
    """The others have saved 1, 2 and 3 meanwhile, and save 4 now; agents in lock-step have waited."""
    schedule = Checkpoints(tmp_path, 0, Config(checkpoint_minutes=0.5, staleness=staleness), 0)
    clock.now += 4.1 * 30
    assert schedule.due()
    schedule.save(new_state())
    assert not schedule.due() and checkpoints.numbers(tmp_path) == [number]


def test_exact_runs_save_and_stop_at_marks_alone(tmp_path):
    exact = Config(exact_resume=True, checkpoint_updates=10, checkpoint_minutes=1e-9)
    schedule = Checkpoints(tmp_path, 0, exact, 0)
    assert not schedule.due()
    assert schedule.heed(Order(stop=True, save=True), 9) == Order()
    assert schedule.heed(Order(), 10) == Order(save=True)
    assert schedule.heed(Order(stop=True), 20) == Order(stop=True, save=True)
    assert Checkpoints(tmp_path, 0, Config(), 0).heed(Order(stop=True), 9) == Order(stop=True)


def test_generations_are_in_order_of_number(tmp_path):
    save(tmp_path, 0, range(8, 13))
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert checkpoints.numbers(tmp_path) == checkpoints.complete(tmp_path) == [8, 9, 10, 11, 12]
    assert checkpoints.newest(tmp_path) == 12


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert checkpoints.newest(tmp_path) is None and checkpoints.best(tmp_path) is None
    assert checkpoints.complete(tmp_path) == []


def test_the_newest_generation_is_the_newest_that_all_ranks_have(tmp_path):
    save(tmp_path, 0, range(1, 5), agents=3)
    save(tmp_path, 1, range(1, 4), agents=3)
    save(tmp_path, 2, range(1, 3), agents=3)
    assert checkpoints.complete(tmp_path) == [1, 2]
    assert checkpoints.newest(tmp_path) == 2


# Damage


def place_of(path: Path, dataset: str) -> int:
    """Where in the file the middle of a dataset's first chunk lies."""
    with h5py.File(path, "r") as file:
        chunk = file[dataset].id.get_chunk_info(0)
    return chunk.byte_offset + chunk.size // 2


def flip(path: Path, place: int, bit: int = 0) -> None:
    contents = bytearray(path.read_bytes())
    contents[place] ^= 1 << bit
    path.write_bytes(contents)


@pytest.mark.parametrize("dataset", ["learner/parameters", "learner/square_average"])
def test_one_wrong_bit_is_found_and_the_file_named(tmp_path, dataset, capsys):
    save(tmp_path, 0, range(1, 4))
    flip(file_of(tmp_path, 3), place_of(file_of(tmp_path, 3), dataset))
    with pytest.raises(OSError):
        checkpoints.load(tmp_path, 3, 0)
    assert checkpoints.newest(tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"gala_mpi: {file_of(tmp_path, 3)} is damaged and passed over (")


def test_a_wrong_bit_of_any_rank_spoils_the_generation(tmp_path):
    save(tmp_path, 0, range(1, 3), agents=2)
    save(tmp_path, 1, range(1, 3), agents=2)
    flip(file_of(tmp_path, 2, 1), place_of(file_of(tmp_path, 2, 1), "learner/parameters"))
    assert checkpoints.newest(tmp_path) == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_passed_over(tmp_path, share):
    save(tmp_path, 0, range(1, 3))
    path = file_of(tmp_path, 2)
    os.truncate(path, int(share * path.stat().st_size))
    assert checkpoints.newest(tmp_path) == 1


def test_a_file_of_another_kind_is_passed_over(tmp_path):
    save(tmp_path, 0, range(1, 3))
    with h5py.File(file_of(tmp_path, 2), "w") as file:
        file["something"] = 1
    assert checkpoints.newest(tmp_path) == 1


def test_when_all_are_damaged_there_is_none(tmp_path):
    save(tmp_path, 0, range(1, 3))
    for number in (1, 2):
        file_of(tmp_path, number).write_bytes(b"nothing")
    assert checkpoints.newest(tmp_path) is None


def places_of_data(path: Path) -> set[int]:
    """The bytes of a checkpoint that hold its arrays; all others are HDF5's own, attributes included."""
    places = set()
    with h5py.File(path, "r") as file:
        for dataset in ("learner/parameters", "learner/square_average"):
            for i in range(file[dataset].id.get_num_chunks()):
                chunk = file[dataset].id.get_chunk_info(i)
                places |= set(range(chunk.byte_offset, chunk.byte_offset + chunk.size))
    return places


def test_a_wrong_bit_in_the_structure_of_a_file_is_found_too(tmp_path):
    """HDF5's own bytes, attributes and strings included: whichever is flipped, the number is passed over."""
    save(tmp_path, 0, range(1, 3))
    path = file_of(tmp_path, 2)
    sound, data, rng = path.read_bytes(), places_of_data(path), random.Random(0)
    structure = [place for place in range(len(sound)) if sound[place] and place not in data]
    assert len(structure) > 300
    for place in rng.sample(structure, 150):
        path.write_bytes(sound)
        flip(path, place, rng.randrange(8))
        assert checkpoints.newest(tmp_path) == 1, place
    path.write_bytes(sound)
    assert checkpoints.newest(tmp_path) == 2


# What is kept


def kept(run: Path) -> list[int]:
    return checkpoints.numbers(run)


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 5.0, 2: 21.0, 3: 7.0, 4: 20.0, 5: 6.0, 6: 4.0}
    save(tmp_path, 0, range(1, 7), keep=2, score=scores.get)
    assert kept(tmp_path) == [2, 5, 6]
    assert checkpoints.best(tmp_path) == 2


def test_a_better_one_takes_the_place_of_the_best(tmp_path):
    save(tmp_path, 0, range(1, 7), keep=1, score=float)
    assert kept(tmp_path) == [6]


def test_generations_without_a_score_are_not_the_best(tmp_path):
    scores = {1: float("nan"), 2: -21.0, 3: float("nan"), 4: float("nan")}
    save(tmp_path, 0, range(1, 5), keep=1, score=scores.get)
    assert kept(tmp_path) == [2, 4]


def test_a_score_of_few_games_tells_nothing(tmp_path):
    """The first games of a run are few, and may be lucky. Older checkpoints do not say how many they were."""
    for number, (score, games) in enumerate([(21.0, 3), (5.0, 100), (9.0, 49), (4.0, 50)], 1):
        checkpoints.write(tmp_path, number, 0, replace(new_state(score), games=games))
    assert checkpoints.best(tmp_path) == 2
    checkpoints.write(tmp_path, 5, 0, new_state(6.0))
    assert checkpoints.best(tmp_path) == 5


def test_without_enough_games_the_newest_is_the_best(tmp_path):
    for number in (1, 2):
        checkpoints.write(tmp_path, number, 0, replace(new_state(3.0 - number), games=10 * number))
    assert checkpoints.best(tmp_path) == 2


def test_a_score_is_that_of_the_first_rank_that_lives(tmp_path):
    for number, score in ((1, 9.0), (2, 4.0)):
        checkpoints.write(tmp_path, number, 1, replace(new_state(score, agents=2), games=100))
    layout.end_file(tmp_path, 0).parent.mkdir()
    layout.end_file(tmp_path, 0).write_text('{"rank": 0, "lost": true}')
    assert checkpoints.best(tmp_path) == 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_last_scores_go_on_with_a_run_each_once(tmp_path, ranks):
    for rank in range(2):
        recent = tuple(10.0 * rank + k for k in range(4))
        state = resume.take(new_learner(), Config(), 2, 2.5, resume.Scores(3.0, 8, recent))
        checkpoints.write(tmp_path, 1, rank, state)
    origin = replace(resume.resumable(tmp_path, "mlp"), shares=np.ones((ranks, 2)) / 2)
    scores = [resume.recent_scores(tmp_path, origin, rank) for rank in range(ranks)]
    assert sorted(score for each in scores for score in each) == [0, 1, 2, 3, 10, 11, 12, 13]
    if ranks == 2:
        assert scores == [[0, 1, 2, 3], [10, 11, 12, 13]]


def test_without_any_score_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 0, range(1, 5), keep=2, score=lambda number: float("nan"))
    assert kept(tmp_path) == [3, 4]


def test_only_complete_generations_count_as_kept(tmp_path):
    """Rank 0 runs ahead: what the other rank has not saved yet must not push out what both have."""
    save(tmp_path, 1, range(1, 4), agents=2)
    save(tmp_path, 0, range(1, 7), agents=2, keep=2)
    assert {2, 3} <= set(kept(tmp_path)) and 1 not in kept(tmp_path)
    assert checkpoints.newest(tmp_path) == 3


def test_what_nobody_completes_any_more_is_deleted(tmp_path):
    """Rank 1 was suspended while rank 0 saved 2 and 3. What may still be completed stays."""
    save(tmp_path, 0, range(1, 4), agents=2)
    save(tmp_path, 1, range(1, 2), agents=2)
    assert kept(tmp_path) == [1, 2, 3]
    save(tmp_path, 1, range(4, 5), agents=2)
    save(tmp_path, 0, range(4, 6), agents=2)
    assert kept(tmp_path) == [1, 4, 5]


def test_other_ranks_delete_nothing(tmp_path):
    save(tmp_path, 1, range(1, 7), agents=2, keep=1)
    assert kept(tmp_path) == [1, 2, 3, 4, 5, 6]


# Resuming


def begin_run(run: Path, agents: int) -> None:
    writer.write_run(run, Config(run_dir=run), agents, {})
    for rank in range(agents):
        save(run, rank, range(1, 4), agents=agents)


def test_a_run_resumes_from_its_newest_generation(tmp_path):
    begin_run(tmp_path, 2)
    save(tmp_path, 1, range(4, 6), agents=2)
    origin = resume.resumable(tmp_path, "mlp")
    assert (origin.number, origin.last, origin.agents, origin.updates, origin.steps) == (3, 5, 2, 7, 1120)


def test_another_network_is_refused(tmp_path):
    begin_run(tmp_path, 1)
    with pytest.raises(SettingError, match=r"--network gala: .*mlp is expected"):
        resume.resumable(tmp_path, "gala")


def test_a_network_of_another_size_is_refused(tmp_path):
    """The environment has other actions than when the run was started."""
    learner = new_learner()
    save_agents(tmp_path, learner)
    saved = len(learner.flat)
    assert resume.resumable(tmp_path, "mlp", saved).number == 1
    with pytest.raises(SettingError, match=rf"--resume --run-dir .*{saved + 1:,} parameters.*have {saved:,}; .*expected"):
        resume.resumable(tmp_path, "mlp", saved + 1)


def test_a_run_without_a_whole_checkpoint_begins_anew(tmp_path):
    """It was killed before all ranks had saved."""
    begin_run(tmp_path, 2)
    for number in kept(tmp_path):
        file_of(tmp_path, number, 1).unlink()
    origin = resume.resumable(tmp_path, "mlp")
    assert (origin.number, origin.last) == (0, 3)
    shutil.rmtree(tmp_path / "checkpoints")
    origin = resume.resumable(tmp_path, "mlp")
    assert (origin.number, origin.last) == (0, 0)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path):
    begin_run(tmp_path, 2)
    for number in kept(tmp_path):
        file_of(tmp_path, number, 1).write_bytes(b"nothing")
    with pytest.raises(SettingError, match="all its checkpoints are damaged"):
        resume.resumable(tmp_path, "mlp")


# A disk that takes no more


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256K", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_run_of_whose_checkpoints_no_file_can_be_read_is_refused(tmp_path):
    """It would begin anew, and delete them."""
    checkpoints.write(tmp_path, 1, 0, new_state())
    layout.checkpoint_file(tmp_path, 1, 0).write_bytes(b"")
    with pytest.raises(SettingError, match="all its checkpoints are damaged"):
        resume.resumable(tmp_path, "mlp")


def test_a_damaged_note_of_an_end_tells_nothing(tmp_path):
    (tmp_path / "ends").mkdir()
    for rank, text in enumerate(['{"rank": 0, "lost": true}', "{", "[1]", '{"rank": 3}']):
        layout.end_file(tmp_path, rank).write_text(text)
    assert layout.lost(tmp_path) == {0}


def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint(small_disk):
    schedule = Checkpoints(small_disk, 0, Config(), 0)
    schedule.save(new_state(seed=1))
    big = replace(new_state(), learner={"parameters": np.random.default_rng(0).random(100_000)})
    for _ in range(3):
        with pytest.raises(DiskError, match=r"checkpoints/00000\d/rank00000.h5 cannot be written: No space left"):
            schedule.save(big)
    assert checkpoints.newest(small_disk) == 1 and not list(small_disk.rglob(".*"))
    schedule.save(new_state(seed=2))
    assert_same(checkpoints.load(small_disk, 5, 0), new_state(seed=2))
    assert checkpoints.numbers(small_disk) == [1, 5]


def test_a_disk_that_has_become_read_only_is_an_error(small_disk):
    schedule = Checkpoints(small_disk, 0, Config(), 0)
    schedule.save(new_state(seed=1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DiskError, match=r"000002 cannot be written: Read-only"):
        schedule.save(new_state(seed=2))
    assert_same(checkpoints.load(small_disk, 1, 0), new_state(seed=1))


# Numbers that are not finite


@pytest.mark.parametrize("name", ["parameters", "square_average"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path, name, number):
    state = new_state()
    state.learner[name][3] = number
    with pytest.raises(JobError, match=f"rank00000.h5 is not written; not finite: {name}"):
        checkpoints.write(tmp_path, 1, 0, state)
    assert not list(tmp_path.rglob("*.h5*"))


def test_what_an_older_version_saved_and_is_not_finite_is_passed_over(tmp_path, capsys):
    save(tmp_path, 0, range(1, 4), score=lambda number: float(number))
    with h5py.File(file_of(tmp_path, 3), "r+") as file:
        file["learner/parameters"][3] = np.nan
    assert checkpoints.best(tmp_path) == 3
    assert checkpoints.newest(tmp_path) == checkpoints.best_sound(tmp_path) == checkpoints.newest_of(tmp_path, 0) == 2
    words = f"gala_mpi: {file_of(tmp_path, 3)} is damaged and passed over (not finite: parameters)\n"
    assert capsys.readouterr().err == 2 * words
    assert resume.resumable(tmp_path, "mlp").number == 2
