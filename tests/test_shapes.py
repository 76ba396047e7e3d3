"""Networks of any shape learn under the same code: which path a rollout takes, and that its gradient is autograd's."""

import copy
from dataclasses import replace

import numpy as np
import own
import pytest
import shapes
import torch
from test_rollout import GAMMA, KINDS, SEEDS, N, T
from torch import nn

from gala_mpi.clock import Clock
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.returns import lambda_returns
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks import NETWORKS
from gala_mpi.networks.encoders import Flatten, mlp
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.cached import fits
from gala_mpi.rollout.collector import Collector
from gala_mpi.rollout.stored import Stored

POLE, PONG = Spaces((4,), False, 2), Spaces((4, 84, 84), True, 6)
SHAPES = {"residual": "numbers", "skipping": "images"}
PRECISIONS = pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])


@pytest.fixture(autouse=True)
def tables(monkeypatch) -> None:
    for name, member in own.NETWORKS_OF_MINE.items():
        monkeypatch.setitem(NETWORKS, name, member)


class InParts(A2C):
    def parts(self, batch: Batch) -> list[Batch]:
        return [batch, batch]


def learner_of(name: str, spaces: Spaces, precision: str = "fp32", kind: type[A2C] = A2C) -> A2C:
    torch.manual_seed(0)
    network = Network(name, spaces, precision).to(memory_format=torch.channels_last)
    return kind(network, A2CSettings(discount=GAMMA), lr=1e-2)


