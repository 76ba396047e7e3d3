"""Masks: an action that may not be taken never is, and probabilities are those of the others."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from shows import (
    GRID,
    Shows,
    box,
    inside,
    made,
    pixels,
)

from gala_mpi import networks
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.errors import JobError, SettingError
from gala_mpi.learners import LEARNERS
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.cached import fits
from gala_mpi.rollout.collector import Collector


class Masks(Shows):
    """Allows an action more at each step, from the last one on; says so in its observation or its info.

    Args:
        where: "observation" or "info".
        counts: of the actions of each choice.
        nothing: at which step nothing is allowed.
    """

    def __init__(self, space, action_space, where, counts, nothing=-1):
        super().__init__(space, action_space)
        self.inner, self.where, self.counts, self.nothing = self.observation_space, where, counts, nothing
        self.taken: list[bool] = []
        if where == "observation":
            mask = gym.MultiBinary(sum(counts))
            self.observation_space = gym.Dict({"action_mask": mask, "observation": self.inner})

    def mask(self) -> np.ndarray:
        allowed = [np.arange(count) >= count - 1 - self.t for count in self.counts]
        return np.concatenate(allowed).astype(np.int8) * (self.t != self.nothing)

    def _with_mask(self, observation):
        if self.where == "info":
            return observation, {"action_mask": self.mask()}
        return {"action_mask": self.mask(), "observation": observation}, {}

    def _show(self):
        sample = self.inner.sample()
        self.shown.append(copy.deepcopy(sample))
        return sample

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.inner.seed(seed)
        observation, _ = super().reset()
        return self._with_mask(observation)

    def step(self, action):
        parts = np.split(self.mask(), np.cumsum(self.counts)[:-1])
        chosen = np.ravel(action) - np.ravel(getattr(self.action_space, "start", 0))
        self.taken.append(all(part[one] for part, one in zip(parts, chosen, strict=True)))
        observation, *rest, _ = super().step(action)
        observation, info = self._with_mask(observation)
        return observation, *rest, info


MASKED = {
    "vector": (box(-1, 1, (4,)), gym.Discrete(5), (5,), "mlp"),
    "from 3": (gym.Discrete(6), gym.Discrete(4, start=3), (4,), "mlp"),
    "image": (pixels(40, 50, 3), gym.Discrete(5), (5,), "gala"),
    "small image": (pixels(5, 6), gym.Discrete(5), (5,), "small"),
    "image and numbers": (GRID, gym.Discrete(7), (7,), "small"),
    "choices": (box(-1, 1, (4,)), gym.MultiDiscrete([3, 5, 2]), (3, 5, 2), "mlp"),
    "switches": (box(-1, 1, (4,)), gym.MultiBinary(3), (2, 2, 2), "mlp"),
}
masked = pytest.mark.parametrize("kind", MASKED)
placed = pytest.mark.parametrize("where", ["observation", "info"])


def made_masked(kind: str, where: str, **options) -> GymEnvironments:
    space, action, counts, _ = MASKED[kind]
    return made(space, action, kind=Masks, where=where, counts=counts, **options)


@masked
@placed
def test_a_masked_action_is_never_taken_and_all_stays_finite(kind, where):
    torch.manual_seed(0)
    environments = made_masked(kind, where)
    *_, counts, name = MASKED[kind]
    spaces = environments.spaces
    assert spaces.masked and networks.default(spaces.picture) == name
    network = Network(name, spaces).to(memory_format=torch.channels_last)
    network.policy.bias.data = torch.linspace(30, -30, sum(counts))  # the first, masked longest, would be taken always
    learner = A2C(network, A2CSettings(), 1e-3)
    assert not fits(network, learner)
    collector = Collector(learner, [environments], np.array([1, 2]), 12, 0.9, False, lambda: None, Clock())
    for _ in range(3):
        batch, _ = collector.collect()
        now, values = batch.evaluate()
        for numbers in (now.log_prob(batch.actions), now.entropy(), values, batch.log_probs, batch.behaviour.entropy()):
            assert torch.isfinite(numbers).all()
        torch.testing.assert_close(now.log_prob(batch.actions).detach(), batch.log_probs, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(learner.gradient(batch)[:3]).all() and torch.isfinite(learner.flat.grad).all()
        assert learner.step(0.0).taken
    for i in range(2):
        assert all(inside(environments, i).taken) and len(inside(environments, i).taken) == 36
    with torch.no_grad():
        policy, _ = network(torch.from_numpy(environments.reset(np.array([3, 4]))))
    for count, logits in zip(counts, policy.logits[0].reshape(len(counts), -1)):
        probabilities = logits.softmax(-1)
        assert probabilities.argmax() == count - 1 and probabilities[count - 1] == 1  # the last of each choice alone is allowed
    assert policy.entropy().tolist() == [0, 0]


@masked
@placed
def test_masks_lie_behind_the_observation(kind, where):
    space, action, counts, _ = MASKED[kind]
    environments, plain = made_masked(kind, where), made(space, action)
    first, without = environments.reset(np.array([3, 4])), plain.reset(np.array([3, 4]))
    expected = without.reshape(2, -1) * (np.float32(plain.spaces.scale) if plain.spaces.image else 1)
    np.testing.assert_allclose(first[:, : -sum(counts)], expected, rtol=3e-7)
    only_the_last = np.concatenate([np.arange(count) == count - 1 for count in counts])
    assert np.array_equal(first[:, -sum(counts) :], [only_the_last] * 2)
    assert environments.spaces.picture == plain.spaces.picture
    assert Network("mlp", environments.spaces).description()["observations"]["mask"] == sum(counts)
    environments.rehearse()
    assert inside(environments).taken == [True]


@placed
def test_log_probabilities_and_entropies_under_a_mask_are_those_of_the_allowed_actions(where):
    torch.manual_seed(0)
    environments = made_masked("vector", where)
    environments.reset(np.array([1, 2]))
    rows = torch.from_numpy(environments.step(np.array([4, 4])).observations)  # allowed: the last two
    network = Network("mlp", environments.spaces)
    network.policy.weight.data.mul_(100)
    policy, _ = network(rows)
    allowed = torch.distributions.Categorical(logits=network.policy(network.encoder(rows[:, :4]))[:, 3:])
    for action in (3, 4):
        chosen = torch.tensor([action, action])
        torch.testing.assert_close(policy.log_prob(chosen), allowed.log_prob(chosen - 3))
    torch.testing.assert_close(policy.entropy(), allowed.entropy())
    torch.testing.assert_close(policy.probs[:, 3:], allowed.probs)
    assert not policy.probs[:, :3].any()
    policy.entropy().sum().backward()
    assert not network.policy.bias.grad[:3].any() and network.policy.bias.grad[3:].any()


NETWORKS = {
    "mlp": (Spaces((4,), False, 4), {"hidden": "16,8", "activation": "relu"}),
    "mlp, value apart": (Spaces((4,), False, 4), {"hidden": "16,8", "value_network": "copy"}),
    "impala": (Spaces((2, 8, 9), True, 4), {}),
    "nets:features": (Spaces((4,), False, 4), {}),
    "nets:Apart": (Spaces((4,), False, None, (2,), choices=(3, 2)), {}),
    "nets:convolved": (Spaces((2, 8, 9), True, 4), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_probabilities_under_every_mask_are_those_of_the_allowed_actions_by_enumeration(name):
    """Of each choice, over all masks that allow something: by what the same network gives without a mask."""
    torch.manual_seed(0)
    plain, settings = NETWORKS[name]
    name = name.partition(",")[0]
    counts = plain.choices or (plain.outputs,)
    image, numbers = plain.observation_shape if plain.image else None, math.prod(plain.observation_shape) + sum(counts)
    packed = {"observation_shape": (numbers,), "image": False, "image_shape": image, "dtype": "float32", "scale": 1.0}
    spaces = replace(plain, **packed, masked=True)
    network = Network(name, spaces, settings=settings)
    without = Network(name, replace(plain, scale=1.0), settings=settings)
    without.load_state_dict({key.replace("encoder.image.", "encoder."): value for key, value in network.state_dict().items()})
    for each in (network, without):
        head = each.policy or (each.encoder.actor if name == "nets:Apart" else each.encoder.policy)[-1]
        head.weight.data.mul_(20)
    allowed = [mask for mask in itertools.product((0.0, 1.0), repeat=sum(counts)) if all(map(any, parted(mask, counts)))]
    observation = torch.rand(1, *plain.observation_shape)
    rows = torch.cat([observation.flatten(1).expand(len(allowed), -1), torch.tensor(allowed)], 1)
    policy, values = network(rows)
    logits, value = without(observation)
    torch.testing.assert_close(values, value.expand(len(allowed)))
    outputs = [logits.logits[0]] if len(counts) == 1 else list(logits.logits[0])
    drawn = torch.stack([policy.sample() for _ in range(20)]).reshape(20, len(allowed), len(counts))
    for row, mask in enumerate(allowed):
        expected = []
        for part, numbers in zip(parted(mask, counts), outputs, strict=True):
            weights = [open_ * math.exp(number) for open_, number in zip(part, numbers.tolist())]
            expected.append([weight / sum(weights) for weight in weights])
        for choice, part in enumerate(parted(mask, counts)):
            assert all(part[action] for action in drawn[:, row, choice].tolist())
        entropy = -sum(p * math.log(p) for part in expected for p in part if p)
        assert policy.entropy()[row].item() == pytest.approx(entropy, abs=1e-5)
        best = [max(range(len(part)), key=part.__getitem__) for part in expected]
        assert policy.mode[row].reshape(-1).tolist() == best
        for actions in itertools.product(*map(range, counts)):
            probability = math.prod(part[action] for part, action in zip(expected, actions))
            chosen = torch.tensor(actions if len(counts) > 1 else actions[0]).expand(policy.mode.shape)
            assert policy.log_prob(chosen)[row].exp().item() == pytest.approx(probability, abs=1e-6)


def parted(mask: tuple[float, ...], counts: tuple[int, ...]) -> list[tuple[float, ...]]:
    """A mask's numbers for each choice."""
    ends = list(itertools.accumulate(counts))
    return [mask[end - count : end] for end, count in zip(ends, counts)]


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(
    ("kind", "network"), [("vector", "mlp"), ("choices", "nets:Apart"), ("vector", "nets:features"), ("image", "impala")]
)
def test_every_learner_learns_under_a_mask(kind, network, learner):
    """What is never allowed is never taken, and its output has no gradient from any part of a rollout."""
    torch.manual_seed(0)
    environments = made_masked(kind, "info")
    for each in environments.envs:
        each.unwrapped.mask = lambda: np.concatenate([np.arange(count) > 0 for count in MASKED[kind][2]]).astype(np.int8)
    played = Network(network, environments.spaces).to(memory_format=torch.channels_last)
    settings = Config(learner=learner).learner_settings.settled(True, False, 24)
    learning = LEARNERS[learner].load()(played, settings, 1e-3)
    collector = Collector(learning, [environments], np.array([1, 2]), 12, 0.9, False, lambda: None, Clock())
    last = played.encoder.actor[-1] if played.policy is None else played.policy
    first = [end - count for end, count in zip(itertools.accumulate(MASKED[kind][2]), MASKED[kind][2])]
    others = [i for i in range(sum(MASKED[kind][2])) if i not in first]
    for _ in range(2):
        batch, _ = collector.collect()
        assert (batch.actions > 0).all() and torch.isfinite(batch.log_probs).all()
        for part in learning.parts(batch):
            assert torch.isfinite(learning.gradient(part)[:3]).all() and torch.isfinite(learning.flat.grad).all()
            assert not last.bias.grad[first].any() and last.bias.grad[others].any()
            assert learning.step(0.0).taken
    assert all(all(inside(environments, i).taken) for i in range(2))


