"""Passes that are done again by kernels give what ordinary passes over the same observations give: outputs, and gradients."""

import functools

import pytest
import torch
from test_cached import NETWORKS, POLE, PONG, N, T, some_loss, some_observations

from gala_mpi.envs.base import Spaces
from gala_mpi.flat import Flat
from gala_mpi.networks.distributions import Gaussian
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.chain import PART_BYTES
from gala_mpi.rollout.recomputed import Recomputed, computed_again
from gala_mpi.rollout.stored import Stored

CPU = torch.device("cpu")
CASES = [(*case, {}) for case in NETWORKS] + [
    ("mlp", POLE, {"value_network": "copy"}),
    ("mlp", POLE, {"value_network": "copy", "hidden": "16", "activation": "relu"}),
]
TOLERANCES = {("fp32", False): 1e-5, ("fp32", True): 1e-4, ("bf16", False): 5e-2, ("bf16", True): 1e-1}
ROWS = {"all": None, "some": torch.tensor([7, 0, 11]), "again": torch.tensor([7, 7, 2, 3, 1])}


def passes_of(network: Network, observations: list[torch.Tensor], **more) -> Recomputed:
    """A rollout that was played."""
    kind = computed_again(network, CPU)
    assert kind is Recomputed
    passes = kind(network, T, observations[0], **more)
    passes.load_parameters()
    for t, now in enumerate(observations):
        passes.forward(t, now)
    return passes


def seen_in(observations: list[torch.Tensor], rows: torch.Tensor | None) -> torch.Tensor:
    seen = torch.cat(observations[:T])
    return seen if rows is None else seen[rows]


def gradient(network: Network) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert torch.linalg.vector_norm(expected) > 0.1
    assert torch.linalg.vector_norm(got - expected) < tolerance * torch.linalg.vector_norm(expected)


def off_kinks(test):
    """Seed a test, and do one of images again with other seeds, twice at most, where it fails. Of so many units one may be so
    near 0 that rounding decides, on some processors, on which side of a ReLU's kink it is."""

    @functools.wraps(test)
    def seeded(**arguments):
        for seed in range(3):
            torch.manual_seed(seed)
            try:
                return test(**arguments)
            except AssertionError:
                if seed == 2 or not arguments["spaces"].image:
                    raise

    return seeded


