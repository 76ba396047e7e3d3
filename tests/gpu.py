"""A GPU's manners on the CPU, for host_views without one: what torch.cuda promises and forbids, with real numbers.

* What a stream of its own copies arrives late: when somebody waits for it, or has asked a few times.
* Pinned memory from or to which something is on its way must be left alone.
* While a graph is recorded nothing is computed, and nobody may look at a number or bring one from the host. A replay computes
  what was recorded, from and into the same memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gala_mpi import device
from gala_mpi.rollout import kernels

ASKED = 3  # times, until a copy has arrived
COPY = torch.Tensor.copy_


class Stream:
    """Copies that are on their way."""

    current: Stream

    def __init__(self, device: torch.device | None = None):
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def wait_stream(self, other: Stream) -> None:
        other.finish()

    def finish(self) -> None:
        while self.copies:
            COPY(*self.copies.pop(0))


class Event:
    def __init__(self):
        self._stream, self._asked = Stream(), 0

    def record(self) -> None:
        self._stream, self._asked = Stream.current, 0

    def query(self) -> bool:
        self._asked += 1
        if self._asked > ASKED:
            self._stream.finish()
        return not self._stream.copies

    def synchronize(self) -> None:
        self._stream.finish()


class Graph:
    def __init__(self):
        self.operations: list[tuple[Callable, tuple, dict, Any]] = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for operation, arguments, options, results in self.operations:
            for new, old in zip(tree_leaves(operation(*arguments, **options)), tree_leaves(results)):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    COPY(old, new)


class Recording(TorchDispatchMode):
    """Records the operations of a block into a graph, and undoes what they have changed."""

    def __init__(self, graph: Graph):
        super().__init__()
        self._graph = graph
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        if "_local_scalar_dense" in str(operation):
            raise RuntimeError("operation not permitted when stream is capturing: somebody looks at a number")
        for given, declared in zip(arguments, operation._schema.arguments):
            if isinstance(given, torch.Tensor) and declared.alias_info is not None and declared.alias_info.is_write:
                self._before.append((given, given.clone()))
        for name, given in options.items():
            if name == "out" or name.startswith("grad_"):
                self._before.append((given, given.clone()))
        results = operation(*arguments, **options)
        self._graph.operations.append((operation, arguments, options, results))
        return results

    def undo(self) -> None:
        for changed, before in reversed(self._before):
            COPY(changed, before)


def by_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch compute small layers, too, as on a GPU: to compare with one bit for bit."""
    monkeypatch.setattr(kernels, "_torch_alone", True)


class Gpu:
    """The stand-in, once it is in place: `graphs` that were recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.graphs: list[Graph] = []
        self._patch = monkeypatch
        self._pinned: set[int] = set()
        self._streams: list[Stream] = []
        self._warm: set[Stream] = set()
        Stream.current = self._default = Stream()
        monkeypatch.setattr(device, "is_asynchronous", lambda device: True)
        by_torch_alone(monkeypatch)
        for name, stands_in in {
            "Stream": self._stream,
            "Event": Event,
            "CUDAGraph": Graph,
            "current_stream": lambda device: self._default,
            "stream": self._on,
            "graph": self._record,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stands_in)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        monkeypatch.setattr(torch.Tensor, "copy_", lambda to, source, **how: self._copy(to, source, **how))

    def _stream(self, device: torch.device | None = None) -> Stream:
        self._streams.append(Stream())
        return self._streams[-1]

    @contextlib.contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        Stream.current = stream
        self._warm.add(stream)
        yield
        Stream.current = self._default

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.add(tensor.data_ptr())
        return tensor

    def _copy(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        on_their_way = {end.data_ptr() for stream in [self._default, *self._streams] for copy in stream.copies for end in copy}
        assert to.data_ptr() not in on_their_way, "rewritten while a copy is on its way"
        if not non_blocking:
            return COPY(to, source)
        assert {to.data_ptr(), source.data_ptr()} & self._pinned, "a copy that makes the host wait"
        if Stream.current is self._default:  # what is launched after it finds it there; the host must still leave it alone
            COPY(to, source)
        Stream.current.copies.append((to, source))
        return to

    @contextlib.contextmanager
    def _record(self, graph: Graph, stream: Stream) -> Iterator[None]:
        assert stream in self._warm, "libraries have not been set up on this stream"

        def refuse(*_, **__) -> None:
            raise RuntimeError("operation not permitted when stream is capturing: something comes from the host or goes there")

        with torch.random.fork_rng(devices=[]), self._patch.context() as patch, Recording(graph) as recording:
            for name in ("from_numpy", "as_tensor", "normal"):  # torch.normal looks at the spread, unseen from here
                patch.setattr(torch, name, refuse)
            for name in ("numpy", "cpu"):
                patch.setattr(torch.Tensor, name, refuse)
            patch.setattr(torch.Tensor, "copy_", COPY)
            yield
        recording.undo()
        self.graphs.append(graph)
