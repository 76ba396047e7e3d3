"""PPO by definition: its loss and gradient against the paper written out row by row, its advantages, its minibatches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from batches import made_up
from gala_mpi import pulse
from gala_mpi.config import Config, PPOSettings
from gala_mpi.envs.base import Spaces
from gala_mpi.errors import SettingError
from gala_mpi.exchange import EXCHANGES
from gala_mpi.job import build, prepare
from gala_mpi.learners.base import Losses
from gala_mpi.learners.ppo import PPO, normalised
from gala_mpi.mpi.world import World
from gala_mpi.networks.distributions import Gaussian
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch

T, N, GAMMA, LAMBDA = 7, 3, 0.9, 0.95
KINDS = {
    "discrete": Spaces((4,), False, 3),
    "several choices": Spaces((4,), False, None, (2,), choices=(2, 4)),
    "box": Spaces((4,), False, None, (2,)),
    "masks": Spaces((4 + 3,), False, 3, masked=True),
    "masks of several choices": Spaces((4 + 6,), False, None, (2,), choices=(2, 4), masked=True),
}
kinds = pytest.mark.parametrize("spaces", KINDS.values(), ids=KINDS)


def new_learner(spaces: Spaces = KINDS["discrete"], seed: int = 0, **settings) -> PPO:
    torch.manual_seed(seed)
    network = Network("mlp", spaces)
    network.policy.weight.data.mul_(100)  # so that probabilities differ
    return PPO(network, PPOSettings(**settings), 1e-3)


def masks(spaces: Spaces, rng: np.random.Generator) -> np.ndarray:
    """[T + 1, N, outputs]; the first action of each choice may be taken."""
    allowed = rng.integers(0, 2, (T + 1, N, spaces.outputs))
    allowed[..., [0, *np.cumsum(spaces.choices)[:-1]]] = 1
    return allowed


def new_batch(learner: PPO, seed: int = 1) -> Batch:
    """Random steps, of which some end an episode; actions are drawn from the policy."""
    rng, spaces = np.random.default_rng(seed), learner.network.spaces
    seen = rng.standard_normal((T + 1, N, 4))
    if spaces.masked:
        seen = np.concatenate([seen, masks(spaces, rng)], -1)
    seen = torch.from_numpy(seen.astype(np.float32))
    with torch.no_grad():
        policy, _ = learner.network(seen[:-1].flatten(0, 1))
        actions = policy.sample(torch.Generator().manual_seed(seed)).unflatten(0, (T, N))
    rewards = torch.from_numpy(rng.standard_normal((T, N)).astype(np.float32))
    discounts = torch.from_numpy(np.where(rng.random((T, N)) < 0.2, 0, GAMMA).astype(np.float32))
    return made_up(learner.network, seen, actions, rewards, discounts)


def move(learner: PPO, far: float) -> None:
    """As steps of the optimiser do it."""
    noise = torch.randn(len(learner.flat), generator=torch.Generator().manual_seed(3))
    learner.flat.data.add_(far * noise)


# The paper, row by row, in float64


def advantages_of(batch: Batch) -> np.ndarray:
    """Σ_l (γλ)^l δ_{t+l} up to the end of the episode or of the rollout (equations 11 and 12), [T, N]."""
    numbers = (batch.rewards, batch.discounts, batch.next_values, batch.values)
    rewards, discounts, following, values = (each.double().numpy() for each in numbers)
    found = np.zeros((T, N))
    for i in range(N):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                found[t, i] += weight * (rewards[k, i] + discounts[k, i] * following[k, i] - values[k, i])
                weight *= discounts[k, i] * LAMBDA
    return found


def log_prob_and_entropy(outputs: list[torch.Tensor], action: torch.Tensor, spaces: Spaces, mask: torch.Tensor):
    """Of one row, from what the policy's head gives: logits, or means and the logarithms of deviations."""
    if not spaces.discrete:
        mean, log_std = outputs
        z = (action.double() - mean) / log_std.exp()
        log_prob = (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum()
        return log_prob, (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    log_prob = entropy = torch.zeros((), dtype=torch.float64)
    of_each = spaces.choices or (spaces.actions,)
    for logits, allowed, chosen in zip(outputs[0].split(of_each), mask.split(of_each), action.reshape(-1)):
        odds = logits.exp() * allowed
        probabilities = odds / odds.sum()
        log_prob = log_prob + probabilities[chosen].log()
        for p in probabilities[allowed == 1]:
            entropy = entropy - p * p.log()
    return log_prob, entropy


def literal(learner: PPO, batch: Batch, before: list[torch.Tensor], rows: list[int]) -> tuple[torch.Tensor, Losses]:
    """Policy loss, value loss, entropy, KL divergence and share of what is clipped of some rows; and the loss.

    Args:
        before: the policy's outputs when it played (see `outputs_of`).
    """
    s, spaces = learner.settings, learner.network.spaces
    now, values = outputs_of(learner.network, batch)
    masked = batch.observations.flatten(0, 1)[:, -spaces.outputs :] if spaces.masked else torch.ones(T * N, spaces.outputs)
    old_values, advantages = batch.values.double().flatten(), torch.from_numpy(advantages_of(batch).flatten())
    returns = advantages + old_values
    mine = advantages[rows]
    mean, deviation = mine.mean(), (mine - mine.mean()).square().mean().sqrt()
    policy, value, entropy, kl, clipped = (torch.zeros((), dtype=torch.float64) for _ in range(5))
    for row in rows:
        action = batch.actions.flatten(0, 1)[row]
        log_prob, spread = log_prob_and_entropy([each[row] for each in now], action, spaces, masked[row])
        old, _ = log_prob_and_entropy([each[row] for each in before], action, spaces, masked[row])
        ratio = (log_prob - old).exp()
        advantage = (advantages[row] - mean) / (deviation + 1e-8) if s.normalise_advantages else advantages[row]
        gain = ratio * advantage
        if ratio < 1 - s.clip or ratio > 1 + s.clip:
            gain = torch.min(gain, (1 + s.clip if ratio > 1 else 1 - s.clip) * advantage)
            clipped = clipped + 1
        error = (values[row] - returns[row]) ** 2
        if s.value_clip is not None and abs(values[row] - old_values[row]) > s.value_clip:
            error = torch.max(
                error, (old_values[row] + s.value_clip * torch.sign(values[row] - old_values[row]) - returns[row]) ** 2
            )
        policy, value, entropy, kl = policy - gain, value + error, entropy + spread, kl + ratio - 1 - ratio.log()
    terms = Losses(*(term / len(rows) for term in (policy, value, entropy, kl, clipped)))
    return terms.policy + s.value_coefficient * terms.value - s.entropy_coefficient * terms.entropy, terms


def outputs_of(network: Network, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the policy's and the value's head give at all rows, before masks, in float64 and with gradient."""
    features = network.encoder(batch.observations.flatten(0, 1)[:, :4])
    policy = [network.policy(features).double()]
    if not network.spaces.discrete:
        policy.append(network.log_std.double().expand_as(policy[0]))
    return policy, network.value(features)[:, 0].double()


SETTINGS = {
    "plain": {},
    "clipped values": {"value_clip": 0.1, "entropy_coefficient": 0.3, "value_coefficient": 0.7},
    "advantages as they are": {"normalise_advantages": False, "clip": 0.05},
}


@kinds
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_loss_and_gradient_are_those_of_the_paper_row_by_row(spaces, settings):
    learner = new_learner(spaces, gae_lambda=LAMBDA, minibatches=3, epochs=1, **settings)
    batch = new_batch(learner)
    before = [each.detach() for each in outputs_of(learner.network, batch)[0]]
    shares = []
    for part in learner.parts(batch):
        move(learner, 0.02)
        terms = learner.gradient(part)
        found = learner.flat.grad.clone()
        loss, expected = literal(learner, batch, before, part.rows.tolist())
        batch.backward(loss)
        difference = torch.linalg.vector_norm(found - learner.flat.grad) / torch.linalg.vector_norm(found)
        assert difference < 1e-6, difference
        np.testing.assert_allclose(terms, [float(torch.as_tensor(term).detach()) for term in expected], rtol=1e-5, atol=1e-6)
        assert float(learner.loss(part)[0].detach()) == pytest.approx(float(loss.detach()), rel=1e-6, abs=1e-6)
        shares.append(float(terms[4]))
    assert 0 < np.mean(shares) < 1  # both sides of the minimum are met


@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_is_gained_beyond_the_clipping(sign):
    """What is better and already more probable by ε has no gradient, nor what is worse and less probable; all else has."""
    alone = {"entropy_coefficient": 0.0, "value_coefficient": 0.0, "normalise_advantages": False}
    learner = new_learner(**alone, clip=0.2, minibatches=1, epochs=1)
    batch = new_batch(learner)
    (part,) = learner.parts(batch)
    for ratio in (0.5, 0.9, 1.1, 1.5):
        part.log_probs = batch.evaluate(part.rows)[0].log_prob(part.actions).detach() - math.log(ratio)
        part.advantages = torch.full_like(part.values, float(sign))
        learner.gradient(part)
        assert bool(learner.flat.grad.any()) != (ratio > 1.2 if sign > 0 else ratio < 0.8)


@pytest.mark.parametrize("column", ["log_probs", "advantages", "returns"])
@pytest.mark.parametrize("settings", [{}, {"value_clip": 0.1}], ids=["plain", "clipped values"])
def test_what_is_no_number_makes_a_gradient_that_is_none(column, settings):
    """So that the optimiser takes no such step."""
    learner = new_learner(minibatches=1, epochs=1, **settings)
    (part,) = learner.parts(new_batch(learner))
    getattr(part, column)[0, 0] = math.nan
    assert learner.gradient(part)[:2].isnan().any()
    assert learner.flat.grad.isnan().any()


@kinds
def test_advantages_are_sums_of_discounted_errors_and_returns_are_these_and_the_values(spaces):
    learner = new_learner(spaces, gae_lambda=LAMBDA, minibatches=1, epochs=1, normalise_advantages=False)
    batch = new_batch(learner)
    (part,) = learner.parts(batch)
    expected = advantages_of(batch)
    np.testing.assert_allclose(part.advantages, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(part.returns, expected + batch.values.numpy(), rtol=1e-5, atol=1e-6)


def test_normalised_advantages_have_mean_0_and_variance_1_and_one_alone_is_0():
    advantages = normalised(torch.tensor([3.0, -1.0, 4.0, 1.0, 5.0]))
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages.square().mean()) == pytest.approx(1, rel=1e-5)
    assert normalised(torch.tensor([7.0])).tolist() == [0]


# Minibatches


def test_one_minibatch_is_the_rollout_as_it_lies():
    learner = new_learner(minibatches=1, epochs=3)
    batch = new_batch(learner)
    parts = list(learner.parts(batch))
    assert len(parts) == 3
    for part in parts:
        assert part.rows is None and torch.equal(part.actions, batch.actions) and torch.equal(part.log_probs, batch.log_probs)


@pytest.mark.parametrize("minibatches", [2, 4, 5, T * N, 100])
def test_every_row_is_in_exactly_one_minibatch_of_an_epoch(minibatches):
    learner = new_learner(minibatches=minibatches, epochs=3)
    batch = new_batch(learner)
    number = min(minibatches, T * N)
    parts = list(learner.parts(batch))
    assert len(parts) == 3 * number
    orders = set()
    for epoch in range(3):
        rows = [part.rows for part in parts[epoch * number : (epoch + 1) * number]]
        order = torch.cat(rows).tolist()
        assert sorted(order) == list(range(T * N))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        orders.add(tuple(order))
    assert len(orders) == 3
    for part in parts:
        assert torch.equal(part.actions, batch.actions.flatten(0, 1)[part.rows])
        assert torch.equal(part.log_probs, batch.log_probs.flatten()[part.rows])


def test_minibatches_go_by_the_update_the_rank_and_the_seed_alone():
    learner = new_learner()
    batch = new_batch(learner)

    def rows(seed: int, rank: int, update: int) -> list[int]:
        learner.updates = update
        learner.stream = lambda update: build._stream(Config(seed=seed), rank, update)
        return next(iter(learner.parts(batch))).rows.tolist()

    assert rows(0, 0, 5) == rows(0, 0, 5)
    assert len({tuple(rows(*which)) for which in ((0, 0, 5), (0, 0, 6), (0, 1, 5), (1, 0, 5))}) == 4


def learn(learner: PPO, batch: Batch) -> list[float]:
    """Take all steps that a rollout allows, as an agent does; the KL divergences before them."""
    found = []
    for part in learner.parts(batch):
        found.append(float(learner.gradient(part)[3]))
        learner.step(progress=0.0)
    return found


def test_a_rollout_is_left_after_the_epoch_in_which_the_policy_has_moved_too_far():
    def divergences(**settings) -> list[float]:
        learner = new_learner(minibatches=3, epochs=8, **settings)
        learner.lr = 1e-2
        return learn(learner, new_batch(learner))

    every = divergences()
    assert len(every) == 8 * 3 and every[0] == pytest.approx(0, abs=1e-6)
    last = every[2::3]  # of each epoch
    far = next(number for number, kl in enumerate(last) if kl > last[0] * 2)
    assert 0 < far < 7
    some = divergences(target_kl=max(last[:far]) + 1e-9)
    assert some == every[: 3 * (far + 1)]
    assert divergences(target_kl=1e9) == every
    assert len(divergences(target_kl=1e-12)) == 3


def test_steps_on_one_rollout_bring_what_was_worth_more_than_expected():
    """Log-probabilities go the way of the advantages, values to the returns."""
    learner = new_learner(minibatches=1, epochs=40, entropy_coefficient=0.0)
    learner.lr = 1e-2
    batch = new_batch(learner)
    part = next(iter(learner.parts(batch)))
    error = float((part.values - part.returns).square().mean())
    learn(learner, batch)
    policy, values = batch.evaluate(part.rows)
    gained = (policy.log_prob(part.actions) - part.log_probs) * part.advantages
    assert float(gained.mean().detach()) > 0
    assert float((values - part.returns).square().mean().detach()) < error / 2


# Settings


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_learning_rate_does_not_grow_with_the_environments(exchange):
    for agents, num_envs in ((1, 1), (1, 16), (64, 32)):
        assert Config(learner="ppo", exchange=exchange, num_envs=num_envs, base_lr=3e-4).learning_rate(agents) == 3e-4
        assert Config(learner="ppo", exchange=exchange, num_envs=num_envs, lr=1e-2).learning_rate(agents) == 1e-2


def test_the_optimiser_is_adam_with_its_own_epsilon_and_the_rate_falls():
    moves = []
    for progress in (0.0, 0.75):
        learner = new_learner(minibatches=1)
        assert learner.optimiser.name == "adam" and learner.optimiser._constants["eps"] == 1e-5
        learner.gradient(next(iter(learner.parts(new_batch(learner)))))
        moves.append(learner.step(progress).step_norm)
    assert moves[1] / moves[0] == pytest.approx(0.25, rel=1e-3)


def test_rollouts_that_may_be_cut_short_have_as_many_steps_as_minibatches():
    """8 of 30 steps in each of 2 environments are always played, which make 16 minibatches, and not 17."""
    config = Config(learner="ppo", exchange="allreduce", preempt=0.6, num_envs=2, rollout_length=30)
    prepare._check_preemption(config, PPOSettings(minibatches=16), ranks=2)
    with pytest.raises(SettingError, match=r"^--preempt 0.6 --ppo.minibatches 17: .* 16 steps; .* expected$"):
        prepare._check_preemption(config, PPOSettings(minibatches=17), ranks=2)


# The agent


@pytest.fixture(scope="module")
def world():
    end = pulse.end
    yield World()
    pulse.end = end


def test_an_update_takes_all_its_steps_and_adds_what_it_has_seen_to_the_statistics_once(world):
    config = Config(
        env="CartPole-v1",
        num_envs=2,
        rollout_length=T,
        network="mlp",
        precision="fp32",
        learner="ppo",
        normalise_observations=True,
        normalise_rewards=True,
        ppo=PPOSettings(epochs=3, minibatches=4),
    )
    agent = build.build(config, world.comm, 0, 1)
    learner = agent.learner
    assert agent.collector.passes.name == "recomputed" and not learner.one_pass
    agent.start()
    for update in range(1, 4):
        done = agent.update()
        assert not done.skipped and done.losses.kl >= 0 and 0 <= done.losses.clip_share < 1
        assert float(learner.optimiser.steps) == update * 3 * 4
        for sums in (learner.network.observation_sums, learner.network.return_sums):
            assert float(sums.count) == update * T * 2
    agent.close()


def test_a_gaussian_of_the_whole_rollout_is_joined_from_its_passes():
    """What ratios are of: the distributions that played."""
    learner = new_learner(KINDS["box"])
    batch = new_batch(learner)
    assert isinstance(batch.behaviour, Gaussian)
    torch.testing.assert_close(batch.log_probs, batch.evaluate()[0].log_prob(batch.actions).detach())
