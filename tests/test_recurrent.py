"""Memory by definition: against torch's cells, step by step and episode by episode, in the network, rollouts and learners."""

from __future__ import annotations

import functools
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from test_ppo import KINDS as SPACES
from test_rollout import GAMMA, KINDS, SEEDS, Recorded, joined
from torch import nn

from gala_mpi.clock import Clock
from gala_mpi.config import A2CSettings, Config, PPOSettings
from gala_mpi.device import WARM_UP_CALLS
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.games import Games
from gala_mpi.job import preflight
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.ppo import PPO
from gala_mpi.networks.policy import Network
from gala_mpi.networks.recurrent import Memory
from gala_mpi.networks.sizes import Sizes
from gala_mpi.rollout.batch import Acted, Batch
from gala_mpi.rollout.collector import Collector
from gala_mpi.rollout.stored import Stored
from gpu import Gpu

T, N, H = 11, 4, 6
kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])


def cell_of(memory: Memory) -> nn.LSTMCell | nn.GRUCell:
    """torch's cell with the weights of a memory: the same parameters, whose gradients add up in its own."""
    cell = (nn.LSTMCell if memory.kind == "lstm" else nn.GRUCell)(memory.core.input_size, memory.size)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(memory.core, f"{name}_l0"))
    return cell


def unrolled(memory: Memory, features: torch.Tensor, state: torch.Tensor, resets: torch.Tensor):
    """One environment after the other, one step after the other: outputs [T, N, H] and the last states [N, S]."""
    cell, outputs, ends = cell_of(memory), [], []
    for i in range(features.shape[1]):
        hidden = state[i : i + 1]
        outputs.append([])
        for t in range(len(features)):
            hidden = torch.zeros_like(hidden) if resets[t, i] else hidden
            if memory.kind == "lstm":
                hidden = torch.cat(cell(features[t, i : i + 1], hidden.split(memory.size, 1)), 1)
            else:
                hidden = cell(features[t, i : i + 1], hidden)
            outputs[-1].append(hidden[0, : memory.size])
        ends.append(hidden[0])
    return torch.stack([torch.stack(column) for column in outputs], 1), torch.stack(ends)


def assert_same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


RESETS = {
    "never": np.zeros((T, N), bool),
    "always": np.ones((T, N), bool),
    "all at first": np.arange(T)[:, None].repeat(N, 1) == 0,
    "at the last step": np.arange(T * N).reshape(T, N) == T * N - 1,
    "here and there": np.random.default_rng(0).random((T, N)) < 0.2,
    "one step": np.array([[True, False, False, True]]),
    "one environment": np.random.default_rng(1).random((T, 1)) < 0.3,
}


@kinds
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS)
def test_a_memory_over_many_steps_is_torchs_cell_step_by_step(kind, resets):
    """Outputs, the last state, and the gradients of parameters, features and the first state."""
    torch.manual_seed(0)
    memory, (steps, number) = Memory(kind, 5, H), resets.shape
    for parameter in memory.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(steps, number, 5, requires_grad=True)
    state = torch.randn(number, memory.state_size, requires_grad=True)
    weights, wanted = torch.randn(steps, number, H), [features, state, *memory.parameters()]
    found, after = memory.unroll(features, state, torch.from_numpy(resets))
    gradients = torch.autograd.grad((weights * found).sum() + after.square().sum(), wanted)
    expected, ends = unrolled(memory, features, state, torch.from_numpy(resets))
    slow = torch.autograd.grad((weights * expected).sum() + ends.square().sum(), wanted, allow_unused=True)
    assert_same(found, expected)
    assert_same(after, ends)
    for one, other in zip(gradients, slow, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-4, atol=1e-5)
    now = state.detach()
    for t in range(steps):  # as it plays
        with torch.no_grad():
            output, now = memory(features[t], now.masked_fill(torch.from_numpy(resets[t])[:, None], 0))
        assert_same(output, expected[t].detach())
    assert_same(now, ends.detach())


def test_weights_are_orthogonal_and_biases_zero():
    memory = Memory("lstm", 5, H)
    for parameter in memory.parameters():
        if parameter.dim() == 2:
            assert_same(parameter.T @ parameter, torch.eye(parameter.shape[1]))
        else:
            assert not parameter.any()


# The network, of every kind of action


