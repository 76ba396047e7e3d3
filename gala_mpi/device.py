"""Where the network computes, and what a GPU needs there: pinned memory, a second stream, launches that are repeated.

A GPU goes on while the host does something else. On a CPU all of this comes to nothing: an upload is the array itself, and
what could be replayed is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numpy as np
import torch

WARM_UP_CALLS = 2  # libraries set themselves up at their first calls on a stream, which a graph must not record
P = ParamSpec("P")
Result = TypeVar("Result")


def pick(name: str, node_rank: int) -> torch.device:
    """`cuda` → one of the host's GPUs, dealt in turn over its ranks."""
    if name == "cuda":
        return torch.device("cuda", node_rank % torch.cuda.device_count())
    return torch.device(name)


def goes_on(device: torch.device) -> bool:
    """Whether it computes while the host does something else."""
    return device.type == "cuda"


@contextmanager
def on_host(vector: torch.Tensor) -> Iterator[np.ndarray]:
    """`vector` as a numpy array that MPI can read and write: the same memory on the CPU, a copy there and back on a GPU."""
    if vector.device.type == "cpu":
        yield vector.numpy()
    else:
        copy = vector.cpu()
        yield copy.numpy()
        vector.copy_(copy)


class Upload:
    """Arrays of one shape and dtype → a tensor on the device: on a GPU always the same one, filled while the host goes on."""

    def __init__(self, device: torch.device):
        self._device = device
        self._there: torch.Tensor | None = None

    def __call__(self, array: np.ndarray) -> torch.Tensor:
        here = torch.from_numpy(array)
        if not goes_on(self._device):
            return here.to(self._device)
        if self._there is None:
            self._there = torch.empty_like(here, device=self._device)
            self._pinned = torch.empty_like(here).pin_memory()  # from elsewhere a GPU copies only while the host waits
            self._gone = torch.cuda.Event()
        self._gone.synchronize()
        self._pinned.copy_(here)
        self._there.copy_(self._pinned, non_blocking=True)
        self._gone.record()
        return self._there


class Download:
    """Vectors on their way from a GPU to the host by a stream of their own, so that nothing waits for them.

    Args:
        like: a vector of their length, on their device.

    Attributes:
        vector: what was sent last, on the GPU.
    """

    def __init__(self, like: torch.Tensor):
        self.vector = torch.empty_like(like)
        self._pinned = torch.empty_like(like, device="cpu").pin_memory()
        self._stream = torch.cuda.Stream(like.device)
        self._arrived = torch.cuda.Event()

    def send(self, vector: torch.Tensor) -> None:
        """Begin; `vector` may be changed at once. The last one must have been taken."""
        self.vector.copy_(vector)
        self._stream.wait_stream(torch.cuda.current_stream(vector.device))
        with torch.cuda.stream(self._stream):
            self._pinned.copy_(self.vector, non_blocking=True)
            self._arrived.record()

    def arrived(self) -> bool:
        return self._arrived.query()

    def take(self) -> np.ndarray:
        """What was sent last, once it has arrived, as long as nothing else is sent."""
        self._arrived.synchronize()
        return self._pinned.numpy()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """On which everything is recorded: libraries keep some 32 MiB of the GPU's memory for each stream."""
    return torch.cuda.Stream(device)


def cuda_graph(function: Callable[P, Result], device: torch.device) -> Callable[P, Result]:
    """Return `function`, whose launches a GPU records and from then on repeats in one go (a CUDA graph): a launch takes the
    host longer than the GPU needs for a small layer.

    It must read and write the same memory at every call, whatever its arguments are, and may neither look at numbers on the
    GPU nor change anything else. What it returns is overwritten by the next call.
    """
    if not goes_on(device):
        return function
    graph, stream = torch.cuda.CUDAGraph(), _stream(device)
    calls, results = 0, None

    def call(*arguments: P.args, **options: P.kwargs) -> Result:
        nonlocal calls, results
        calls += 1
        here = torch.cuda.current_stream(device)
        if calls <= WARM_UP_CALLS:
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                results = function(*arguments, **options)
            here.wait_stream(stream)
            return results
        if calls == WARM_UP_CALLS + 1:
            with torch.cuda.graph(graph, stream=stream):
                results = function(*arguments, **options)
        graph.replay()
        return results

    return call
