"""What becomes of observations and actions of every kind: what reaches the network is what the environment returned, or what
docs/environments.md says of it; what arrives at the environment is what the network chose."""

from __future__ import annotations

import math
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from shows import (
    ACTIONS,
    EYES,
    GRID,
    NESTED,
    OBSERVATIONS,
    SCREEN,
    TEXT,
    Shows,
    box,
    inside,
    made,
    pixels,
    planes,
)

from gala_mpi import networks
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.spaces import Observations
from gala_mpi.errors import SettingError
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks.distributions import NEVER, Discrete, Gaussian, Several
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.cached import fits
from gala_mpi.rollout.collector import Collector

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"


# Observations: a space, what a network sees of it (shape, image, dtype, scale), and one observation as it should reach it.


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_what_reaches_the_network_is_what_the_environment_returned(kind):
    """At resets by seeds and by the end of episodes, at steps, and where an episode was cut off."""
    space, shape, expected, scale = OBSERVATIONS[kind]
    environments = made(space)
    seen = [environments.reset(np.array([3, 4]))]
    spaces = environments.spaces
    assert (spaces.observation_shape, spaces.image) == (shape, len(shape) == 3)
    assert spaces.scale == pytest.approx(scale)
    steps = [environments.step(np.array([0, 1])) for _ in range(7)]
    for i in range(2):
        shown = iter([np.asarray(expected(each)).astype(spaces.observation_dtype) for each in inside(environments, i).shown])
        assert_same(seen[0][i], next(shown))
        for step in steps:
            last = next(shown)
            if step.truncated[i]:
                assert_same(step.final_observations[i], last)
            assert_same(step.observations[i], next(shown) if step.truncated[i] or step.terminated[i] else last)
        assert next(shown, None) is None
    assert [step.truncated.all() for step in steps] == [False, False, True, False, False, False, False]
    assert [step.terminated.all() for step in steps] == [False, False, False, False, False, True, False]
    for rows in (seen[0], *(step.observations for step in steps)):
        assert rows.dtype == spaces.observation_dtype and rows.shape == (2, *shape)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit where nothing is computed, and to a rounding of float32 where bytes or bounds are divided by."""
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-7 if found.ndim == 3 else 0)


@pytest.mark.parametrize("kind", [kind for kind, (space, *_) in OBSERVATIONS.items() if isinstance(space, gym.Box)])
def test_an_old_run_sees_what_it_has_seen(kind):
    """Only bytes of rank 3 are images, divided by 255; all else is flattened as it is."""
    space = OBSERVATIONS[kind][0]
    environments = made(space, raw=True)
    (first, _) = environments.reset(np.array([3, 4]))
    shown = np.asarray(inside(environments).shown[0])
    image = space.dtype == np.uint8 and len(space.shape) == 3
    assert environments.spaces.image == image and environments.spaces.scale == (1 / 255 if image else 1.0)
    if not image:
        assert first.dtype == np.float32 and np.array_equal(first, shown.astype(np.float32).ravel())
    else:
        assert first.dtype == np.uint8
        assert np.array_equal(first, np.moveaxis(shown, 2, 0) if shown.shape[2] < shown.shape[0] else shown)


def test_text_is_left_out_and_named():
    (line,) = Observations("Mission-v0", TEXT).advice
    assert line == "--env Mission-v0: mission of its observations: text, which is left out"
    assert Observations("Mission-v0", NESTED).advice == []


def nan_box(low: float, high: float) -> gym.Box:
    space = box(0, 1, (2,))
    space.low[0], space.high[1] = low, high
    return space


REFUSED_OBSERVATIONS = {
    "Text": (gym.Text(8), "a wrapper that turns it into numbers is expected"),
    "Dict of texts": (gym.Dict({"a": gym.Text(8)}), "a wrapper that turns it into numbers is expected"),
    "Sequence": (gym.Sequence(gym.Discrete(2)), "a wrapper that gives Box, Discrete"),
    "Graph": (gym.Graph(box(0, 1, (2,)), None), "a wrapper that gives Box, Discrete"),
    "Sequence in a Dict": (gym.Dict({"a": gym.Sequence(gym.Discrete(2)), "b": gym.Discrete(2)}), "with Sequence(Discrete(2)"),
    "OneOf": (gym.OneOf([gym.Discrete(2), gym.Discrete(3)]), "a wrapper that gives Box, Discrete"),
    "a Box of size 0": (box(0, 1, (0,)), "(0,), float32): it holds no number; one or more is expected"),
    "a bound that is NaN": (nan_box(np.nan, 1), "a bound is NaN"),
    "36 million pixels": (pixels(6000, 6000), "36,000,000 pixels; 4,000,000 at most (ResizeObservation) are expected"),
    "a million numbers": (gym.Discrete(1_000_001), "they are 1,000,001 numbers; 1,000,000 at most are expected"),
}


@pytest.mark.parametrize("kind", REFUSED_OBSERVATIONS)
def test_observations_that_no_network_takes_are_refused_in_one_line(kind):
    space, words = REFUSED_OBSERVATIONS[kind]
    with pytest.raises(SettingError) as refused:
        made(space)
    line = str(refused.value)
    assert line.startswith("--env shows/Shows-v") and words in line and "\n" not in line


# Actions: a space, what a network gives, and what arrives at the environment for some of it


@pytest.mark.parametrize("kind", ACTIONS)
def test_what_arrives_at_the_environment_is_what_the_network_chose(kind):
    space, chosen, expected, outputs = ACTIONS[kind]
    environments = made(box(-1, 1, (4,)), space)
    environments.reset(np.array([1, 2]))
    environments.step(chosen)
    assert environments.spaces.outputs == outputs
    for i, wanted in enumerate(expected):
        (action,) = inside(environments, i).arrived
        assert np.array_equal(action, wanted), action
        assert np.asarray(action).dtype == space.dtype and np.shape(action) == space.shape
        assert "bounds" in kind or space.contains(action)


@pytest.mark.parametrize("kind", ["Box -1..1", "Box 100..200", "Box, half of its bounds infinite"])
def test_an_old_run_plays_as_before(kind):
    """Its numbers are what is played, clipped."""
    space, chosen, _, _ = ACTIONS[kind]
    environments = made(box(-1, 1, (4,)), space, raw=True)
    environments.reset(np.array([1, 2]))
    environments.step(chosen)
    for i, action in enumerate(chosen):
        assert np.array_equal(inside(environments, i).arrived[0], np.clip(action, space.low, space.high))
    assert set(environments.spaces.action_scale) == {1.0} and set(environments.spaces.action_offset) == {0.0}


def test_actions_are_spread_over_the_bounds_by_the_setting():
    """The standard deviation of what is played, at the start: a share of half of the range."""
    torch.manual_seed(0)
    environments = made(box(-1, 1, (4,)), gym.Box(np.float32([100, -1]), np.float32([200, 3])))
    for std in (1.0, 0.1):
        policy, _ = Network("mlp", environments.spaces, action_std=std)(torch.zeros(20_000, 4))
        torch.testing.assert_close(policy.deviation, torch.full((2,), std))
    played = environments._act(policy.sample().numpy())
    np.testing.assert_allclose(played.mean(0), [150, 1], rtol=0, atol=0.2)
    np.testing.assert_allclose(played.std(0), [5, 0.2], rtol=0.03)


REFUSED_ACTIONS = {
    "Tuple": gym.Tuple([gym.Discrete(2), gym.Discrete(3)]),
    "Dict": gym.Dict({"a": gym.Discrete(2)}),
    "Text": gym.Text(3),
    "a Box of size 0": box(0, 1, (0,)),
    "a bound that is NaN": nan_box(np.nan, 1),
    "a million of which one": gym.Discrete(1_000_001),
    "a million numbers": box(-1, 1, (1_000_001,)),
}


@pytest.mark.parametrize("kind", REFUSED_ACTIONS)
def test_actions_that_no_network_gives_are_refused_in_one_line(kind):
    with pytest.raises(SettingError) as refused:
        made(box(-1, 1, (4,)), REFUSED_ACTIONS[kind])
    line = str(refused.value)
    assert line.startswith("--env shows/Shows-v") and "is expected" in line and "\n" not in line


@pytest.mark.parametrize("spaces, scale, offset", [("scaled", 50.0, 150.0), ("raw", 1.0, 0.0)])
def test_keywords_wrappers_and_the_choice_of_a_run_reach_each_environment(spaces, scale, offset):
    name = f"Told-{spaces}-v0"
    gymnasium.register(name, lambda width: Shows(pixels(40, width), box(100, 200, (1,))), disable_env_checker=True)
    config = Config(env=name, env_kwargs=("width=50",), wrappers=("FrameStackObservation:4",), spaces=spaces)
    environments = registry.make(config.env, 2, **config.env_options)
    bounds = {"low": (100.0,), "high": (200.0,), "action_scale": (scale,), "action_offset": (offset,)}
    assert environments.spaces == Spaces((4, 40, 50), True, None, (1,), **bounds)
    first = environments.reset(np.array([1, 2]))
    shown = [environment.unwrapped.shown[-1] for environment in environments.envs]
    assert np.array_equal(first, np.stack([[image] * 4 for image in shown]))
    environments.step(np.float32([[0.5], [0.5]]))
    assert environments.envs[1].unwrapped.arrived == [max(100, offset + 0.5 * scale)]


# Distributions over several choices


def test_several_choices_are_independent_categoricals():
    """Log-probability and entropy are sums over torch's own distributions."""
    torch.manual_seed(0)
    counts = (3, 2, 5)
    logits = torch.randn(4, 7, sum(counts), requires_grad=True)
    mine = Several.of(logits, counts)
    theirs = [torch.distributions.Categorical(logits=part) for part in logits.split(counts, -1)]
    actions = torch.stack([each.sample() for each in theirs], -1)
    log_prob = sum(each.log_prob(action) for each, action in zip(theirs, actions.unbind(-1)))
    torch.testing.assert_close(mine.log_prob(actions), log_prob)
    torch.testing.assert_close(mine.entropy(), sum(each.entropy() for each in theirs))
    assert torch.equal(mine.mode, torch.stack([part.argmax(-1) for part in logits.split(counts, -1)], -1))
    (mine.log_prob(actions) + mine.entropy()).sum().backward()
    got = logits.grad.clone()
    logits.grad = None
    (log_prob + sum(each.entropy() for each in theirs)).sum().backward()
    torch.testing.assert_close(got, logits.grad)


