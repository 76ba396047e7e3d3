"""Gossip for a training loop of one's own: average a module's parameters with those of a few other ranks, without waiting.

    gossip = gala_mpi.Gossip(model, topology="exponential")
    for batch in data:
        loss(model, batch).backward()
        optimiser.step()
        optimiser.zero_grad()
        gossip.mix()
    gossip.close()

Every MPI rank runs the same program on data of its own. What `mix` does is exchange/gossip.py, through which training goes too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, Self, cast

import torch
from mpi4py import MPI
from torch import nn

from gala_mpi import device, topology
from gala_mpi.cli import require, require_whole
from gala_mpi.errors import SettingError
from gala_mpi.exchange.base import Counters, Mix
from gala_mpi.exchange.gossip import Gossip as Exchange
from gala_mpi.exchange.gossip import require_no_circle
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import require_alike
from gala_mpi.topology import Graph, Topology

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Gossip:
    """Average parameters with those of a few other ranks, again and again. Only to make and to close it is collective.

    All ranks begin with the parameters and buffers of rank 0, unless `state` is given.

    Tensors of one dtype (float32 or float64) on one device become views of one vector, so that `mix` copies nothing to and
    fro: their `data` is replaced, which optimisers do not mind, but a CUDA graph or another view of them would. Tensors of
    several dtypes or devices, or in half precision, are copied into such a vector and back at every mix; messages are then
    float32, or float64 if any tensor is. So are tensors that share memory, and those whose `data` something has replaced since
    (`module.to(...)`).

    Args:
        averaged: a module, all of whose parameters are averaged (tied ones once, those without gradient too), as it has them
            now; or tensors. Their shapes and dtypes are the same on all ranks.
        topology: who reads whom: a name or a file as for --topology of training, or a `Topology`.
        comm: the ranks; None: all.
        staleness: after how many mixes without a message a rank waits for its peers; None: never. 0: lock-step; ranks mix the
            same versions, with the same result each time, and all must call `mix` equally often.
        max_lag: messages that are more mixes than this behind their reader are passed over; None: none is. Not in lock-step.
        checksum: verify every message by a checksum.
        every: publish and mix at every so many calls of `mix` only.
        buffers: "keep" leaves each rank its own buffers of a module; "average" averages those of floating-point numbers, such
            as the running statistics of BatchNorm, as parameters are.
        state: what `state` returned, in a program that goes on; parameters and buffers then stay as they are.

    Attributes:
        calls: how often `mix` was called.
        version: how often this rank has published.
        counters: what the last mix did: the messages averaged, how many were thrown away and why.

    Raises:
        SettingError: an argument is not one of those allowed, or ranks differ in them. On all ranks.
    """

    def __init__(
        self,
        averaged: nn.Module | torch.Tensor | Iterable[torch.Tensor],
        topology: str | Topology = "ring",
        *,
        comm: MPI.Intracomm | None = None,
        staleness: int | None = None,
        max_lag: int | None = None,
        checksum: bool = False,
        every: int = 1,
        buffers: Literal["average", "keep"] = "keep",
        state: dict[str, int] | None = None,
    ):
        self._comm = (comm or MPI.COMM_WORLD).Dup()  # its own: messages of others never meet those of this one
        named = _named(averaged, buffers == "average")
        arguments = {
            "topology": _shown(topology),
            **{"staleness": staleness, "max_lag": max_lag, "checksum": checksum, "every": every, "buffers": buffers},
            # Ranks in lock-step go on from the same mix; others need not.
            "state": "one" if _is_state(state) and staleness != 0 else repr(state),
            **{
                f"parameter {name}": f"{tensor.dtype} {[*tensor.shape]}"
                if isinstance(tensor, torch.Tensor)
                else type(tensor).__name__
                for name, tensor in named.items()
            },
        }
        try:
            require_alike(self._comm, list(arguments.items()))  # first: whoever is refused alone would leave the others waiting
            _check(named, staleness, max_lag, checksum, every, buffers, state)
            graph = _graph(topology, self._comm)
            require_no_circle(graph, staleness, max_lag)
        except SettingError:
            self._free()
            raise
        self._vector = Vector(list(named.values()))
        if state is None:
            self._begin_alike(averaged)
        self._every, self.counters = every, Counters()
        self.calls, self.version = (0, 0) if state is None else (state["calls"], state["version"])
        self._exchange: Exchange | None = None
        self._closed = False
        if self._comm.size > 1:
            flat = self._vector.flat
            dtype = str(flat.dtype).removeprefix("torch.")
            self._exchange = Exchange(self._comm, len(flat), graph, staleness, checksum, max_lag=max_lag, dtype=dtype)
            self._exchange.start(self.version, flat)

    def mix(self) -> list[Mix]:
        """Publish the parameters, and average them with the peers' newest ones, if one of each peer has come.

        To be called after the optimiser's step. It does not wait, unless `staleness` says so.

        Returns:
            What was averaged: the peer, its version and the weight of each message. Empty: nothing, and the parameters stay as
            they are. So it is where they, or those of a peer, are not finite.
        """
        require(not self._closed, "mix", "after close", "a call before it")
        self.calls += 1
        if self._exchange is None or self.calls % self._every:
            self.progress()
            return []
        self.version += 1
        self._vector.gather()
        room = self._exchange.room()
        if room is not None:
            room.copy_(self._vector.flat)
        self._exchange.parameters(self._vector.flat)
        self.counters = self._exchange.counters()
        if self.counters.mixes:
            self._vector.scatter()
        return self.counters.mixes

    def progress(self) -> None:
        """Move messages along. To be called now and then where the time between two mixes is long, as over TCP, where a message
        moves only while both ranks call MPI."""
        if self._exchange is not None:
            self._exchange.progress()

    def state(self) -> dict[str, int]:
        """Return what a checkpoint needs beside the module's and the optimiser's own state."""
        return {"calls": self.calls, "version": self.version}

    def close(self) -> None:
        """Serve the others until all have called this, and let go of MPI's memory. The parameters stay. Collective."""
        if self._closed:
            return
        self._closed = True
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._free()

    def _free(self) -> None:
        """Free the communicator, once the last word of who has waited has been heard. Collective."""
        Roll.of(self._comm).close()
        self._comm.Free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        """Close; not after an exception, when the others may never come (`mpirun ... python -m mpi4py program.py` ends all)."""
        if kind is None:
            self.close()

    def _begin_alike(self, averaged: object) -> None:
        """Take rank 0's numbers, buffers included. Collective."""
        self._vector.gather()
        with device.on_host(self._vector.flat) as numbers:
            self._comm.Bcast(numbers)
        self._vector.scatter()
        if isinstance(averaged, nn.Module):
            mine = list(averaged.buffers())
            theirs = self._comm.bcast([buffer.cpu() for buffer in mine] if self._comm.rank == 0 else None)
            for buffer, first in zip(mine, theirs):
                buffer.copy_(first)


