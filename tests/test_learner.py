"""A2C by definition: its loss, its gradient, the learning rate's decay and its state."""

import copy

import numpy as np
import pytest
import torch

from batches import made_up
from gala_mpi.config import A2CSettings
from gala_mpi.envs.base import Spaces
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Losses
from gala_mpi.learners.returns import lambda_returns
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch

SPACES, T, N = Spaces((4,), False, 3), 5, 2


def new_learner(seed: int = 0, lr: float = 1e-2, **settings) -> A2C:
    torch.manual_seed(seed)
    return A2C(Network("mlp", SPACES), A2CSettings(**settings), lr)


def new_batch(network: Network, seed: int) -> Batch:
    """Random observations, actions, rewards and discounts."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(T + 1, N, 4, generator=generator)
    actions = torch.randint(0, 3, (T, N), generator=generator)
    rewards = torch.randn(T, N, generator=generator)
    discounts = 0.99 * (torch.rand(T, N, generator=generator) > 0.3)
    return made_up(network, observations, actions, rewards, discounts)


def train(learner: A2C, seeds: range) -> list[list[float]]:
    losses = []
    for seed in seeds:
        losses.append(learner.gradient(new_batch(learner.network, seed)).tolist()[:3])  # those that it has
        learner.count(T * N)
        learner.step(progress=seed / 10)
    return losses


def exact(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def definition(batch: Batch, settings: A2CSettings, next_values: np.ndarray | None = None) -> tuple[float, float, float]:
    """Policy loss, value loss and entropy, as sums over single numbers; `next_values` unless they are the batch's."""
    distribution, found = batch.evaluate()
    log_probs, entropies, values = exact(distribution.log_prob(batch.actions), distribution.entropy(), found)
    rewards, discounts, next_now = exact(batch.rewards, batch.discounts, batch.next_values)
    next_values = next_now if next_values is None else next_values
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
    assert losses[:3].tolist() == pytest.approx(expected, rel=1e-5) and losses[3:].isnan().all()


def advantages_of(batch: Batch) -> np.ndarray:
    """n-step returns minus values, [T, N]."""
    rewards, discounts, next_values, values = exact(batch.rewards, batch.discounts, batch.next_values, batch.values)
    returns, following = np.zeros((T, N)), next_values[-1]
    for t in reversed(range(T)):
        following = rewards[t] + discounts[t] * following
        returns[t] = following
    return returns - values


def loss_of(learner: A2C, then: Batch) -> float:
    """The loss at the parameters of now; advantages that weigh log-probabilities and values to come stay those of then."""
    advantages = advantages_of(then)
    with torch.no_grad():
        batch = new_batch(learner.network, 1)
        _, value, entropy = definition(batch, learner.settings, *exact(then.next_values))
        log_probs = batch.evaluate()[0].log_prob(batch.actions)
    policy = -float((advantages * exact(log_probs)[0]).mean())
    return policy + learner.settings.value_coefficient * value - learner.settings.entropy_coefficient * entropy


def test_the_gradient_is_the_slope_of_the_loss():
    """By central differences, for each of the network's tensors along its own gradient."""
    learner = new_learner(value_coefficient=0.7, entropy_coefficient=0.3)
    learner.network.policy.weight.data.mul_(100)  # where all actions are equally probable the entropy has no slope
    batch = new_batch(learner.network, 1)
    learner.gradient(batch)
    assert batch.values.shape == (T, N)  # of now, as everything else that stays
    for name, parameter in learner.network.named_parameters():
        start, length = parameter.data.clone(), float(parameter.grad.norm())
        losses = []
        for distance in (0.01, -0.01):
            parameter.data.copy_(start + distance * parameter.grad / length)
            losses.append(loss_of(learner, batch))
        parameter.data.copy_(start)
        assert (losses[0] - losses[1]) / 0.02 == pytest.approx(length, rel=0.01), name


def test_every_gradient_starts_anew():
    once, twice = new_learner(), new_learner()
    once.gradient(new_batch(once.network, 2))
    twice.gradient(new_batch(twice.network, 1))
    twice.gradient(new_batch(twice.network, 2))
    assert torch.equal(once.flat.grad, twice.flat.grad)


def test_counters():
    learner = new_learner()
    train(learner, range(3))
    assert (learner.updates, learner.steps) == (3, 3 * T * N)


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


# In parts, and other optimisers


class Minibatch:
    """Some rows of a rollout, with what they return."""

    def __init__(self, batch: Batch, rows: torch.Tensor, returns: torch.Tensor):
        self.batch, self.rows = batch, rows
        self.returns, self.actions = returns.flatten()[rows], batch.actions.flatten()[rows]
        self.backward = batch.backward


