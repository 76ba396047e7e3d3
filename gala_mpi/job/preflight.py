"""What a run needs of its hosts, and what they lack, before it costs a run.

These are the checks that take no time, made from the views of the hosts that all ranks have gathered; `train` makes them at
its start. Checks that take seconds are in `python -m gala_mpi.doctor`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gala_mpi.config import Config
from gala_mpi.exchange import EXCHANGES
from gala_mpi.host import ENLARGE, SHARED_MEMORY, HostView
from gala_mpi.mpi.mailbox import DIRECT, REMOTE
from gala_mpi.networks import NETWORKS

# Agents do not wait for each other, so that more ranks than cores cost them little but time: 2 per core need no warning.
RANKS_PER_CORE = 2.0
# Resident memory, measured: of each rank alone (Python, torch and MPI), and the code that the ranks of a host share (4 of
# CartPole: 171 MiB each and 118 together); an environment with images (2 ranks of Pong: 229 MiB each with 16, 334 with 64) or
# with numbers (CartPole), including its part of a rollout of 5 steps; how many vectors are as long as the parameters: these,
# gradients, RMSprop, messages, casts.
RANK_BYTES, CODE_BYTES, IMAGES_BYTES, NUMBERS_BYTES, VECTORS = 180 << 20, 130 << 20, 2560 << 10, 16 << 10, 8
# Of a worker process: Python, numpy and gymnasium; what its environment imports comes on top.
WORKER_BYTES = 50 << 20
# What each step more of a rollout takes of an environment: the observation, and what the layers make of it.
ROLLOUT, IMAGES_STEP, NUMBERS_STEP = 5, 280 << 10, 1 << 10
SMALL_WINDOWS = 1 << 20  # bytes of a rank's other windows: the display's, the probes'

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the name of what was checked.
        seen: what was found, with the figures.
        remedy: what to do about it; empty if all is well.
    """

    what: str
    state: State
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class HostDemand:
    """What a run needs of one host, and what the host has. Bytes."""

    name: str
    ranks: list[int]
    environments: int
    threads: int
    view: HostView  # that of its first rank
    ranks_per_core: float  # of the rank with the smallest share
    windows: int
    memory: int
    memory_held: int  # of it, by the ranks as they are now
    workers: int = 0  # processes of a rank that step its environments

    def __str__(self) -> str:
        inside = f" in {self.workers} worker{'s' * (self.workers > 1)}" if self.workers else ""
        ranks = (
            f"{len(self.ranks)} rank{'s' * (len(self.ranks) > 1)} × {self.environments} environments{inside} × "
            f"{self.threads} threads"
        )
        windows = f"windows {size(self.windows)} of {size(self.view.shm_free)} in {SHARED_MEMORY}"
        memory = f"memory about {size(self.memory)} of {size(self.memory_free)}"
        return f"{ranks} on {self.view.cores:g} cores; {windows if self.windows else 'no windows'}; {memory}"

    @property
    def memory_free(self) -> int:
        """Bytes for the ranks: those that they hold, and those that nobody does."""
        return self.view.memory_free + self.memory_held


def demands(config: Config, length: int, host_views: list[HostView]) -> list[HostDemand]:
    """Return what the run needs of each host.

    Args:
        length: P, the number of parameters.
        host_views: the views of all ranks, in their order.
    """
    names = list(dict.fromkeys(each.host for each in host_views))
    window = 0
    if len(host_views) > 1:
        exchange = EXCHANGES[config.exchange].load()
        window = exchange.window_bytes(config, length, DIRECT if len(names) == 1 else REMOTE)
    numbers = config.network is not None and NETWORKS[config.network].images is not True
    environment_bytes, step_bytes = (NUMBERS_BYTES, NUMBERS_STEP) if numbers else (IMAGES_BYTES, IMAGES_STEP)
    environment_bytes += max(0, config.rollout_length - ROLLOUT) * step_bytes
    rank_bytes = RANK_BYTES + config.num_envs * environment_bytes + VECTORS * 4 * length
    rank_bytes += config.env_workers * WORKER_BYTES
    hosts = []
    for name in names:
        ranks = [rank for rank, each in enumerate(host_views) if each.host == name]
        views = [host_views[rank] for rank in ranks]
        hosts.append(
            HostDemand(
                name,
                ranks,
                config.num_envs,
                max(each.threads for each in views),
                views[0],
                1 / min(each.share for each in views),
                len(ranks) * window,
                CODE_BYTES + len(ranks) * (rank_bytes + window),
                sum(each.memory_held for each in views),
                config.env_workers,
            )
        )
    return hosts


