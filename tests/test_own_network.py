"""Networks of the user's own (`--network module:function`): what they give, and what is refused in a line."""

from dataclasses import replace

import nets
import pytest
import torch

from gala_mpi.config import Config
from gala_mpi.config_checks import check
from gala_mpi.envs.base import Spaces
from gala_mpi.errors import SettingError
from gala_mpi.flat import Flat
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks import distributions, moved
from gala_mpi.networks.policy import Network, fastest_precision

POLE, ARM, GRID = Spaces((4,), False, 2), Spaces((5,), False, None, (2, 3)), Spaces((2, 7, 9), True, 3)
CHOICES = Spaces((4,), False, None, (2,), choices=(3, 2))
SPACES = {"pole": POLE, "arm": ARM, "grid": GRID, "choices": CHOICES}


def new_network(name: str, spaces: Spaces, **options) -> Network:
    torch.manual_seed(0)
    return Network(f"nets:{name}", spaces, **options).to(memory_format=torch.channels_last)


def some_rows(spaces: Spaces, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if spaces.image:
        return torch.randint(0, 256, (count, *spaces.observation_shape), dtype=torch.uint8, generator=generator)
    return torch.randn(count, *spaces.observation_shape, generator=generator)


def outputs_of(policy) -> torch.Tensor:
    """What a distribution was made from, [N, outputs]."""
    if isinstance(policy, distributions.Gaussian):
        return policy.mean.flatten(1)
    if isinstance(policy, distributions.Several):  # CHOICES: the second has fewer
        return policy.logits.flatten(1)[:, :5]
    return policy.logits


@pytest.mark.parametrize("spaces", [POLE, ARM, CHOICES], ids=["pole", "arm", "choices"])
def test_heads_are_put_behind_features(spaces):
    network, rows = new_network("features", spaces), some_rows(spaces)
    torch.manual_seed(0)
    encoder = nets.features(spaces)
    policy, values = network(rows)
    torch.testing.assert_close(values, (encoder(rows) @ network.value.weight.T + network.value.bias)[:, 0])
    torch.testing.assert_close(outputs_of(policy), encoder(rows) @ network.policy.weight.T + network.policy.bias)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_heads_of_its_own_are_what_it_returns(name, precision):
    spaces = SPACES[name]
    network, rows = new_network("Apart", spaces, precision=precision), some_rows(spaces)
    tolerance = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    policy, values = network(rows)
    outputs, expected = network.encoder(rows.float() * spaces.scale)
    assert values.dtype == outputs_of(policy).dtype == torch.float32
    torch.testing.assert_close(values, expected[:, 0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(outputs_of(policy), outputs, rtol=tolerance, atol=tolerance)
    assert all(key.startswith(("encoder.", "log_std")) for key, _ in network.named_parameters())


def test_an_image_with_a_mask_is_an_image_and_other_parts_are_numbers(monkeypatch):
    """The user's module is told what it sees: never the mask."""
    seen = []

    def build(spaces: Spaces):
        seen.append(spaces)
        return nets.convolved(spaces) if spaces.image else nets.features(spaces)

    monkeypatch.setattr(nets, "build", build, raising=False)
    masked = Spaces((2 * 7 * 9 + 3,), False, 3, image_shape=(2, 7, 9), masked=True)
    plain = new_network("build", GRID)
    network, images = new_network("build", masked), some_rows(GRID)
    rows = torch.cat([images.flatten(1).float() / 255, torch.tensor([1.0, 0, 1]).expand(5, 3)], 1)
    policy, values = network(rows)
    expected, same = plain(images)
    torch.testing.assert_close(values, same)
    torch.testing.assert_close(policy.logits[:, [0, 2]], expected.logits[:, [0, 2]])
    assert not policy.probs[:, 1].any()
    new_network("build", replace(masked, observation_shape=(2 * 7 * 9 + 4 + 3,)))
    shapes = [(spaces.observation_shape, spaces.image, spaces.masked) for spaces in seen]
    assert shapes == [((2, 7, 9), True, False)] * 2 + [((2 * 7 * 9 + 4,), False, False)]


def test_features_without_parameters_are_a_linear_policy():
    network = new_network("linear", POLE)
    assert [key for key, _ in network.named_parameters()] == ["policy.weight", "policy.bias", "value.weight", "value.bias"]


def test_what_is_not_learnt_is_no_statistic():
    """The last parameters, without gradient, are part of the vector that is learnt, and stay as they are."""
    network = new_network("frozen", POLE, normalise_observations=True)
    flat = Flat(network)
    assert len(flat.counted.data) == 1 + 3 * 4
    before = network.encoder.critic[-1].weight.clone()
    learner = A2C(network, A2CSettings(), 1e-2)
    policy, values = network(some_rows(POLE))
    learner.flat.grad.zero_()
    (policy.entropy().sum() + values.square().sum()).backward()
    learner.step(0.0)
    assert torch.equal(network.encoder.critic[-1].weight, before)
    assert not torch.equal(network.encoder.critic[1].weight, new_network("frozen", POLE).encoder.critic[1].weight)


def test_heads_of_its_own_are_not_computed_in_bfloat16_unless_asked_for(monkeypatch):
    monkeypatch.setattr("gala_mpi.networks.policy.LONG_ENOUGH", 0)
    assert fastest_precision("nets:Apart", GRID, 2, torch.device("cpu")) == "fp32"


FAULTS = {
    "nowhere:features": "there is no module nowhere; one that is installed, on PYTHONPATH or in ",
    "nets:nothing": "nets has no nothing; a name that is defined there is expected",
    "nets:NUMBER": "it is of type int; a function is expected",
    "nets:no_module": "it returns an object of type int; a torch module is expected",
    "nets:raising": "it cannot be made (ValueError: no weights are here, in ",
    "nets:leaving": "it cannot be made (SystemExit: 3, in ",
    "nets:narrow": "its forward pass fails on observations [3, 4] (RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "nets:scalar": "it returns float32 [] of 3 observations; features, float [3, F], or (policy's outputs, float [3, 2], "
    "values, float [3]) are expected",
    "nets:flat": "it returns float32 [9, 2] of 3 observations; features",
    "nets:named": "it returns dict of 3 observations; features",
    "nets:chosen": "it returns int64 [3, 1] of 3 observations; features",
    "nets:three": "it returns (float32 [3, 2], float32 [3], float32 [3, 6]) of 3 observations; features",
    "nets:wide": "it returns (float32 [3, 6], float32 [3]) of 3 observations; features",
    "nets:beside": "what it returns of an observation goes by those beside it (batch normalisation); its own alone is expected",
    "nets:infinite": "it returns numbers that are not finite; finite ones are expected",
    "nets:detached": "its layer.weight, layer.bias get no gradient from what it returns; parameters that are used",
    "nets:dropping": "it returns other numbers each time (dropout, noise); the same of the same observations are expected",
    "nets:normalising": "it keeps encoder.then.num_batches_tracked, encoder.then.running_mean, encoder.then.running_var, which "
    "agents neither share nor save; parameters alone are expected",
    "nets:Counting": "its passes change as it runs, which agents neither share nor save; constants are expected",
    "nets:with_extra": "its extra.weight, extra.bias get no gradient from what it returns",
    "nets:half": "its scale (torch.float16) cannot be shared; parameters of float32 are expected",
    "nets:double": "its forward pass fails on observations [3, 4] (RuntimeError: ",
    "nets:nothing_to_learn": "it has no parameters to learn; some are expected",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_a_line(name):
    with pytest.raises(SettingError) as error:
        Network(name, POLE)
    said = str(error.value)
    assert said.startswith(f"--network {name}: {FAULTS[name]}") and "\n" not in said


def test_a_memory_lies_behind_features_and_before_no_heads_of_their_own():
    network = new_network("features", POLE, memory="gru", memory_size=7)
    assert network.policy.weight.shape == (2, 7) and network.state_size == 7
    with pytest.raises(SettingError) as error:
        new_network("Apart", POLE, memory="gru")
    said = "--network nets:Apart --memory gru: it has heads of its own; one that returns features is expected"
    assert str(error.value) == said


@pytest.mark.parametrize("name", ["gala2", "nets:", ":features", "nets", "nets features", "nets/more:features", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(SettingError) as error:
        check(Config(network=name))
    expected = f"--network {name}: gala, nature, small, impala, mlp, or MODULE:FUNCTION of yours is expected"
    assert str(error.value) == expected
    check(Config(network="some.package.nets:Nets.small"))


def test_a_function_that_has_moved_is_the_same():
    assert moved("new.place:features", "nets:features") and moved("nets:features", "nets:features")
    assert not moved("nets:features", "nets:Apart") and not moved("mlp", "nets:mlp") and not moved("nets:mlp", "mlp")
