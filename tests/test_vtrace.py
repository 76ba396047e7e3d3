"""V-trace by definition: its targets against equation 1 written out, its loss and gradient against the paper row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_ppo import KINDS, N, T, kinds, log_prob_and_entropy, move, new_batch, outputs_of

from gala_mpi import pulse
from gala_mpi.config import A2CSettings, Config, VTraceSettings
from gala_mpi.envs.base import Spaces
from gala_mpi.exchange import EXCHANGES
from gala_mpi.job import build
from gala_mpi.learners.base import Losses
from gala_mpi.learners.returns import lambda_returns, vtrace
from gala_mpi.learners.vtrace import VTrace
from gala_mpi.mpi.world import World
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch


def new_learner(spaces: Spaces = KINDS["discrete"], **settings) -> VTrace:
    torch.manual_seed(0)
    network = Network("mlp", spaces)
    network.policy.weight.data.mul_(100)  # so that probabilities differ
    return VTrace(network, VTraceSettings(**settings), 1e-3)


def equation_1(
    rewards: np.ndarray,
    discounts: np.ndarray,
    values: np.ndarray,
    ratios: np.ndarray,
    rho_bar: float,
    c_bar: float,
    lambda_: float,
) -> np.ndarray:
    """v_s = V(x_s) + Σ_t γ^{t−s} (Π_{i=s}^{t−1} c_i) δ_t V, one number after the other; values [T + 1, N]."""
    found = np.zeros_like(rewards)
    for n in range(rewards.shape[1]):
        for s in range(len(rewards)):
            total = values[s, n]
            for t in range(s, len(rewards)):
                weight = 1.0
                for i in range(s, t):
                    weight *= discounts[i, n] * lambda_ * min(c_bar, ratios[i, n])
                rho = min(rho_bar, ratios[t, n])
                total += weight * rho * (rewards[t, n] + discounts[t, n] * values[t + 1, n] - values[t, n])
            found[s, n] = total
    return found


def steps(seed: int = 0) -> list[np.ndarray]:
    """Rewards, discounts (some 0), values [T + 1, N] and ratios, of which some are far from 1."""
    rng = np.random.default_rng(seed)
    discounts = np.where(rng.random((T, N)) < 0.2, 0, 0.9)
    return [rng.standard_normal((T, N)), discounts, rng.standard_normal((T + 1, N)), np.exp(rng.standard_normal((T, N)))]


BOUNDS = [(1.0, 1.0, 1.0), (math.inf, math.inf, 1.0), (2.0, 0.5, 0.9), (0.7, 1.0, 0.0)]


@pytest.mark.parametrize("rho_bar, c_bar, lambda_", BOUNDS)
def test_targets_are_equation_1(rho_bar, c_bar, lambda_):
    rewards, discounts, values, ratios = steps()
    expected = equation_1(rewards, discounts, values, ratios, rho_bar, c_bar, lambda_)
    given = map(torch.from_numpy, (rewards, discounts, values[:-1], values[1:], np.log(ratios)))
    found, advantages = vtrace(*given, rho_bar, c_bar, lambda_)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    following = np.concatenate([expected[1:], values[-1:]])
    gained = np.minimum(rho_bar, ratios) * (rewards + discounts * following - values[:-1])
    np.testing.assert_allclose(advantages.numpy(), gained, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lambda_", [1.0, 0.9, 0.0])
def test_where_the_policy_has_played_itself_targets_are_lambda_returns(lambda_):
    """With λ 1: n-step returns. Without bounds, and with those that are met exactly."""
    rewards, discounts, values, _ = map(torch.from_numpy, steps())
    returns = lambda_returns(rewards, discounts, values[1:], lambda_)
    for bound in (math.inf, 1.0):
        found, advantages = vtrace(rewards, discounts, values[:-1], values[1:], torch.zeros(T, N), bound, bound, lambda_)
        torch.testing.assert_close(found, returns)
        if lambda_ == 1:
            torch.testing.assert_close(advantages, returns - values[:-1])


def test_ratios_of_any_size_give_numbers():
    rewards, discounts, values, _ = map(torch.from_numpy, steps())
    for log_ratio in (-1e4, 1e4):
        found = vtrace(rewards, discounts, values[:-1], values[1:], torch.full((T, N), log_ratio))
        assert all(each.isfinite().all() for each in found)


# The loss


def literal(learner: VTrace, batch: Batch, last: torch.Tensor, before: list[torch.Tensor]) -> tuple[torch.Tensor, Losses]:
    """The loss and its terms, row by row in float64.

    Args:
        last: what is seen after the last step, [N, ...].
        before: the policy's outputs when it played (see `outputs_of`).
    """
    s, spaces = learner.settings, learner.network.spaces
    now, values = outputs_of(learner.network, batch)
    with torch.no_grad():
        _, bootstrap = learner.network(last)
    masked = batch.observations.flatten(0, 1)[:, -spaces.outputs :] if spaces.masked else torch.ones(T * N, spaces.outputs)
    log_probs, olds, entropy = [], [], torch.zeros((), dtype=torch.float64)
    for row in range(T * N):
        action = batch.actions.flatten(0, 1)[row]
        log_prob, spread = log_prob_and_entropy([each[row] for each in now], action, spaces, masked[row])
        olds.append(log_prob_and_entropy([each[row] for each in before], action, spaces, masked[row])[0])
        log_probs.append(log_prob)
        entropy = entropy + spread
    ratios = np.array([math.exp((log_prob - old).detach()) for log_prob, old in zip(log_probs, olds)]).reshape(T, N)
    V = np.concatenate([values.detach().numpy().reshape(T, N), bootstrap.double().numpy()[None]])
    rewards, discounts = batch.rewards.double().numpy(), batch.discounts.double().numpy()
    targets = equation_1(rewards, discounts, V, ratios, s.rho_bar, s.c_bar, s.gae_lambda)
    following = np.concatenate([targets[1:], V[-1:]])
    policy = value = torch.zeros((), dtype=torch.float64)
    for row in range(T * N):
        t, n = divmod(row, N)
        gained = min(s.rho_bar, ratios[t, n]) * (rewards[t, n] + discounts[t, n] * following[t, n] - V[t, n])
        policy, value = policy - gained * log_probs[row], value + (targets[t, n] - values[row]) ** 2
    clipped, rho = np.mean(ratios > s.rho_bar * math.exp(0.01)), np.mean(np.minimum(s.rho_bar, ratios))
    policy, value, entropy = (term / (T * N) for term in (policy, value, entropy))
    terms = Losses(policy, value, entropy, float(np.mean(ratios - 1 - np.log(ratios))), float(clipped), float(rho))
    return policy + s.value_coefficient * value - s.entropy_coefficient * entropy, terms


SETTINGS = {
    "plain": {},
    "other bounds": {"rho_bar": 1.02, "c_bar": 0.95, "gae_lambda": 0.9, "entropy_coefficient": 0.3, "value_coefficient": 0.7},
}


@kinds
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_loss_and_gradient_are_those_of_the_paper_row_by_row(spaces, settings):
    """Of a network that has moved since it played, whose values are those of now: the one that bootstraps, too."""
    learner = new_learner(spaces, **settings)
    batch = new_batch(learner)
    before = [each.detach() for each in outputs_of(learner.network, batch)[0]]
    last = batch.passes._observations[-N:].clone()
    move(learner, 0.02)
    terms = learner.gradient(batch)
    found = learner.flat.grad.clone()
    loss, expected = literal(learner, batch, last, before)
    batch.backward(loss)
    difference = torch.linalg.vector_norm(found - learner.flat.grad) / torch.linalg.vector_norm(found)
    assert difference < 1e-6, difference
    np.testing.assert_allclose(terms, [float(torch.as_tensor(term).detach()) for term in expected], rtol=1e-5, atol=1e-6)
    assert 0 < float(terms[4]) < 1 and float(terms[5]) < learner.settings.rho_bar  # some ratios are clipped


# Settings, the agent


def test_defaults_are_impalas_with_the_steps_of_a2c():
    learner = new_learner()
    assert learner.settings.max_grad_norm == A2CSettings().max_grad_norm and learner.optimiser.name == "rmsprop"
    assert learner.settings.decay_lr
    images = Config(learner="vtrace").left_to_learner(images=True)
    assert images["rollout_length"] == 10 and Config(learner="vtrace", num_envs=64).learning_rate(1) == 2e-3
    assert Config(learner="vtrace").left_to_learner(images=False)["rollout_length"] == 20


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_learning_rate_goes_by_the_root_of_the_environments(exchange):
    together = 4 if EXCHANGES[exchange].load().shares else 1
    found = Config(learner="vtrace", exchange=exchange, num_envs=8, base_lr=1e-3).learning_rate(4)
    assert found == pytest.approx(1e-3 * math.sqrt(8 * together / 16))


@pytest.fixture(scope="module")
def world():
    end = pulse.end
    yield World()
    pulse.end = end


@pytest.mark.parametrize("normalised, passes", [(False, "cached"), (True, "cached")])
def test_where_the_policy_plays_itself_nothing_is_corrected(world, normalised, passes):
    """Passes that were cached are learnt from, and the value that bootstraps is theirs."""
    config = Config(
        env="CartPole-v1", num_envs=2, rollout_length=T, network="mlp", precision="fp32", learner="vtrace",
        normalise_observations=normalised,
    )  # fmt: skip
    agent = build.build(config, world.comm, 0, 1)
    assert agent.collector.passes.name == passes and agent.learner.one_pass
    agent.start()
    for _ in range(3):
        batch, _ = agent.collector.collect()
        torch.testing.assert_close(batch.following(batch.values), batch.next_values, rtol=1e-5, atol=1e-6)
    for _ in range(3):
        losses = agent.update().losses
        assert losses.rho == pytest.approx(1, abs=1e-5) and losses.kl == pytest.approx(0, abs=1e-6) and losses.clip_share == 0
    agent.close()
