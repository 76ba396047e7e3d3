"""Write a network as an ONNX model, for programs without torch: by torch's exporter, checked with ONNX Runtime."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gala_mpi.errors import SettingError
from gala_mpi.networks.distributions import NEVER
from gala_mpi.networks.plain import Plain
from gala_mpi.networks.policy import Network

NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-5  # of outputs up to 1; if some are larger, of the largest
ROWS = (1, 3)  # of trials: the model is exported with 2


def write(network: Network, path: Path) -> None:
    """Export the module `Plain` of a network, in float32, to a file, and check that.

    Raises:
        SettingError: a package is missing, the network cannot be exported, or the model gives other numbers.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SettingError(f"ONNX: {', '.join(missing)} not installed; pip install gala_mpi[onnx] is expected")
    try:
        module = Plain(copy.deepcopy(network)).eval()
        module.network.dtype = torch.float32
        with torch.no_grad(), _quiet():
            _export(module, path)
    except OSError:  # a disk that is full
        raise
    except Exception as error:  # whatever a module of the user's own does
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SettingError(f"--network {network.name}: it cannot be exported to ONNX ({said})") from None
    for rows in ROWS:
        _compare(module, path, rows)


def _export(module: Plain, path: Path) -> None:
    inputs = some_inputs(module.network, 2)
    free = {0: torch.export.Dim("N", min=1)}
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(path),
        dynamo=True,
        input_names=list(inputs),
        output_names=["outputs", "values", "next_state"][: len(inputs) + 1],
        dynamic_shapes=tuple(free for _ in inputs),
        external_data=False,
        verbose=False,
    )


@torch.no_grad()
def _compare(module: Plain, path: Path, rows: int) -> None:
    """Refuse a model that gives other numbers than the module. Raises SettingError."""
    import onnxruntime  # pyright: ignore[reportMissingImports]  # of an extra

    inputs = some_inputs(module.network, rows)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for output, tensor, got in zip(session.get_outputs(), module(*inputs.values()), found):
        expected = tensor.numpy()
        allowed = TOLERANCE * max(1.0, np.abs(expected[expected != NEVER]).max())
        if not np.allclose(got, expected, rtol=0, atol=allowed):
            apart = np.abs(got - expected).max()
            raise SettingError(
                f"ONNX: {output.name} of the model and of torch are {apart:.2g} apart; {allowed:.2g} or less is expected"
            )


def some_inputs(network: Network, rows: int) -> dict[str, torch.Tensor]:
    """Return random inputs by their names. In masks all actions but the first of every other row may be taken."""
    spaces, rng = network.spaces, np.random.default_rng(rows)
    shape = (rows, *spaces.observation_shape)
    whole = spaces.observation_dtype.kind in "iu"
    numbers = rng.integers(0, 256, shape) if whole else rng.random(shape)
    if spaces.masked:
        numbers[:, -spaces.outputs :] = 1
        numbers[::2, -spaces.outputs] = 0
    inputs = {"observations": torch.from_numpy(numbers.astype(spaces.observation_dtype))}
    if network.memory is not None:
        inputs["state"] = torch.from_numpy(rng.normal(size=(rows, network.state_size)).astype(np.float32))
    return inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from telling of packages that nothing here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