class Vector:
    """Tensors as one vector.

    Args:
        tensors: of floating-point numbers.

    Attributes:
        flat: float32, or float64 if any tensor is; on the first one's device.
    """

    def __init__(self, tensors: list[torch.Tensor]):
        self._tensors, where = tensors, tensors[0].device
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        self.flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=where)
        self._parts = [
            part.as_strided(tensor.shape, _dense(tensor))
            for part, tensor in zip(torch.split(self.flat, [tensor.numel() for tensor in tensors]), tensors)
        ]
        self._viewed, self._places = False, _places(self._parts)
        self.gather()
        if not _overlap(tensors) and all((tensor.dtype, tensor.device) == (dtype, where) for tensor in tensors):
            for tensor, part in zip(tensors, self._parts):
                tensor.data = part
            self._viewed = True

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the tensors into the vector, where they are not part of it, or not any more."""
        self._viewed = self._viewed and _places(self._tensors) == self._places
        if not self._viewed:
            torch._foreach_copy_(self._parts, self._tensors)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

    @torch.no_grad()
    def scatter(self) -> None:
        """Copy the vector into the tensors, where they are not part of it."""
        if not self._viewed:
            torch._foreach_copy_(self._tensors, self._parts)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _places(tensors: list[torch.Tensor]) -> list[int]:
    """Return where in memory tensors are; of an empty one that says nothing."""
    return [tensor.data_ptr() for tensor in tensors if tensor.numel()]


def _overlap(tensors: list[torch.Tensor]) -> bool:
    """Return whether some of them share memory, as views of one another. Each takes all from its first to its last number."""
    taken = sorted(
        (place, place + tensor.element_size() * (1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))))
        for tensor, place in zip(filter(torch.Tensor.numel, tensors), _places(tensors))
    )
    return any(end > start for (_, end), (start, _) in pairwise(taken))


def _dense(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return strides without gaps, in the order in which a tensor's dimensions lie in memory (channels last stays so)."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format).stride()


def _named(averaged: Any, with_buffers: bool) -> dict[str, Any]:
    """Return what is averaged by name, each tensor once; of a program that nobody checks it may be anything."""
    if isinstance(averaged, nn.Module):
        named: dict[str, Any] = dict(averaged.named_parameters())
        if with_buffers:
            named |= {name: buffer for name, buffer in averaged.named_buffers() if buffer.is_floating_point()}
    else:
        is_one = isinstance(averaged, torch.Tensor) or not isinstance(averaged, Iterable)
        given: list[Any] = [averaged] if is_one else list(cast(Iterable[Any], averaged))
        named = {str(number): each for number, each in enumerate({id(each): each for each in given}.values())}
    return named


def _shown(topology: Any) -> str:
    """Return a word for a graph, by which those of ranks are compared."""
    if isinstance(topology, Topology):
        return f"{topology.name} of {topology.size} ranks ({zlib.crc32(repr(topology.rounds).encode()):08x})"
    return topology if isinstance(topology, str) else repr(topology)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and value is not True and value is not False


def _is_state(state: Any) -> bool:
    """Return whether it is what `Gossip.state` returns."""
    said = dict(cast(dict[str, Any], state)) if isinstance(state, dict) else {}
    return all(_is_whole(said.get(name)) and said[name] >= 0 for name in ("calls", "version"))


def _check(named: dict[str, Any], staleness: Any, max_lag: Any, checksum: Any, every: Any, buffers: Any, state: Any) -> None:
    """Refuse what cannot work, on all ranks alike. Raises SettingError."""
    for name, value, lowest in (("staleness", staleness, 0), ("max_lag", max_lag, 0), ("every", every, 1)):
        is_left_out = value is None and name != "every"
        require(is_left_out or _is_whole(value), name, repr(value), f"a whole number, {lowest} or more,")
        require_whole(name, value, lowest)
    require(isinstance(checksum, bool), "checksum", repr(checksum), "True or False")
    require(state is None or _is_state(state), "state", state, "what Gossip.state has returned")
    require(buffers in ("average", "keep"), "buffers", buffers, "average or keep")
    require(max_lag is None or staleness != 0, f"max_lag {max_lag}, staleness", staleness, "a bound of 1 or more, or None,")
    for name, tensor in named.items():
        require(isinstance(tensor, torch.Tensor), f"parameter {name}", type(tensor).__name__, "a torch tensor")
    require(any(tensor.numel() for tensor in named.values()), "parameters", "none", "one number or more")
    kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
    for name, tensor in named.items():
        require(tensor.dtype in FLOATS, f"parameter {name}", tensor.dtype, f"one of {kinds}")


def _graph(wanted: str | Topology, comm: MPI.Intracomm) -> Topology:
    """Return who reads whom. Collective.

    Raises:
        SettingError: there is no such graph for so many ranks; on all ranks.
    """
    if isinstance(wanted, Topology):
        require(wanted.size == comm.size, f"topology {wanted.name}", f"of {wanted.size} ranks", f"one of {comm.size}")
        return wanted
    known = isinstance(wanted, str)  # pyright: ignore[reportUnnecessaryIsInstance]  # of programs that nobody checks
    require(known, "topology", repr(wanted), "a name, that of a file, or a gala_mpi.Topology")
    hosts = comm.gather(MPI.Get_processor_name())
    found: Graph | SettingError = Graph(wanted)
    if hosts is not None:  # rank 0: a file need not be on all hosts
        try:
            found = topology.resolve(found, hosts)
        except SettingError as error:
            found = error
    found = comm.bcast(found)
    if isinstance(found, SettingError):
        raise found
    return topology.build(found, comm.size)
