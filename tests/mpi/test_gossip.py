"""`gala_mpi.Gossip` around modules of one's own: in lock-step it is the graph's matrix, and free nobody waits."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import gala_mpi
from gala_mpi import topology
from gala_mpi.errors import SettingError
from gala_mpi.gossip import Vector
from gala_mpi.topology import Graph

UPDATES = 6


class Tied(nn.Module):
    """Two layers with one weight, and one that takes no gradient."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.outer.weight = self.inner.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.outer(self.inner(x).tanh()))


def convolutions() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 1)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def transformer() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 1))


def mixed() -> nn.Module:
    """Layers of several dtypes."""
    return nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 1))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bowl": (lambda: nn.Linear(5, 1), (2, 5)),
    "transformer": (transformer, (2, 3, 8)),
    "convolutions": (convolutions, (2, 3, 4, 4)),
    "tied": (Tied, (2, 4)),
    "float64": (lambda: Tied().double(), (2, 4)),
    "bfloat16": (lambda: Tied().bfloat16(), (2, 4)),
    "mixed": (mixed, (2, 4)),
}


def train(module: nn.Module, shape: tuple[int, ...], rank: int, update: int, optimiser: torch.optim.Optimizer) -> None:
    """One step of an optimiser, on data of this rank's own."""
    data = torch.Generator().manual_seed(1000 * rank + update)
    x = torch.randn(shape, generator=data)
    for layer in module if isinstance(module, nn.Sequential) else [module]:
        x = layer(x.to(next(iter(layer.parameters()), x).dtype))
    optimiser.zero_grad()
    x.float().square().mean().backward()
    optimiser.step()


def numbers(module: nn.Module, buffers: bool) -> list[np.ndarray]:
    """Everything that is averaged, as float64."""
    found = [*module.parameters(), *(b for b in module.buffers() if buffers and b.is_floating_point())]
    return [tensor.detach().double().numpy().copy() for tensor in found]


@pytest.mark.parametrize("graph", ["ring", "one-peer-exponential", "base"])
@pytest.mark.parametrize("kind", MODULES)
def test_in_lockstep_it_is_the_matrix(comm, kind, graph):
    """A copy of the module that never mixes does the same step from the same place; what all have then, times the matrix, is
    what mixing makes of it, and buffers are averaged or left."""
    make, shape = MODULES[kind]
    built = topology.build(Graph(graph), comm.size)
    torch.manual_seed(comm.rank)  # they begin as rank 0 does
    module, buffers = make(), kind == "convolutions" and graph != "ring"
    optimiser = torch.optim.SGD(module.parameters(), 0.05)
    how = {"buffers": "average" if buffers else "keep"}
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    precisions = [torch.finfo(tensor.dtype).eps for tensor in tensors]
    with gala_mpi.Gossip(module, graph, comm=comm, staleness=0, **how) as gossip:
        assert all(np.array_equal(a, b) for a, b in zip(numbers(module, True), comm.bcast(numbers(module, True))))
        for update in range(1, UPDATES + 1):
            train(module, shape, comm.rank, update, optimiser)
            before, kept = comm.allgather(numbers(module, buffers)), [b.clone() for b in module.buffers()]
            mixes = gossip.mix()
            peers = built.in_peers(comm.rank, update)
            assert [(mix.peer, mix.version) for mix in mixes] == [(peer, update) for peer in peers]
            row = dict(zip([comm.rank, *peers], built.weights(comm.rank, update)))
            for i, (tensor, precision) in enumerate(zip(numbers(module, buffers), precisions)):
                expected = sum(weight * before[rank][i] for rank, weight in row.items())
                np.testing.assert_allclose(tensor, expected, rtol=4 * precision, atol=precision / 10)
            assert buffers or all(torch.equal(a, b) for a, b in zip(kept, module.buffers()))


