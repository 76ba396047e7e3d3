"""What `gala_mpi.Gossip` costs in a loop of one's own, beside what the training program pays; and whom a stopped rank delays.

    mpirun -n 2 python benchmarks/library.py            a mix, and an exchange of the program, each beside a copy of its bytes
    mpirun -n 3 python benchmarks/library.py --stop     rank 1 stands still for 5 s: the others' longest mix

The loop trains the network of --network gala (866,439 parameters) on random images by torch's SGD. At every second iteration
the mix is timed, at the others a copy of the parameters just before it, so that both find the caches in the same state. The
program's optimiser writes its step into MPI's window, another one does not: so a mix is an exchange and one copy.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass

import torch
import tyro
from torch import nn

import gala_mpi
from gala_mpi import config
from gala_mpi.bench import exchange
from gala_mpi.job import prepare
from gala_mpi.mpi.world import World

WARM_UP = 10
STOPPED, SECONDS = 1, 5.0  # the rank that stands still, and for how long


@dataclass
class Options:
    """Measure mixes in a loop of one's own."""

    rounds: int = 3
    """Turns of the program and of the loop."""
    mixes: int = 100
    """Mixes that are timed in a turn."""
    stop: bool = False
    """Let a rank stand still, and time the others' mixes."""


class Loop:
    """A training loop of one's own."""

    def __init__(self):
        torch.manual_seed(0)
        layers = (nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 32, 3, 1), nn.ReLU())
        self.model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 7))
        self.optimiser = torch.optim.SGD(self.model.parameters(), 1e-3)
        self.images = torch.rand(80, 4, 84, 84)

    def learn(self) -> None:
        self.model(self.images).square().mean().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


def of_loop(mixes: int) -> tuple[float, float]:
    """Return the median times of a mix and of a copy, in seconds."""
    loop, copies, times = Loop(), [], []
    with gala_mpi.Gossip(loop.model) as gossip:
        flat = nn.utils.parameters_to_vector(loop.model.parameters()).detach()
        scratch = torch.zeros_like(flat)
        for iteration in range(WARM_UP + 2 * mixes):
            loop.learn()
            if iteration % 2:
                copies.append(seconds(scratch.copy_, flat))
                gossip.mix()
            else:
                took = seconds(gossip.mix)
                if gossip.counters.mixes:
                    times.append(took)
    return statistics.median(times[WARM_UP // 2 :]), statistics.median(copies[WARM_UP // 2 :])


def seconds(call, *arguments) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def of_program(world: World, mixes: int) -> dict[str, float]:
    """Return what `gala_mpi.bench exchange` measures."""
    wanted = config.parse(["--env", "pong", "--precision", "fp32"])
    settings = world.comm.bcast(prepare.settle(wanted, world)[0] if world.root else None)
    return world.comm.bcast(exchange.measure(world, exchange.ExchangeBench(settings, mixes), settings))


def compare(world: World, options: Options) -> None:
    for _ in range(options.rounds):
        program = of_program(world, options.mixes)
        mix, copy = (statistics.median(each) for each in zip(*world.comm.allgather(of_loop(options.mixes))))
        if world.root:
            whole = program["mixing_exchange"] + program["copy"]
            print(
                f"program: exchange {1e6 * program['mixing_exchange']:.0f} us, copy {1e6 * program['copy']:.0f} us; "
                f"loop: mix {1e6 * mix:.0f} us, copy {1e6 * copy:.0f} us; a mix is {mix / whole:.2f} of exchange and copy",
                flush=True,
            )


def stop(world: World) -> None:
    loop, longest = Loop(), 0.0
    with gala_mpi.Gossip(loop.model) as gossip:
        for _ in range(WARM_UP):
            loop.learn()
            gossip.mix()
        world.comm.Barrier()
        began = time.perf_counter()
        if world.rank == STOPPED:
            subprocess.Popen(["sh", "-c", f"sleep {SECONDS}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        while world.rank != STOPPED and time.perf_counter() - began < SECONDS - 1:
            loop.learn()
            longest = max(longest, seconds(gossip.mix))
        found = world.comm.gather(longest)  # when it goes on
    if found:
        print("longest mix of the others (ms): " + ", ".join(f"{1e3 * each:.1f}" for each in found if each), flush=True)


if __name__ == "__main__":
    world, options = World(), tyro.cli(Options, description=__doc__)
    if options.stop:
        stop(world)
    else:
        compare(world, options)