def played(name: str, kind: str, precision: str = "fp32", rollouts: int = 2) -> tuple[A2C, Collector, Batch]:
    """A learner's collector, and the last of some rollouts; the first ones have been learnt from."""
    kind, _, overlapped = kind.partition(" ")
    turns = 2 if overlapped else 1
    environments = [GymEnvironments(f"plan/{kind}-v0", N // turns) for _ in range(turns)]
    learner = learner_of(name, environments[0].spaces, precision)
    learner.network.policy.weight.data.mul_(30)  # so that probabilities differ
    playing = Collector(learner, environments, SEEDS, T, GAMMA, False, lambda: None, Clock())
    for _ in range(rollouts - 1):
        learner.gradient(playing.collect()[0])
        learner.step(progress=0.0)
    return learner, playing, playing.collect()[0]


def assert_close(gradient: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert torch.linalg.vector_norm(expected) > 0.01
    assert torch.linalg.vector_norm(gradient - expected) < tolerance * torch.linalg.vector_norm(expected)


@PRECISIONS
@pytest.mark.parametrize("overlapped", ["", " overlapped"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_of_any_network_is_that_of_autograd(name, overlapped, precision, tolerance):
    """By a copy with ordinary parameters in fp32, over the observations that the batch says it saw."""
    learner, playing, batch = played(name, SHAPES[name] + overlapped, precision)
    assert playing.passes.name == "stored"
    settings, ordinary = learner.settings, Network(name, learner.network.spaces)
    ordinary.load_state_dict(copy.deepcopy(learner.network.state_dict()))
    distribution, values = ordinary(batch.observations.flatten(0, 1))
    returns = lambda_returns(batch.rewards, batch.discounts, batch.next_values, 1.0).flatten()
    advantages = returns - values
    loss = -(advantages.detach() * distribution.log_prob(batch.actions.flatten())).mean()
    loss = loss + settings.value_coefficient * advantages.pow(2).mean()
    (loss - settings.entropy_coefficient * distribution.entropy().mean()).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in ordinary.parameters()])
    learner.flat.grad.fill_(torch.nan)
    learner.gradient(batch)
    mine = torch.cat([parameter.grad.flatten() for parameter in learner.network.parameters()])
    assert_close(mine, expected, tolerance)


@PRECISIONS
@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind} overlapped" for kind in KINDS)])
def test_the_plain_path_has_the_gradient_of_the_cached_one(kind, precision, tolerance):
    learner, playing, batch = played(KINDS[kind.partition(" ")[0]][0], kind, precision)
    assert playing.passes.name == "cached"
    stored = Stored(learner.network, T, batch.observations[0])
    for t, observations in enumerate(batch.observations):
        stored.forward(t, observations)
    again = replace(batch, passes=stored)
    terms, gradients = [], []
    for each in (batch, again):
        terms.append(learner.gradient(each))
        gradients.append(learner.flat.grad.clone())
    torch.testing.assert_close(*terms, rtol=10 * tolerance, atol=tolerance, equal_nan=True)
    assert_close(gradients[1], gradients[0], tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_progress_is_made_between_the_layers_of_an_ordinary_backward_pass(name):
    learner, playing, batch = played(name, SHAPES[name])
    calls = []
    playing.progress = lambda: calls.append(1)
    learner.gradient(batch)
    assert len(calls) == sum(parameter.dim() > 1 for parameter in learner.network.parameters())  # a layer has one weight


def test_rows_of_a_stored_rollout_are_rows_of_the_whole():
    learner, _, batch = played("residual", "numbers")
    distribution, values = batch.evaluate()
    rows = torch.tensor([5, 0, T * N - 1])
    some, of_them = batch.evaluate(rows)
    torch.testing.assert_close(of_them, values.flatten()[rows])
    torch.testing.assert_close(some.logits, distribution.logits.flatten(0, 1)[rows])
    learner.step(0.0)
    batch.backward(values.sum())
    assert not torch.equal(batch.evaluate()[1], values)  # at the parameters of now


def test_rows_of_cached_passes_are_refused():
    _, _, batch = played("mlp", "numbers")
    with pytest.raises(ValueError, match="all together"):
        batch.evaluate(torch.tensor([0]))


# Which path


@pytest.mark.parametrize(("name", "spaces"), [("gala", PONG), ("nature", PONG), ("mlp", POLE)])
def test_this_packages_networks_are_cached_for_learners_of_one_pass(name, spaces):
    assert fits(learner_of(name, spaces).network, learner_of(name, spaces))
    in_parts = learner_of(name, spaces, kind=InParts)
    assert not fits(in_parts.network, in_parts)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


SHARED = nn.Linear(4, 4)
OTHERS = {
    "no activation": (POLE, chain(nn.Linear(4, 8))),
    "another activation": (POLE, chain(nn.Linear(4, 8), nn.GELU())),
    "no bias": (POLE, chain(nn.Linear(4, 8, bias=False), nn.ReLU())),
    "a layer twice": (POLE, chain(SHARED, nn.ReLU(), SHARED, nn.ReLU())),
    "no chain": (POLE, nn.ModuleList([nn.Linear(4, 8), nn.ReLU()])),
    "numbers convolved": (POLE, chain(nn.Conv2d(1, 1, 1), nn.ReLU(), Flatten(), nn.Linear(4, 8), nn.ReLU())),
    "no convolution": (PONG, chain(Flatten(), nn.Linear(4 * 84 * 84, 8), nn.ReLU())),
    "channels first": (PONG, chain(nn.Conv2d(4, 8, 84), nn.ReLU(), nn.Flatten(), nn.Linear(8, 8), nn.ReLU())),
    "padding": (PONG, chain(nn.Conv2d(4, 8, 84, padding=1), nn.ReLU(), Flatten(), nn.Linear(72, 8), nn.ReLU())),
    "groups": (PONG, chain(nn.Conv2d(4, 8, 84, groups=2), nn.ReLU(), Flatten(), nn.Linear(8, 8), nn.ReLU())),
    "no layer of units": (PONG, chain(nn.Conv2d(4, 8, 84), nn.ReLU(), Flatten())),
}


@pytest.mark.parametrize("which", OTHERS)
def test_other_encoders_are_not_cached(which):
    spaces, encoder = OTHERS[which]
    learner = learner_of("gala" if spaces.image else "mlp", spaces)
    learner.network.encoder = encoder
    assert not fits(learner.network, learner)


def test_a_frozen_layer_is_not_cached():
    learner = learner_of("mlp", POLE)
    learner.network.encoder[0].requires_grad_(False)
    assert not fits(learner.network, learner)


def test_a_chain_of_known_layers_is_cached_whoever_made_it(monkeypatch):
    monkeypatch.setattr(shapes, "residual", mlp)
    assert played("residual", "numbers")[1].passes.name == "cached"


@pytest.mark.parametrize("name", [*SHAPES, *NETWORKS])
def test_the_table_says_where_a_parameter_lies(name):
    learner = learner_of(name, PONG if NETWORKS[name].images else POLE)
    flat, covered = learner.flat, 0
    for entry, (parameter_name, parameter) in zip(flat.table, learner.network.named_parameters(), strict=True):
        assert entry["name"] == parameter_name and entry["offset"] == covered
        order, size = entry["order"], parameter.numel()
        part = flat.data[covered : covered + size].numpy().reshape([entry["shape"][dimension] for dimension in order])
        assert np.array_equal(part.transpose(np.argsort(order)), parameter.detach().numpy())
        covered += size
    assert covered == len(flat)
