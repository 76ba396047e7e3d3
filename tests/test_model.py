"""Networks: their sizes, their initial weights, their precision and their distributions."""

import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from gala_mpi.envs.base import Spaces
from gala_mpi.networks import SMALLEST_IMAGE, policy
from gala_mpi.networks.distributions import Discrete
from gala_mpi.networks.policy import Network, fastest_precision

PONG, CARTPOLE = Spaces((4, 84, 84), True, 6), Spaces((4,), False, 2)
PENDULUM, ARM = Spaces((3,), False, None, (1,)), Spaces((5,), False, None, (2, 3))
NETWORKS = [("gala", PONG), ("nature", PONG), ("mlp", CARTPOLE), ("mlp", PENDULUM)]


def new_network(name: str, spaces: Spaces, precision: str = "fp32", seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(name, spaces, precision)


def some_observations(spaces: Spaces, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if spaces.image:
        return torch.randint(0, 256, (count, *spaces.observation_shape), dtype=torch.uint8, generator=generator)
    return torch.randn((count, *spaces.observation_shape), generator=generator)


def shapes(network: Network) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def strides(network: Network) -> list[tuple[int, ...]]:
    return [layer.stride for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def size(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_nature_network_has_the_layers_of_mnih_2015():
    network = new_network("nature", PONG)
    convolutions = [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert shapes(network) == [*convolutions, (512, 7 * 7 * 64), (6, 512), (1, 512)]
    assert strides(network) == [(4, 4), (2, 2), (1, 1)]
    assert size(network) == 1_687_719


def test_gala_network_has_the_layers_of_the_paper_code():
    network = new_network("gala", PONG)
    convolutions = [(32, 4, 8, 8), (64, 32, 4, 4), (32, 64, 3, 3)]
    assert shapes(network) == [*convolutions, (512, 7 * 7 * 32), (6, 512), (1, 512)]
    assert strides(network) == [(4, 4), (2, 2), (1, 1)]
    assert size(network) == 866_439


def test_mlp_has_two_layers_of_64():
    assert shapes(new_network("mlp", CARTPOLE)) == [(64, 4), (64, 64), (2, 64), (1, 64)]
    assert size(new_network("mlp", CARTPOLE)) == 4_675


@pytest.mark.parametrize(
    ("spaces", "hidden", "expected"),
    [
        (CARTPOLE, "256,256", [(256, 4), (256, 256)]),
        (CARTPOLE, "7", [(7, 4)]),
        (Spaces((2, 5, 6), True, 2), "16,8,4", [(16, 60), (8, 16), (4, 8)]),
    ],
)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_has_the_layers_that_it_is_told(spaces, hidden, expected, activation):
    torch.manual_seed(0)
    network = Network("mlp", spaces, settings={"hidden": hidden, "activation": activation})
    assert shapes(network) == [*expected, (2, expected[-1][0]), (1, expected[-1][0])]
    x = some_observations(spaces)
    _, values = network(x)
    x = (x.float() / 255).permute(0, 2, 3, 1).flatten(1) if spaces.image else x
    layers = [layer for layer in network.encoder if isinstance(layer, nn.Linear)]
    for layer in layers:
        x = getattr(x @ layer.weight.T + layer.bias, activation)()
    torch.testing.assert_close(values, (x @ network.value.weight.T)[:, 0], rtol=1e-4, atol=1e-5)
    assert network.description()["hidden"] == hidden and network.description()["activation"] == activation


@pytest.mark.parametrize("spaces", [CARTPOLE, Spaces((2, 5, 6), True, 2), Spaces((3,), False, None, (2,))])
def test_a_value_has_layers_of_its_own_where_it_is_told_so(spaces):
    torch.manual_seed(0)
    settings = {"hidden": "16,8", "activation": "relu", "value_network": "copy"}
    network = Network("mlp", spaces, settings=settings)
    x = some_observations(spaces)
    policy, values = network(x)
    x = (x.float() / 255).permute(0, 2, 3, 1).flatten(1) if spaces.image else x
    for chain, got in (
        (network.encoder.policy, policy.logits if spaces.discrete else policy.mean),
        (network.encoder.value, values),
    ):
        layers = [layer for layer in chain if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in layers] == [16, 8, 1 if got is values else 2]
        y = x
        for layer in layers:
            y = (y if layer is layers[0] else y.relu()) @ layer.weight.T + layer.bias
        torch.testing.assert_close(got, y[:, 0] if got is values else y, rtol=1e-4, atol=1e-5)
    assert network.description() | settings == network.description()


def test_weights_of_a_copy_are_drawn_as_those_of_heads_and_layers_that_are_shared():
    encoder = Network("mlp", CARTPOLE, settings={"value_network": "copy"}).encoder
    for chain, gain in ((encoder.policy, 0.01), (encoder.value, 1.0)):
        layers = [layer for layer in chain if isinstance(layer, nn.Linear)]
        for layer, expected in zip(layers, (math.sqrt(2), math.sqrt(2), gain), strict=True):
            singular = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(singular, torch.full_like(singular, expected))
            assert not layer.bias.any()
    assert not torch.equal(encoder.policy[0].weight, encoder.value[0].weight)


def test_mlp_is_the_same_bit_for_bit_when_it_is_told_its_defaults():
    torch.manual_seed(0)
    told = Network("mlp", CARTPOLE, settings={"hidden": "64,64", "activation": "tanh"})
    plain = new_network("mlp", CARTPOLE)
    torch.manual_seed(0)
    first, second = nn.Linear(4, 64), nn.Linear(64, 64)
    torch.manual_seed(0)
    for layer in (first, second):  # as before there was a choice
        layer.reset_parameters()
        nn.init.orthogonal_(layer.weight, math.sqrt(2))
    for one, other in zip(told.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.encoder[0].weight, first.weight) and torch.equal(plain.encoder[2].weight, second.weight)


# IMPALA


def literal_impala(images: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Figure 3 of Espeholt et al. 2018 (right), read from top to bottom: images [N, C, H, W] in 0..1 → features [N, 256]."""
    weights = list(weights)

    def convolved(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, weights.pop(0), weights.pop(0), padding=1)

    x = images
    for _ in (16, 32, 32):
        x = nn.functional.max_pool2d(convolved(x), 3, 2, 1)
        for _ in range(2):
            x = x + convolved(convolved(x.relu()).relu())
    x = x.relu().permute(0, 2, 3, 1).flatten(1)
    return nn.functional.linear(x, weights.pop(0), weights.pop(0)).relu()


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 64, 96), (1, 8, 8), (2, 9, 11)])
def test_impala_is_the_figure_of_the_paper(shape):
    spaces = Spaces(shape, True, 6)
    network, observations = new_network("impala", spaces), some_observations(spaces)
    height, width = (math.ceil(side / 8) for side in shape[1:])
    expected = []
    planes = shape[0]
    for channels in (16, 32, 32):
        expected += [(channels, planes, 3, 3), *[(channels, channels, 3, 3)] * 4]
        planes = channels
    assert shapes(network) == [*expected, (256, 32 * height * width), (6, 256), (1, 256)]
    weights = [*network.encoder.parameters()]
    assert len(weights) == 2 * (15 + 1)
    features = literal_impala(observations.float() / 255, weights)
    policy, values = network.to(memory_format=torch.channels_last)(observations)
    torch.testing.assert_close(values, (features @ network.value.weight.T)[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.logits, features @ network.policy.weight.T, rtol=1e-4, atol=1e-5)


def test_impala_has_as_many_parameters_as_its_layers():
    convolutions = (4 * 9 + 1) * 16 + 4 * (16 * 9 + 1) * 16 + (16 * 9 + 1) * 32 + 9 * (32 * 9 + 1) * 32
    assert size(new_network("impala", PONG)) == convolutions + (32 * 11 * 11 + 1) * 256 + 257 * 6 + 257 == 1_091_031


def test_weights_of_impala_are_drawn_as_sonnet_does():
    """Truncated normal, by the number of inputs; biases zero."""
    for layer in new_network("impala", PONG).encoder.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            drawn = layer.weight.detach().flatten().double() * math.sqrt(layer.weight[0].numel())
            spread = scipy.stats.truncnorm(-2, 2)
            assert drawn.abs().max() <= 2 + 1e-6 and not layer.bias.any()
            assert scipy.stats.kstest(drawn.numpy()[:5000], spread.cdf).pvalue > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_impala_learns_from_images_of_either_precision(precision):
    network = new_network("impala", Spaces((4, 40, 44), True, 6), precision)
    policy, values = network(some_observations(network.spaces))
    (policy.log_prob(torch.zeros(3, dtype=torch.long)).sum() + values.sum()).backward()
    assert values.dtype == torch.float32
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_box_of_actions_adds_one_deviation_an_action():
    assert size(new_network("mlp", ARM)) == 5 * 64 + 64 + 64 * 64 + 64 + 64 * 6 + 6 + 64 + 1 + 6


def gain_of(network: Network, layer: nn.Module) -> float:
    return {network.policy: 0.01, network.value: 1.0}.get(layer, math.sqrt(2))


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_weights_are_orthogonal_with_their_gain_and_biases_zero(name, spaces):
    network = new_network(name, spaces)
    for layer in network.modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        weight = layer.weight.detach().flatten(1).double()
        gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        expected = gain_of(network, layer) ** 2 * torch.eye(len(gram), dtype=torch.float64)
        torch.testing.assert_close(gram, expected, rtol=0, atol=1e-5 * gain_of(network, layer) ** 2)
        assert not layer.bias.any()


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name, spaces):
    one, same, other = (new_network(name, spaces, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.policy.weight, other.policy.weight)


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_forward_is_the_layers_one_after_another(name, spaces):
    network, observations = new_network(name, spaces), some_observations(spaces)
    distribution, values = network(observations)
    x = observations.float() / 255 if spaces.image else observations
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            x = nn.functional.conv2d(x, layer.weight, layer.bias, layer.stride).relu()
        elif isinstance(layer, nn.Linear) and layer not in (network.policy, network.value):
            x = nn.functional.linear(x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x, layer.weight, layer.bias)
            x = x.relu() if spaces.image else x.tanh()
    policy = nn.functional.linear(x, network.policy.weight, network.policy.bias)
    expected = nn.functional.linear(x, network.value.weight, network.value.bias)[:, 0]
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    if spaces.discrete:
        torch.testing.assert_close(distribution.probs, policy.softmax(-1), rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(distribution.mean, policy, rtol=1e-4, atol=1e-6)


def test_forward_leaves_the_observations_alone():
    network, observations = new_network("mlp", CARTPOLE), some_observations(CARTPOLE)
    before = observations.clone()
    network(observations)
    assert torch.equal(observations, before)


def some_actions(spaces: Spaces) -> torch.Tensor:
    return torch.tensor([0, 1, 1]) if spaces.discrete else torch.ones(3, *spaces.action_shape)


@pytest.mark.parametrize("name, spaces", NETWORKS)
def test_bf16_is_close_to_fp32_with_float32_outputs_parameters_and_gradients(name, spaces):
    networks = [new_network(name, spaces, precision) for precision in ("fp32", "bf16")]
    outputs = []
    for network in networks:
        network.policy.weight.data.mul_(100)  # at gain 0.01 all policies are close
        distribution, values = network(some_observations(spaces))
        log_probs = distribution.log_prob(some_actions(spaces))
        (log_probs.sum() + (values - 3).pow(2).sum()).backward()
        assert values.dtype == log_probs.dtype == torch.float32
        outputs.append((log_probs.detach(), values.detach()))
    for exact, quick in zip(*outputs, strict=True):
        assert 0 < (quick - exact).abs().max() < 0.03 * exact.abs().max()
    for exact, quick in zip(*(network.parameters() for network in networks), strict=True):
        assert quick.dtype == quick.grad.dtype == torch.float32
        assert torch.linalg.vector_norm(exact.grad - quick.grad) < 0.2 * torch.linalg.vector_norm(exact.grad)


@pytest.mark.parametrize("spaces", [PENDULUM, ARM])
def test_gaussian_log_probabilities_and_entropies_are_the_formula(spaces):
    network, count = new_network("mlp", spaces), math.prod(spaces.action_shape)
    network.log_std.data = torch.linspace(-1, 0.5, count)
    distribution, _ = network(some_observations(spaces))
    actions = torch.randn((3, *spaces.action_shape), generator=torch.Generator().manual_seed(2))
    means = distribution.mean.detach().double().numpy().reshape(3, count)
    z = (actions.double().numpy().reshape(3, count) - means) / np.exp(network.log_std.detach().double().numpy())
    log_std = network.log_std.detach().double().numpy()
    log_probs = (-(z**2) / 2 - log_std - math.log(2 * math.pi) / 2).sum(1)
    entropy = (log_std + (1 + math.log(2 * math.pi)) / 2).sum()
    assert np.allclose(distribution.log_prob(actions).detach(), log_probs, rtol=1e-5)
    assert np.allclose(distribution.entropy().detach(), entropy, rtol=1e-5)
    assert distribution.sample().shape == (3, *spaces.action_shape)


def test_categorical_log_probabilities_and_entropies_are_the_formula():
    network = new_network("mlp", CARTPOLE)
    distribution, _ = network(some_observations(CARTPOLE))
    probs = network.policy(network.encoder(some_observations(CARTPOLE))).softmax(-1).detach().double()
    actions = torch.tensor([0, 1, 1])
    log_probs, entropies = distribution.log_prob(actions).double(), distribution.entropy().double()
    torch.testing.assert_close(log_probs, probs.log()[range(3), actions], rtol=1e-5, atol=0)
    torch.testing.assert_close(entropies, -(probs * probs.log()).sum(1), rtol=1e-5, atol=0)


def test_draws_follow_the_probabilities():
    torch.manual_seed(0)
    probs = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    draws = Discrete(probs.log().expand(100_000, 5)).sample()
    assert scipy.stats.chisquare(torch.bincount(draws, minlength=5).numpy(), 100_000 * probs.numpy()).pvalue > 0.01


@pytest.mark.parametrize("shape", [(1, 84, 84), (3, 64, 96), (12, 84, 84), (3, SMALLEST_IMAGE, 50)])
def test_images_of_other_sizes(shape):
    spaces = Spaces(shape, True, 3)
    distribution, values = new_network("gala", spaces)(some_observations(spaces))
    assert distribution.probs.shape == (3, 3) and values.shape == (3,)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_smaller_images_leave_nothing_for_the_third_convolution():
    spaces = Spaces((4, SMALLEST_IMAGE - 1, 84), True, 6)
    with pytest.raises((RuntimeError, ValueError)):
        new_network("gala", spaces)(some_observations(spaces))


@pytest.mark.parametrize("name, spaces, expected", [("gala", PONG, "bf16"), ("mlp", CARTPOLE, "fp32")])
def test_bf16_is_for_images_where_it_is_faster(name, spaces, expected, monkeypatch):
    """Here it is always faster."""

    class Slow(Network):
        def forward(self, *arguments):
            if self.precision == "fp32":
                time.sleep(0.1)
            return super().forward(*arguments)

    monkeypatch.setattr(policy, "Network", Slow)
    assert fastest_precision(name, spaces, 2, torch.device("cpu")) == expected
