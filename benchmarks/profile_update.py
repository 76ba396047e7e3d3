"""Where the time of an update goes on a device: the clock's sections, and the kernels that take longest (torch.profiler).

python benchmarks/profile_update.py --device cuda --num-envs 64
"""

from __future__ import annotations

import argparse

from gala_mpi.job import launch

launch.prepare_to_train(status=2)  # before torch and MPI are imported

import torch
from torch.profiler import ProfilerActivity, profile

from gala_mpi.config import Config
from gala_mpi.job import build
from gala_mpi.mpi.world import World

WARM_UP_UPDATES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:0")
    parser.add_argument("--network", default="gala", help="gala or nature")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--num-envs", type=int, default=64, help="environments")
    parser.add_argument("--updates", type=int, default=100, help="updates to measure")
    given = vars(parser.parse_args())
    updates = given.pop("updates")
    with World() as world:
        agent = build.build(Config(env="pong", **given), world.comm, 0, world.threads)
        agent.start()
        for _ in range(WARM_UP_UPDATES):
            agent.update()
        agent.clock.lap()
        for _ in range(updates):
            agent.update()
        sections = agent.clock.lap()
        busy = {"cuda": ProfilerActivity.CUDA}.get(torch.device(given["device"]).type, ProfilerActivity.CPU)
        with profile(activities=[busy]) as profiler:
            for _ in range(updates):
                agent.update()
        agent.close()
    print(", ".join(f"{name} {1e3 * seconds / updates:.2f} ms" for name, seconds in sections.items()), "an update")
    print(f"kernels, over {updates} updates:")
    order = "self_cuda_time_total" if busy is ProfilerActivity.CUDA else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90))


if __name__ == "__main__":
    main()