@placed
def test_an_action_that_is_masked_is_not_drawn_from_a_noise_of_zero(where, monkeypatch):
    """−log 0 is infinite: it must not make up for the mask."""
    environments = made_masked("vector", where)
    network = Network("mlp", environments.spaces)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda noise, **_: noise.zero_())
    policy, _ = network(torch.from_numpy(environments.reset(np.array([1, 2]))))
    assert policy.sample().tolist() == [4, 4]


@placed
@pytest.mark.parametrize("kind", ["vector", "choices"])
def test_a_mask_that_allows_nothing_is_named(kind, where):
    environments = made_masked(kind, where, nothing=2)
    environments.reset(np.array([1, 2]))
    last = np.array([count - 1 for count in MASKED[kind][2]])
    actions = np.tile(last, (2, 1)) if kind == "choices" else np.repeat(last, 2)
    environments.step(actions)
    with pytest.raises(JobError) as error:
        environments.step(actions)
    said = f"--env {environments.name}: environment 0 returned at its step 2 a mask that allows no action"
    assert str(error.value).startswith(said)


@placed
def test_at_the_end_of_an_episode_a_mask_may_allow_nothing(where):
    environments = made_masked("vector", where, nothing=3)
    environments.reset(np.array([1, 2]))
    steps = [environments.step(np.array([4, 4])) for _ in range(6)]
    assert steps[2].truncated.all() and steps[5].terminated.all()
    with torch.no_grad():
        _, values = Network("mlp", environments.spaces)(torch.from_numpy(steps[2].final_observations))
    assert torch.isfinite(values).all()


