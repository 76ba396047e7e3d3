"""Gossip of parameters that lie on a GPU, with a stand-in for one (gpu.py): messages leave by a stream of their own."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import test_exchange
import torch
from descent import BOUNDED, FREE, LENGTH, LOCKSTEP, gossip, jitter, named, run

import gpu
from gala_mpi import topology
from gala_mpi.job.build import build_exchange
from gala_mpi.mpi.mailbox import Mailbox
from gala_mpi.topology import Graph

SOME = named([FREE[0], FREE[2], BOUNDED[0], BOUNDED[1], LOCKSTEP[0], LOCKSTEP[1]])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch) -> gpu.Gpu:
    return gpu.Gpu(monkeypatch)


@pytest.mark.parametrize("config", SOME)
@pytest.mark.parametrize("asked", [0, 3, 10**9])
def test_agents_reach_the_common_minimum(comm, config, asked, monkeypatch):
    """Whether copies arrive at once, soon, or only when somebody waits for them."""
    monkeypatch.setattr(gpu, "ASKED", asked)
    test_exchange.test_agents_reach_the_common_minimum(comm, config)


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_lockstep_is_what_the_mixing_matrix_says(comm, graph):
    trace = run(comm, gossip(graph, 0), 40, gradient=test_exchange.bowl(comm.rank, 0.1), pause=jitter(comm.rank))
    expected = test_exchange.simulate(topology.build(Graph(graph), comm.size), 40)[comm.rank]
    np.testing.assert_allclose(trace.parameters, expected, rtol=1e-4, atol=1e-5)


def test_what_was_rewritten_while_it_was_mixed_is_not_kept(comm, monkeypatch, signs):
    test_exchange.test_what_was_rewritten_while_it_was_mixed_is_not_kept(comm, monkeypatch, signs)


def test_nobody_waits_for_a_message_to_leave(comm, monkeypatch):
    """It is readable once it has left, as it was sent, and at the end in any case."""
    if comm.size == 1:
        pytest.skip("needs 2 ranks or more")
    published, publish = [], Mailbox.publish

    def spy(mailbox: Mailbox, vector: np.ndarray, version: int) -> None:
        published.append((version, *vector))
        publish(mailbox, vector, version)

    monkeypatch.setattr(Mailbox, "publish", spy)
    x, expected = torch.zeros(LENGTH), []
    with closing(build_exchange(gossip(), comm, LENGTH)) as exchange:
        exchange.start(0, x)
        for k in range(1, 5):
            x.fill_(10 * k)
            assert exchange.room() is None
            exchange.parameters(x)
            x.fill_(torch.nan)
            for _ in range(gpu.ASKED - 1):
                exchange.progress()
            assert published == expected
            expected.append((k, *[10 * k] * LENGTH))
            if k < 4:
                exchange.progress()
                assert published == expected
    assert published == expected