class InParts(A2C):
    """Two epochs of two halves each."""

    def parts(self, batch: Batch) -> list[Minibatch]:
        returns = lambda_returns(batch.rewards, batch.discounts, batch.next_values, 1.0)
        halves = torch.arange(T * N).chunk(2)
        return [Minibatch(batch, rows, returns) for _ in range(2) for rows in halves]

    def loss(self, part: Minibatch) -> tuple[torch.Tensor, Losses]:
        distribution, values = part.batch.evaluate(part.rows)
        advantages = part.returns - values
        policy = -(advantages.detach() * distribution.log_prob(part.actions)).mean()
        value = advantages.pow(2).mean()
        return policy + value, Losses(policy, value)


def test_a_learner_may_take_a_rollout_in_parts_whose_gradients_add_up():
    """Of two halves the mean is that of the whole, as long as no step is taken; terms that it lacks are not a number."""
    learner = InParts(new_learner().network, A2CSettings(), 1e-2)
    batch = new_batch(learner.network, 1)
    parts = learner.parts(batch)
    gradients, terms = [], []
    for part in parts:
        terms.append(learner.gradient(part))
        gradients.append(learner.flat.grad.clone())
    whole = new_learner(value_coefficient=1.0, entropy_coefficient=0.0)
    expected = whole.gradient(new_batch(whole.network, 1))
    torch.testing.assert_close(sum(gradients) / 4, whole.flat.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close((sum(terms) / 4)[:2], expected[:2])
    assert all(torch.isnan(each[2]) for each in terms)
    assert whole.one_pass and not learner.one_pass


@pytest.mark.parametrize("optimiser", ["rmsprop", "adam"])
def test_a_learner_with_either_optimiser_goes_on_from_its_state(optimiser):
    one, other = new_learner(0, optimiser=optimiser), new_learner(1, optimiser=optimiser)
    train(one, range(3))
    other.load(one.state())
    assert train(one, range(3, 6)) == train(other, range(3, 6))
    assert torch.equal(one.flat.data, other.flat.data)


@pytest.mark.parametrize("momentum, lr", [(0.9, 0.7), (0.0, 1.0)])
def test_outer_steps_are_nesterov_s_and_go_on_from_a_state(momentum, lr):
    """In float64. The first mean is taken as it is, after a state without outer steps too."""
    means = np.random.default_rng(0).standard_normal((6, len(new_learner().flat.data)))
    learner, again, old = new_learner(), new_learner(seed=1), new_learner(seed=1)
    for each in (learner, again, old):
        each.take_outer_steps(momentum, lr)
    assert "outer_last" not in learner.state()
    x, velocity = means[0].copy(), np.zeros_like(means[0])
    for number, mean in enumerate(means):
        learner.flat.data.copy_(torch.from_numpy(mean))
        learner.outer_step()
        if number:
            moved = x - mean
            velocity = momentum * velocity + moved
            x = x - lr * (moved + momentum * velocity)
        np.testing.assert_allclose(learner.state()["parameters"], x, rtol=1e-4, atol=1e-4)
        if number == 3:
            again.load(learner.state())
        if number > 3:
            again.flat.data.copy_(torch.from_numpy(mean))
            again.outer_step()
            for name, value in learner.state().items():
                assert np.array_equal(value, again.state()[name]), name
    old.load({name: value for name, value in learner.state().items() if not name.startswith("outer")})
    old.flat.data.copy_(torch.from_numpy(means[0]))
    old.outer_step()
    assert np.array_equal(old.state()["parameters"], means[0].astype(np.float32))


def test_the_moving_average_is_its_recursion_and_goes_on_from_a_state():
    """In float64; a state of before, without one, begins it with the parameters."""
    plain, learner = new_learner(), new_learner()
    learner.keep_average(0.9)
    expected = learner.flat.data.double().numpy()
    for seed in range(5):
        for each in (plain, learner):
            train(each, range(seed, seed + 1))
            each.average()
        expected = 0.9 * expected + 0.1 * learner.flat.data.double().numpy()
    assert torch.equal(plain.flat.data, learner.flat.data) and "ema" not in plain.state()
    state = learner.state()
    np.testing.assert_allclose(state["ema"], expected, rtol=1e-5, atol=1e-7)
    assert np.abs(state["ema"] - state["parameters"]).max() > 1e-3
    again, old = new_learner(seed=1), new_learner(seed=1)
    for each in (again, old):
        each.keep_average(0.9)
    again.load(state)
    old.load({name: value for name, value in state.items() if name != "ema"})
    for each in (learner, again):
        train(each, range(5, 6))
        each.average()
    assert np.array_equal(learner.state()["ema"], again.state()["ema"])
    assert np.array_equal(old.state()["ema"], state["parameters"])
    plain.load(state)  # by one that keeps none it is passed over
    assert np.array_equal(plain.state()["parameters"], state["parameters"])
