"""What a run will need of its host_views, and what is wrong with them, before it costs a run.

Here is what can be said at once, from metadata that every rank has gathered: `train` says it at its start. What takes some
seconds is in `python -m gala_mpi.doctor`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gala_mpi.config import Config
from gala_mpi.exchange import EXCHANGES
from gala_mpi.host import ENLARGE, SHARED_MEMORY, HostView
from gala_mpi.mpi.mailbox import DIRECT, REMOTE

# Agents do not wait for each other, so that more ranks than cores cost them little but time: 2 a core are not worth a word.
RANKS_PER_CORE = 2.0
# Resident memory of a rank, measured: Python, torch and MPI; a simulator of images (380 MiB with 16 of Pong, 945 with 256) or
# of numbers (CartPole), with its part of a rollout of 5 steps; how many vectors there are as long as the parameters: they,
# gradients, RMSprop, messages, casts.
RANK_BYTES, IMAGES_BYTES, NUMBERS_BYTES, VECTORS = 310 << 20, 2560 << 10, 16 << 10, 8
SMALL_WINDOWS = 1 << 20  # a rank's other windows: the display's, the probes'

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        seen: what was found, with the figures.
        remedy: what to do about it; empty where all is well.
    """

    what: str
    state: State
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class HostDemand:
    """What the run takes of one host, and what there is. Bytes."""

    name: str
    ranks: list[int]
    environments: int
    threads: int
    view: HostView  # as its first rank sees it
    ranks_per_core: float  # where the fewest cores are
    windows: int
    memory: int

    def __str__(self) -> str:
        ranks = (
            f"{len(self.ranks)} rank{'s' * (len(self.ranks) > 1)} × {self.environments} environments × {self.threads} threads"
        )
        windows = f"windows {size(self.windows)} of {size(self.view.shm_free)} in {SHARED_MEMORY}"
        memory = f"memory about {size(self.memory)} of {size(self.view.memory_free)}"
        return f"{ranks} on {self.view.cores:g} cores; {windows if self.windows else 'no windows'}; {memory}"


def demands(config: Config, length: int, host_views: list[HostView]) -> list[HostDemand]:
    """What each host is asked for.

    Args:
        length: P, the number of parameters.
        host_views: what every rank sees.
    """
    names = list(dict.fromkeys(each.host for each in host_views))
    window = 0
    if len(host_views) > 1:
        exchange = EXCHANGES[config.exchange].load()
        window = exchange.window_bytes(config, length, DIRECT if len(names) == 1 else REMOTE)
    simulator = NUMBERS_BYTES if config.network == "mlp" else IMAGES_BYTES
    rank_bytes = RANK_BYTES + config.num_envs * simulator + VECTORS * 4 * length
    found = []
    for name in names:
        ranks = [rank for rank, each in enumerate(host_views) if each.host == name]
        here = [host_views[rank] for rank in ranks]
        found.append(
            HostDemand(
                name,
                ranks,
                config.num_envs,
                max(each.threads for each in here),
                here[0],
                1 / min(each.share for each in here),
                len(ranks) * window,
                len(ranks) * (rank_bytes + window),
            )
        )
    return found


def resource_plan(hosts: list[HostDemand]) -> list[str]:
    """The resource plan: one line for hosts that are asked for the same and offer the same cores."""
    alike: dict[tuple, list[HostDemand]] = {}
    for host in hosts:
        alike.setdefault((len(host.ranks), host.threads, host.view.cores), []).append(host)
    return [
        f"{group[0].name if len(group) == 1 else f'{len(group)} hosts, {group[0].name} to {group[-1].name}, each'}: {group[0]}"
        for group in alike.values()
    ]


def check_all(hosts: list[HostDemand]) -> list[Finding]:
    """Cores, shared memory and memory: the worst host of each."""
    return [worst(check(host) for host in hosts) for check in (cores, shared_memory, memory)]


def worst(findings: Iterable[Finding]) -> Finding:
    """The first of the worst."""
    return max(findings, key=lambda finding: ("ok", "warning", "error").index(finding.state))


def cores(host: HostDemand) -> Finding:
    """Whether the ranks get enough of the cores that they may use."""
    seen = f"{host.name}: {len(host.ranks)} ranks × {host.threads} threads on {host.view.cores:g} cores"
    if host.ranks_per_core <= RANKS_PER_CORE + 1e-9:
        return Finding("cores", "ok", seen)
    return Finding(
        "cores",
        "warning",
        f"{seen}: {host.ranks_per_core:.3g} ranks share a core",
        "start fewer ranks on a host, or give them more cores (--cpus-per-task; mpirun --bind-to none; I_MPI_PIN=0); "
        "training works, but each rank is as much slower, and more environments a rank (--num-envs) cost less than more ranks",
    )


def shared_memory(host: HostDemand) -> Finding:
    """Windows lie in /dev/shm; where it is too small, the first write past its end kills the ranks with SIGBUS."""
    here, needed = host.view, host.windows + len(host.ranks) * SMALL_WINDOWS
    seen = f"{host.name}: {size(here.shm_free)} free of {size(here.shm_size)}; {len(host.ranks)} ranks need {size(needed)}"
    if not host.windows or len(host.ranks) == 1:
        return Finding(f"{SHARED_MEMORY}", "ok", f"{host.name}: {size(here.shm_free)} free; no windows are needed there")
    if here.shm_problem:
        seen = f"{host.name}: cannot be written: {here.shm_problem}"
        return Finding(f"{SHARED_MEMORY}", "error", seen, f"make it writable (mode 1777), or mount it: {ENLARGE}")
    if needed > here.shm_free:
        return Finding(f"{SHARED_MEMORY}", "error", seen, f"enlarge it ({ENLARGE}), or run fewer ranks on a host")
    return Finding(f"{SHARED_MEMORY}", "ok", seen)


def memory(host: HostDemand) -> Finding:
    """Whether what the ranks will probably take is free now, or at least there at all."""
    here = host.view
    seen = f"{host.name}: about {size(host.memory)} needed, {size(here.memory_free)} free of {size(here.memory_size)}"
    if host.memory <= 0.9 * here.memory_free:
        return Finding("memory", "ok", seen)
    remedy = "run fewer ranks on a host, or fewer environments in each (--num-envs), or ask for more memory (--mem)"
    return Finding("memory", "error" if host.memory > here.memory_size else "warning", seen, remedy)


def size(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
