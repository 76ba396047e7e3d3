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
from gala_mpi.mpi.mailbox import DIRECT, REMOTE, window_bytes
from gala_mpi.networks.sizes import Sizes

# Agents do not wait for each other, so that more ranks than cores cost them little but time: 2 per core need no warning.
RANKS_PER_CORE = 2.0
# Resident memory, measured: of each rank alone (Python, torch and MPI), and the code that the ranks of a host share (4 of
# CartPole: 171 MiB each and 118 together); an environment with images (2 ranks of Pong: 229 MiB each with 16 and 5 steps of
# each, 334 with 64) or with numbers (CartPole); how many vectors are as long as the parameters: these, gradients, RMSprop,
# messages, casts.
RANK_BYTES, CODE_BYTES, IMAGES_BYTES, NUMBERS_BYTES, VECTORS = 180 << 20, 130 << 20, 1160 << 10, 10 << 10, 8
# Of a worker process: Python, numpy and gymnasium; what its environment imports comes on top.
WORKER_BYTES = 50 << 20
# Of a step that is learnt from: what autograd keeps of it (`Sizes.step`), and what it works with.
AT_WORK = 1.5
# Of each step of a rollout beside the observation: reward, action, mask and the like. Of learners in several parts all steps
# are kept, and autograd takes twice as much of each step of a part (PPO on Pong: 250 MiB in all with 16 environments, 180 with
# 8, 35 with 4).
ROW_BYTES = 112
# Of each unit of a memory in each step that autograd goes over (an LSTM 75 to 110, a GRU 50)
UNIT_STEP = 100
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
    actors: int = 0  # of the ranks, those that play for another one, which has no environments then

    def __str__(self) -> str:
        inside = f" in {self.workers} worker{'s' * (self.workers > 1)}" if self.workers else ""
        acting = f" ({self.actors} actor{'s' * (self.actors > 1)})" if self.actors else ""
        ranks = (
            f"{len(self.ranks)} rank{'s' * (len(self.ranks) > 1)}{acting} × {self.environments} environments{inside} × "
            f"{self.threads} threads"
        )
        windows = f"windows {size(self.windows)} of {size(self.view.shm_free)} in {SHARED_MEMORY}"
        memory = f"memory about {size(self.memory)} of {size(self.memory_free)}"
        return f"{ranks} on {self.view.cores:g} cores; {windows if self.windows else 'no windows'}; {memory}"

    @property
    def memory_free(self) -> int:
        """Bytes for the ranks: those that they hold, and those that nobody does."""
        return self.view.memory_free + self.memory_held


def demands(config: Config, network: Sizes, host_views: list[HostView]) -> list[HostDemand]:
    """Return what the run needs of each host.

    Args:
        network: what the network takes.
        host_views: the views of all ranks, in their order.
    """
    names = list(dict.fromkeys(each.host for each in host_views))
    reach, crew = DIRECT if len(names) == 1 else REMOTE, config.ranks(1)
    window, length = 0, network.parameters
    if len(host_views) > crew:
        window = EXCHANGES[config.exchange].load().window_bytes(config, length, reach)
    environment_bytes = IMAGES_BYTES if network.images else NUMBERS_BYTES
    rank_bytes = RANK_BYTES + config.num_envs * environment_bytes + VECTORS * 4 * length
    player_bytes = 0  # of a process that evaluates: any host may be the one that has it
    if config.evaluate_minutes is not None:
        player_bytes = RANK_BYTES + config.evaluate_episodes * environment_bytes
    rank_bytes += _rollout_bytes(config, network) + config.env_workers * WORKER_BYTES
    if config.actors:
        window += window_bytes(length, reach)
    hosts = []
    for name in names:
        ranks = [rank for rank, each in enumerate(host_views) if each.host == name]
        views = [host_views[rank] for rank in ranks]
        actors = sum(rank % crew > 0 for rank in ranks)
        windows = (len(ranks) - actors) * window + actors * _message_bytes(config, network)
        hosts.append(
            HostDemand(
                name,
                ranks,
                config.num_envs,
                max(each.threads for each in views),
                views[0],
                1 / min(each.share for each in views),
                windows,
                CODE_BYTES + len(ranks) * rank_bytes + windows + player_bytes,
                sum(each.memory_held for each in views),
                config.env_workers,
                actors,
            )
        )
    return hosts


def _rollout_bytes(config: Config, network: Sizes) -> int:
    """Return what a rollout of a rank takes, and what autograd makes of it."""
    step_bytes, steps = int(AT_WORK * network.step), config.steps_per_update
    kept = network.observation + ROW_BYTES
    at_once = config.learner_settings.at_once(steps)
    if config.memory is not None:  # by autograd, whatever the learner
        at_once = at_once or steps
        step_bytes += config.memory_size * UNIT_STEP // 2
    if config.lag or config.actors:  # two rollouts are kept, and autograd goes over one
        return (2 * kept + 2 * step_bytes) * steps
    return steps * step_bytes if at_once is None else steps * kept + 2 * at_once * step_bytes


def _message_bytes(config: Config, network: Sizes) -> int:
    """Return what an actor's window takes: a rollout."""
    return (network.observation + ROW_BYTES) * config.num_envs * (config.length + 1)


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
