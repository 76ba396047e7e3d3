"""`--lag 1`: the next rollout is played while a second thread learns from this one. What must come out, whoever is faster."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from gala_mpi import pulse
from gala_mpi.agent import Agent
from gala_mpi.config import Config, VTraceSettings
from gala_mpi.envs.base import Environments, Step
from gala_mpi.job import build
from gala_mpi.mpi.world import World
from gala_mpi.record.recorder import Update
from gpu import Gpu, by_torch_alone

T, UPDATES = 8, 12
CONFIG = Config(
    env="CartPole-v1",
    num_envs=4,
    rollout_length=T,
    network="mlp",
    precision="fp32",
    learner="vtrace",
    lag=1,
    sketch_updates=0,
    lr=1e-2,
    vtrace=VTraceSettings(rms_eps=1e-4),
)


@pytest.fixture(scope="module")
def world():
    end = pulse.end
    yield World()
    pulse.end = end


def new_agent(world: World, **settings) -> Agent:
    agent = build.build(replace(CONFIG, **settings), world.comm, 0, 2)
    assert agent.collector.passes.name == ("stored" if settings.get("memory") else "recomputed")
    agent.start()
    return agent


def in_turn(world: World, **settings) -> tuple[torch.Tensor, list[list[float]], list[int]]:
    """By definition: after the first rollout each is played by the parameters before the update that comes before its own.

    Without a thread: a rollout is learnt from, the next is played, then the optimiser takes its step.

    Returns:
        The parameters after UPDATES updates, the terms of their losses, and the lengths of their episodes.
    """
    agent = new_agent(world, **settings)
    learner, collector = agent.learner, agent.collector
    terms, lengths = [], []
    batch, episodes = collector.collect()
    for _ in range(UPDATES):
        learner.count(T * CONFIG.num_envs)
        terms.append(learner.gradient(batch).tolist())
        lengths += [episode.length for episode in episodes]
        additions = batch.additions
        batch, episodes = collector.collect()
        learner.tally(additions)
        learner.step(0.0)
    agent.close()
    return learner.flat.data, terms, lengths


def let(agent: Agent, order: str) -> None:
    """Let one of the two threads always wait for the other; "as it comes": nobody waits."""
    collect, gradient, done = agent.collector.collect, agent.gradient, {"play": 0, "learn": 0}
    changed = threading.Condition()

    def note(what: str) -> None:
        with changed:
            done[what] += 1
            changed.notify_all()

    def wait_for(what: str, number: int) -> None:
        with changed:
            assert changed.wait_for(lambda: done[what] >= number, 60)

    def play():
        if order == "learns first":
            wait_for("learn", done["play"])
        found = collect()
        note("play")
        return found

    def learn(part):
        if order == "plays first":
            wait_for("play", done["learn"] + 2)
        found = gradient(part)
        note("learn")
        return found

    agent.collector.collect, agent.gradient = play, learn


KINDS = {
    "plain": {},
    "normalised": {"normalise_observations": True, "normalise_rewards": True},
    "a Box": {"env": "Pendulum-v1", "action_std": 0.5},
    "halves in turn": {"overlap": True, "env_workers": 2},
    "a memory": {"memory": "lstm", "memory_size": 8},
}


@pytest.mark.parametrize(
    "kind, order", [("plain", "learns first"), ("plain", "as it comes"), *((kind, "plays first") for kind in KINDS)]
)
def test_an_update_learns_from_the_rollout_before(world, kind, order):
    """Bit for bit what one thread does, whichever of two is faster: also losses, and episodes, each once."""
    settings = KINDS[kind]
    expected, terms, lengths = in_turn(world, **settings)
    agent = new_agent(world, **settings)
    let(agent, order)
    updates = [agent.update() for _ in range(UPDATES)]
    agent.close()
    assert torch.equal(agent.learner.flat.data, expected)
    assert [list(update.losses) for update in updates] == terms
    assert [episode.length for update in updates for episode in update.episodes] == lengths
    assert [update.policy_lag for update in updates] == [0, *[1] * (UPDATES - 1)]
    assert agent.learner.steps == UPDATES * T * CONFIG.num_envs
    assert updates[0].losses.kl == pytest.approx(0, abs=1e-6) and min(update.losses.kl for update in updates[1:]) > 1e-6


def test_new_episodes_forget_what_was_played_ahead(world):
    """One that goes on after a checkpoint equals one that begins there (--exact-resume)."""
    one, other = new_agent(world), new_agent(world)
    for _ in range(3):
        one.update()
    other.learner.load(one.learner.state())
    found = []
    for agent in (one, other):
        agent.restart_environments()
        found.append([agent.update() for _ in range(4)])
        agent.close()
    assert torch.equal(one.learner.flat.data, other.learner.flat.data)
    assert [list(update.losses) for update in found[0]] == [list(update.losses) for update in found[1]]
    assert [update.policy_lag for update in found[0]] == [update.policy_lag for update in found[1]] == [0, 1, 1, 1]


def spoil(environments: Environments, number: int) -> None:
    """Let the reward of a step be NaN."""
    receive, steps = environments.receive, itertools.count(1)

    def spoilt() -> Step:
        step = receive()
        return replace(step, rewards=step.rewards * (np.nan if next(steps) == number else 1))

    environments.receive = spoilt


def test_the_update_that_would_learn_from_a_faulty_rollout_is_skipped(world):
    """Not the one in which it is played."""
    agent = new_agent(world)
    spoil(agent.collector.environments[0], 3 * T + 1)  # in rollout 4
    updates = [agent.update() for _ in range(6)]
    agent.close()
    assert [bool(update.skipped) for update in updates] == [False, False, False, True, False, False]
    assert "a reward of nan" in updates[3].skipped


def test_only_the_main_thread_calls_mpi_and_goes_on_doing_so_while_it_waits(world):
    agent = new_agent(world)
    callers, enough = [], threading.Event()
    playing = False
    gradient, collect = agent.gradient, agent.collector.collect

    def progress():
        callers.append((threading.current_thread(), playing))
        if sum(not alone for _, alone in callers) >= 3:
            enough.set()

    def play():
        nonlocal playing
        playing = True
        found = collect()
        playing = False
        return found

    def learn(part):
        assert enough.wait(60), "no progress is made while the agent waits"
        return gradient(part)

    agent.collector.progress, agent.collector.collect, agent.gradient = progress, play, learn
    agent.update()
    agent.close()
    assert {thread for thread, _ in callers} == {threading.main_thread()}
    assert sum(alone for _, alone in callers) == 2 * (T + 1)  # at every step of both rollouts


@pytest.mark.parametrize("who", ["the gradient", "an environment"])
def test_an_error_in_either_thread_ends_the_update(world, who):
    agent = new_agent(world)
    agent.update()

    def fail(*arguments):
        raise ValueError("as expected")

    if who == "the gradient":
        agent.gradient = fail
    else:
        agent.collector.environments[0].receive = fail
    with pytest.raises(ValueError, match="as expected"):
        agent.update()
    agent.close()


def test_sections_are_of_the_main_thread_alone(world):
    """What the second thread does at the same time is in none, so that they add up to an update's time at most."""
    agent = new_agent(world)
    agent.update()
    agent.clock.lap()
    let(agent, "learns first")
    gradient, counted = agent.gradient, []

    def learn(part):
        before = dict(agent.clock.seconds)
        found = gradient(part)
        counted.append(agent.clock.seconds["learn"] - before["learn"])
        return found

    agent.gradient = learn
    agent.update()
    agent.close()
    assert counted == [0]


def test_a_second_thread_computes_with_the_main_ones_threads_and_rounding(world):
    agent = new_agent(world)
    here = torch.get_num_threads(), float(torch.tensor(1e-39) * 1)
    there = agent._other_thread.submit(lambda: (torch.get_num_threads(), float(torch.tensor(1e-39) * 1))).result(60)
    agent.close()
    assert here == there == (1, 0.0)


def trained(world: World) -> tuple[torch.Tensor, list[Update]]:
    agent = new_agent(world)
    agent.collector._generator = None  # a GPU has none of the host's
    torch.manual_seed(1)
    updates = [agent.update() for _ in range(UPDATES)]
    agent.close()
    return agent.learner.flat.data, updates


def test_rollouts_by_graphs_are_rollouts_bit_for_bit(world, monkeypatch):
    """With a stand-in for a GPU: each of the two rooms for rollouts has recordings of its own."""
    by_torch_alone(monkeypatch)
    expected, before = trained(world)
    gpu = Gpu(monkeypatch)
    found, after = trained(world)
    assert len(gpu.graphs) == 2 * (1 + T + 1)
    assert [list(update.losses) for update in after] == [list(update.losses) for update in before]
    assert torch.equal(found, expected)
