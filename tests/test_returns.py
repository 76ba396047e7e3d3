"""Returns against the definition, written as plain loops over Python floats."""

import numpy as np
import pytest
import torch

from gala_mpi.learners.returns import lambda_returns

T, N = 7, 5


def random_rollout(length: int = T, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, discounts (a third of them 0) and next values, float64 [T, N]."""
    rng = np.random.default_rng(seed)
    rewards, next_values = rng.normal(size=(2, length, N))
    discounts = rng.uniform(0.5, 1, size=(length, N)) * (rng.random((length, N)) > 1 / 3)
    return rewards, discounts, next_values


def n_step_return(rewards: list, discounts: list, last_value: float) -> float:
    """r_0 + d_0 r_1 + d_0 d_1 r_2 + ... + d_0 ... d_{n-1} V(s_n)."""
    total, weight = 0.0, 1.0
    for reward, discount in zip(rewards, discounts, strict=True):
        total += weight * reward
        weight *= discount
    return total + weight * last_value


def forward_view(rewards: list, discounts: list, next_values: list, lambda_: float) -> float:
    """(1 - λ) Σ_n λ^{n-1} G^(n) + λ^{n_max - 1} G^(n_max): Sutton & Barto 2018, equation 12.3."""
    length = len(rewards)
    n_steps = [n_step_return(rewards[:n], discounts[:n], next_values[n - 1]) for n in range(1, length + 1)]
    mixed = sum((1 - lambda_) * lambda_ ** (n - 1) * n_steps[n - 1] for n in range(1, length))
    return mixed + lambda_ ** (length - 1) * n_steps[-1]


def returns_of(rewards, discounts, next_values, lambda_) -> np.ndarray:
    return lambda_returns(*(torch.from_numpy(x) for x in (rewards, discounts, next_values)), lambda_).numpy()


@pytest.mark.parametrize("length", [1, 2, T])
def test_lambda_1_gives_n_step_returns(length):
    rewards, discounts, next_values = random_rollout(length)
    found = returns_of(rewards, discounts, next_values, 1.0)
    for i in range(N):
        for t in range(length):
            expected = n_step_return(list(rewards[t:, i]), list(discounts[t:, i]), next_values[-1, i])
            assert found[t, i] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("length", [1, 2, T])
def test_lambda_returns_are_the_forward_view(lambda_, length):
    rewards, discounts, next_values = random_rollout(length, seed=1)
    found = returns_of(rewards, discounts, next_values, lambda_)
    for i in range(N):
        for t in range(length):
            columns = (list(x[t:, i]) for x in (rewards, discounts, next_values))
            assert found[t, i] == pytest.approx(forward_view(*columns, lambda_), rel=1e-10)


def test_lambda_0_gives_one_step_targets():
    rewards, discounts, next_values = random_rollout()
    assert np.array_equal(returns_of(rewards, discounts, next_values, 0.0), rewards + discounts * next_values)


@pytest.mark.parametrize("lambda_", [0.95, 1.0])
def test_advantages_are_those_of_gae(lambda_):
    """Σ_k (Π d λ) δ_{t+k} with δ_t = r_t + d_t V(s_{t+1}) - V(s_t) (Schulman et al. 2016)."""
    rewards, discounts, next_values = random_rollout(seed=2)
    values = np.concatenate([np.random.default_rng(3).normal(size=(1, N)), next_values[:-1]])
    errors = rewards + discounts * next_values - values
    found = returns_of(rewards, discounts, next_values, lambda_) - values
    for i in range(N):
        for t in range(T):
            advantage, weight = 0.0, 1.0
            for k in range(t, T):
                advantage += weight * errors[k, i]
                weight *= discounts[k, i] * lambda_
            assert found[t, i] == pytest.approx(advantage, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_nothing_after_a_terminated_step_counts(lambda_):
    rewards, discounts, next_values = random_rollout()
    discounts[3] = 0
    before = returns_of(rewards, discounts, next_values, lambda_)
    rewards[4:] += 100
    next_values[3:] += 100
    after = returns_of(rewards, discounts, next_values, lambda_)
    assert np.array_equal(before[:4], after[:4])
    assert not np.array_equal(before[4:], after[4:])


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_a_truncated_step_returns_as_if_the_rollout_had_ended_on_what_was_cut_off(lambda_):
    """Truncation's discount is 0 and γ V(cut off) is in its reward; by definition the rollout just bootstraps there."""
    gamma, cut_off = 0.99, 3.0
    rewards, _, next_values = random_rollout(seed=4)
    discounts = np.full((T, N), gamma)
    shown_rewards, shown_discounts = rewards.copy(), discounts.copy()
    shown_rewards[3] += gamma * cut_off
    shown_discounts[3] = 0
    found = returns_of(shown_rewards, shown_discounts, next_values, lambda_)
    until_cut = next_values[:4].copy()
    until_cut[3] = cut_off
    for i in range(N):
        for t in range(4):
            columns = (list(x[t:4, i]) for x in (rewards, discounts, until_cut))
            assert found[t, i] == pytest.approx(forward_view(*columns, lambda_), rel=1e-10)


def test_returns_carry_no_gradient():
    rewards, discounts, next_values = (torch.from_numpy(x) for x in random_rollout())
    assert not lambda_returns(rewards, discounts, next_values.requires_grad_(), 0.95).requires_grad
