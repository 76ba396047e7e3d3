"""The device of the network, and what a GPU needs: pinned memory, a second stream, CUDA graphs.

A GPU computes asynchronously, while the host does something else. On a CPU none of this is needed: an upload is the array
itself, and a function is called instead of replayed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar, cast

import numpy as np
import torch

WARM_UP_CALLS = 2  # at their first calls on a stream libraries initialise themselves, which a graph must not record
P = ParamSpec("P")
Result = TypeVar("Result")


def pick(name: str, node_rank: int) -> torch.device:
    """Return the device called `name`; for `cuda`, one of the host's GPUs, dealt in turn over its ranks."""
    if name == "cuda":
        return torch.device("cuda", node_rank % torch.cuda.device_count())
    return torch.device(name)


def is_asynchronous(device: torch.device) -> bool:
    """Return whether the device computes while the host does something else."""
    return device.type == "cuda"


@contextmanager
def on_host(vector: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield `vector` as a numpy array that MPI can read and write: the same memory on a CPU, a copy to and fro on a GPU."""
    if vector.device.type == "cpu":
        yield vector.numpy()
    else:
        copy = vector.cpu()
        yield copy.numpy()
        vector.copy_(copy)


class Upload:
    """Copies arrays to the device: on a GPU asynchronously, and always into the same tensor while their shape is the same."""

    def __init__(self, device: torch.device):
        self._device = device
        self._on_device: torch.Tensor | None = None

    def __call__(self, array: np.ndarray) -> torch.Tensor:
        """Return `array` as a tensor on the device. On a GPU the next call overwrites it."""
        source = torch.from_numpy(array)
        if not is_asynchronous(self._device):
            return source.to(self._device)
        if self._on_device is None or self._on_device.shape != source.shape:
            self._on_device = torch.empty_like(source, device=self._device)
            self._pinned = torch.empty_like(source).pin_memory()  # a copy from pageable memory makes the host wait
            self._sent = torch.cuda.Event()
        self._sent.synchronize()
        self._pinned.copy_(source)
        self._on_device.copy_(self._pinned, non_blocking=True)
        self._sent.record()
        return self._on_device


class Download:
    """Copies vectors from a GPU to the host on a stream of its own, so that neither waits.

    Args:
        like: a vector of their length and dtype, on their device.

    Attributes:
        vector: the one sent last, on the GPU.
    """

    def __init__(self, like: torch.Tensor):
        self.vector = torch.empty_like(like)
        self._pinned = torch.empty_like(like, device="cpu").pin_memory()
        self._stream = torch.cuda.Stream(like.device)
        self._arrived = torch.cuda.Event()

    def send(self, vector: torch.Tensor) -> None:
        """Begin to copy `vector`, which may be changed at once. The one sent before must have been taken."""
        self.vector.copy_(vector)
        self._stream.wait_stream(torch.cuda.current_stream(vector.device))
        with torch.cuda.stream(self._stream):
            self._pinned.copy_(self.vector, non_blocking=True)
            self._arrived.record()

    def arrived(self) -> bool:
        """Return whether the vector sent last is on the host."""
        return self._arrived.query()

    def take(self) -> np.ndarray:
        """Wait for the vector sent last, and return it. The array is overwritten by the next `send`."""
        self._arrived.synchronize()
        return self._pinned.numpy()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream on which all graphs are captured: libraries keep some 32 MiB of the GPU's memory per stream."""
    return torch.cuda.Stream(device)


def cuda_graph(function: Callable[P, Result], device: torch.device) -> Callable[P, Result]:
    """Return `function` as a CUDA graph: after WARM_UP_CALLS calls its launches are captured, and from then on replayed.

    A replay is one launch; launching a small layer takes the host longer than the GPU needs to compute it. On a CPU, `function`
    itself is returned.

    Args:
        function: must read and write the same memory at every call, whatever its arguments, and may neither read values from
            the GPU nor have side effects on the host. What it returns is overwritten by the next call.
    """
    if not is_asynchronous(device):
        return function
    graph, stream = torch.cuda.CUDAGraph(), _stream(device)
    calls, results = 0, cast(Result, None)

    def call(*arguments: P.args, **options: P.kwargs) -> Result:
        nonlocal calls, results
        calls += 1
        current = torch.cuda.current_stream(device)
        if calls <= WARM_UP_CALLS:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                results = function(*arguments, **options)
            current.wait_stream(stream)
            return results
        if calls == WARM_UP_CALLS + 1:
            with torch.cuda.graph(graph, stream=stream):
                results = function(*arguments, **options)
        graph.replay()
        return results

    return call
