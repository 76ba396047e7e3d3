"""A checkpoint's policy without gala_mpi: rebuilt by what docs/checkpoints.md says, by its code alone."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from commandline import SMALL, complaints, states, train
from gala_mpi import evaluate
from gala_mpi.envs import registry
from gala_mpi.envs.base import Spaces
from gala_mpi.networks.policy import Network
from gala_mpi.run import checkpoints, files, layout, reader
from launch import mpirun

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoints.md"
GAMES = {
    "pong": ("--env", "pong", "--num-envs", 4, "--network", "gala"),
    "pole": SMALL,
    "pendulum": ("--env", "Pendulum-v1", "--num-envs", 4),
    "normalised pole": (*SMALL, "--normalise-observations", "--normalise-rewards"),
}


def documented() -> dict[str, Any]:
    """What the document's code defines. It imports nothing of ours."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {alias.name for node in imports for alias in node.names} == {"h5py", "json", "numpy", "torch"}
    names: dict[str, Any] = {}
    exec(compile(code, DOCUMENT, "exec"), names)
    return names


def some_observations(spaces: Spaces) -> torch.Tensor:
    rng = np.random.default_rng(0)
    shape = (100, *spaces.observation_shape)
    numbers = rng.integers(0, 256, shape, np.uint8) if spaces.image else rng.normal(size=shape).astype(np.float32)
    return torch.from_numpy(numbers)


@pytest.mark.parametrize("game", ["pong", pytest.param("pole", marks=pytest.mark.long), "pendulum", "normalised pole"])
@torch.no_grad()
def test_the_document_is_enough_to_rebuild_a_policy(tmp_path, game):
    run = tmp_path / "run"
    train(2, run, *GAMES[game], "--precision", "fp32", "--total-steps", 2 * 20 * 5 * 4, "--staleness", 0)
    settings = reader.read_config(run)
    environments = registry.make(settings.env, 1)
    network, flat = evaluate.make_network(settings, environments.spaces)
    observations, names = some_observations(environments.spaces), documented()
    for rank, state in enumerate(states(run, 2)):
        flat.data.copy_(torch.from_numpy(state.learner["parameters"]))
        distribution, values = network(observations)
        path = layout.checkpoint_file(run, checkpoints.newest(run), rank)
        policy, parameters = names["read_policy"](path)
        outputs, same_values, _ = names["run_policy"](policy, parameters, observations)
        expected = distribution.mean if game == "pendulum" else distribution.logits
        assert expected.std() > 1e-4 and values.std() > 1e-4  # ten times what may differ
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(same_values, values, rtol=0, atol=1e-5)
        assert (policy["env"], policy["network"], policy["precision"]) == (settings.env, settings.network, "fp32")
        assert {name: tuple(value.shape) for name, value in parameters.items()} == shapes(network)
    if game == "pendulum":
        assert policy["actions"] == {"shape": [1], "low": [-2.0], "high": [2.0], "scale": [2.0], "offset": [0.0]}
    else:
        assert policy["actions"] == {"number": environments.spaces.actions}
    environments.close()


NETWORKS = {
    "relus": ("mlp", Spaces((5,), False, 3), {"hidden": "16,8,4", "activation": "relu"}),
    "small": ("small", Spaces((1, 7, 9), True, 3, dtype="float32", scale=1.0)),
    "an mlp of images": ("mlp", Spaces((3, 7, 9), True, 3)),
    "choices": ("mlp", Spaces((5,), False, None, (2,), choices=(3, 4))),
    "scaled box": ("mlp", Spaces((5,), False, None, (2,), (1.0, 2.0), (3.0, 6.0), action_scale=(1.0, 2.0))),
    "packed": ("gala", Spaces((3 * 40 * 50 + 4,), False, 3, image_shape=(3, 40, 50))),
    "packed and masked": ("small", Spaces((2 * 7 * 9 + 4 + 3,), False, 3, image_shape=(2, 7, 9), masked=True)),
    "packed for an mlp": ("mlp", Spaces((2 * 7 * 9 + 4 + 3,), False, 3, image_shape=(2, 7, 9), masked=True)),
    "a masked image": (
        "small",
        Spaces((2 * 7 * 9 + 7,), False, None, (2,), choices=(3, 4), image_shape=(2, 7, 9), masked=True),
    ),
}
NORMALISED = ("choices", "scaled box", "packed", "packed and masked", "packed for an mlp")


def count(network: Network, some: torch.Tensor) -> None:
    """As if observations like these had been counted, more or less."""
    sums = network.observation_sums
    assert sums is not None
    numbers = 3 * some[:, network.spaces.numbers] + torch.arange(len(sums.sum))
    for parameter, value in zip(sums.parameters(), (len(numbers), 2, (numbers - 2).sum(0), (numbers - 2).square().sum(0))):
        parameter.copy_(torch.as_tensor(value))


