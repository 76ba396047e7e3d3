"""Training on a real GPU beside training on the CPU; test_gpu.py has a stand-in for machines without one.

Without a GPU the CPU is compared with itself for a few updates, which tries the test; DEVICE=cpu does all updates so.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from gala_mpi.config import Config
from gala_mpi.device import pick
from gala_mpi.job import build
from gala_mpi.rollout.collector import Collector

DEVICE = os.environ.get("DEVICE", "cuda" if torch.cuda.is_available() else "")
UPDATES, ENVS = (500, 4) if DEVICE else (3, 1)


class Led(Collector):
    """One that does what another one did: on two devices nobody draws the same actions for long.

    Attributes:
        led: int64 [T, N], the actions.
    """

    led: torch.Tensor

    def _pass(self, number: int):
        acted = super()._pass(number)
        return acted if acted.actions is None else acted._replace(actions=self.led[number])


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """torch lets GPUs round the factors of convolutions to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("exchange", ["gossip", "allreduce"])
@pytest.mark.parametrize("network", ["gala", "nature"])
def test_updates_are_those_of_the_cpu(comm, monkeypatch, network, exchange):
    """Each begins with the CPU's parameters, since what differs in the last bit is a hundredth 50 updates later."""
    staleness = 0 if exchange == "gossip" else None
    config = Config("pong", exchange=exchange, staleness=staleness, network=network, precision="fp32", num_envs=ENVS)
    threads = max(1, (os.cpu_count() or 1) // comm.size)
    leader = build.build(config, comm, comm.rank, threads)
    monkeypatch.setattr(build, "Collector", Led)
    follower = build.build(replace(config, device=DEVICE or "cpu"), comm, comm.rank, threads)
    vector, device = follower.learner.flat.data, pick(DEVICE or "cpu", comm.rank)
    assert vector.device == device
    follower.collector.led = torch.zeros(follower.collector.length, config.num_envs, dtype=torch.int64, device=device)
    leader.start(), follower.start()
    expected, found, strayed = [], [], []
    for _ in range(UPDATES):
        before = leader.learner.flat.data.clone()
        follower.learner.load(leader.learner.state())
        first = leader.update()
        follower.collector.led.copy_(torch.stack([each.actions for each in leader.collector._record.acted[:-1]]))
        second = follower.update()
        assert [episode.score for episode in second.episodes] == [episode.score for episode in first.episodes]
        expected.append([*first.losses[:3], first.grad_norm, first.step_norm])
        found.append([*second.losses[:3], second.grad_norm, second.step_norm])
        after = leader.learner.flat.data
        strayed.append(float((vector.cpu() - after).norm() / (after - before).norm()))
    leader.close(), follower.close()
    apart, scale = np.abs(np.array(found) - expected).max(axis=0), np.abs(expected).max(axis=0)
    if comm.rank == 0:
        names = ("policy loss", "value loss", "entropy", "gradient", "step")
        print(*(f"{name}: {each:.1e} of {most:.2g}" for name, each, most in zip(names, apart, scale)), sep=", ")
        print(f"new parameters: {max(strayed):.1e} of the way from the old ones, median {np.median(strayed):.1e}")
    assert (apart <= 1e-3 * np.maximum(1, scale)).all()
    assert max(strayed) < 0.05
