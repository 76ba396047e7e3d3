"""Whether this machine, this MPI and this place for a run are well: what is wrong, and what to do about it.

    mpirun -n 4 python -m gala_mpi.doctor
    srun --mpi=pmi2 python -m gala_mpi.doctor --network nature --num-envs 32 --run-dir /scratch/me/runs/pong

Give it the flags that training will get. Exit status: 0, or 1 where something would make a run fail; the launcher's for a
killed rank where not all ranks start.
"""

from __future__ import annotations

from gala_mpi import host
from gala_mpi.doctor import start
from gala_mpi.job import launch

launch.set_environment()
host.refuse_tiny_shared_memory(status=1)  # before MPI is imported, and crashes
watch = start.Watch()  # before MPI is imported, and waits for all

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table

from gala_mpi import (
    cli,
    config,
    device,
    display,
)
from gala_mpi.config import Config
from gala_mpi.exchange import EXCHANGES
from gala_mpi.job import (
    preflight,
    prepare,
)
from gala_mpi.job.preflight import (
    Finding,
    HostDemand,
    size,
    worst,
)
from gala_mpi.mpi import selftest
from gala_mpi.mpi.selftest import Readings
from gala_mpi.mpi.world import World
from gala_mpi.run import files

SECONDS_TO_ANSWER = 15.0
SECONDS_TO_PRINT = 0.5  # for the launcher, which forgets what it has not passed on when a rank aborts
SLOW_LATENCY = 0.01  # s, for 128 bytes
SLOW_BANDWIDTH = {True: 200e6, False: 20e6}  # bytes/s, inside a host and between hosts
CHECKPOINTS = 5  # of every rank: those that are kept, the best, the next
COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
# What tells a process how many ranks its launcher has started, whatever MPI makes of it.
STARTED = ("PMI_SIZE", "PMIX_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Examination:
    """Whether the machine, MPI and the place for a run are well."""

    settings: Config = field(default_factory=Config)
    """What will be trained: it is this run's windows, memory and directory that are looked at."""
    json: bool = False
    """Print one JSON object instead of a table."""


class Prepared(NamedTuple):
    """What rank 0 tells all: what is asked, the settings, the number of parameters, and a file that all should see."""

    wanted: Examination
    settings: Config
    length: int
    folder: Path
    token: Path | None


def main(arguments: list[str]) -> None:
    began = time.monotonic()
    with World() as world:
        watch.over()
        prepared = world.decide(lambda: read_arguments(arguments, world))
        present = selftest.gather(world.comm, True, SECONDS_TO_ANSWER)
        if len(present) == world.size or not world.root:
            mine = list(check(prepared, world))
            answers = selftest.gather(world.comm, mine, SECONDS_TO_ANSWER)
        else:
            answers = {rank: [] for rank in present}
        failed = False
        if world.root:
            if prepared.token:
                prepared.token.unlink()
            findings = merge(answers, prepared, world)
            show(findings, prepared, world, time.monotonic() - began)
            sys.stdout.flush()
            failed = any(finding.state == "error" for finding in findings)
            if any(finding.what in ("answers", "gets") and finding.state == "error" for finding in findings):
                time.sleep(SECONDS_TO_PRINT)
                world.comm.Abort(1)  # what somebody never answers cannot be ended in order
        world.wait()
        sys.exit(world.comm.bcast(int(failed)))


def read_arguments(arguments: list[str], world: World) -> Prepared:
    """Parse, check, resolve. Raises SettingError."""
    wanted = cli.parse(
        Examination,
        "doctor",
        "Look at the machine, MPI and the run directory; say what is wrong and what to do about it.\n\n"
        "  mpirun -n 4 python -m gala_mpi.doctor\n"
        "  mpirun -n 4 python -m gala_mpi.doctor --network nature --run-dir /scratch/me/runs/pong",
        arguments,
        flat=True,
    )
    config.check(wanted.settings)
    config.check_no_run(wanted.settings, "the doctor")
    settings = dataclasses.replace(wanted.settings, precision="fp32")  # which is the fastest is not asked here
    settings, length = prepare.settle(settings, world)
    folder = settings.directory.absolute()
    while not folder.exists():
        folder = folder.parent
    token = folder / f".gala_mpi-{world.host}.{os.getpid()}.tmp"
    try:
        token.touch()
    except OSError:
        token = None
    return Prepared(wanted, settings, length, folder, token)


def check(prepared: Prepared, world: World) -> Iterator[Finding]:
    """One rank's findings. Collective."""
    settings = prepared.settings
    if world.node.rank == 0:
        yield run_directory(prepared, world)
        yield locking(prepared.folder)
    yield gpu(settings, world)
    yield cma(world)
    if world.size == 1:
        return
    graph = EXCHANGES[settings.exchange].load().graph(settings, world.size)
    neighbours = graph.neighbours(world.rank) if graph else [(world.rank - 1) % world.size]
    short = preflight.shared_memory(here(prepared, world)).state == "error"
    length = 1 if any(world.comm.allgather(short)) else prepared.length  # the real size would kill the ranks
    yield from gets(selftest.run(world.comm, length, neighbours), world)


def here(prepared: Prepared, world: World) -> HostDemand:
    return next(
        each for each in preflight.demands(prepared.settings, prepared.length, world.host_views) if world.rank in each.ranks
    )


def merge(answers: dict[int, list[Finding]], prepared: Prepared, world: World) -> list[Finding]:
    """One finding of each kind: the worst of all ranks, with the rank in it where not all are alike."""
    hosts = preflight.demands(prepared.settings, prepared.length, world.host_views)
    findings = [launcher(world), *preflight.check_all(hosts), answering(answers, world)]
    of_all: dict[str, list[tuple[int, Finding]]] = {}
    for rank, answer in answers.items():
        for finding in answer:
            of_all.setdefault(finding.what, []).append((rank, finding))
    for found in of_all.values():
        chosen = worst(finding for _, finding in found)
        alike = [rank for rank, finding in found if finding.state == chosen.state]
        if chosen.state != "ok" and len(alike) < world.size:
            ranks = ", ".join(map(str, alike[:8])) + (", …" if len(alike) > 8 else "")
            chosen = Finding(chosen.what, chosen.state, f"rank {ranks}: {chosen.seen}", chosen.remedy)
        findings.append(chosen)
    return findings


# Each of these looks at one thing.


def launcher(world: World) -> Finding:
    """Whether MPI sees all ranks that were started, and gives the threads that are needed."""
    started = max((int(os.environ.get(name) or 1) for name in STARTED), default=1)
    ranks = ", ".join(f"{len(of_host)} on {name}" for name, of_host in by_host(world).items())
    seen = f"{world.description}; ranks: {ranks}"
    if world.size == 1 < started:
        remedy = "start with the mpirun of this MPI; under Slurm srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI"
        return Finding("MPI", "error", f"{seen}; {started} were started, and each is alone", remedy)
    if not world.threads_allowed:
        remedy = "use an MPI built with threads: environments and torch run some beside the one that calls MPI"
        return Finding("MPI", "error", f"{seen}; it allows one thread only", remedy)
    return Finding("MPI", "ok", f"{seen}; threads: funneled or better")


def by_host(world: World) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for rank, name in enumerate(world.hosts):
        ranks.setdefault(name, []).append(rank)
    return ranks


def answering(answers: dict[int, list[Finding]], world: World) -> Finding:
    """Whether every rank is there."""
    silent = [f"rank {rank} on {world.hosts[rank]}" for rank in range(world.size) if rank not in answers]
    if not silent:
        return Finding("answers", "ok", f"all {world.size} ranks answer")
    return Finding(
        "answers",
        "error",
        f"no answer within {SECONDS_TO_ANSWER:g} s: {', '.join(silent)}",
        "look at that process on its host: stopped (state T), waiting for a file system (D), out of memory, or cut off "
        "from the network (firewall, wrong interface: -iface, UCX_NET_DEVICES, OMPI_MCA_btl_tcp_if_include)",
    )


def run_directory(prepared: Prepared, world: World) -> Finding:
    """Whether files can be written there, as checkpoints are, and every host sees them."""
    folder, token = prepared.folder, prepared.token
    try:
        path = folder / f".gala_mpi-{world.host}.{os.getpid()}.h5"
        with files.atomic(path):
            pass
        path.unlink()
    except OSError as error:
        remedy = "choose another --run-dir, on a file system that every host can write (scratch, not a node's own disk)"
        return Finding("run directory", "error", f"{folder} cannot be written: {error.strerror or error}", remedy)
    if token and not token.exists():
        remedy = "choose a --run-dir on a file system that all hosts share: a resume reads every rank's files"
        return Finding("run directory", "error", f"{folder} on {world.host} is not that of rank 0's host", remedy)
    needed, free = CHECKPOINTS * world.size * 8 * prepared.length, shutil.disk_usage(folder).free
    seen = f"{folder} ({host.file_system(folder)}): {size(free)} free, checkpoints take {size(needed)}"
    if needed > free:
        remedy = "make room, or choose another --run-dir, or keep fewer checkpoints (--keep-checkpoints)"
        return Finding("run directory", "warning", seen, remedy)
    return Finding("run directory", "ok", seen)


def locking(folder: Path) -> Finding:
    """Whether HDF5 can lock files there. This program takes no lock; whoever opens its files with h5py does."""
    problem = files.try_lock(folder)
    if not problem:
        return Finding("HDF5 locks", "ok", f"taken on {host.file_system(folder)}")
    remedy = "training and analysis need none; for programs of your own set HDF5_USE_FILE_LOCKING=FALSE"
    return Finding("HDF5 locks", "warning", f"refused on {host.file_system(folder)}: {problem}", remedy)


def gpu(settings: Config, world: World) -> Finding:
    """Whether every rank can use its GPU while the others do."""
    there = torch.cuda.device_count()
    if settings.device == "cpu":
        return Finding("GPU", "ok", f"none is asked for (--device cpu); this host shows {there}")
    mine = device.pick(settings.device, world.node.rank)
    try:
        torch.zeros(1, device=mine)
    except RuntimeError as error:
        remedy = "several ranks share a GPU only in compute mode DEFAULT (nvidia-smi -c 0) or under MPS; or start fewer ranks"
        return Finding("GPU", "error", f"{mine} cannot be used: {str(error).splitlines()[0]}", remedy)
    sharing = math.ceil(world.node.size / there) if settings.device == "cuda" else world.node.size
    seen = f"{torch.cuda.get_device_name(mine)}, {there} a host, {sharing} ranks on each"
    served = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
    if sharing > 1 and not served:
        return Finding(
            "GPU", "warning", f"{seen} take turns", "start MPS, so that they run at once: nvidia-cuda-mps-control -d"
        )
    return Finding("GPU", "ok", f"{seen}, served by MPS" if served else seen)


def cma(world: World) -> Finding:
    """Whether ranks of a host may read each other's memory. Windows there need it not; large messages are faster with it."""
    if world.node.size == 1:
        return Finding("CMA", "ok", "one rank on the host: not needed")
    problem = selftest.memory_refused(world.node)
    if not problem:
        return Finding("CMA", "ok", "ranks of a host may read each other's memory")
    remedy = (
        "sysctl kernel.yama.ptrace_scope=0, in a container --cap-add SYS_PTRACE; if MPI complains: UCX_TLS=^cma or "
        "OMPI_MCA_smsc=^cma. Gossip inside a host goes through /dev/shm and works without"
    )
    return Finding("CMA", "warning", f"refused between ranks of {world.host}: {problem}", remedy)


def gets(figures: Readings, world: World) -> Iterator[Finding]:
    """What reading the others has shown."""
    if figures.error:
        remedy = "one-sided MPI is off or broken: unset OMPI_MCA_osc and the like, or take another MPI (MPICH works unedited)"
        yield Finding("gets", "error", f"no window can be made: {figures.error}", remedy)
        return
    if figures.wrong:
        remedy = (
            "this MPI's request-based gets (MPI_Rget) do not work: take another version, MPI or transport "
            "(MPIR_CVAR_CH4_NETMOD=ofi|ucx, OMPI_MCA_osc=rdma), and unset variables that change them"
        )
        yield Finding("gets", "error", "; ".join(figures.wrong[:2]), remedy)
        return
    if figures.silent:
        remedy = "see which rank does not answer; if all do, this transport does not serve a rank that is in MPI: take another"
        yield Finding("busy target", "error", "a read, or another rank, did not come to its end in time", remedy)
        return
    yield Finding("gets", "ok", "request-based gets complete and bring what lies there")
    if not figures.bandwidth:  # another rank's did not, and nothing more was asked
        return
    yield speed(figures, world)
    if not math.isnan(figures.busy):
        yield busy_target(figures, world)


def speed(figures: Readings, world: World) -> Finding:
    """The slowest neighbour."""
    peer = min(figures.bandwidth, key=lambda peer: figures.bandwidth[peer])
    bandwidth, latency = figures.bandwidth[peer], max(figures.latency.values())
    inside = world.hosts[peer] == world.host
    where = "inside the host" if inside else "between hosts"
    seen = f"{where}: {1e6 * latency:,.0f} µs, {bandwidth / 1e9:,.2f} GB/s a message"
    if bandwidth >= SLOW_BANDWIDTH[inside] and latency <= SLOW_LATENCY:
        return Finding("speed", "ok", seen)
    remedy = (
        "look at the cores first (above); between hosts choose the fast network (-iface, UCX_NET_DEVICES, FI_PROVIDER); "
        "messages will be older, and training goes on"
    )
    return Finding("speed", "warning", f"slow {where}, from rank {peer} on {world.hosts[peer]}: {seen}", remedy)


def busy_target(figures: Readings, world: World) -> Finding:
    """Whether a rank is served while its target computes; agents progress MPI between simulator steps and network layers."""
    peer = f"rank {figures.target} on {world.hosts[figures.target]}"
    if figures.busy < selftest.SECONDS_BUSY / 2:
        return Finding("busy target", "ok", f"a rank that computes is read in {1e3 * figures.busy:.1f} ms")
    seen = f"{peer} is not served while it computes outside MPI ({1e3 * figures.busy:.0f} ms)"
    seen += f"; while it makes progress, in {1e3 * figures.progressing:.0f} ms"
    if figures.progressing < selftest.SECONDS_BUSY / 2:
        remedy = (
            "nothing must be done: agents make progress after every environment step. Messages are older with slow "
            "environments; a network with RDMA, or MPIR_CVAR_ASYNC_PROGRESS=1 and a core a rank for it, serves at once"
        )
        return Finding("busy target", "warning", seen, remedy)
    remedy = (
        "take another transport (MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp), or MPIR_CVAR_ASYNC_PROGRESS=1 and a core a rank"
    )
    return Finding("busy target", "error", seen, remedy)


def show(findings: list[Finding], prepared: Prepared, world: World, seconds: float) -> None:
    hosts = preflight.demands(prepared.settings, prepared.length, world.host_views)
    if prepared.wanted.json:
        metadata = {"ranks": world.size, "hosts": len(hosts), "seconds": seconds, "plan": preflight.resource_plan(hosts)}
        print(json.dumps(metadata | {"findings": [dataclasses.asdict(finding) for finding in findings]}))
        return
    table = Table("", "", "found", "what to do", title=f"gala_mpi on {world.size} ranks, {len(hosts)} hosts")
    for finding in findings:
        colour = COLOURS[finding.state]
        table.add_row(finding.what, f"[{colour}]{finding.state}[/]", finding.seen, finding.remedy)
    display.console().print(table)
    for line in preflight.resource_plan(hosts):
        display.say(f"plan: {line}")
    counts = {state: sum(finding.state == state for finding in findings) for state in ("warning", "error")}
    well = not any(counts.values())
    display.say("all ok" if well else ", ".join(f"{n} {state}{'s' * (n != 1)}" for state, n in counts.items() if n))


if __name__ == "__main__":
    main(sys.argv[1:])
