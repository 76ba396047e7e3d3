"""The collector on small environments that follow a plan, recomputed from what was recorded of every step."""

import contextlib
import copy
import functools
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from gala_mpi.clock import Clock
from gala_mpi.config import A2CSettings, PPOSettings, VTraceSettings
from gala_mpi.device import on_host
from gala_mpi.envs.atari import AtariEnvironments
from gala_mpi.envs.base import Environments, Step
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Learner
from gala_mpi.learners.ppo import PPO
from gala_mpi.learners.vtrace import VTrace
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.collector import Collector

GAMMA, T, N = 0.9, 12, 4
SEEDS = np.array([4, 7, 11, 6])


class Plan(gymnasium.Env):
    """Game k lasts 3 to 5 steps; every second one is cut off, the others are lost. Rewards grow past 1 and change sign."""

    def __init__(self, image: bool, box: bool):
        self.image = image
        numbers = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.observation_space = spaces.Box(0, 255, (36, 40, 3), np.uint8) if image else numbers
        self.action_space = spaces.Box(-1, 1, (2,), np.float32) if box else spaces.Discrete(3)

    def _observation(self) -> np.ndarray:
        rng = np.random.default_rng([self.game, self.t])
        return rng.integers(0, 256, (36, 40, 3), np.uint8) if self.image else rng.normal(size=4).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.game = seed if seed is not None else self.game + 1
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        over = self.t == 3 + self.game % 3
        reward = 0.4 * self.t * (-1) ** (self.t + self.game) + float(np.sum(action)) / 8
        return self._observation(), reward, over and self.game % 2 == 0, over and self.game % 2 == 1, {}


KINDS = {"numbers": ("mlp", False, False), "box": ("mlp", False, True), "images": ("gala", True, False)}
for kind, (_, *arguments) in KINDS.items():
    gymnasium.register(f"plan/{kind}-v0", functools.partial(Plan, *arguments), disable_env_checker=True)


class Recorded(Environments):
    """Environments that keep a copy of everything that passes, and write into `calls` in what order it does."""

    def __init__(self, environments: Environments, calls: list):
        self._environments, self._calls = environments, calls
        self.num_envs, self.spaces = environments.num_envs, environments.spaces
        self.shown: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.steps: list[Step] = []

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations = self._environments.reset(seeds)
        self.shown.append(observations.copy())
        return observations

    def send(self, actions: np.ndarray) -> None:
        self._calls.append(("send", self))
        self.actions.append(actions.copy())
        self._environments.send(actions)

    def receive(self) -> Step:
        self._calls.append(("receive", self))
        step = self._environments.receive()
        self.steps.append(copy.deepcopy(step))
        self.shown.append(step.observations.copy())
        return step

    def close(self) -> None:
        self._environments.close()


def joined(steps: tuple[Step, ...]) -> Step:
    """What one step brought in several vectors of environments, as if they were one; without its episodes."""
    columns = [(step.observations, step.rewards, step.terminated, step.truncated) for step in steps]
    final = [step.observations if step.final_observations is None else step.final_observations for step in steps]
    return Step(*map(np.concatenate, zip(*columns)), np.concatenate(final))