@pytest.mark.parametrize(
    ("kind", "normalised"), [*((kind, False) for kind in NETWORKS), *((kind, True) for kind in NORMALISED)]
)
@torch.no_grad()
def test_the_document_is_enough_for_every_kind_of_network(kind, normalised):
    name, spaces, *settings = NETWORKS[kind]
    torch.manual_seed(0)
    network = Network(name, spaces, normalise_observations=normalised, settings=settings[0] if settings else {})
    observations = some_observations(replace(spaces, image=spaces.observation_dtype == np.uint8))
    if spaces.masked:
        observations[:, -spaces.outputs :] = (torch.rand(100, spaces.outputs) < 0.7).float()
    if normalised:
        count(network, observations)
    policy, values = network(observations)
    said = json.loads(json.dumps(network.description()))
    outputs, same_values, _ = documented()["run_policy"](said, network.state_dict(), observations)
    torch.testing.assert_close(same_values, values, rtol=1e-5, atol=1e-5)
    if not spaces.discrete:
        torch.testing.assert_close(outputs, policy.mean, rtol=1e-5, atol=1e-5)
        return
    counts = spaces.choices or (spaces.outputs,)
    for part, logits in zip(outputs.split(counts, -1), policy.logits.reshape(100, len(counts), -1).unbind(1), strict=True):
        torch.testing.assert_close(part.softmax(-1), logits.softmax(-1)[:, : part.shape[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", ["lstm", "gru"])
@torch.no_grad()
def test_the_document_is_enough_for_a_memory(memory):
    """Over three steps of episodes."""
    torch.manual_seed(0)
    network, names = Network("mlp", Spaces((5,), False, 3), memory=memory, memory_size=7), documented()
    said, state, same_state = json.loads(json.dumps(network.description())), network.first_state(100), None
    for _ in range(3):
        observations = torch.randn(100, 5)
        policy, values, state = network.step(observations, state)
        outputs, same_values, same_state = names["run_policy"](said, network.state_dict(), observations, same_state)
        torch.testing.assert_close(same_values, values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outputs, policy.logits, rtol=1e-5, atol=1e-6)


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.long
def test_checkpoints_without_a_table_are_resumed_and_evaluated(tmp_path):
    """As they were before there was one."""
    run = tmp_path / "run"
    train(2, run, *SMALL, "--total-steps", 400)
    for rank in range(2):
        path = layout.checkpoint_file(run, checkpoints.newest(run), rank)
        with files.revised(path) as file:
            del file["policy"]
    assert [state.policy for state in states(run, 2)] == [None, None]
    result = mpirun(2, "-m", "gala_mpi.evaluate", run, "--episodes", 2)
    assert result.returncode == 0, result.stderr
    train(2, run, "--resume", "--total-steps", 800)
    assert all(state.policy["network"] == "mlp" for state in states(run, 2))


# The optimiser


@pytest.mark.long
def test_a_run_from_before_plays_as_before(tmp_path):
    """Its settings do not say how actions are scaled: they are not."""
    scores = {}
    for kind in ("raw", "scaled"):
        run = tmp_path / kind
        train(1, run, "--env", "Pendulum-v1", "--num-envs", 4, "--spaces", kind, "--total-steps", 400)
        scores[kind] = evaluated(run)
    with files.revised(layout.run_file(tmp_path / "raw")) as file:
        settings = json.loads(file.attrs["config"])
        assert settings.pop("spaces") == "raw" and settings.pop("action_std") == 1
        file.attrs["config"] = json.dumps(settings)
    assert np.array_equal(evaluated(tmp_path / "raw"), scores["raw"]) and not np.array_equal(scores["raw"], scores["scaled"])
    train(1, tmp_path / "raw", "--resume", "--total-steps", 800)
    assert reader.read_config(tmp_path / "raw").spaces == "raw"


def evaluated(run: Path) -> np.ndarray:
    """The scores of three episodes of every policy."""
    result = mpirun(1, "-m", "gala_mpi.evaluate", run, "--episodes", 3)
    assert result.returncode == 0, result.stderr
    with h5py.File(layout.run_file(run), locking=False) as file:
        group = file["evaluations"]
        return group[max(group, key=int)]["score"]


@pytest.mark.parametrize("game", ["Taxi-v4", pytest.param("Blackjack-v1", marks=pytest.mark.long)])
def test_observations_that_are_no_box_are_trained_and_evaluated(tmp_path, game):
    """One-hot states and a mask; a Tuple."""
    run = tmp_path / "run"
    train(2, run, "--env", game, "--num-envs", 4, "--total-steps", 800)
    assert np.isfinite(evaluated(run)).all()


def tree(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("first", "other"), [pytest.param("rmsprop", "adam", marks=pytest.mark.long), ("adam", "rmsprop")])
def test_another_optimiser_is_refused_before_anything_is_written(tmp_path, first, other):
    run = tmp_path / "run"
    train(2, run, *SMALL, "--total-steps", 400, "--staleness", 0, "--a2c.optimiser", first)
    before = tree(run)
    result = mpirun(2, "-m", "gala_mpi.train", "--resume", "--run-dir", run, "--a2c.optimiser", other, "--total-steps", 800)
    assert result.returncode == 2 and tree(run) == before
    (line,) = complaints(result)
    assert line.endswith(f"--a2c.optimiser {other}: the checkpoints in {run} are of {first}; {first} is expected")
    train(3, run, "--resume", "--total-steps", 900)  # one that goes on, on more ranks
    steps = {"adam": [10 + 9] * 3, "rmsprop": [None] * 3}[first]
    assert [state.learner.get("optimiser_steps") for state in states(run, 3)] == steps


def test_a_policy_has_a_checksum(tmp_path):
    run = tmp_path / "run"
    train(1, run, *SMALL, "--total-steps", 200)
    path = layout.checkpoint_file(run, checkpoints.newest(run), 0)
    with h5py.File(path, "r") as file:
        assert file["policy"].shape == (1,) and file["policy"].fletcher32
