"""A network on flat vectors against the same network with ordinary parameters and torch's own clipping."""

import copy
import math

import pytest
import torch
from torch import nn

from gala_mpi.config import A2CSettings
from gala_mpi.envs.base import Spaces
from gala_mpi.flat import Flat
from gala_mpi.learners.a2c import A2C
from gala_mpi.networks.policy import Network

PONG, VECTORS = Spaces((4, 84, 84), True, 6), Spaces((4,), False, 2)
NETWORKS = [("gala", PONG), ("nature", PONG), ("mlp", VECTORS)]
# With 16 actions every parameter begins on a multiple of 64 bytes, as torch's own allocations do. Elsewhere (the value
# head for Pong) a matrix product may take another path and round otherwise.
IMAGES_16 = Spaces((4, 84, 84), True, 16)
ALIGNED = [("gala", IMAGES_16), ("nature", IMAGES_16), ("mlp", Spaces((4,), False, 16))]
CLIPPED, UNCLIPPED = 1e-3, math.inf  # max_grad_norm


def new_network(name: str, spaces: Spaces) -> Network:
    torch.manual_seed(0)
    return Network(name, spaces).to(memory_format=torch.channels_last)


def loss_of(network: Network, step: int) -> torch.Tensor:
    """Some loss that depends on all parameters, and on the step."""
    generator = torch.Generator().manual_seed(step)
    shape = (3, *network.spaces.observation_shape)
    if network.spaces.image:
        observations = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        observations = torch.randn(shape, generator=generator)
    policy, values = network(observations)
    return -policy.log_prob(torch.tensor([0, 1, 1])).mean() + (values - step).pow(2).mean() - policy.entropy().mean()


def flat_training(network: Network, max_grad_norm: float, steps: int = 4) -> A2C:
    learner = A2C(network, A2CSettings(max_grad_norm=max_grad_norm), lr=1e-3)
    for step in range(steps):
        learner.flat.grad.zero_()
        loss_of(network, step).backward()
        learner.step(progress=0.0)
    return learner


def ordinary_training(network: Network, max_grad_norm: float, steps: int = 4) -> None:
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.99, eps=1e-5, foreach=False)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(network, step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimizer.step()


def byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + 4 * tensor.numel()


def assert_tiles(vector: torch.Tensor, parts: list[torch.Tensor]) -> None:
    """The parts lie in the vector's memory one after another and leave nothing of it over."""
    begin, end = byte_range(vector)
    for part in parts:
        assert part.data_ptr() == begin
        begin = byte_range(part)[1]
    assert begin == end


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_parameters_and_gradients_are_views_and_stay_views(name, spaces):
    network = new_network(name, spaces)
    learner = flat_training(network, CLIPPED)
    loss_of(network, 9).backward()
    parameters = list(network.parameters())
    assert_tiles(learner.flat.data, [parameter.data for parameter in parameters])
    assert_tiles(learner.flat.grad, [parameter.grad for parameter in parameters])
    assert len(learner.flat) == sum(parameter.numel() for parameter in parameters)
    assert learner.flat.grad.count_nonzero() > 0


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_a_change_of_the_vector_changes_the_network(name, spaces):
    network = new_network(name, spaces)
    flat = Flat(network)
    flat.data.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in network.parameters())


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_flattening_keeps_every_value(name, spaces):
    network = new_network(name, spaces)
    before = copy.deepcopy(network.state_dict())
    Flat(network)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_convolution_weights_are_laid_channels_last():
    network = new_network("nature", PONG)
    Flat(network)
    for layer in network.encoder:
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            assert layer.weight.grad.stride() == layer.weight.stride()


@pytest.mark.parametrize("name, spaces", ALIGNED)
def test_gradients_equal_the_ordinary_network_bit_for_bit(name, spaces):
    flat, ordinary = new_network(name, spaces), new_network(name, spaces)
    Flat(flat)
    loss_of(flat, 0).backward()
    loss_of(ordinary, 0).backward()
    for mine, theirs in zip(flat.parameters(), ordinary.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("name, spaces", NETWORKS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("limit", [CLIPPED, UNCLIPPED])
def test_training_equals_that_of_the_ordinary_network_to_rounding(name, spaces, channels_last, limit):
    """torch divides by the norm + 1e-6 and sums it in another order; without channels_last convolutions sum so too."""
    flat, ordinary = new_network(name, spaces), new_network(name, spaces)
    if not channels_last:
        ordinary = ordinary.to(memory_format=torch.contiguous_format)
    begin = copy.deepcopy(flat)
    flat_training(flat, limit)
    ordinary_training(ordinary, limit)
    networks = (flat, ordinary, begin)
    mine, theirs, old = (torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks)
    moved = torch.linalg.vector_norm(theirs - old)
    assert moved > 0
    assert torch.linalg.vector_norm(mine - theirs) < 1e-4 * moved
