"""`--actors`: a rollout that was sent is learnt from as where it was played, and rollouts are asked for as they are to be."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from mpi4py import MPI
from shows import Shows

from gala_mpi import pulse
from gala_mpi.clock import Clock
from gala_mpi.config import Config, VTraceSettings
from gala_mpi.envs.base import Episode
from gala_mpi.job import build
from gala_mpi.job.build_actors import Player
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import World
from gala_mpi.rollout.arrivals import Arrivals
from gala_mpi.rollout.collector import Fault
from gala_mpi.rollout.message import Form, Played
from gala_mpi.rollout.recomputed import computed_again

T, N = 6, 3
CPU = torch.device("cpu")
CONFIG = Config(
    env="CartPole-v1",
    num_envs=N,
    rollout_length=T,
    network="mlp",
    precision="fp32",
    learner="vtrace",
    vtrace=VTraceSettings(entropy_coefficient=0.01),
    lr=1e-2,
)
MASKED = gym.Dict({"observation": gym.Box(-1, 1, (4,)), "action_mask": gym.MultiBinary(3)})


def with_an_action(sample: dict) -> dict:
    sample["action_mask"][0] = 1
    return sample


for name, *arguments in (
    ("Choices-v0", gym.Box(-1, 1, (4,)), gym.MultiDiscrete([2, 3])),
    ("Masked-v0", MASKED, gym.Discrete(3), with_an_action),
    ("Pixels-v0", gym.Box(0, 255, (3, 9, 9), np.uint8), gym.Discrete(2)),
):
    gymnasium.register(f"sent/{name}", functools.partial(Shows, *arguments), disable_env_checker=True)

KINDS = {
    "discrete": {},
    "a Box": {"env": "Pendulum-v1"},
    "several choices": {"env": "sent/Choices-v0"},
    "masks": {"env": "sent/Masked-v0"},
    "images": {"env": "sent/Pixels-v0", "network": "small"},
    "a memory": {"memory": "gru", "memory_size": 8},
    "normalised": {"normalise_observations": True, "normalise_rewards": True},
    "halves in turn": {"num_envs": 4, "overlap": True, "env_workers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def world():
    end = pulse.end
    yield World()
    pulse.end = end


class Both:
    """An actor and its learner in one process, with one network."""

    def __init__(self, config: Config):
        environments, streams, generator = build.make_environments(config, 0, CPU, 1)
        self.network = build.make_network(config, [MPI.COMM_SELF], environments[0].spaces, CPU)
        self.learner = build.make_learner(config, MPI.COMM_SELF, self.network)
        self.collector = build.make_collector(
            *(config, 0, Player(self.network), environments, streams(0), lambda: None, Clock(), generator)
        )
        self.form = Form(self.network, T, config.num_envs, len(self.learner.flat.counted.data))
        self.passes = computed_again(self.network, CPU)(self.network, T, torch.cat(self.collector.observations))

    def send(self, played: Played, first: int = 0) -> Played:
        """What arrives of a rollout."""
        words = np.full(self.form.words, np.nan, np.float32)
        self.form.write(words, played)
        return self.form.read(words, self.passes, first)


def gradient(learner, batch) -> tuple[list[float], torch.Tensor]:
    terms = learner.gradient(batch).tolist()
    return terms, learner.flat.grad.clone()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_is_learnt_from_as_where_it_was_played(kind):
    """Bit for bit: every column, the terms of the loss and the gradient; also by parameters that are others by then."""
    both = Both(replace(CONFIG, **KINDS[kind]))
    before = both.learner.flat.data.clone()
    for moved in (0.0, 0.05):  # a second rollout begins in the middle of episodes, and of memories
        both.learner.flat.data.copy_(before)
        batch, episodes = both.collector.collect()
        sent = both.send(Played(batch, episodes, both.collector.fault, 5, 0.25), first=100)
        for name in ("actions", "rewards", "discounts", "resets", "log_probs", "values", "next_values", "observations"):
            assert torch.equal(getattr(sent.batch, name), getattr(batch, name)), name
        for name in ("state", "additions"):
            here, there = getattr(sent.batch, name), getattr(batch, name)
            assert (here is None and there is None) or torch.equal(here, there), name
        assert sent.episodes == [replace(each, environment=100 + each.environment) for each in episodes]
        assert (sent.fault, sent.version, sent.waited) == (None, 5, 0.25)
        both.learner.flat.data[:] += moved * torch.randn(len(before), generator=torch.Generator().manual_seed(1))
        terms, expected = gradient(both.learner, batch)
        found, arrived = gradient(both.learner, sent.batch)
        assert found == terms and torch.equal(arrived, expected)
        assert (abs(terms[3]) > 1e-6) == (moved > 0)  # the KL divergence from the policy that played
    both.collector.close()


def test_a_message_has_room_for_an_end_of_each_environment_at_each_step_and_for_a_fault():
    both = Both(CONFIG)
    batch, _ = both.collector.collect()
    episodes = [Episode(n % N, n / 4, n) for n in range(T * N)]
    fault = Fault(2, 7_000_000_000, "an observation", math.inf)
    sent = both.send(Played(batch, episodes, fault, 1 << 40, 0.0), first=N)
    assert sent.episodes == [replace(each, environment=N + each.environment) for each in episodes]
    assert sent.fault == fault._replace(environment=N + 2) and sent.version == 1 << 40
    both.collector.close()


class Diary:
    """Queues of actors that always have a rollout, and everything that is done with them, in order.

    Args:
        torn: the takings (from 0 on) that do not come whole.
    """

    def __init__(self, both: Both, actors: int, torn: tuple[int, ...] = ()):
        self.crew = MPI.COMM_SELF.Dup()
        self.parameters, self.rollouts, self.torn, self.diary = self, None, 0, []
        self._both, self._actors, self._torn, self._takings = both, actors, torn, 0

    def published(self, actor: int) -> int:
        return self._takings

    def publish(self, vector: np.ndarray, version: int) -> None:
        self.diary.append(("publish", version, float(vector.sum())))

    def acknowledge(self) -> None:
        self.diary.append("acknowledge")

    def ready(self) -> int:
        return 1 + self._takings % self._actors

    def take(self, actor: int) -> tuple[np.ndarray, int]:
        both, words = self._both, np.zeros(self._both.form.words, np.float32)
        batch, _ = both.collector.collect()
        both.form.write(words, Played(batch, [Episode(0, 1.0, actor)], None, both.learner.updates, 0.5))
        return words, self._takings

    def keep(self, actor: int) -> bool:
        self._takings += 1
        whole = self._takings - 1 not in self._torn
        self.torn += not whole
        self.diary.append(("keep", actor, whole))
        return whole


def arrivals(both: Both, actors: int, torn: tuple[int, ...] = ()) -> tuple[Arrivals, list]:
    queues = Diary(both, actors, torn)
    made = Arrivals(both.learner, queues, both.form, both.passes, N, lambda: None)
    made._actors = range(1, actors + 1)
    return made, queues.diary


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_actors_have_room_at_once_or_where_there_are_many_once_it_was_learnt_from(actors):
    both = Both(CONFIG)
    made, diary = arrivals(both, actors)
    for update in range(3):
        _, episodes = made.collect()
        assert episodes == [Episode(N * (update % actors), 1.0, 1 + update % actors)]
        assert (made.steps, made.version, made.arrival.actor_wait, made.arrival.rollouts_torn) == (T * N, update, 0.5, 0)
        both.learner.count(made.steps)
        both.learner.flat.data += 1
    sums = [float(vector) for _, _, vector in filter(lambda entry: entry[0] == "publish", diary)]
    assert len(set(sums)) == 3
    at_once = ["acknowledge"] if actors <= 2 else []
    expected = []
    for update in range(3):
        expected += [("publish", update + 1, sums[update]), "acknowledge", ("keep", 1 + update % actors, True), *at_once]
    assert diary == expected
    both.collector.close()


def test_a_rollout_that_was_not_whole_is_counted_and_taken_again():
    both = Both(CONFIG)
    made, diary = arrivals(both, 1, torn=(0, 1))
    made.collect()
    assert [entry for entry in diary if entry[0] == "keep"] == [("keep", 1, False)] * 2 + [("keep", 1, True)]
    assert made.arrival.rollouts_torn == 2
    both.collector.close()


def test_who_waits_is_named_as_what_it_is():
    roll = Roll(MPI.COMM_SELF)
    roll.hosts, roll.names = ["n1", "n2"], ["rank 3", "actor 1 of rank 3"]
    assert roll.name(1) == "actor 1 of rank 3 on n2"
