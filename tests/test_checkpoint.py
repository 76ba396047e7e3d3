"""Checkpoints: what is saved comes back, what is damaged or incomplete is passed over, what is old goes."""

import copy
import os
import random
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gala_mpi import checkpoint, store
from gala_mpi.checkpoint import Checkpoints, State
from gala_mpi.config import A2CSettings, Config
from gala_mpi.envs import Spaces
from gala_mpi.errors import SettingError
from gala_mpi.learner import A2C
from gala_mpi.model import Network

LENGTH = 5000


def new_state(score: float = 1.0, agents: int = 1, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    learner = {
        "parameters": rng.normal(size=LENGTH).astype(np.float32),
        "square_average": rng.random(LENGTH).astype(np.float32),
        "updates": np.int64(7),
        "steps": np.int64(560),
    }
    return State("mlp", agents, 1.5, score, rng.integers(0, 256, 5056, np.uint8), learner)


def assert_same(one: State, other: State) -> None:
    assert (one.network, one.agents, one.hours, one.score) == (other.network, other.agents, other.hours, other.score)
    assert np.array_equal(one.torch_rng, other.torch_rng) and one.torch_rng.dtype == other.torch_rng.dtype
    assert one.learner.keys() == other.learner.keys()
    for name, value in one.learner.items():
        assert np.array_equal(value, other.learner[name]) and value.dtype == other.learner[name].dtype


def save(run: Path, rank: int, generations: range, agents: int = 1, keep: int = 100, score=lambda generation: 1.0) -> None:
    """Rank `rank`'s files of some generations, which are saved one after another."""
    checkpoints = Checkpoints(run, rank, 5.0, keep, generations[0] - 1)
    for generation in generations:
        checkpoints.save(new_state(score(generation), agents, seed=generation))


def file_of(run: Path, generation: int, rank: int = 0) -> Path:
    return store.checkpoint_file(run, generation, rank)


def test_what_is_saved_comes_back(tmp_path):
    save(tmp_path, 0, range(1, 3))
    for generation in (1, 2):
        assert_same(checkpoint.load(tmp_path, generation, 0), new_state(seed=generation))


def test_a_learner_and_its_random_stream_go_on_where_they_were_saved(tmp_path):
    learner = A2C(Network("mlp", Spaces((4,), False, 2)), A2CSettings(), 1e-3)
    learner.flat.grad.normal_()
    learner.step(0.0)
    learner.updates, learner.steps = 9, 720
    Checkpoints(tmp_path, 0, 5.0, 3, 0).save(checkpoint.take(learner, "mlp", 1, 2.5, 3.0))
    state, drawn = copy.deepcopy(learner.state()), torch.rand(3)
    other = A2C(Network("mlp", Spaces((4,), False, 2)), A2CSettings(), 1e-3)
    assert checkpoint.restore(tmp_path, 1, 0, other) == 2.5
    assert torch.equal(torch.rand(3), drawn)
    assert all(np.array_equal(value, other.state()[name]) for name, value in state.items())


def test_checkpoints_fall_due_by_the_clock(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0, 0.1 / 60, 3, 0)
    assert not checkpoints.due()
    time.sleep(0.12)
    assert checkpoints.due()
    checkpoints.save(new_state())
    assert not checkpoints.due() and checkpoints.generation == 1
    checkpoints.save(new_state(), generation=5)
    assert checkpoints.generation == 5 and checkpoint.generations(tmp_path) == [1, 5]


def test_generations_are_in_order_of_number(tmp_path):
    save(tmp_path, 0, range(8, 13))
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert checkpoint.generations(tmp_path) == checkpoint.complete(tmp_path, 1) == [8, 9, 10, 11, 12]
    assert checkpoint.newest(tmp_path, 1) == 12


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert checkpoint.newest(tmp_path, 1) is None and checkpoint.best(tmp_path, 1) is None
    assert checkpoint.complete(tmp_path, 1) == []


def test_the_newest_generation_is_the_newest_that_all_ranks_have(tmp_path):
    save(tmp_path, 0, range(1, 5), agents=3)
    save(tmp_path, 1, range(1, 4), agents=3)
    save(tmp_path, 2, range(1, 3), agents=3)
    assert checkpoint.complete(tmp_path, 3) == [1, 2]
    assert checkpoint.newest(tmp_path, 3) == 2


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


@pytest.mark.parametrize("dataset", ["learner/parameters", "learner/square_average", "torch_rng"])
def test_one_wrong_bit_is_found(tmp_path, dataset):
    save(tmp_path, 0, range(1, 4))
    flip(file_of(tmp_path, 3), place_of(file_of(tmp_path, 3), dataset))
    with pytest.raises(OSError):
        checkpoint.load(tmp_path, 3, 0)
    assert checkpoint.newest(tmp_path, 1) == 2


def test_a_wrong_bit_of_any_rank_spoils_the_generation(tmp_path):
    save(tmp_path, 0, range(1, 3), agents=2)
    save(tmp_path, 1, range(1, 3), agents=2)
    flip(file_of(tmp_path, 2, 1), place_of(file_of(tmp_path, 2, 1), "learner/parameters"))
    assert checkpoint.newest(tmp_path, 2) == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_passed_over(tmp_path, share):
    save(tmp_path, 0, range(1, 3))
    path = file_of(tmp_path, 2)
    os.truncate(path, int(share * path.stat().st_size))
    assert checkpoint.newest(tmp_path, 1) == 1


def test_a_file_of_another_kind_is_passed_over(tmp_path):
    save(tmp_path, 0, range(1, 3))
    with h5py.File(file_of(tmp_path, 2), "w") as file:
        file["something"] = 1
    assert checkpoint.newest(tmp_path, 1) == 1


def test_when_all_are_damaged_there_is_none(tmp_path):
    save(tmp_path, 0, range(1, 3))
    for generation in (1, 2):
        file_of(tmp_path, generation).write_bytes(b"nothing")
    assert checkpoint.newest(tmp_path, 1) is None


def places_of_data(path: Path) -> set[int]:
    """The bytes of a checkpoint that hold its arrays; all others are HDF5's own, attributes included."""
    places = set()
    with h5py.File(path, "r") as file:
        for dataset in ("learner/parameters", "learner/square_average", "torch_rng"):
            for i in range(file[dataset].id.get_num_chunks()):
                chunk = file[dataset].id.get_chunk_info(i)
                places |= set(range(chunk.byte_offset, chunk.byte_offset + chunk.size))
    return places


def test_a_wrong_bit_in_the_structure_of_a_file_is_found_too(tmp_path):
    """HDF5's own bytes, attributes and strings included: whichever is flipped, the generation is passed over."""
    save(tmp_path, 0, range(1, 3))
    path = file_of(tmp_path, 2)
    sound, data, rng = path.read_bytes(), places_of_data(path), random.Random(0)
    structure = [place for place in range(len(sound)) if sound[place] and place not in data]
    assert len(structure) > 300
    for place in rng.sample(structure, 150):
        path.write_bytes(sound)
        flip(path, place, rng.randrange(8))
        assert checkpoint.newest(tmp_path, 1) == 1, place
    path.write_bytes(sound)
    assert checkpoint.newest(tmp_path, 1) == 2


# What is kept


def kept(run: Path) -> list[int]:
    return checkpoint.generations(run)


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 5.0, 2: 21.0, 3: 7.0, 4: 20.0, 5: 6.0, 6: 4.0}
    save(tmp_path, 0, range(1, 7), keep=2, score=scores.get)
    assert kept(tmp_path) == [2, 5, 6]
    assert checkpoint.best(tmp_path, 1) == 2