@pytest.mark.parametrize(("name", "spaces", "settings"), CASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("part_bytes", [PART_BYTES, 1])
@off_kinks
def test_gradients_are_those_of_ordinary_passes(name, spaces, settings, precision, part_bytes, monkeypatch):
    """Of all steps or some, one after the other, at parameters that change; worked on at once, or a row at a time."""
    monkeypatch.setattr("gala_mpi.rollout.chain.PART_BYTES", part_bytes)
    tolerance = TOLERANCES[precision, spaces.image]
    made = (Network(name, spaces, of, settings=settings).to(memory_format=torch.channels_last) for of in ("fp32", precision))
    ordinary, network = made
    flat = Flat(network)
    observations = some_observations(spaces)
    for _ in range(2):  # the second rollout meets other parameters
        ordinary.load_state_dict(network.state_dict())
        passes = Recomputed(network, T, observations[0])
        passes.load_parameters()
        policies, values = zip(*(passes.forward(t, now) for t, now in enumerate(observations)))
        passes.end(T)
        policy, expected = ordinary(torch.cat(observations))
        logits = torch.cat([each.logits for each in policies])
        torch.testing.assert_close(logits, policy.logits.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(torch.cat(values), expected.detach(), rtol=tolerance, atol=tolerance)
        for rows in ROWS.values():
            ordinary.load_state_dict(network.state_dict())
            ordinary.zero_grad()
            some_loss(*ordinary(seen_in(observations, rows))).backward()
            flat.grad.fill_(torch.nan)
            policy, values = passes.evaluate(rows)
            assert values.shape == ((T, N) if rows is None else (len(rows),))
            passes.backward(some_loss(policy, values))
            assert_close(gradient(network), gradient(ordinary), tolerance)
            with torch.no_grad():
                flat.data.add_(torch.randn(len(flat)), alpha=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "spaces"), [("gala", PONG), ("mlp", POLE)])
def test_no_gradient_is_kept_from_one_part_to_the_next(name, spaces, precision):
    """Copies of the weights are no part of a graph, which would grow with every part."""
    network = Network(name, spaces, precision)
    Flat(network)
    passes = passes_of(network, some_observations(spaces))
    for rows in ROWS.values():
        passes.backward(passes.evaluate(rows)[1].sum())
        for kept in (passes._acting, *passes._learning.chains):
            copies = [layer._weight for layer in kept._layers if layer._copied]
            assert not any(copy.requires_grad for copy in (*copies, kept.features, kept.observations))


@pytest.mark.parametrize("settings", [{}, {"value_network": "copy"}])
def test_a_box_and_normalised_observations(settings):
    """By the statistics at the beginning of each rollout."""
    spaces = Spaces((4,), False, None, (2,))
    torch.manual_seed(0)
    network, ordinary = (Network("mlp", spaces, settings=settings, normalise_observations=True) for _ in range(2))
    Flat(network)
    passes = Recomputed(network, T, torch.zeros(N, 4))
    sums = network.observation_sums
    for rollout in range(3):
        sums.count.fill_(rollout * 10)  # before the second one anything is known
        sums.sum.copy_(torch.arange(4.0) * 10 * rollout)
        sums.squares.copy_(torch.arange(4.0) ** 2 * 15 * rollout + 5)
        ordinary.load_state_dict(network.state_dict())
        observations = [1 + torch.randn(N, 4) for _ in range(T + 1)]
        passes.load_parameters()
        policies, values = zip(*(passes.forward(t, now) for t, now in enumerate(observations)))
        passes.end(T)
        policy, expected = ordinary(torch.cat(observations))
        torch.testing.assert_close(torch.cat([each.mean for each in policies]), policy.mean.detach())
        torch.testing.assert_close(policies[0].deviation, policy.deviation.detach())
        torch.testing.assert_close(torch.cat(values), expected.detach())
        for rows in ROWS.values():
            ordinary.zero_grad()
            expected = a_loss(*ordinary(seen_in(observations, rows)))
            got = a_loss(*passes.evaluate(rows))
            torch.testing.assert_close(got, expected)
            expected.backward()
            passes.backward(got)
            pairs = [(p.grad, q.grad) for p, q in zip(network.parameters(), ordinary.parameters()) if q.requires_grad]
            assert_close(*(torch.cat([each.flatten() for each in side]) for side in zip(*pairs)), 1e-5)


def a_loss(policy: Gaussian, values: torch.Tensor) -> torch.Tensor:
    actions = torch.linspace(-1, 1, 2 * values.numel()).view(*values.shape, 2)
    return policy.log_prob(actions).sum() + values.square().sum() + policy.entropy().sum()


@pytest.mark.parametrize("settings", [{}, {"value_network": "copy"}])
def test_a_loss_of_two_evaluations_has_the_sum_of_their_gradients(settings):
    """There is room for one: the other is autograd's. Without a gradient, one more disturbs neither."""
    torch.manual_seed(0)
    ordinary, network = (Network("mlp", POLE, settings=settings) for _ in range(2))
    Flat(network)
    ordinary.load_state_dict(network.state_dict())
    observations = some_observations(POLE)
    passes = passes_of(network, observations)
    first, second = torch.tensor([1, 5]), torch.tensor([2, 9, 11])
    for _ in range(2):
        ordinary.zero_grad()
        sum(some_loss(*ordinary(seen_in(observations, rows))) for rows in (first, second)).backward()
        one = some_loss(*passes.evaluate(first))
        with torch.no_grad():
            passes.evaluate(second)
        passes.backward(one + some_loss(*passes.evaluate(second)))
        assert_close(gradient(network), gradient(ordinary), 1e-5)


def test_what_is_evaluated_without_a_gradient_is_what_the_network_says():
    network = Network("mlp", POLE, settings={"value_network": "copy"})
    Flat(network)
    observations = some_observations(POLE)
    passes = passes_of(network, observations)
    with torch.no_grad():
        torch.testing.assert_close(passes.evaluate()[1].flatten(), network(seen_in(observations, None))[1])
    passes.backward(passes.evaluate()[1].sum())  # it left nothing behind


def test_a_part_of_the_network_that_the_loss_does_not_need_gets_no_gradient():
    network = Network("mlp", POLE, settings={"value_network": "copy"})
    flat = Flat(network)
    passes = passes_of(network, some_observations(POLE))
    flat.grad.fill_(torch.nan)
    passes.backward(passes.evaluate()[1].sum())
    assert all(not parameter.grad.any() for parameter in network.encoder.policy.parameters())
    assert all(parameter.grad.any() for parameter in network.encoder.value.parameters())


@pytest.mark.parametrize(
    ("name", "spaces", "settings", "layers"), [("gala", PONG, {}, 4), ("mlp", POLE, {"value_network": "copy"}, 6)]
)
def test_progress_is_made_between_the_layers_of_a_backward_pass(name, spaces, settings, layers):
    network = Network(name, spaces, settings=settings)
    Flat(network)
    calls = []
    passes = passes_of(network, some_observations(spaces), between=lambda: calls.append(1))
    policy, values = passes.evaluate()
    passes.backward(policy.logits[..., 0].sum() + values.sum())
    assert len(calls) == layers


def test_progress_is_made_while_the_values_of_a_rollout_are_computed(monkeypatch):
    """Of some rows at a time; of a rollout that was cut short, those that it has, and no more."""
    monkeypatch.setattr("gala_mpi.rollout.recomputed.VALUED_AT_ONCE", 5)
    network = Network("mlp", POLE, settings={"value_network": "copy"})
    Flat(network)
    observations, calls = some_observations(POLE), []
    passes = computed_again(network, CPU)(network, T, observations[0], between=lambda: calls.append(1))
    values = [passes.forward(t, now)[1] for t, now in enumerate(observations[:3])]
    passes._values[3 * N :] = torch.nan
    passes.end(2)
    assert len(calls) == 3  # of 3 · N = 12 rows
    torch.testing.assert_close(torch.cat(values), network(torch.cat(observations[:3]))[1].detach())
    assert passes._values[3 * N :].isnan().all()


@pytest.mark.parametrize(
    "network",
    [
        Network("mlp", POLE, memory="lstm"),
        Network("impala", PONG),
        Network("mlp", Spaces((4,), False, 2, masked=True)),
        Network("mlp", PONG, settings={"hidden": "8", "value_network": "copy"}),
    ],
)
def test_other_networks_go_by_autograd(network):
    assert computed_again(network, CPU) is Stored


def test_on_other_devices_networks_go_by_autograd():
    assert computed_again(Network("mlp", POLE), torch.device("cuda")) is Stored