class Rollout:
    """A collector, and the second of its batches with what was recorded of it.

    Args:
        kind: "images", say, or "images overlapped": two halves that take turns.
    """

    def __init__(self, kind: str, clip_rewards: bool = False):
        torch.manual_seed(0)
        self.progresses = 0
        kind, _, overlapped = kind.partition(" ")
        turns = 2 if overlapped else 1
        self.calls = []
        self.environments = [Recorded(GymEnvironments(f"plan/{kind}-v0", N // turns), self.calls) for _ in range(turns)]
        self.network = Network(KINDS[kind][0], self.environments[0].spaces).to(memory_format=torch.channels_last)
        self.network.policy.weight.data.mul_(30)  # so that probabilities differ
        self.learner = A2C(self.network, A2CSettings(discount=GAMMA, entropy_coefficient=0.3), lr=1e-3)
        collector = Collector(self.learner, self.environments, SEEDS, T, GAMMA, clip_rewards, self._poke, Clock())
        self.steps_of_a_rollout = collector.steps
        (_, first), (self.batch, second) = collector.collect(), collector.collect()
        self.evaluated, self.values = self.batch.evaluate()
        self.episodes, self.all_episodes = second, first + second
        shown, actions, steps = (
            zip(*(getattr(each, name) for each in self.environments)) for name in ("shown", "actions", "steps")
        )
        self.all_steps = list(map(joined, steps))
        self.steps = self.all_steps[T:]
        self.shown, self.actions = list(map(np.concatenate, shown))[T:], list(map(np.concatenate, actions))[T:]

    def _poke(self) -> None:
        self.progresses += 1

    def passes(self, network: Network) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and values of all steps by `network`, [T, N] each."""
        rows = []
        for observations, actions in zip(self.shown[:-1], self.actions, strict=True):
            distribution, values = network(torch.from_numpy(observations))
            rows.append((distribution.log_prob(torch.from_numpy(actions)), distribution.entropy(), values))
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def value(self, observations: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return self.network(torch.from_numpy(observations))[1]


@functools.cache
def rollout(kind: str, clip_rewards: bool = False) -> Rollout:
    return Rollout(kind, clip_rewards)


kinds = pytest.mark.parametrize("kind", [*KINDS, *(f"{kind} overlapped" for kind in KINDS)])


@kinds
def test_shapes_and_counts(kind):
    batch = rollout(kind).batch
    names = ("log_probs", "values", "rewards", "discounts", "next_values")
    for tensor in (getattr(batch, name) for name in names):
        assert tensor.shape == (T, N) and tensor.dtype == torch.float32 and not tensor.requires_grad
    assert batch.actions.shape[:2] == batch.observations.shape[:2] == batch.resets.shape == (T, N)
    assert rollout(kind).steps_of_a_rollout == T * N
    assert rollout(kind).progresses == 2 * (T + 1)
    evaluated = rollout(kind).evaluated.entropy(), rollout(kind).values
    assert all(tensor.requires_grad and tensor.shape == (T, N) for tensor in evaluated)


@kinds
def test_the_plan_has_games_that_are_lost_and_games_that_are_cut_off(kind):
    steps = rollout(kind).steps
    assert sum(step.terminated.sum() for step in steps) > 2
    assert sum(step.truncated.sum() for step in steps) > 2


@kinds
def test_discounts_are_0_where_a_game_ends_and_gamma_elsewhere(kind):
    found = rollout(kind).batch.discounts
    for t, step in enumerate(rollout(kind).steps):
        for i in range(N):
            assert found[t, i] == (0 if step.terminated[i] or step.truncated[i] else np.float32(GAMMA))


@kinds
@pytest.mark.parametrize("clip_rewards", [False, True])
def test_a_game_that_is_cut_off_adds_the_value_of_what_was_cut_off(kind, clip_rewards):
    played = rollout(kind, clip_rewards)
    for t, step in enumerate(played.steps):
        for i in range(N):
            expected = float(np.sign(step.rewards[i]) if clip_rewards else step.rewards[i])
            if step.truncated[i]:
                expected += GAMMA * float(played.value(step.final_observations)[i])
            assert float(played.batch.rewards[t, i]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@kinds
def test_scores_stay_real_when_rewards_are_clipped(kind):
    """Summed up from the plan's rewards, over both batches."""
    played = rollout(kind, True)
    scores, expected = np.zeros(N), []
    for step in played.all_steps:
        scores += step.rewards
        for i in np.flatnonzero(step.terminated | step.truncated):
            expected.append((i, pytest.approx(scores[i])))
            scores[i] = 0
    assert [(e.environment, e.score) for e in played.all_episodes] == expected
    assert any(abs(e.score) != round(abs(e.score)) for e in played.episodes)


@kinds
def test_next_values_are_those_of_the_next_observations(kind):
    played = rollout(kind)
    for t in range(T):
        torch.testing.assert_close(played.batch.next_values[t], played.value(played.shown[t + 1]), rtol=1e-4, atol=1e-5)


@kinds
def test_log_probabilities_entropies_and_values_are_those_of_what_was_shown(kind):
    played = rollout(kind)
    batch, evaluated = played.batch, played.evaluated
    found = evaluated.log_prob(batch.actions), evaluated.entropy(), played.values
    while_played = batch.log_probs, batch.behaviour.entropy(), batch.values
    for mine, before, expected in zip(found, while_played, played.passes(played.network), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(before, expected.detach(), rtol=1e-4, atol=1e-5)


@kinds
def test_observations_and_actions_are_what_passed(kind):
    played = rollout(kind)
    assert np.array_equal(played.batch.observations.numpy(), np.stack(played.shown[:-1]))
    assert np.array_equal(played.batch.actions.numpy(), np.stack(played.actions))


@kinds
def test_resets_say_where_a_return_begins(kind):
    played = rollout(kind)
    over = np.stack([step.terminated | step.truncated for step in played.all_steps[T - 1 : -1]])
    assert np.array_equal(played.batch.resets.numpy(), over) and over.any()


def test_the_second_batch_goes_on_where_the_first_ended():
    """Its first value is of the observation that the first batch's last action brought."""
    played = rollout("numbers")
    torch.testing.assert_close(played.batch.values[0].detach(), played.value(played.shown[0]))


@kinds
def test_actions_are_drawn_from_the_policy(kind):
    """The same state of the generator gives the same actions in a loop that is written out."""
    one, same = Rollout(kind), Rollout(kind)
    assert all(np.array_equal(a, b) for a, b in zip(one.actions, same.actions, strict=True))
    torch.manual_seed(5)
    with torch.no_grad():
        distribution, _ = one.network(torch.from_numpy(one.shown[0]).repeat(2000, *[1] * (one.shown[0].ndim - 1)))
        if "box" not in kind:
            drawn = torch.nn.functional.one_hot(distribution.sample().view(2000, N), 3).float().mean(0)
            torch.testing.assert_close(drawn, distribution.probs[:N], rtol=0, atol=0.06)


def ordinary_gradient(played: Rollout, settings: A2CSettings) -> list[torch.Tensor]:
    """The gradient of the loss by a second forward pass over the stored observations, of a network of its own."""
    network = copy.deepcopy(played.network)
    network.zero_grad(set_to_none=True)
    log_probs, entropies, values = played.passes(network)
    batch: Batch = played.batch
    returns, following = torch.zeros(T, N), batch.next_values[-1]
    for t in reversed(range(T)):
        following = batch.rewards[t] + batch.discounts[t] * following
        returns[t] = following
    advantages = returns - values
    loss = -(advantages.detach() * log_probs).mean() + settings.value_coefficient * advantages.pow(2).mean()
    (loss - settings.entropy_coefficient * entropies.mean()).backward()
    return [parameter.grad for parameter in network.parameters()]


@kinds
def test_the_gradient_through_the_cached_passes_is_that_of_a_second_forward_pass(kind):
    played = Rollout(kind)
    expected = ordinary_gradient(played, played.learner.settings)
    played.learner.gradient(played.batch)
    for parameter, gradient in zip(played.network.parameters(), expected, strict=True):
        assert torch.linalg.vector_norm(gradient) > 0
        difference = torch.linalg.vector_norm(parameter.grad - gradient)
        assert difference < 1e-4 * torch.linalg.vector_norm(gradient) + 1e-7


def test_halves_take_turns():
    """While one half plays, the network chooses the other's actions; at the end of a rollout nobody plays."""
    played = rollout("numbers overlapped")
    one, other = played.environments
    first, last = [("send", one), ("send", other)], [("receive", one), ("receive", other)]
    turns = [("receive", one), ("send", one), ("receive", other), ("send", other)]
    assert played.calls == 2 * (first + (T - 1) * turns + last)


def test_overlapped_pong_is_what_the_same_actions_bring_when_all_play_together():
    torch.manual_seed(0)
    halves = [Recorded(AtariEnvironments("pong", 2, threads=2), []) for _ in range(2)]
    network = Network("gala", halves[0].spaces).to(memory_format=torch.channels_last)
    collector = Collector(A2C(network, A2CSettings(), lr=1e-3), halves, SEEDS, T, GAMMA, True, lambda: None, Clock())
    for _ in range(3):
        collector.collect()
    collector.close()
    together = AtariEnvironments("pong", 4)
    np.testing.assert_array_equal(together.reset(SEEDS), np.concatenate([half.shown[0] for half in halves]))
    for t in range(3 * T):
        step = together.step(np.concatenate([half.actions[t] for half in halves]))
        np.testing.assert_array_equal(step.observations, np.concatenate([half.shown[t + 1] for half in halves]))
        np.testing.assert_array_equal(step.rewards, np.concatenate([half.steps[t].rewards for half in halves]))
    together.close()


@kinds
def test_with_a_network_on_another_device_nothing_is_computed_on_the_host(kind, monkeypatch):
    """Torch's meta device has shapes and no numbers, and refuses what mixes devices, as a GPU does."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [1.0] * tensor.numel())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    kind, _, overlapped = kind.partition(" ")
    turns = 2 if overlapped else 1
    environments = [GymEnvironments(f"plan/{kind}-v0", N // turns) for _ in range(turns)]
    network = Network(KINDS[kind][0], environments[0].spaces).to("meta", memory_format=torch.channels_last)
    learner = A2C(network, A2CSettings(), lr=1e-3)
    collector = Collector(learner, environments, SEEDS, T, GAMMA, True, lambda: None, Clock())
    for update in range(2):
        batch, _ = collector.collect()
        learner.gradient(batch)
        learner.count(collector.steps)
        with on_host(learner.flat.grad) as gradient:
            assert gradient.shape == (len(learner.flat),)
        learner.step(update / 2)
    assert learner.steps == 2 * T * N
    assert {vector.device.type for vector in (learner.flat.data, learner.flat.grad, learner.optimiser.square_average)} == {
        "meta"
    }
    with pytest.raises(RuntimeError, match="device"):
        learner.flat.data + torch.ones(len(learner.flat))


# Rollouts that are cut short


LEARNERS = {A2C: A2CSettings(), PPO: PPOSettings(), VTrace: VTraceSettings()}


def rollout_of(
    kind: str, turns: int, length: int, learner: type[Learner], memory: str | None, **options
) -> tuple[Collector, Batch]:
    torch.manual_seed(0)
    environments = [GymEnvironments(f"plan/{kind}-v0", N // turns) for _ in range(turns)]
    network = Network(KINDS[kind][0], environments[0].spaces, memory=memory, memory_size=5, normalise_rewards=True)
    made = learner(network.to(memory_format=torch.channels_last), LEARNERS[learner], lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    collector = Collector(
        made, environments, SEEDS, length, GAMMA, False, lambda: None, Clock(), generator=generator, **options
    )
    batch, _ = collector.collect()
    made.gradient(next(iter(made.parts(batch))))
    return collector, batch


@pytest.mark.parametrize(
    "learner, memory, passes",
    [
        (A2C, None, "cached"),
        (VTrace, None, "cached"),
        (PPO, None, "recomputed"),
        (PPO, "lstm", "stored"),
        (VTrace, "gru", "stored"),
    ],
)
@pytest.mark.parametrize("kind", ["numbers", "images", "box"])
@pytest.mark.parametrize("turns", [1, 2])
def test_a_rollout_that_is_cut_short_is_one_of_so_many_steps(learner, memory, passes, kind, turns):
    """And is learnt from as if no more had been meant to be played. The next one may be whole again."""
    asked = itertools.count(3)  # after so many steps for the first time
    cut = {"shortest": 3, "cut_short": lambda: next(asked) == 5}
    whole, expected = rollout_of(kind, turns, 5, learner, memory)
    collector, batch = rollout_of(kind, turns, T, learner, memory, **cut)
    assert collector.passes.name == passes and collector.steps == whole.steps == 5 * N
    for name in (
        "rewards",
        "discounts",
        "resets",
        "actions",
        "log_probs",
        "values",
        "next_values",
        "observations",
        "additions",
    ):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    torch.testing.assert_close(*(each.network.policy.weight.grad for each in (collector, whole)))
    torch.testing.assert_close(*(each.network.encoder[0].weight.grad for each in (collector, whole)))
    assert all(torch.equal(*states) for states in zip(collector._states, whole._states))
    batch, _ = collector.collect()
    assert batch.rewards.shape == batch.evaluate()[1].shape == (T, N) and collector.steps == T * N


# Numbers that are not finite


class Faulty(Recorded):
    """Gives a number in place of its own: a reward, an observation or a cut-off one of its environment 0, at one step."""

    def __init__(self, environments: Environments, what: str, at: int, number: float):
        super().__init__(environments, [])
        self.what, self.at, self.number = what, at, number

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations = super().reset(seeds)
        if (self.what, self.at) == ("observations", 0):
            observations[0, 2] = self.number
        return observations

    def receive(self) -> Step:
        step = super().receive()
        if len(self.steps) == self.at:
            numbers = getattr(step, self.what)
            assert self.what != "final_observations" or step.truncated[0]
            numbers[(0, 2)[: numbers.ndim]] = self.number
        return step


PLACES = [  # what, at which step, in which rollouts it is: of T steps, and the observation that follows the last
    ("rewards", 5, [0]),
    ("rewards", T, [0]),
    ("observations", 0, [0]),
    ("observations", 5, [0]),
    ("observations", T, [0, 1]),
    ("observations", T + 1, [1]),
    ("final_observations", 5, [0]),
]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what, at, where", PLACES)
@pytest.mark.parametrize("kind", ["numbers", "box"])
@pytest.mark.parametrize("turns", [1, 2])
def test_a_number_that_is_not_finite_is_named_and_goes_no_further(kind, what, at, where, number, turns):
    torch.manual_seed(0)
    name = f"plan/{kind}-v0"
    vectors: list[Environments] = [GymEnvironments(name, N // turns) for _ in range(turns)]
    vectors[-1] = Faulty(vectors[-1], what, at, number)
    learner = A2C(Network("mlp", vectors[0].spaces), A2CSettings(discount=GAMMA), lr=1e-3)
    seeds = SEEDS if turns == 2 else np.roll(SEEDS, 2)  # that of the faulty one is 11: its first game is cut off at step 5
    collector = Collector(learner, vectors, seeds, T, GAMMA, False, lambda: None, Clock())
    for rollout in range(3):
        batch, episodes = collector.collect()
        assert bool(collector.fault) == (rollout in where)
        if collector.fault:
            named = "a reward" if what == "rewards" else "an observation"
            assert str(collector.fault) == f"environment {N - N // turns} gave {named} of {number} at its step {at}"
        for numbers in (batch.rewards, batch.values, batch.next_values, batch.log_probs, batch.observations, batch.actions):
            assert torch.isfinite(numbers).all()
        assert all(np.isfinite(episode.score) for episode in episodes)