def test_one_dtype_is_averaged_in_place_and_others_are_copied():
    for kind, viewed in (("convolutions", True), ("float64", True), ("bfloat16", False), ("mixed", False)):
        module = MODULES[kind][0]()
        before = [parameter.detach().clone() for parameter in module.parameters()]
        strides = [parameter.stride() for parameter in module.parameters()]
        vector = Vector(list(module.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
        assert strides == [parameter.stride() for parameter in module.parameters()]  # channels last stays so
        vector.flat.fill_(0.5)
        assert all((parameter == 0.5).all() for parameter in module.parameters()) == viewed
        vector.scatter()
        assert all((parameter == 0.5).all() for parameter in module.parameters())


def test_what_shares_memory_goes_on_doing_so_and_what_is_moved_is_averaged_too(comm):
    mean, whole = (comm.size - 1) / 2, torch.zeros(6)
    low, high = whole[:4], whole[2:]
    one, layer = torch.zeros(3), nn.Linear(2, 1, bias=False)
    with (
        gala_mpi.Gossip([low, high], "complete", comm=comm, staleness=0) as shared,
        gala_mpi.Gossip(one, "complete", comm=comm, staleness=0) as alone,
        gala_mpi.Gossip(layer, "complete", comm=comm, staleness=0) as moved,
    ):
        layer.double()
        for tensor in (whole, one, layer.weight.data):
            tensor.fill_(comm.rank)
        for gossip in (shared, alone, moved):
            gossip.mix()
    for tensor in (whole, low, high, one, layer.weight):
        assert torch.allclose(tensor.detach(), torch.full_like(tensor, mean))


def test_graphs_of_one_name_may_not_differ(comm):
    if comm.size == 1:
        pytest.skip("one rank differs from nobody")
    graph = topology.build(Graph("ring"), comm.size)
    if comm.rank == 0:
        graph = dataclasses.replace(graph, rounds=graph.rounds * 2)
    with pytest.raises(SettingError, match=r"topology on rank 1: ring of .* ranks \("):
        gala_mpi.Gossip([torch.zeros(1)], graph, comm=comm)


@pytest.mark.parametrize("broken", [0, 1])
def test_numbers_that_are_not_finite_stay_where_they_are_and_the_right_rank_is_named(comm, capsys, broken):
    if comm.size != 2:
        pytest.skip("of two ranks it is plain who reads whom")
    parameter = torch.zeros(2)
    with gala_mpi.Gossip([parameter], comm=comm, staleness=0) as gossip:
        if comm.rank == broken:
            parameter[0] = torch.nan
        assert gossip.mix() == []
        assert gossip.counters.corrupt == (comm.rank != broken)
    assert bool(torch.isnan(parameter).any()) == (comm.rank == broken)
    words = "mixes nothing: its own parameters are not" if comm.rank == broken else f"does not mix version 1 of rank {broken}"
    assert words in capsys.readouterr().err


def test_nobody_waits_for_who_does_not_come(comm, signs):
    """One rank mixes only after all others have mixed many times."""
    parameter = torch.zeros(1000)
    with gala_mpi.Gossip([parameter], "complete", comm=comm) as gossip:
        if comm.rank == 0:
            signs.wait("done", signs.others())
        parameter.fill_(comm.rank)
        for _ in range(50):
            assert all(1 <= mix.version <= 50 for mix in gossip.mix())
        assert gossip.calls == 50
        if comm.rank:  # rank 0, which had sent nothing, is read by nobody; without it nothing is complete
            assert gossip.counters.mixes == [] and gossip.counters.staleness == 50
            signs.give("done")
    assert torch.isfinite(parameter).all()


def test_every_so_many_calls(comm):
    parameter = torch.full((10,), float(comm.rank), dtype=torch.float64)
    with gala_mpi.Gossip([parameter], comm=comm, staleness=0, every=3) as gossip:
        mixed = [len(gossip.mix()) > 0 for _ in range(9)]
        assert mixed == [comm.size > 1 and call % 3 == 0 for call in range(1, 10)]
        assert gossip.state() == {"calls": 9, "version": 3 if comm.size > 1 else 0}


def test_messages_move_along_at_calls_that_do_not_mix(comm):
    parameter = torch.zeros(10)
    with gala_mpi.Gossip([parameter], comm=comm, every=3) as gossip:
        for _ in range(3):
            gossip.mix()
        began = time.monotonic()
        for _ in range(3):
            time.sleep(0.05)
            gossip.mix()
        if comm.size > 1:
            assert 0.05 <= gossip.counters.progress_gap < time.monotonic() - began - 0.05


def test_a_program_that_goes_on_equals_one_that_never_stopped(comm):
    def run(module: nn.Module, updates: range, state: dict | None = None) -> tuple[nn.Module, dict]:
        optimiser = torch.optim.SGD(module.parameters(), 0.05)
        with gala_mpi.Gossip(module, "one-peer-exponential", comm=comm, staleness=0, every=2, state=state) as gossip:
            for update in updates:
                train(module, (2, 4), comm.rank, update, optimiser)
                gossip.mix()
            return module, gossip.state()

    torch.manual_seed(0)
    first = Tied()
    whole, _ = run(copy.deepcopy(first), range(1, 12))
    half, state = run(copy.deepcopy(first), range(1, 6))
    saved = Tied()
    saved.load_state_dict(half.state_dict())
    again, _ = run(saved, range(6, 12), state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


def test_two_at_once_and_one_after_another(comm):
    one, other = torch.full((3,), float(comm.rank)), torch.full((7,), -float(comm.rank))
    for _ in range(2):
        with (
            gala_mpi.Gossip([one], comm=comm, staleness=0) as first,
            gala_mpi.Gossip([other], "complete", comm=comm, staleness=0) as second,
        ):
            one.fill_(comm.rank), other.fill_(-comm.rank)
            first.mix(), second.mix()
        mean = (comm.size - 1) / 2
        assert torch.allclose(other, torch.tensor(-mean))
        expected = comm.rank if comm.size == 1 else ((comm.rank - 1) % comm.size + comm.rank) / 2
        assert torch.allclose(one, torch.tensor(float(expected)))


@pytest.mark.parametrize(
    "tensors, options, said",
    [
        ([], {}, "parameters none: one number or more is expected"),
        ([torch.zeros(2, dtype=torch.int64)], {}, "parameter 0 torch.int64: one of float32, float64, bfloat16, float16"),
        ([torch.zeros(2)], {"every": 0}, "every 0: a whole number, 1 or more, is expected"),
        ([torch.zeros(2)], {"staleness": -1}, "staleness -1: a whole number, 0 or more, is expected"),
        ([torch.zeros(2)], {"buffers": "drop"}, "buffers drop: average or keep is expected"),
        (
            [torch.zeros(2)],
            {"max_lag": 3, "staleness": 0},
            "max_lag 3, staleness 0: a bound of 1 or more, or None,",
        ),
        ([torch.zeros(2)], {"topology": "rung"}, "--topology rung: "),
        ([torch.zeros(2)], {"topology": None}, "topology None: a name, that of a file, or a gala_mpi.Topology is expected"),
        ([torch.zeros(2)], {"every": 1.5}, "every 1.5: a whole number, 1 or more, is expected"),
        ([torch.zeros(2)], {"every": None}, "every None: a whole number, 1 or more, is expected"),
        ([torch.zeros(2)], {"staleness": "0"}, "staleness '0': a whole number, 0 or more, is expected"),
        ([torch.zeros(2)], {"checksum": "no"}, "checksum 'no': True or False is expected"),
        ([torch.zeros(2)], {"state": {"calls": 3}}, "state {'calls': 3}: what Gossip.state has returned is expected"),
        ([np.zeros(2)], {}, "parameter 0 ndarray: a torch tensor is expected"),
        (None, {}, "parameter 0 NoneType: a torch tensor is expected"),
    ],
)
def test_what_cannot_be_is_one_line(comm, tensors, options, said):
    with pytest.raises(SettingError, match=re.escape(said)) as error:
        gala_mpi.Gossip(tensors, comm=comm, **options)
    assert "\n" not in str(error.value)


def test_ranks_that_differ_are_named_on_all(comm):
    if comm.size == 1:
        pytest.skip("one rank differs from nobody")
    last = comm.size - 1
    there, one = comm.rank == last, torch.zeros(1)
    for mine, said in (
        ([torch.zeros(2 + there)], rf"parameter 0 on rank {last}: torch.float32 \[3\]: parameter 0 torch.float32 \[2\], as"),
        ([one, one.clone()] if there else [one], rf"parameter 1 on rank {last}: .*: parameter none, as on rank 0, is expected"),
    ):
        with pytest.raises(SettingError, match=said):
            gala_mpi.Gossip(mine, comm=comm)
    with pytest.raises(SettingError, match=rf"staleness on rank {last}: 1: staleness None, as on rank 0, is expected"):
        gala_mpi.Gossip([torch.zeros(1)], comm=comm, staleness=1 if comm.rank == last else None)


@pytest.mark.parametrize(
    "told, said",
    [
        ({"state": {"calls": 1, "version": 1}}, "state on rank .*: one: state None, as on rank 0, is expected"),
        ({"every": 0}, "every on rank .*: 0: every 1, as on rank 0, is expected"),
        ({"checksum": True}, "checksum on rank .*: True: checksum False, as on rank 0, is expected"),
        ({"max_lag": 2}, "max_lag on rank .*: 2: max_lag None, as on rank 0, is expected"),
        ({"buffers": "average"}, "buffers on rank .*: average: buffers keep, as on rank 0, is expected"),
        ({"topology": None}, "topology on rank .*: None: topology ring, as on rank 0, is expected"),
        ({"state": 3}, "state on rank .*: 3: state None, as on rank 0, is expected"),
    ],
)
def test_nobody_waits_for_who_is_told_something_else(comm, told, said):
    if comm.size == 1:
        pytest.skip("one rank differs from nobody")
    with pytest.raises(SettingError, match=said):
        gala_mpi.Gossip([torch.zeros(1)], comm=comm, **(told if comm.rank == comm.size - 1 else {}))


def test_in_lock_step_all_go_on_from_one_mix(comm):
    if comm.size == 1:
        pytest.skip("one rank differs from nobody")
    state = {"calls": 4 + (comm.rank == comm.size - 1), "version": 2}
    with pytest.raises(
        SettingError, match=r"state on rank .*: \{'calls': 5, 'version': 2\}: state \{'calls': 4, .* is expected"
    ):
        gala_mpi.Gossip([torch.zeros(1)], comm=comm, staleness=0, every=2, state=state)
    gala_mpi.Gossip([torch.zeros(1)], comm=comm, every=2, state=state).close()


def test_bounds_that_might_make_ranks_wait_in_a_circle_are_refused(comm):
    if topology.build(Graph("one-peer-exponential"), comm.size).period == 1:
        pytest.skip("so few ranks have one graph at every update")
    with pytest.raises(SettingError, match="agents might wait for each other for ever"):
        gala_mpi.Gossip([torch.zeros(1)], "one-peer-exponential", comm=comm, staleness=2, max_lag=3)


def test_who_comes_late_to_the_end_is_waited_for(comm):
    """Whoever waits for a second says so: words are on their way when rank 0 comes."""
    gossip = gala_mpi.Gossip([torch.zeros(1)], comm=comm)
    gossip.mix()
    if comm.rank == 0 and comm.size > 1:
        time.sleep(2.5)
    gossip.close()


def test_after_close_nothing_is_mixed(comm):
    gossip = gala_mpi.Gossip([torch.zeros(1)], comm=comm)
    gossip.close()
    gossip.close()
    with pytest.raises(SettingError, match="mix after close"):
        gossip.mix()