def test_a_mask_of_another_size_is_refused():
    space = gym.Dict({"observation": box(-1, 1, (4,)), "action_mask": box(0, 1, (3,), np.int8)})
    with pytest.raises(SettingError, match=r"an action_mask of 2 numbers, one for each action, is expected"):
        made(space)
    assert made(space, box(-1, 1, (2,))).spaces.observation_shape == (7,)  # no discrete action: a part like others


def test_an_old_run_sees_no_masks_of_infos():
    environments = made(box(-1, 1, (4,)), kind=Masks, where="info", counts=(2,), raw=True)
    assert environments.spaces.observation_shape == (4,) and not environments.spaces.masked


def test_taxi_has_a_mask_at_every_step():
    """gymnasium's own, against its infos."""
    environments, alone = GymEnvironments("Taxi-v4", 1), gymnasium.make("Taxi-v4")
    assert environments.spaces.observation_shape == (500 + 6,) and environments.spaces.masked
    rows, (state, info) = environments.reset(np.array([3])), alone.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(300):
        assert np.array_equal(rows[0], [*np.eye(500)[state], *info["action_mask"]])
        action = environments.spaces.random_actions(rng, rows)
        rows = environments.step(action).observations
        state, _, terminated, truncated, info = alone.step(action[0])
        if terminated or truncated:
            state, info = alone.reset()


class Late(Shows):
    """Has a mask in the infos of its steps alone."""

    def step(self, action):
        *returned, _ = super().step(action)
        return *returned, {"action_mask": np.ones(2, np.int8)}


def test_a_mask_that_comes_with_steps_alone_is_named():
    environments = made(box(-1, 1, (4,)), kind=Late)
    environments.reset(np.array([1, 2]))
    with pytest.raises(JobError, match="environment 0 returned at its step 1 an action_mask in its info, which it had not at"):
        environments.step(np.array([0, 0]))


def test_bytes_of_a_mask_are_no_news():
    """As Taxi's are: nobody has declared what a mask in an info is made of."""
    environments = made_masked("vector", "info")
    for each in environments.envs:
        each.unwrapped.mask = lambda: np.ones(5, np.int8)
    environments.reset(np.array([1, 2]))
    assert not environments.advice
