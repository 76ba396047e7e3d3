"""What a GPU needs, with a stand-in for one (gpu.py): the same numbers as without, and nothing that a GPU forbids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_rollout import GAMMA, KINDS, SEEDS, N, T

from gala_mpi.clock import Clock
from gala_mpi.config import A2CSettings
from gala_mpi.device import WARM_UP_CALLS, Download, Upload, cuda_graph, on_host, pick
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.learners.a2c import A2C
from gala_mpi.networks.policy import Network
from gala_mpi.rollout import cached, collector
from gala_mpi.rollout.collector import Collector
from gala_mpi.rollout.stored import Stored
from gpu import ASKED, Gpu, by_torch_alone

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    return Gpu(monkeypatch)


def test_on_host_shares_memory_on_the_cpu():
    vector = torch.zeros(3)
    with on_host(vector) as array:
        array[:] = 7
    assert np.array_equal(vector.numpy(), [7, 7, 7])


def test_gpus_are_dealt_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [str(pick("cuda", rank)) for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert [str(pick(name, 1)) for name in ("cuda:2", "cpu")] == ["cuda:2", "cpu"]


def test_on_the_cpu_an_upload_is_the_array():
    upload, array = Upload(CPU), np.arange(3.0)
    assert upload(array).data_ptr() == array.ctypes.data


def test_uploads_fill_the_same_tensor(gpu):
    upload = Upload(CPU)
    first = upload(np.arange(3.0))
    for k in range(5):
        given = np.arange(3.0) + k
        there = upload(given)
        given[:] = np.nan
        assert there is first and there.tolist() == [k, k + 1, k + 2]


def test_a_download_arrives_later_and_as_it_was_sent(gpu):
    vector = torch.arange(3.0)
    download = Download(vector)
    for k in range(3):
        vector.fill_(k)
        download.send(vector)
        vector.fill_(torch.nan)  # goes on to be used
        assert download.vector.tolist() == [k] * 3
        if k:  # somebody waits
            assert download.take().tolist() == [k] * 3
        asked = 1
        while not download.arrived():
            asked += 1
        assert asked == (1 if k else ASKED + 1)
        assert download.take().tolist() == [k] * 3


def test_a_replay_computes_anew_what_was_recorded(gpu):
    """Into the same memory; what Python did is not done again."""
    x, total, calls = torch.zeros(2), torch.zeros(2), []

    def function() -> torch.Tensor:
        calls.append(1)
        total.add_(x)
        return 2 * x

    call = cuda_graph(function, CPU)
    expected, results = np.zeros(2), []
    for k in range(6):
        x.fill_(k)
        expected += k
        results.append(call())
        assert results[-1].tolist() == [2 * k] * 2 and total.tolist() == expected.tolist()
    assert len(calls) == WARM_UP_CALLS + 1 and len({id(result) for result in results[WARM_UP_CALLS:]}) == 1


@pytest.mark.parametrize("looks", [lambda x: x.sum().item(), lambda x: x.numpy(), lambda x: x + torch.from_numpy(np.ones(2))])
def test_what_a_graph_cannot_hold_is_refused(gpu, looks):
    call = cuda_graph(lambda: looks(torch.ones(2)), CPU)
    for _ in range(WARM_UP_CALLS):
        call()
    with pytest.raises(RuntimeError, match="capturing"):
        call()


def trained(kind: str, precision: str, updates: int, path: str = "cached") -> tuple[torch.Tensor, list[list[float]]]:
    """The parameters after some updates as agent.py does them, and the losses of each."""
    torch.manual_seed(0)
    kind, _, overlapped = kind.partition(" ")
    turns = 2 if overlapped else 1
    environments = [GymEnvironments(f"plan/{kind}-v0", N // turns) for _ in range(turns)]
    network = Network(KINDS[kind][0], environments[0].spaces, precision).to(memory_format=torch.channels_last)
    learner = A2C(network, A2CSettings(discount=GAMMA, entropy_coefficient=0.3), lr=1e-3)
    playing = Collector(learner, environments, SEEDS, T, GAMMA, True, lambda: None, Clock())
    assert playing.passes.name == path and learner.one_pass
    gradient = cuda_graph(learner.gradient, CPU)
    torch.manual_seed(1)
    losses = []
    for _ in range(updates):
        batch, _ = playing.collect()
        losses.append(gradient(batch).tolist()[:3])  # those that it has
        learner.step(progress=0.0)
    return learner.flat.data, losses


@pytest.mark.parametrize("path", ["cached", "stored"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind} overlapped" for kind in KINDS)])
def test_training_by_graphs_is_training_bit_for_bit(kind, precision, path, monkeypatch):
    """Everything that changes between updates must lie where a graph looks for it."""
    if path == "stored":
        monkeypatch.setattr(cached, "fits", lambda network, learner: False)
        monkeypatch.setattr(collector, "computed_again", lambda network, device: Stored)
    updates = WARM_UP_CALLS + 4
    by_torch_alone(monkeypatch)
    expected, expected_losses = trained(kind, precision, updates, path)
    gpu = Gpu(monkeypatch)
    found, losses = trained(kind, precision, updates, path)
    turns = 2 if kind.endswith("overlapped") else 1
    # The weights' beginning, all passes of a rollout, the gradient.
    assert [graph.replays for graph in gpu.graphs] == [updates - WARM_UP_CALLS] * (1 + turns * (T + 1) + 1)
    assert losses == expected_losses and len(set(map(tuple, losses))) == updates
    assert torch.equal(found, expected)
