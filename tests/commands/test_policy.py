"""A checkpoint's policy without gala_mpi: rebuilt by what docs/checkpoints.md says, by its code alone."""

from __future__ import annotations

import ast
import re
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


@pytest.mark.parametrize("game", ["pong", pytest.param("pole", marks=pytest.mark.long), "pendulum"])
@torch.no_grad()
def test_the_document_is_enough_to_rebuild_a_policy(tmp_path, game):
    run = tmp_path / "run"
    train(2, run, *GAMES[game], "--precision", "fp32", "--total-steps", 2 * 20 * 5 * 4, "--staleness", 0)
    settings = reader.read_config(run)
    environments = registry.make(settings.env, 1)
    network, flat = evaluate.make_network(settings, environments)
    observations, names = some_observations(environments.spaces), documented()
    for rank, state in enumerate(states(run, 2)):
        flat.data.copy_(torch.from_numpy(state.learner["parameters"]))
        distribution, values = network(observations)
        path = layout.checkpoint_file(run, checkpoints.newest(run), rank)
        policy, parameters = names["read_policy"](path)
        outputs, same_values = names["run_policy"](policy, parameters, observations)
        expected = distribution.mean if game == "pendulum" else distribution.logits
        assert expected.std() > 1e-4 and values.std() > 1e-4  # ten times what may differ
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(same_values, values, rtol=0, atol=1e-5)
        assert (policy["env"], policy["network"], policy["precision"]) == (settings.env, settings.network, "fp32")
        assert {name: tuple(value.shape) for name, value in parameters.items()} == shapes(network)
    if game == "pendulum":
        assert policy["actions"] == {"shape": [1], "low": [-2.0], "high": [2.0]}
    else:
        assert policy["actions"] == {"number": environments.spaces.actions}
    environments.close()


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


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
