"""Cached and stored forward passes give what ordinary passes over the same observations give: outputs, and the gradient."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gala_mpi.envs.base import Spaces
from gala_mpi.flat import Flat
from gala_mpi.networks.policy import Network
from gala_mpi.rollout import kernels
from gala_mpi.rollout.cached import Cached
from gala_mpi.rollout.chain import PART_BYTES
from gala_mpi.rollout.kernels import Convolution

T, N = 3, 4
PONG = Spaces((4, 84, 84), image=True, actions=6)
POLE = Spaces((4,), image=False, actions=2)
# Pixels side by side can be taken together by the second layer alone, by the first alone, by none.
SECOND, FIRST, NONE = (Spaces(shape, image=True, actions=6) for shape in ((4, 84, 86), (3, 84, 88), (3, 84, 90)))
NETWORKS = [(name, spaces) for name in ("gala", "nature") for spaces in (PONG, SECOND, FIRST, NONE)] + [("mlp", POLE)]
BITS, FLOATS = (
    Spaces((4, 10, 12), image=True, actions=6, scale=1.0),
    Spaces((3, 40, 44), image=True, actions=6, dtype="float32"),
)
CHOICES = Spaces((4,), image=False, actions=None, action_shape=(2,), choices=(3, 2))
NETWORKS += [("small", BITS), ("gala", replace(FLOATS, scale=1.0)), ("mlp", CHOICES)]


def some_observations(spaces: Spaces) -> list[torch.Tensor]:
    if spaces.dtype == "float32" and spaces.image:
        return [torch.rand(N, *spaces.observation_shape) for _ in range(T + 1)]
    if spaces.image:
        images = [
            torch.randint(0, round(1 / spaces.scale) + 1, (N, *spaces.observation_shape), dtype=torch.uint8)
            for _ in range(T + 1)
        ]
        return [images[0], images[1].contiguous(memory_format=torch.channels_last), *images[2:]]  # either layout comes
    return [torch.randn(N, *spaces.observation_shape) for _ in range(T + 1)]


def some_loss(policy, values: torch.Tensor) -> torch.Tensor:
    shape = policy.logits.shape[:-1]  # [T, N], or [T, N, k] of several choices
    return policy.log_prob(torch.zeros(shape, dtype=torch.long)).sum() + values.pow(2).sum()


@pytest.mark.parametrize(("name", "spaces"), NETWORKS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
@pytest.mark.parametrize("part_bytes", [PART_BYTES, 1])
def test_gradient_is_that_of_an_ordinary_pass_in_every_rollout(name, spaces, precision, tolerance, part_bytes, monkeypatch):
    """A rollout that is one part, or many."""
    monkeypatch.setattr("gala_mpi.rollout.chain.PART_BYTES", part_bytes)
    torch.manual_seed(0)
    ordinary, network = (Network(name, spaces, of).to(memory_format=torch.channels_last) for of in ("fp32", precision))
    flat = Flat(network)
    observations = some_observations(spaces)
    kept = Cached(network, T, observations[0])
    for _ in range(2):  # the second rollout meets other parameters
        kept.load_parameters()
        ordinary.load_state_dict(network.state_dict())
        for t, now in enumerate(observations):
            expected = ordinary(now)[1].detach()
            got = kept.forward(t, now)[1].detach()
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)

        ordinary.zero_grad()
        some_loss(*ordinary(torch.cat(observations[:T]))).backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in ordinary.parameters()])
        flat.grad.fill_(math.nan)
        kept.backward(some_loss(*kept.evaluate()))
        assert torch.linalg.vector_norm(expected) > 1
        got = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        distance = torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)
        assert distance < tolerance
        with torch.no_grad():
            flat.data.add_(torch.randn(len(flat)), alpha=0.02)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_small_layers_by_numpy_are_those_by_torch(activation, monkeypatch):
    """Numbers that overflow are infinite by either, and nobody is warned of them."""
    torch.manual_seed(0)
    network = Network("mlp", POLE, settings={"activation": activation})
    Flat(network).data.mul_(10)
    observations = torch.cat([torch.randn(N - 1, 4), torch.full((1, 4), 3e38)])
    found = []
    for few, grain in ((0, 0), (0, kernels.GRAIN), (kernels.FEW, kernels.GRAIN)):  # products and tanh; tanh; neither by torch
        monkeypatch.setattr(kernels, "FEW", few)
        monkeypatch.setattr(kernels, "GRAIN", grain)
        kept = Cached(network, 1, observations)
        kept.load_parameters()
        found.append(kept.forward(0, observations)[0].logits.clone())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert found[0][:-1].isfinite().all() and found[0][-1].isfinite().all() == (activation == "tanh")


def test_torch_computes_all_while_its_operations_are_counted_and_no_longer():
    network = Network("mlp", POLE, settings={"hidden": "32,8"})
    Flat(network)
    kept = Cached(network, 1, torch.randn(N, 4))
    kept.load_parameters()
    all_layers, heads = 4 * 32 + 32 * 8 + 8 * 3, 8 * 3  # heads are torch's in any case
    for alone, products in ((False, heads), (True, all_layers), (False, heads)):
        with kernels.torch_alone() if alone else nullcontext(), FlopCounterMode(display=False) as counter:
            kept.forward(0, torch.randn(N, 4))
        assert counter.get_total_flops() == 2 * N * products


def test_the_bootstrap_pass_has_no_part_in_the_gradient():
    torch.manual_seed(0)
    network = Network("mlp", POLE)
    observations = some_observations(POLE)
    gradients = []
    for last in (observations[-1], 100 * observations[-1]):
        flat = Flat(network)
        kept = Cached(network, T, observations[0])
        kept.load_parameters()
        for t, now in enumerate([*observations[:T], last]):
            kept.forward(t, now)
        kept.backward(some_loss(*kept.evaluate()))
        gradients.append(flat.grad)
    assert torch.equal(*gradients)


def test_pixels_side_by_side_are_channels_of_one_without_being_moved():
    memory = torch.randn(2, 32, 20, 20).contiguous(memory_format=torch.channels_last)
    folded = Convolution(torch.nn.Conv2d(32, 64, 4, 2), torch.float32, 1.0, memory).view(memory)
    assert folded.shape == (2, 64, 20, 10) and folded.data_ptr() == memory.data_ptr()
    assert torch.equal(folded[1, :, 3, 7], torch.cat([memory[1, :, 3, 14], memory[1, :, 3, 15]]))
    assert folded.is_contiguous(memory_format=torch.channels_last)
