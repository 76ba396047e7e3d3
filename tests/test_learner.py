"""A2C by definition: its loss, its gradient, clipping, RMSprop, the learning rate's decay and its state."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from gala_mpi.config import A2CSettings
from gala_mpi.envs.base import Spaces
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Losses
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch

SPACES, T, N = Spaces((4,), False, 3), 5, 2


def new_learner(seed: int = 0, lr: float = 1e-2, **settings) -> A2C:
    torch.manual_seed(seed)
    return A2C(Network("mlp", SPACES), A2CSettings(**settings), lr)


def new_batch(network: Network, seed: int) -> Batch:
    """Random observations, actions, rewards and discounts, with the network's own graph."""
    generator = torch.Generator().manual_seed(seed)
    log_probs, entropies, values = [], [], []
    for _ in range(T):
        distribution, value = network(torch.randn(N, 4, generator=generator))
        log_probs.append(distribution.log_prob(torch.randint(0, 3, (N,), generator=generator)))
        entropies.append(distribution.entropy())
        values.append(value)
    rewards, next_values = torch.randn(2, T, N, generator=generator)
    discounts = 0.99 * (torch.rand(T, N, generator=generator) > 0.3)
    stacked = (torch.stack(rows) for rows in (log_probs, entropies, values))
    return Batch(*stacked, rewards, discounts, next_values)


def train(learner: A2C, seeds: range) -> list[Losses]:
    losses = []
    for seed in seeds:
        losses.append(Losses(*learner.gradient(new_batch(learner.network, seed)).tolist()))
        learner.count(T * N)
        learner.step(progress=seed / 10)
    return losses