def evaluated(network: Network, seen: torch.Tensor, state: torch.Tensor, resets: torch.Tensor):
    """What a network says of observations [T, N, ...], by cells: a distribution and values [T, N]."""
    mask = None
    if network.spaces.masked:
        seen, mask = seen[..., : -network.spaces.outputs], seen[..., -network.spaces.outputs :]
    features = network.encoder(seen.flatten(0, 1) * network.scale).unflatten(0, seen.shape[:2])
    return network.heads(unrolled(network.memory, features, state, resets)[0], mask)


def lively(network: Network) -> Network:
    """So that what it says depends on what it has seen."""
    network.policy.weight.data.mul_(100)
    network.value.weight.data.mul_(10)
    return network


def played(spaces: Spaces, kind: str, learner=A2C, settings: object = None) -> tuple[Batch, A2C | PPO, torch.Tensor]:
    """A batch of made-up steps, played on from a state, its learner, and what was seen, [T + 1, N, ...]."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    learner = learner(lively(Network("mlp", spaces, memory=kind, memory_size=H)), settings or A2CSettings(), 1e-3)
    network = learner.network
    seen = rng.standard_normal((T + 1, N, 4)).astype(np.float32)
    if spaces.masked:
        allowed = rng.integers(0, 2, (T + 1, N, spaces.outputs))
        allowed[..., [0, *np.cumsum(spaces.choices)[:-1]]] = 1
        seen = np.concatenate([seen, allowed.astype(np.float32)], -1)
    seen, resets = torch.from_numpy(seen), torch.from_numpy(RESETS["here and there"])
    state = torch.randn(N, network.state_size)
    passes, now, acted = Stored(network, T, seen[0]), state.clone(), []
    for t in range(T + 1):
        if t < T:
            now.masked_fill_(resets[t][:, None], 0)
        policy, values = passes.forward(t, seen[t], now)
        acted.append(Acted(policy, values, policy.sample() if t < T else None))
    rewards, over = torch.randn(T, N), torch.cat([resets[1:], torch.zeros(1, N, dtype=torch.bool)])
    return Batch(passes, rewards, GAMMA * ~over, resets, acted, state), learner, seen


@kinds
@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_what_was_said_while_it_played_is_said_again(spaces, kind):
    batch, learner, seen = played(spaces, kind)
    expected, values = evaluated(learner.network, seen[:-1], batch.state, batch.resets)
    again, now = batch.evaluate()
    for policy, found in ((batch.behaviour, batch.values), (again, now)):
        assert_same(policy.log_prob(batch.actions).detach(), expected.log_prob(batch.actions).detach())
        assert_same(policy.entropy().detach(), expected.entropy().detach())
        assert_same(found.detach(), values.detach())
    assert float(values.detach().std()) > 0.1
    assert_same(batch.following(now), batch.next_values)  # as long as nothing was learnt


@kinds
def test_what_bootstraps_after_a_step_of_learning_is_by_the_network_as_it_is_then(kind):
    batch, learner, seen = played(SPACES["discrete"], kind)
    learner.flat.data.add_(torch.randn(len(learner.flat)), alpha=0.1)
    resets = torch.cat([batch.resets, torch.zeros(1, N, dtype=torch.bool)])
    _, expected = evaluated(learner.network, seen, batch.state, resets)
    found = batch.following(batch.evaluate()[1])
    assert_same(found, expected[1:].detach())
    assert not torch.allclose(found, batch.next_values, atol=1e-3)


@kinds
def test_a_memory_computes_in_float32_behind_an_encoder_that_does_not(kind):
    torch.manual_seed(0)
    network = Network("small", Spaces((2, 7, 9), True, 3), "bf16", memory=kind, memory_size=H)
    images, state = torch.randint(0, 256, (N, 2, 7, 9), dtype=torch.uint8), torch.randn(N, network.state_size)
    features, _ = network.encode(images)
    assert features.dtype == torch.float32 and torch.equal(features, features.bfloat16().float())
    policy, values, after = network.step(images, state)
    expected, ends = unrolled(network.memory, features[None], state, torch.zeros(1, N, dtype=torch.bool))
    assert_same(after, ends)
    assert_same(
        torch.cat([policy.logits, values[:, None]], 1), torch.cat([network.policy(expected[0]), network.value(expected[0])], 1)
    )


@kinds
@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_ppos_minibatches_are_whole_environments_and_their_gradients_those_of_the_unrolled_network(spaces, kind):
    settings = PPOSettings(epochs=2, minibatches=3, normalise_advantages=False, entropy_coefficient=0.2)
    batch, learner, seen = played(spaces, kind, PPO, settings)
    parts = list(learner.parts(batch))
    assert [sorted(torch.cat([part.rows for part in epoch]).tolist()) for epoch in (parts[:3], parts[3:])] == [[0, 1, 2, 3]] * 2
    learner.flat.data.add_(torch.randn(len(learner.flat)), alpha=0.01)
    for part in parts[:3]:
        rows = part.rows
        terms = learner.gradient(part)
        found = learner.flat.grad.clone()
        policy, values = evaluated(learner.network, seen[:-1, rows], batch.state[rows], batch.resets[:, rows])
        ratio = (policy.log_prob(batch.actions[:, rows]) - batch.log_probs[:, rows]).exp()
        gain = torch.min(ratio * part.advantages, ratio.clamp(0.8, 1.2) * part.advantages)
        value = (values - part.returns).square().mean()
        batch.backward(-gain.mean() + settings.value_coefficient * value - 0.2 * policy.entropy().mean())
        assert torch.linalg.vector_norm(found - learner.flat.grad) < 1e-5 * torch.linalg.vector_norm(found)
        assert_same(terms[:2], torch.stack([-gain.mean(), value]).detach())
    assert_same(parts[0].advantages + parts[0].values, parts[0].returns)


@pytest.mark.parametrize(("minibatches", "number"), [(1, 1), (4, 4), (100, 4)])
def test_there_are_no_more_minibatches_than_environments(minibatches, number):
    batch, learner, _ = played(SPACES["discrete"], "lstm", PPO, PPOSettings(epochs=1, minibatches=minibatches))
    assert len(list(learner.parts(batch))) == number


def test_no_memory_has_no_state_and_its_description_says_nothing_of_one():
    network = Network("mlp", SPACES["discrete"])
    assert network.state_size == 0 and "memory" not in network.description()
    assert Network("mlp", SPACES["discrete"], memory="gru", memory_size=3).description()["memory"] == {"kind": "gru", "size": 3}


# Rollouts, over games that end and that are cut off


class History:
    """Three rollouts of A2C with a memory, and what passed, as one vector of environments. Learns nothing from them."""

    def __init__(self, kind: str, memory: str):
        torch.manual_seed(0)
        kind, _, overlapped = kind.partition(" ")
        turns = 2 if overlapped else 1
        environments = [Recorded(GymEnvironments(f"plan/{kind}-v0", N // turns), []) for _ in range(turns)]
        network = Network(KINDS[kind][0], environments[0].spaces, memory=memory, memory_size=H)
        self.learner = A2C(lively(network.to(memory_format=torch.channels_last)), A2CSettings(discount=GAMMA), lr=1e-3)
        collector = Collector(self.learner, environments, SEEDS, T, GAMMA, False, lambda: None, Clock())
        assert collector.passes.name == "stored"
        self.batches = [collector.collect()[0] for _ in range(3)]
        shown, steps = (zip(*(getattr(each, name) for each in environments)) for name in ("shown", "steps"))
        self.shown, self.steps = torch.from_numpy(np.stack(list(map(np.concatenate, shown)))), list(map(joined, steps))
        over = np.stack([step.terminated | step.truncated for step in self.steps])
        self.resets = torch.from_numpy(np.concatenate([np.ones((1, N), bool), over]))
        assert self.resets[1:].sum() > 10

    @functools.cached_property
    def states(self) -> torch.Tensor:
        """The memory's after each step, from the very first on, [3 · T + 1, N, S]."""
        network, states = self.learner.network, []
        state = torch.zeros(N, network.state_size)
        with torch.no_grad():
            for seen, resets in zip(self.shown, self.resets, strict=True):
                features = network.encoder(seen.float() * network.scale)
                _, state = unrolled(network.memory, features[None], state, resets[None])
                states.append(state)
        return torch.stack(states)

    def values(self, seen: torch.Tensor, state: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
        return evaluated(self.learner.network, seen[None], state, resets[None])[1][0].detach()


history = functools.cache(History)
games = pytest.mark.parametrize("kind", [*KINDS, *(f"{kind} overlapped" for kind in KINDS)])
memories = pytest.mark.parametrize("memory", ["lstm", "gru"])


@games
@memories
def test_a_rollout_begins_with_what_the_one_before_it_left(kind, memory):
    there = history(kind, memory)
    last = there.batches[2]
    expected = there.states[2 * T - 1].masked_fill(there.resets[2 * T][:, None], 0)
    assert_same(last.state, expected)
    assert torch.equal(last.resets, there.resets[2 * T : 3 * T])
    whole, values = evaluated(there.learner.network, there.shown[:-1], torch.zeros_like(last.state), there.resets[:-1])
    assert_same(last.values, values[2 * T :].detach())
    assert_same(last.log_probs, whole.log_prob(torch.cat([batch.actions for batch in there.batches]))[2 * T :].detach())


@games
@memories
def test_values_that_bootstrap_remember_the_episode(kind, memory):
    """The one after the last step, and those of observations that were cut off; the latter are part of a reward."""
    there, cut = history(kind, memory), 0
    last, before = there.batches[2], there.states[3 * T - 1]
    assert_same(last.next_values[-1], there.values(there.shown[3 * T], before, there.resets[3 * T]))
    never = torch.zeros(N, dtype=torch.bool)
    for t, step in enumerate(there.steps[2 * T :]):
        found = there.values(torch.from_numpy(step.final_observations), there.states[2 * T + t], never)
        expected = torch.from_numpy(step.rewards + GAMMA * step.truncated * found.numpy())
        assert_same(last.rewards[t], expected.float())
        cut += step.truncated.sum()
    assert cut > 2


@games
@memories
def test_the_gradient_of_a_rollout_is_that_of_the_network_unrolled_over_it(kind, memory):
    """Through every step of an episode in it, into none of another one, and not into the rollout before it."""
    there = History(kind, memory)
    batch, network = there.batches[2], there.learner.network
    there.learner.gradient(batch)
    found = [parameter.grad.clone() for parameter in network.parameters()]
    policy, values = evaluated(network, batch.observations, batch.state, batch.resets)
    returns, following = torch.zeros(T, N), batch.next_values[-1]
    for t in reversed(range(T)):
        returns[t] = following = batch.rewards[t] + batch.discounts[t] * following
    advantages, settings = returns - values, there.learner.settings
    loss = settings.value_coefficient * advantages.square().mean() - settings.entropy_coefficient * policy.entropy().mean()
    there.learner.flat.grad.zero_()
    (loss - (advantages.detach() * policy.log_prob(batch.actions)).mean()).backward()
    for parameter, gradient in zip(network.parameters(), found, strict=True):
        length = torch.linalg.vector_norm(parameter.grad)
        assert length > 0
        assert torch.linalg.vector_norm(parameter.grad - gradient) < 1e-4 * length + 1e-7


@memories
def test_after_a_rollout_that_was_cut_short_episodes_go_on(memory):
    torch.manual_seed(0)
    environments = Recorded(GymEnvironments("plan/numbers-v0", N), [])
    network = lively(Network("mlp", environments.spaces, memory=memory, memory_size=H))
    told = (A2C(network, A2CSettings(), lr=1e-3), [environments], SEEDS, T, GAMMA, False, lambda: None, Clock())
    collector = Collector(*told, shortest=4, cut_short=lambda: len(environments.steps) == 4)
    batches = [collector.collect()[0] for _ in range(2)]
    assert [len(batch.rewards) for batch in batches] == [5, T]
    over = torch.from_numpy(np.stack([step.terminated | step.truncated for step in environments.steps]))
    resets = torch.cat([torch.ones(1, N, dtype=torch.bool), over])
    seen = torch.from_numpy(np.stack(environments.shown))
    _, values = evaluated(network, seen, network.first_state(N), resets)
    assert_same(torch.cat([batch.values for batch in batches]), values[:-1].detach())
    assert_same(batches[0].next_values[-1], values[5].detach())
    assert_same(batches[1].evaluate()[1].detach(), values[5:-1].detach())


@memories
def test_what_is_normalised_is_remembered_so(memory):
    """By the statistics of the rollout, which change between rollouts alone."""
    torch.manual_seed(0)
    environments = GymEnvironments("plan/numbers-v0", N)
    network = Network("mlp", environments.spaces, memory=memory, memory_size=H, normalise_observations=True)
    learner = A2C(lively(network), A2CSettings(), lr=1e-2)
    collector = Collector(learner, [environments], SEEDS, T, GAMMA, False, lambda: None, Clock())
    for _ in range(3):
        batch, _ = collector.collect()
        policy, values = batch.evaluate()
        assert_same(batch.values, values.detach())
        assert_same(batch.log_probs, policy.log_prob(batch.actions).detach())
        learner.gradient(batch)
        learner.tally(batch.additions)
        assert learner.step(progress=0.0).taken
    assert float(network.observation_sums.count) == 3 * T * N


# Nothing of an episode is known in the next one


class Telling(gymnasium.Env):
    """Begins every episode with sevens, and then shows what the seed says, for 3 to 6 steps; every second one is cut off."""

    observation_space, action_space = gym.Box(-9, 9, (2,), np.float32), gym.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.limit, self.cut_off = 0, int(self.np_random.integers(3, 7)), bool(self.np_random.integers(2))
        return np.full(2, 7, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.limit
        seen = np.float32([self.t, self.np_random.normal()])
        return seen, float(action), over and not self.cut_off, over and self.cut_off, {}


gymnasium.register("telling/Telling-v0", Telling, disable_env_checker=True)


def network_of(environments: GymEnvironments, memory: str) -> Network:
    torch.manual_seed(0)
    return lively(Network("mlp", environments.spaces, memory=memory, memory_size=H))


@memories
def test_every_episode_of_training_begins_alike(memory):
    environments = GymEnvironments("telling/Telling-v0", N)
    learner = A2C(network_of(environments, memory), A2CSettings(), lr=1e-3)
    collector = Collector(learner, [environments], SEEDS, T, GAMMA, False, lambda: None, Clock())
    for restarted in (False, False, True):
        if restarted:
            collector.reset(SEEDS)
        batch, _ = collector.collect()
        assert not restarted or not batch.state.any()
        first = (batch.observations == 7).all(-1)
        assert first.sum() >= 4 and torch.equal(first, batch.resets)
        _, values = batch.evaluate()
        for found in (batch.values, values.detach()):
            assert_same(found[first], found[first][:1].expand(int(first.sum())))
            assert len(found[~first].unique()) > 10


@memories
def test_every_episode_of_an_evaluation_begins_alike(memory, monkeypatch):
    """Environments whose first episode is over play on while others have not ended theirs."""
    environments = GymEnvironments("telling/Telling-v0", N)
    network, step, calls = network_of(environments, memory), Network.step, []

    def spied(network: Network, seen: torch.Tensor, state: torch.Tensor):
        calls.append((seen.clone(), state.clone()))
        return step(network, seen, state)

    monkeypatch.setattr(Network, "step", spied)
    for _ in range(2):  # two policies, say
        Games(environments, SEEDS, 100).play(network, None)
    begun = torch.stack([(seen == 7).all(-1) for seen, _ in calls])
    empty = torch.stack([(state == 0).all(-1) for _, state in calls])
    assert torch.equal(begun, empty) and begun.sum() > 2 * N


# What it takes

MLP = Sizes(parameters=4675, observation=16, step=528, images=False)

GROWTH = """
import re, sys, torch
from gala_mpi.networks.recurrent import Memory

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

torch.set_num_threads(1)
memory = Memory(sys.argv[1], 64, 256)
def learn(steps, number):
    features = torch.randn(steps, number, 64, requires_grad=True)
    resets = torch.rand(steps, number) < 0.02
    memory.unroll(features, torch.zeros(number, memory.state_size), resets)[0].square().sum().backward()
learn(2, 2)
before = peak()
learn(128, 32)
print(peak() - before)
"""


@memories
def test_the_plan_has_room_for_what_is_unrolled(memory):
    """By the resident memory of a process that does it."""
    told = {"network": "mlp", "num_envs": 32, "rollout_length": 128, "memory_size": 256}
    planned = [preflight._rollout_bytes(Config(**told, memory=kind), MLP) for kind in (None, memory)]
    found = int(subprocess.run([sys.executable, "-c", GROWTH, memory], check=True, capture_output=True).stdout)
    assert found <= planned[1] - planned[0] + (8 << 20) and planned[1] - planned[0] < 4 * found


# A GPU


def trained(memory: str, updates: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The parameters after some updates, and the states with which these began."""
    environments = [GymEnvironments("plan/numbers-v0", N // 2) for _ in range(2)]
    learner = A2C(network_of(environments[0], memory), A2CSettings(discount=GAMMA), lr=1e-3)
    collector = Collector(learner, environments, SEEDS, T, GAMMA, False, lambda: None, Clock())
    torch.manual_seed(1)
    states = []
    for _ in range(updates):
        batch, _ = collector.collect()
        states.append(batch.state)
        learner.gradient(batch)
        learner.step(progress=0.0)
    return learner.flat.data, states


@memories
def test_passes_that_are_recorded_remember(memory, monkeypatch):
    """Each pass as a graph of its own (with a stand-in for a GPU): bit for bit as without."""
    updates = WARM_UP_CALLS + 3
    expected, states = trained(memory, updates)
    gpu = Gpu(monkeypatch)
    found, again = trained(memory, updates)
    assert len(gpu.graphs) == 1 + 2 * (T + 1)
    assert torch.equal(found, expected) and all(map(torch.equal, states, again))
