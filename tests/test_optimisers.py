"""RMSprop and Adam on one vector, against torch.optim with torch's own clipping, and against their definitions."""

import copy
import math

import numpy as np
import pytest
import torch

from gala_mpi.config_checks import LARGEST_LR
from gala_mpi.learners.optimisers import Adam, Optimiser, RMSprop, make
from gala_mpi.learners.settings import SMALLEST_EPS, LearnerSettings

SIZE, LR = 1003, 1e-2  # no multiple of a vector register
NAMES = ("rmsprop", "adam")
every = pytest.mark.parametrize("name", NAMES)


def new(name: str) -> Optimiser:
    return make(LearnerSettings(optimiser=name, rms_alpha=0.9, rms_eps=1e-3), torch.zeros(SIZE))


def of_torch(name: str, vector: torch.Tensor) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam([vector], lr=LR, foreach=False)
    return torch.optim.RMSprop([vector], lr=LR, alpha=0.9, eps=1e-3, foreach=False)


def gradient(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def steps(optimiser: Optimiser, data: torch.Tensor, seeds: range, max_norm: float = 1.0) -> list[tuple[float, float]]:
    return [tuple(optimiser.step(gradient(seed), data, LR, max_norm)) for seed in seeds]


@every
@pytest.mark.parametrize("max_norm", [0.01, 1e9])
def test_steps_and_norms_are_those_of_torch(name, max_norm):
    """torch divides by the norm + 1e-6."""
    data = gradient(99)
    vector, optimiser = data.clone(), new(name)
    theirs = of_torch(name, vector)
    for seed in range(5):
        grad_norm, step_norm = optimiser.step(gradient(seed), data, LR, max_norm)
        vector.grad, before = gradient(seed), vector.clone()
        norm = torch.nn.utils.clip_grad_norm_([vector], max_norm)
        theirs.step()
        torch.testing.assert_close(data, vector, rtol=1e-5, atol=1e-6)
        assert grad_norm == pytest.approx(float(norm), rel=1e-5)
        assert step_norm == pytest.approx(float((vector - before).norm()), rel=1e-3)


def test_rmsprop_is_its_definition():
    data, optimiser, square = gradient(99), RMSprop(torch.zeros(SIZE), 0.9, 1e-3), np.zeros(SIZE)
    for seed in range(3):
        g, before = gradient(seed).double().numpy(), data.double().numpy()
        optimiser.step(gradient(seed), data, LR, 1e9)
        square = 0.9 * square + 0.1 * g**2
        np.testing.assert_allclose(data.numpy(), before - LR * g / (np.sqrt(square) + 1e-3), rtol=1e-5, atol=1e-6)


def test_adam_is_algorithm_1_of_the_paper():
    data, optimiser = gradient(99), Adam(torch.zeros(SIZE))
    m, v = np.zeros(SIZE), np.zeros(SIZE)
    for t in range(1, 4):
        g, before = gradient(t).double().numpy(), data.double().numpy()
        optimiser.step(gradient(t), data, LR, 1e9)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected = before - LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(data.numpy(), expected, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("max_norm", [0.01, 1e9])
def test_a_gradient_is_scaled_down_to_the_limit_and_otherwise_left(name, max_norm):
    grad = gradient(1)
    norm, _ = new(name).step(grad, torch.zeros(SIZE), LR, max_norm)
    assert norm == pytest.approx(float(gradient(1).norm()), rel=1e-5)
    torch.testing.assert_close(grad, gradient(1) * min(1.0, max_norm / norm), rtol=1e-5, atol=0)


def broken(*where: float) -> torch.Tensor:
    """A gradient with these numbers in it."""
    grad = gradient(1)
    grad[100 : 100 + len(where)] = torch.tensor(where)
    return grad


@every
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("where", [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf), (1e38, 1e38)])
def test_a_gradient_that_is_not_finite_changes_nothing(name, elsewhere, where):
    """Its length may not be, either (the last one's)."""
    one, data = new(name), gradient(99)
    steps(one, data, range(3))
    state, before = copy.deepcopy(one.state()), data.clone()
    room = torch.full((SIZE,), math.nan) if elsewhere else None
    step = one.step(broken(*where), data, LR, 0.5, into=room)
    assert not step.taken and not math.isfinite(step.grad_norm) and step.step_norm == 0
    assert torch.equal(data if room is None else room, before)
    assert all(np.array_equal(value, one.state()[key]) for key, value in state.items())
    assert one.step(gradient(4), before, LR, 0.5).taken


@every
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
def test_no_gradient_moves_a_parameter_by_more_than_some_learning_rates(name, size, max_norm):
    one, data = (
        make(LearnerSettings(optimiser=name, rms_alpha=0.999, rms_eps=SMALLEST_EPS, adam_eps=SMALLEST_EPS), torch.zeros(SIZE)),
        torch.zeros(SIZE),
    )
    for seed in (1, 2, 2, 3):
        before = data.clone()
        step = one.step(gradient(seed) * size * 10.0 ** (seed % 3), data, LARGEST_LR, max_norm)
        assert step.taken and (data - before).abs().max() < 100 * LARGEST_LR
    assert all(np.isfinite(value).all() for value in one.state().values())


@every
def test_a_step_into_other_memory_is_the_step_in_place(name):
    one, other = new(name), new(name)
    data, same, room = gradient(99), gradient(99), torch.empty(SIZE)
    for seed in range(3):
        room.fill_(torch.nan)
        assert one.step(gradient(seed), data, LR, 0.5) == other.step(gradient(seed), same, LR, 0.5, into=room)
        same.copy_(room)
        assert torch.equal(data, same)


@every
@pytest.mark.parametrize("before", [0, 3])
def test_one_that_loads_a_state_goes_on_bit_for_bit(name, before):
    one, other, data = new(name), new(name), gradient(99)
    steps(one, data, range(before))
    steps(other, gradient(98), range(20, 22))  # something to forget
    state = one.state()
    other.load(state)
    kept, same = copy.deepcopy(state), data.clone()
    assert steps(one, data, range(3, 6)) == steps(other, same, range(3, 6))
    assert torch.equal(data, same)
    assert all(np.array_equal(state[key], kept[key]) for key in kept)  # nobody shares it