def exact(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def definition(batch: Batch, settings: A2CSettings) -> tuple[float, float, float]:
    """Policy loss, value loss and entropy, as sums over single numbers."""
    log_probs, entropies, values = exact(batch.log_probs, batch.entropies, batch.values)
    rewards, discounts, next_values = exact(batch.rewards, batch.discounts, batch.next_values)
    policy = value = entropy = 0.0
    for i in range(N):
        following = next_values[-1, i]
        for t in reversed(range(T)):
            mixed = (1 - settings.gae_lambda) * next_values[t, i] + settings.gae_lambda * following
            following = rewards[t, i] + discounts[t, i] * mixed
            advantage = following - values[t, i]
            policy -= advantage * log_probs[t, i] / (T * N)
            value += advantage**2 / (T * N)
            entropy += entropies[t, i] / (T * N)
    return policy, value, entropy


@pytest.mark.parametrize("gae_lambda", [1.0, 0.95, 0.0])
def test_losses_are_the_definition(gae_lambda):
    learner = new_learner(gae_lambda=gae_lambda)
    batch = new_batch(learner.network, 1)
    losses = learner.gradient(batch)
    expected = definition(batch, learner.settings)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def advantages_of(batch: Batch) -> np.ndarray:
    """n-step returns minus values, [T, N]."""
    rewards, discounts, next_values, values = exact(batch.rewards, batch.discounts, batch.next_values, batch.values)
    returns, following = np.zeros((T, N)), next_values[-1]
    for t in reversed(range(T)):
        following = rewards[t] + discounts[t] * following
        returns[t] = following
    return returns - values


def loss_of(learner: A2C, advantages: np.ndarray) -> float:
    """The loss at the parameters of now; the advantages that weigh log-probabilities stay as they were."""
    with torch.no_grad():
        batch = new_batch(learner.network, 1)
    _, value, entropy = definition(batch, learner.settings)
    policy = -float((advantages * exact(batch.log_probs)[0]).mean())
    return policy + learner.settings.value_coefficient * value - learner.settings.entropy_coefficient * entropy


def test_the_gradient_is_the_slope_of_the_loss():
    """By central differences, for each of the network's tensors along its own gradient."""
    learner = new_learner(value_coefficient=0.7, entropy_coefficient=0.3)
    learner.network.policy.weight.data.mul_(100)  # where all actions are equally probable the entropy has no slope
    batch = new_batch(learner.network, 1)
    learner.gradient(batch)
    for name, parameter in learner.network.named_parameters():
        start, length = parameter.data.clone(), float(parameter.grad.norm())
        losses = []
        for distance in (0.01, -0.01):
            parameter.data.copy_(start + distance * parameter.grad / length)
            losses.append(loss_of(learner, advantages_of(batch)))
        parameter.data.copy_(start)
        assert (losses[0] - losses[1]) / 0.02 == pytest.approx(length, rel=0.01), name


def test_every_gradient_starts_anew():
    once, twice = new_learner(), new_learner()
    once.gradient(new_batch(once.network, 2))
    twice.gradient(new_batch(twice.network, 1))
    twice.gradient(new_batch(twice.network, 2))
    assert torch.equal(once.flat.grad, twice.flat.grad)


def test_what_the_backward_pass_writes_is_not_cleared():
    """It is left as it was; here nothing writes it, and autograd adds."""
    clean, dirty = new_learner(), new_learner()
    clean.gradient(new_batch(clean.network, 2))
    dirty.flat.grad.fill_(1000)
    weight = dirty.network.torso[0].weight
    dirty.gradient(replace(new_batch(dirty.network, 2), written=[weight]))
    weight.grad -= 1000
    torch.testing.assert_close(dirty.flat.grad, clean.flat.grad, rtol=1e-3, atol=1e-3)


def test_counters():
    learner = new_learner()
    train(learner, range(3))
    assert (learner.updates, learner.steps) == (3, 3 * T * N)


def test_a_long_gradient_is_scaled_down_to_the_limit():
    learner = new_learner(max_grad_norm=0.01)
    learner.gradient(new_batch(learner.network, 1))
    before = learner.flat.grad.double().clone()
    norm = learner.step(progress=0.0)
    assert norm == pytest.approx(float(before.norm()), rel=1e-5) and norm > 0.01
    torch.testing.assert_close(learner.flat.grad.double(), before * 0.01 / before.norm(), rtol=1e-5, atol=0)


def test_a_short_gradient_stays():
    learner = new_learner(max_grad_norm=1000.0)
    learner.gradient(new_batch(learner.network, 1))
    before = learner.flat.grad.clone()
    assert learner.step(progress=0.0) == pytest.approx(float(before.norm()), rel=1e-5)
    assert torch.equal(learner.flat.grad, before)


def test_steps_are_those_of_rmsprop():
    learner = new_learner(lr=0.01, rms_alpha=0.9, rms_eps=1e-3)
    square_average = np.zeros(len(learner.flat))
    for seed in range(3):
        learner.gradient(new_batch(learner.network, seed))
        before = learner.flat.data.double().numpy().copy()
        learner.step(progress=0.0)
        gradient = learner.flat.grad.double().numpy()
        square_average = 0.9 * square_average + 0.1 * gradient**2
        expected = before - 0.01 * gradient / (np.sqrt(square_average) + 1e-3)
        assert learner.step_norm == pytest.approx(np.linalg.norm(expected - before), rel=1e-4)
        assert np.allclose(learner.flat.data.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_a_step_into_other_memory_is_the_step_in_place():
    one, other = new_learner(max_grad_norm=0.01), new_learner(max_grad_norm=0.01)
    for seed in range(3):
        for learner in (one, other):
            learner.gradient(new_batch(learner.network, seed))
        room = torch.full((len(other.flat),), torch.nan)
        assert one.step(progress=0.0) == other.step(progress=0.0, into=room)
        assert one.step_norm == other.step_norm > 0
        other.flat.data.copy_(room)
        assert torch.equal(one.flat.data, other.flat.data)


def test_steps_are_those_of_torch():
    learner = new_learner(max_grad_norm=0.01)
    vector = learner.flat.data.clone()
    settings = learner.settings
    optimizer = torch.optim.RMSprop([vector], learner.lr, settings.rms_alpha, settings.rms_eps, foreach=False)
    for seed in range(3):
        learner.gradient(new_batch(learner.network, seed))
        learner.step(progress=0.0)
        vector.grad = learner.flat.grad
        optimizer.step()
        torch.testing.assert_close(learner.flat.data, vector, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay_lr, share", [(True, 0.25), (False, 1.0)])
def test_the_learning_rate_falls_with_progress_if_it_is_to(decay_lr, share):
    """A first RMSprop step is proportional to the learning rate."""
    moves = []
    for progress in (0.0, 0.75):
        learner = new_learner(decay_lr=decay_lr)
        learner.gradient(new_batch(learner.network, 1))
        before = learner.flat.data.clone()
        learner.step(progress)
        moves.append(float((learner.flat.data - before).norm()))
    assert moves[1] / moves[0] == pytest.approx(share, rel=1e-3)


def test_the_last_bit_of_progress_decays_the_learning_rate_to_0():
    learner = new_learner(decay_lr=True)
    learner.gradient(new_batch(learner.network, 1))
    before = learner.flat.data.clone()
    learner.step(progress=1.0)
    assert torch.equal(learner.flat.data, before)


@pytest.mark.parametrize("updates", [0, 3])
def test_a_learner_that_loads_a_state_goes_on_bit_for_bit_as_if_it_had_never_stopped(updates):
    one, other = new_learner(0, decay_lr=True), new_learner(1, decay_lr=True)
    train(one, range(updates))
    train(other, range(20, 22))  # something to forget
    other.load(one.state())
    assert train(one, range(updates, 6)) == train(other, range(updates, 6))
    assert torch.equal(one.flat.data, other.flat.data)
    assert (one.updates, one.steps) == (other.updates, other.steps)
    for name, value in one.state().items():
        assert np.array_equal(value, other.state()[name]), name


def test_a_state_does_not_change_when_training_goes_on():
    learner = new_learner()
    train(learner, range(2))
    state = learner.state()
    kept = copy.deepcopy(state)
    train(learner, range(2, 4))
    assert all(np.array_equal(state[name], kept[name]) for name in kept)


def test_two_learners_that_load_one_state_do_not_share_it():
    one, other = new_learner(0), new_learner(1)
    train(one, range(2))
    state = one.state()
    one.load(state)
    other.load(state)
    kept = copy.deepcopy(other.state())
    train(one, range(2, 4))
    assert all(np.array_equal(other.state()[name], kept[name]) for name in kept)
