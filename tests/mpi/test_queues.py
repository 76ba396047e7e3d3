"""A learner and its actors: every rollout is taken once, whole and in order, and nobody waits but for room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from mpi4py import MPI

from gala_mpi.mpi.queues import CLOSES, ENDS, LEARNER, ActorQueues, LearnerQueues, Queues

PARAMETERS, ROLLOUT = 5000, 1 << 14  # float32 of a message
MESSAGES = 200  # of each actor, in the stress
PIECES = 4


@pytest.fixture(autouse=True)
def an_actor(comm):
    if comm.size == 1:
        pytest.skip("a learner without actors has no queue")


@contextmanager
def opened(comm: MPI.Intracomm, **options) -> Iterator[Queues]:
    made = (LearnerQueues if comm.rank == LEARNER else ActorQueues)(comm, PARAMETERS, ROLLOUT, **options)
    yield made
    made.close()


def wait(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(1e-5)


def content(actor: int, number: int) -> int:
    """What every word of a rollout is; a float32 holds it exactly."""
    return 10_000 * actor + number


def write(queues: ActorQueues, random: np.random.Generator) -> None:
    """Publish the next rollout, written in pieces with pauses, so that it could be caught half written."""
    for piece in np.array_split(queues.begin(), PIECES):
        piece[:] = content(queues.crew.rank, queues.published + 1)
        queues.progress()
        time.sleep(random.exponential(1e-5))
    queues.publish()


def learn(queues: LearnerQueues, messages: int, random: np.random.Generator) -> dict[int, list[int]]:
    """Take all rollouts, publish parameters between them, and return the numbers of those that came, −1 for broken ones."""
    came: dict[int, list[int]] = {actor: [] for actor in range(1, queues.crew.size)}
    version = 0
    while any(len(numbers) < messages for numbers in came.values()):
        version += 1
        queues.parameters.publish(np.float32(version), version)
        if (actor := queues.ready()) is not None:
            taken, number = queues.take(actor)
            parts = []
            for piece in np.array_split(taken, PIECES):
                parts.append(piece.copy())
                time.sleep(random.exponential(1e-5))
            assert queues.keep(actor)
            queues.acknowledge()
            came[actor].append(number if (np.concatenate(parts) == content(actor, number)).all() else -1)
        queues.progress()
    queues.finish(ENDS)
    return came


def act(queues: ActorQueues, messages: int, random: np.random.Generator) -> list[int]:
    """Publish rollouts and pull parameters before each; return their versions, −1 for broken ones."""
    versions, vector = [0], np.zeros(PARAMETERS, np.float32)

    def step() -> None:
        queues.progress()
        queues.look()

    def has_room() -> bool:
        step()
        return queues.room

    for _ in range(messages):
        wait(has_room)
        version = queues.pull(versions[-1], vector, wait)
        versions.append(version if (vector == version).all() else -1)
        write(queues, random)
    wait(lambda: step() or queues.finished == ENDS)
    return versions


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_rollouts_come_once_whole_and_in_order_and_parameters_never_go_back(comm, depth, checksum):
    random = np.random.default_rng(comm.rank)
    with opened(comm, depth=depth, checksum=checksum) as queues:
        if isinstance(queues, LearnerQueues):
            came = learn(queues, MESSAGES, random)
            assert came == {actor: [*range(1, MESSAGES + 1)] for actor in range(1, comm.size)}
            assert queues.torn == 0
        else:
            versions = act(queues, MESSAGES, random)
            assert versions == sorted(versions) and versions[-1] > versions[1]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_full_queue_has_room_once_something_was_taken_and_acknowledged(comm, depth):
    random = np.random.default_rng(0)
    with opened(comm, depth=depth) as queues:
        if isinstance(queues, ActorQueues):
            for _ in range(depth):
                assert queues.room
                write(queues, random)
            assert not queues.room
        comm.Barrier()
        if isinstance(queues, LearnerQueues):
            for actor in range(1, comm.size):
                wait(lambda: queues.ready() == actor)  # they take turns
                queues.take(actor)
                assert queues.keep(actor)
        comm.Barrier()
        if isinstance(queues, ActorQueues):
            look(queues)
            assert not queues.room, "what is taken may still be read"
        comm.Barrier()
        if isinstance(queues, LearnerQueues):
            queues.acknowledge()
        comm.Barrier()
        if isinstance(queues, ActorQueues):
            look(queues)
            assert queues.room
            write(queues, random)
            assert not queues.room
        comm.Barrier()


def look(queues: ActorQueues) -> None:
    """Read the learner's header as it is now: the first look may be one that was on its way."""
    for _ in range(2):
        queues.look()
        wait(lambda: queues._reader.advance() or queues._reader.idle)


def test_parameters_are_at_least_as_new_as_what_is_known_of_the_learner(comm):
    """Who has seen that there is room pulls what was published before that."""
    with opened(comm) as queues:
        vector = np.zeros(PARAMETERS, np.float32)
        for version in range(1, 20):
            if isinstance(queues, LearnerQueues):
                queues.parameters.publish(np.float32(version), version)
            comm.Barrier()
            if isinstance(queues, ActorQueues):
                assert queues.pull(version - 1, vector, wait) == version
                assert (vector == version).all()
                assert queues.pull(version, vector, wait) == version  # nothing newer: it stays
            comm.Barrier()


def test_nobody_waits_for_an_actor_that_stands_still(comm, signs):
    """The last one sleeps outside MPI, with an empty queue, while the others' rollouts are taken."""
    if comm.size < 3:
        pytest.skip("needs two actors")
    sleeper, random = comm.size - 1, np.random.default_rng(comm.rank)
    with opened(comm) as queues:
        if comm.rank == sleeper:
            signs.give("sleeps")
            signs.wait("done", [LEARNER])
        elif isinstance(queues, ActorQueues):
            signs.wait("sleeps", [sleeper])
            for _ in range(10):
                wait(lambda: queues.look() or queues.room)
                write(queues, random)
        else:
            signs.wait("sleeps", [sleeper])
            while sum(queues.taken) < 10 * (comm.size - 2):
                if (actor := queues.ready()) is not None:
                    assert (queues.take(actor)[0] == content(actor, queues.taken[actor] + 1)).all()
                    assert queues.keep(actor)
                    queues.acknowledge()
            assert queues.taken[sleeper] == 0
            signs.give("done")


def test_actors_answer_how_it_ends(comm):
    with opened(comm) as queues:
        if isinstance(queues, LearnerQueues):
            queues.finish(ENDS)
            assert not any(queues.has_answered(actor) for actor in range(1, comm.size))
            comm.Barrier()
            wait(lambda: all([queues.has_answered(actor) for actor in range(1, comm.size)]))
            queues.finish(CLOSES)
            assert not any(queues.has_answered(actor) for actor in range(1, comm.size))
        else:
            comm.Barrier()
            wait(lambda: queues.look() or queues.finished == ENDS)
            queues.answer()
            wait(lambda: queues.look() or queues.finished == CLOSES)
        comm.Barrier()