def resource_plan(hosts: list[HostDemand]) -> list[str]:
    """Return the resource plan: one line for all hosts of which the run needs the same and which have the same cores."""
    alike: dict[tuple, list[HostDemand]] = {}
    for host in hosts:
        alike.setdefault((len(host.ranks), host.threads, host.view.cores), []).append(host)
    return [
        f"{group[0].name if len(group) == 1 else f'{len(group)} hosts, {group[0].name} to {group[-1].name}, each'}: {group[0]}"
        for group in alike.values()
    ]


def check_all(hosts: list[HostDemand]) -> list[Finding]:
    """Check cores, shared memory and memory, and return the worst host's finding for each."""
    return [worst(check(host) for host in hosts) for check in (cores, shared_memory, memory)]


def worst(findings: Iterable[Finding]) -> Finding:
    """Return the first of the worst findings."""
    return max(findings, key=lambda finding: ("ok", "warning", "error").index(finding.state))


def cores(host: HostDemand) -> Finding:
    """Check that not too many ranks share a core."""
    seen = f"{host.name}: {len(host.ranks)} ranks × {host.threads} threads on {host.view.cores:g} cores"
    if host.ranks_per_core <= RANKS_PER_CORE + 1e-9:
        return Finding("cores", "ok", seen)
    return Finding(
        "cores",
        "warning",
        f"{seen}: {host.ranks_per_core:.3g} ranks share a core",
        "start fewer ranks on a host, or give them more cores (--cpus-per-task; mpirun --bind-to none; I_MPI_PIN=0); "
        "training works, but each rank is slower by that factor; more environments a rank (--num-envs) cost less than ranks",
    )


def shared_memory(host: HostDemand) -> Finding:
    """Check that the windows fit into /dev/shm: the first write past its end kills a rank with SIGBUS."""
    view, needed = host.view, host.windows + len(host.ranks) * SMALL_WINDOWS
    seen = f"{host.name}: {size(view.shm_free)} free of {size(view.shm_size)}; {len(host.ranks)} ranks need {size(needed)}"
    if not host.windows or len(host.ranks) == 1:
        return Finding(f"{SHARED_MEMORY}", "ok", f"{host.name}: {size(view.shm_free)} free; no windows are needed there")
    if view.shm_problem:
        seen = f"{host.name}: cannot be written: {view.shm_problem}"
        return Finding(f"{SHARED_MEMORY}", "error", seen, f"make it writable (mode 1777), or mount it: {ENLARGE}")
    if needed > view.shm_free:
        return Finding(f"{SHARED_MEMORY}", "error", seen, f"enlarge it ({ENLARGE}), or run fewer ranks on a host")
    return Finding(f"{SHARED_MEMORY}", "ok", seen)


def memory(host: HostDemand) -> Finding:
    """Check that the memory that the ranks will probably take is free (else a warning), or exists at all (else an error)."""
    view = host.view
    seen = f"{host.name}: about {size(host.memory)} needed, {size(host.memory_free)} free of {size(view.memory_size)}"
    if host.memory <= 0.9 * host.memory_free:
        return Finding("memory", "ok", seen)
    remedy = "run fewer ranks on a host, or fewer environments in each (--num-envs), or ask for more memory (--mem)"
    return Finding("memory", "error" if host.memory > view.memory_size else "warning", seen, remedy)


def size(count: float) -> str:
    """Return a number of bytes as text, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
