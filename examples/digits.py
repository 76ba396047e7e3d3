"""Digits of scikit-learn, by ranks that gossip: each learns from its own part of the data, none waits for another.

    mpirun -n 4 python -m mpi4py examples/digits.py                          gossip
    mpirun -n 4 python -m mpi4py examples/digits.py --exchange allreduce     the mean gradient of all ranks at every step
    python examples/digits.py                                                one process that has all of the data

All read as many examples in all. What is tested is the network with the mean parameters of all ranks.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import tyro
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

import gala_mpi

TESTED = 0.2  # of the data


@dataclass(frozen=True)
class Options:
    """Learn to read digits."""

    exchange: Literal["gossip", "allreduce"] = "gossip"
    """How ranks share what they learn."""
    topology: str = "exponential"
    """gossip: who reads whom (docs/graphs.md)."""
    epochs: int = 80
    """How often each rank goes through its part."""
    batch: int = 32
    """Examples of a step of all ranks together."""
    lr: float = 1e-3
    """Of Adam."""
    seed: int = 0
    pause: float = 0.0
    """Seconds to sleep after each step, as for a larger network."""


def main(options: Options) -> None:
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    mine, tested = train_test_split(np.arange(len(labels)), test_size=TESTED, random_state=options.seed, stratify=labels)
    mine = mine[comm.rank :: comm.size]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=options.lr)
    gossips = options.exchange == "gossip"
    batch = max(1, options.batch // comm.size)
    order = np.random.default_rng([options.seed, comm.rank])
    smallest = comm.allreduce(len(mine), MPI.MIN)  # by allreduce all take as many steps
    longest = 0.0
    with gala_mpi.Gossip(model, topology=options.topology, comm=comm) if gossips else nullcontext() as gossip:
        print(f"rank {comm.rank} begins with {len(mine)} digits", flush=True)
        for _ in range(options.epochs):
            for chosen in np.split(order.permutation(mine)[:smallest], range(batch, smallest, batch)):
                optimiser.zero_grad()
                cross_entropy(model(images[chosen]), labels[chosen]).backward()
                if gossip is None:
                    average(comm, [parameter.grad for parameter in model.parameters()])
                optimiser.step()
                if gossip is not None:
                    began = time.perf_counter()
                    gossip.mix()
                    longest = max(longest, time.perf_counter() - began)
                time.sleep(options.pause)
        print(f"rank {comm.rank} has learnt; its longest mix took {1e3 * longest:.1f} ms", flush=True)
    with torch.no_grad():
        average(comm, list(model.parameters()))
        accuracy = (model(images[tested]).argmax(1) == labels[tested]).float().mean().item()
    if comm.rank == 0:
        print(f"accuracy {accuracy:.4f} on {len(tested)} digits, {comm.size} ranks, {options.exchange}", flush=True)


def average(comm: MPI.Comm, tensors: list[torch.Tensor]) -> None:
    """Put the mean of all ranks' tensors in their place. Waits for all."""
    for tensor in tensors:
        comm.Allreduce(MPI.IN_PLACE, tensor.numpy())
        tensor /= comm.size


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
