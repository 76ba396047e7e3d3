"""Sketches of agents that really train: what they say about all pairs, against the vectors themselves."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import combinations

import numpy as np
import pytest
import torch

from gala_mpi import agent
from gala_mpi.config import Config
from gala_mpi.job import build
from gala_mpi.run.tables import SIZE


@pytest.mark.parametrize("exchange", ["gossip", "allreduce", "periodic", "none"])
def test_distances_and_angles_between_agents(comm, exchange):
    config = Config(
        env="CartPole-v1", network="mlp", precision="fp32", num_envs=4, exchange=exchange, total_steps=10**6, sketch_updates=10
    )
    with closing(build.build(config, comm, 0, 1)) as me:
        me.start()
        own = catch_gradients(me)
        for update in range(1, 51):
            before = me.learner.flat.data.clone()
            done = me.update()
            grad_norm, step_norm, sketches = done.grad_norm, done.step_norm, done.sketches
            assert len(sketches) == (2 if update % 10 == 0 else 0)
            if exchange == "none":  # nothing but the step has changed the parameters
                assert step_norm == pytest.approx(float((me.learner.flat.data - before).norm()), rel=1e-3)
            if not sketches:
                continue
            exact = np.array(comm.allgather([own[-1], me.learner.flat.data.numpy().copy()]))
            sketched = np.array(comm.allgather(sketches))
            for i, j in combinations(range(comm.size), 2):
                one, other = (np.linalg.norm(v[i, 1].astype(float) - v[j, 1]) for v in (exact, sketched))
                # Two agents that have just mixed the same two messages differ by rounding, which a sketch does not show.
                assert other == pytest.approx(one, rel=0.05, abs=1e-6 * float(np.linalg.norm(exact[i, 1])))
                one, other = (cosine(v[i, 0], v[j, 0]) for v in (exact, sketched))
                assert other == pytest.approx(one, abs=4.5 / np.sqrt(SIZE))
            if exchange != "allreduce":
                assert np.linalg.norm(sketches[0]) == pytest.approx(grad_norm, rel=0.05)


def test_sketches_cost_less_than_a_hundredth_of_an_update(comm):
    if comm.size > 1:
        pytest.skip("one rank tells")
    config = Config(env="pong", network="gala", precision="bf16")
    with closing(build.build(config, comm, 0, 1)) as me:
        me.start()
        update = min(seconds(me.update) for _ in range(5))
        sketch = min(seconds(me.sketch, me.learner.flat.data) for _ in range(5))
    print(f"a sketch takes {1e3 * sketch:.2f} ms, an update {1e3 * update:.1f} ms")
    assert 2 * sketch / config.sketch_updates < 0.01 * update


def seconds(call, *arguments) -> float:
    """Of this process alone, whoever else uses the cores."""
    began = time.process_time()
    call(*arguments)
    return time.process_time() - began


def catch_gradients(me: agent.Agent) -> list[np.ndarray]:
    """Every gradient of this agent as its exchange is given it."""
    caught, give = [], me.exchange.gradient

    def gradient(vector: torch.Tensor) -> bool:
        caught.append(vector.numpy().copy())
        return give(vector)

    me.exchange.gradient = gradient
    return caught


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float)))