def test_a_better_one_takes_the_place_of_the_best(tmp_path):
    save(tmp_path, 0, range(1, 7), keep=1, score=float)
    assert kept(tmp_path) == [6]


def test_generations_without_a_score_are_not_the_best(tmp_path):
    scores = {1: float("nan"), 2: -21.0, 3: float("nan"), 4: float("nan")}
    save(tmp_path, 0, range(1, 5), keep=1, score=scores.get)
    assert kept(tmp_path) == [2, 4]


def test_without_any_score_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 0, range(1, 5), keep=2, score=lambda generation: float("nan"))
    assert kept(tmp_path) == [3, 4]


def test_only_complete_generations_count_as_kept(tmp_path):
    """Rank 0 runs ahead: what the other rank has not saved yet must not push out what both have."""
    save(tmp_path, 1, range(1, 4), agents=2)
    save(tmp_path, 0, range(1, 7), agents=2, keep=2)
    assert {2, 3} <= set(kept(tmp_path)) and 1 not in kept(tmp_path)
    assert checkpoint.newest(tmp_path, 2) == 3


def test_other_ranks_delete_nothing(tmp_path):
    save(tmp_path, 1, range(1, 7), agents=2, keep=1)
    assert kept(tmp_path) == [1, 2, 3, 4, 5, 6]


# Resuming


def begin_run(run: Path, agents: int) -> None:
    store.write_run(run, Config(run_dir=run), agents, {})
    for rank in range(agents):
        save(run, rank, range(1, 4), agents=agents)


def test_a_run_resumes_from_its_newest_generation(tmp_path):
    begin_run(tmp_path, 2)
    assert checkpoint.resumable(tmp_path, 2, "mlp") == 3


def test_another_number_of_ranks_is_refused(tmp_path):
    begin_run(tmp_path, 2)
    with pytest.raises(SettingError, match=r"3 ranks; .*2 ranks are expected.*mpirun -n 2"):
        checkpoint.resumable(tmp_path, 3, "mlp")


def test_another_network_is_refused(tmp_path):
    begin_run(tmp_path, 1)
    with pytest.raises(SettingError, match=r"--network gala: .*mlp is expected"):
        checkpoint.resumable(tmp_path, 1, "gala")


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path):
    begin_run(tmp_path, 2)
    for generation in kept(tmp_path):
        file_of(tmp_path, generation, 1).unlink()
    with pytest.raises(SettingError, match="no checkpoint of all 2 ranks"):
        checkpoint.resumable(tmp_path, 2, "mlp")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(SettingError, match="no checkpoint of all 2 ranks"):
        checkpoint.resumable(tmp_path, 2, "mlp")


def test_what_came_after_the_generation_resumed_from_is_discarded(tmp_path):
    """Otherwise one rank's old file and another's new one would look like a complete generation."""
    begin_run(tmp_path, 2)
    save(tmp_path, 1, range(4, 6), agents=2)
    assert checkpoint.resumable(tmp_path, 2, "mlp") == 3
    checkpoint.discard_after(tmp_path, 3)
    save(tmp_path, 0, range(4, 5), agents=2)
    assert kept(tmp_path) == [1, 2, 3, 4] and checkpoint.newest(tmp_path, 2) == 3