def test_where_everything_is_masked_no_action_that_is_none_is_drawn():
    """As in the last observation of an episode, whose policy nobody asks."""
    policy = Several.of(torch.full((1000, 5), NEVER), (3, 2))
    torch.testing.assert_close(policy.probs[0], torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0]]))
    assert (policy.sample() <= torch.tensor([2, 1])).all() and torch.isfinite(policy.entropy()).all()


def test_several_choices_are_drawn_as_often_as_they_are_probable():
    torch.manual_seed(0)
    counts = (3, 2)
    logits = torch.randn(5)
    drawn = Several.of(logits.expand(40_000, 5), counts).sample()
    assert drawn.shape == (40_000, 2) and drawn.dtype == torch.int64
    for part, column, count in zip(logits.split(counts), drawn.unbind(-1), counts):
        found = torch.nn.functional.one_hot(column, count).float().mean(0)
        torch.testing.assert_close(found, part.softmax(-1), rtol=0, atol=0.01)
    joined = Several.joined([Several.of(logits[None].expand(2, 5), counts)] * 3, (3, 2))
    assert joined.logits.shape == (3, 2, 2, 3) and isinstance(joined, Several)


# Every kind of observation with every kind of action: which network, which policy, and that it learns from a rollout

ROWS = {
    "image of bytes, 36 pixels a side or more": (pixels(40, 50, 3), "gala"),
    "smaller image of bytes or truth values": (pixels(5, 6), "small"),
    "image of other numbers": (box(0, 1, (8, 9, 3)), "small"),
    "stack of images": (pixels(4, 40, 50, 3), "gala"),
    "vector, table or number (Box)": (box(-1, 1, (5, 6)), "mlp"),
    "Discrete": (gym.Discrete(5), "mlp"),
    "MultiDiscrete": (gym.MultiDiscrete([2, 3]), "mlp"),
    "MultiBinary": (gym.MultiBinary(3), "mlp"),
    "Tuple or Dict of these": (NESTED, "mlp"),
    "Dict with an image of 36 pixels a side or more": (SCREEN, "gala"),
    "Dict with a smaller image": (GRID, "small"),
}
COLUMNS = {
    "Discrete": (gym.Discrete(3, start=1), "one of n", Discrete),
    "MultiDiscrete": (gym.MultiDiscrete([2, 4]), "one of n each", Several),
    "MultiBinary": (gym.MultiBinary(3), "one of 2 each", Several),
    "Box of floats": (box(-2, 2, (2,)), "Gaussian", Gaussian),
    "Box of integers": (box(0, 9, (2,), np.int64), "Gaussian, rounded", Gaussian),
}


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, row by row, the names of its columns first."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def test_the_page_has_these_rows_and_columns():
    first, *rows = table("Observations × actions")
    assert first[1:] == list(COLUMNS) and [row[0] for row in rows] == list(ROWS)
    for name, *cells in rows:
        assert cells == [f"`{ROWS[name][1]}`, {how}" for _, how, _ in COLUMNS.values()]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS)
def test_each_cell_plays_and_learns(row, column):
    (observation, network), (action, _, policy) = ROWS[row], COLUMNS[column]
    torch.manual_seed(0)
    environments = made(observation, action)
    assert networks.default(environments.spaces.picture) == network
    learner = A2C(Network(network, environments.spaces).to(memory_format=torch.channels_last), A2CSettings(), 1e-3)
    collector = Collector(learner, [environments], np.array([1, 2]), 5, 0.9, False, lambda: None, Clock())
    before = learner.flat.data.clone()
    for _ in range(2):
        batch, _ = collector.collect()
        assert isinstance(batch.behaviour, policy) and collector.fault is None
        now, values = batch.evaluate()
        torch.testing.assert_close(now.log_prob(batch.actions).detach(), batch.log_probs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values.detach(), batch.values, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(learner.gradient(batch)[:3]).all()  # the others are not A2C's
        assert learner.step(0.0).taken
    assert not torch.equal(before, learner.flat.data)
    for arrived in inside(environments).arrived:
        assert inside(environments).action_space.contains(arrived)


# An image among other observations: packed into one vector, the image first

EYE_PARTS = ("left", "right", "flags", "map", "speed")  # gymnasium sorts the keys of a Dict


def seen_by_eyes(x) -> np.ndarray:
    """Images of 8 × 9 pixels are one of three channels; others are numbers, bytes divided by their bounds."""
    image = [x["left"][None] / 255, (planes(2, 0, 1)(x["right"]) + 1) / 2]
    return np.concatenate([*map(np.ravel, image), x["flags"].ravel(), x["map"].ravel(), x["speed"]]).astype(np.float32)


def seen_on_the_grid(x) -> np.ndarray:
    return np.concatenate([planes(2, 0, 1)(x["image"]).ravel() / np.float32(10), np.eye(4)[x["direction"]]])


def seen_on_screen(x) -> np.ndarray:
    return np.concatenate([planes(2, 0, 1)(x["screen"]).ravel() / np.float32(255), x["speed"]])


PACKED = {
    "screen": (SCREEN, (3, 40, 50), 2, seen_on_screen),
    "grid": (GRID, (3, 7, 7), 4, seen_on_the_grid),
    "eyes": (EYES, (3, 8, 9), 24 + 1 + 4, seen_by_eyes),
    "Tuple": (gym.Tuple([gym.Discrete(2), pixels(5, 6)]), (1, 5, 6), 2, lambda x: [*x[1].ravel() / 255, *np.eye(2)[x[0]]]),
}


@pytest.mark.parametrize("kind", PACKED)
def test_an_image_among_others_is_packed_with_them(kind):
    space, image, numbers, expected = PACKED[kind]
    environments = made(space)
    seen = [environments.reset(np.array([3, 4])), *(environments.step(np.array([0, 1])) for _ in range(3))]
    spaces, size = environments.spaces, math.prod(image) + numbers
    assert (spaces.observation_shape, spaces.image_shape, spaces.image) == ((size,), image, False)
    assert spaces.observation_dtype == np.float32 and spaces.scale == 1 and not spaces.masked
    assert sum(part.size for part in spaces.parts) == size
    for i in range(2):
        shown = [np.asarray(expected(each), np.float32) for each in inside(environments, i).shown]
        np.testing.assert_allclose(seen[0][i], shown[0], rtol=3e-7, atol=3e-7)
        np.testing.assert_allclose(seen[3].final_observations[i], shown[3], rtol=3e-7, atol=3e-7)
        np.testing.assert_allclose(seen[3].observations[i], shown[4], rtol=3e-7, atol=3e-7)
    if kind == "eyes":
        assert tuple(part.name for part in spaces.parts) == tuple(f"observation[{name}]" for name in EYE_PARTS)


@pytest.mark.parametrize("name, kind", [("gala", "screen"), ("nature", "screen"), ("small", "grid"), ("small", "eyes")])
def test_convolutions_see_the_image_and_a_layer_sees_all(name, kind):
    """By the network of the image alone, and the layer written down."""
    torch.manual_seed(0)
    space, image, numbers, _ = PACKED[kind]
    environments = made(space)
    network = Network(name, environments.spaces)
    rows = torch.from_numpy(environments.reset(np.array([3, 4])))
    features = network.encoder.image(rows[:, : math.prod(image)].reshape(2, *image))
    joint = network.encoder.joint
    assert joint.weight.shape == (128, features.shape[1] + numbers)
    together = torch.nn.functional.linear(torch.cat([features, rows[:, -numbers:]], 1), joint.weight, joint.bias).relu()
    policy, values = network(rows)
    expected, expected_values = network.heads(together)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(policy.logits, expected.logits)
    assert not fits(network, A2C(network, A2CSettings(), 1e-3))
    alone = Network(name, Spaces(image, True, 2))
    shapes = [parameter.shape for parameter in alone.encoder.parameters()]
    assert [parameter.shape for parameter in network.encoder.image.parameters()] == shapes


def test_an_mlp_sees_all_numbers_as_one_vector():
    environments = made(EYES)
    network = Network("mlp", environments.spaces)
    assert network.encoder[0].weight.shape == (64, 3 * 8 * 9 + 29) and fits(network, A2C(network, A2CSettings(), 1e-3))


@pytest.mark.parametrize("observation", [pixels(40, 50, 3), pixels(5, 6), box(0, 1, (8, 9, 3))])
def test_images_are_flattened_for_an_mlp(observation):
    torch.manual_seed(0)
    environments = made(observation)
    network = Network("mlp", environments.spaces)
    assert not fits(network, A2C(network, A2CSettings(), 1e-3))
    images = environments.reset(np.array([1, 2]))
    weight, bias = network.encoder[1].weight, network.encoder[1].bias
    rows = torch.from_numpy(images.transpose(0, 2, 3, 1).reshape(2, -1).astype(np.float32)) * network.scale
    assert rows.min() >= 0 and rows.max() <= 1
    first = torch.nn.functional.linear(rows, weight, bias).tanh()
    _, values = network(torch.from_numpy(images))
    torch.testing.assert_close(values, network.heads(network.encoder[3:](first))[1])


def test_small_is_the_network_of_minatar():
    """Young & Tian 2019: a convolution of 16 channels, 3×3, stride 1; 128 units."""
    network = Network("small", Spaces((4, 10, 10), True, 6, scale=1.0))
    shapes = [tuple(parameter.shape) for name, parameter in network.encoder.named_parameters() if name.endswith("weight")]
    assert shapes == [(16, 4, 3, 3), (128, 16 * 8 * 8)]
    assert fits(network, A2C(network, A2CSettings(), 1e-3))
