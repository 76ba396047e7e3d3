"""Check this machine, its MPI and the run directory: what is wrong, and what to do about it.

    mpirun -n 4 python -m gala_mpi.doctor
    srun --mpi=pmi2 python -m gala_mpi.doctor --network nature --num-envs 32 --run-dir /scratch/me/runs/pong

Give it the flags that training will get. Exit status: 0, or 1 if something would make a run fail; if not all ranks start, the
launcher's status for a killed rank.
"""

from __future__ import annotations

from gala_mpi import host
from gala_mpi.doctor import start
from gala_mpi.job import launch

launch.set_environment(command=__name__ == "__main__")
host.refuse_tiny_shared_memory(status=1)  # before MPI starts, which would crash

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
    config_checks,
    config_file,
    device,
    display,
)
from gala_mpi.cli import Unprefixed
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
from gala_mpi.networks.sizes import Sizes
from gala_mpi.run import files

SECONDS_TO_ANSWER = 15.0
SECONDS_TO_PRINT = 0.5  # for the launcher, which drops what it has not passed on when a rank aborts
SLOW_LATENCY = 0.01  # s, of a header (128 bytes)
SLOW_BANDWIDTH = {True: 200e6, False: 20e6}  # bytes/s, inside a host and between hosts
CHECKPOINTS = 5  # of every rank: those that are kept, the best one, the next one
COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
# Environment variables that hold how many ranks the launcher has started, whatever size MPI reports.
STARTED = ("PMI_SIZE", "PMIX_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Examination:
    """Check the machine, MPI and the run directory."""

    settings: Unprefixed[Config] = field(default_factory=Config)
    """What will be trained: the checks are for this run's windows, memory and directory."""
    json: bool = False
    """Print one JSON object instead of a table."""


class Prepared(NamedTuple):
    """What rank 0 sends to all ranks before the checks."""

    options: Examination
    settings: Config
    network: Sizes
    folder: Path  # the run directory, or the nearest folder above it that exists
    token: Path | None  # a file in `folder` that all hosts should see; None: it could not be written


def main(arguments: list[str]) -> None:
    """Make all checks, print the findings and exit with their status. Collective."""
    began = time.monotonic()
    watchdog = start.Watchdog()  # before MPI starts, which waits for all ranks
    with World() as world:
        watchdog.stop()
        prepared = world.decide(lambda: read_arguments(arguments, world))
        present = selftest.gather(world.comm, True, SECONDS_TO_ANSWER)
        if len(present) == world.size or not world.root:
            own_findings = list(check(prepared, world))
            answers = selftest.gather(world.comm, own_findings, SECONDS_TO_ANSWER)
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
                world.comm.Abort(1)  # with a rank that does not answer, MPI cannot be finalised
        world.wait()
        sys.exit(world.comm.bcast(int(failed)))


def read_arguments(arguments: list[str], world: World) -> Prepared:
    """Parse and check the command line, and resolve settings that depend on the machine.

    Raises:
        SettingError: bad input.
    """
    options = cli.parse(
        Examination,
        "doctor",
        "Check the machine, MPI and the run directory; print what is wrong and what to do about it.\n\n"
        "  mpirun -n 4 python -m gala_mpi.doctor\n"
        "  mpirun -n 4 python -m gala_mpi.doctor --network nature --run-dir /scratch/me/runs/pong",
        config_file.expand(arguments),
    )
    config_checks.check(options.settings)
    config_checks.check_no_run(options.settings, "the doctor")
    settings = dataclasses.replace(options.settings, precision="fp32")  # "auto" would be timed, and no check needs it
    settings, network, _ = prepare.settle(settings, world)
    folder = settings.directory.absolute()
    while not os.path.exists(folder):
        folder = folder.parent
    token = folder / f".gala_mpi-{world.host}.{os.getpid()}.tmp"
    try:
        token.touch()
    except OSError:
        token = None
    return Prepared(options, settings, network, folder, token)


def check(prepared: Prepared, world: World) -> Iterator[Finding]:
    """Yield the findings of this rank. Collective."""
    settings = prepared.settings
    if world.node.rank == 0:
        yield run_directory(prepared, world)
        yield locking(prepared.folder)
    yield gpu(settings, world)
    yield cma(world)
    if world.size == 1:
        return
    neighbours = reads(settings, world)
    short = preflight.shared_memory(own_host_demand(prepared, world)).state == "error"
    length = (
        1 if any(world.comm.allgather(short)) else prepared.network.parameters
    )  # windows of the real size would kill the ranks
    yield from gets(selftest.run(world.comm, length, neighbours), world)


def reads(settings: Config, world: World) -> list[int]:
    """Return the ranks that this one reads in training; where there is no graph, another one."""
    crew = settings.ranks(1)
    agent, place = divmod(world.rank, crew)
    if place:  # an actor reads its agent
        return [world.rank - place]
    agents = world.size // crew
    graph = EXCHANGES[settings.exchange].load().graph(settings, agents) if agents > 1 else None
    peers = graph.neighbours(agent) if graph else [(agent - 1) % agents]
    return [peer * crew for peer in peers if peer != agent] + [*range(world.rank + 1, world.rank + crew)]


def own_host_demand(prepared: Prepared, world: World) -> HostDemand:
    """Return what the run needs of this rank's host."""
    return next(
        each for each in preflight.demands(prepared.settings, prepared.network, world.host_views) if world.rank in each.ranks
    )


def merge(answers: dict[int, list[Finding]], prepared: Prepared, world: World) -> list[Finding]:
    """Return one finding per check: the worst of all ranks, which names the ranks if they are not all alike.

    Args:
        answers: rank → findings, of the ranks that answered.
    """
    hosts = preflight.demands(prepared.settings, prepared.network, world.host_views)
    findings = [launcher(world), *preflight.check_all(hosts), answering(answers, world)]
    of_all: dict[str, list[tuple[int, Finding]]] = {}
    for rank, answer in answers.items():
        for finding in answer:
            of_all.setdefault(finding.what, []).append((rank, finding))
    for of_check in of_all.values():
        chosen = worst(finding for _, finding in of_check)
        alike = [rank for rank, finding in of_check if finding.state == chosen.state]
        if chosen.state != "ok" and len(alike) < world.size:
            ranks = ", ".join(map(str, alike[:8])) + (", …" if len(alike) > 8 else "")
            chosen = Finding(chosen.what, chosen.state, f"rank {ranks}: {chosen.seen}", chosen.remedy)
        findings.append(chosen)
    return findings


# One check each.


def launcher(world: World) -> Finding:
    """Check that MPI sees all ranks that were started, and allows the threads that are needed."""
    started = max((int(os.environ.get(name) or 1) for name in STARTED), default=1)
    ranks = ", ".join(f"{len(of_host)} on {name}" for name, of_host in by_host(world).items())
    seen = f"{world.description}; ranks: {ranks}"
    if world.size == 1 < started:
        remedy = "start with the mpirun of this MPI; under Slurm srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI"
        return Finding("MPI", "error", f"{seen}; {started} were started, but MPI sees each alone", remedy)
    if not world.threads_allowed:
        remedy = "use an MPI built with threads: environments and torch run threads beside the one that calls MPI"
        return Finding("MPI", "error", f"{seen}; it allows only one thread", remedy)
    return Finding("MPI", "ok", f"{seen}; threads: funneled or better")


def by_host(world: World) -> dict[str, list[int]]:
    """Return host → its ranks."""
    ranks: dict[str, list[int]] = {}
    for rank, name in enumerate(world.hosts):
        ranks.setdefault(name, []).append(rank)
    return ranks


def answering(answers: dict[int, list[Finding]], world: World) -> Finding:
    """Check that every rank has answered."""
    silent = [f"rank {rank} on {world.hosts[rank]}" for rank in range(world.size) if rank not in answers]
    if not silent:
        return Finding("answers", "ok", f"all {world.size} ranks answer")
    return Finding(
        "answers",
        "error",
        f"no answer within {SECONDS_TO_ANSWER:g} s: {', '.join(silent)}",
        "check that process on its host: it may be stopped (state T), waiting for a file system (D), out of memory, or cut "
        "off from the network (firewall, wrong interface: -iface, UCX_NET_DEVICES, OMPI_MCA_btl_tcp_if_include)",
    )


def run_directory(prepared: Prepared, world: World) -> Finding:
    """Check that files can be written in the run directory, as checkpoints are, and that every host sees them."""
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
        return Finding("run directory", "error", f"{folder} on {world.host} is not the same as on rank 0's host", remedy)
    agents = world.size // prepared.settings.ranks(1)
    needed, free = CHECKPOINTS * agents * 8 * prepared.network.parameters, shutil.disk_usage(folder).free
    seen = f"{folder} ({host.file_system(folder)}): {size(free)} free, checkpoints take {size(needed)}"
    if needed > free:
        remedy = "make room, or choose another --run-dir, or keep fewer checkpoints (--keep-checkpoints)"
        return Finding("run directory", "warning", seen, remedy)
    return Finding("run directory", "ok", seen)


def locking(folder: Path) -> Finding:
    """Check that HDF5 can lock files in `folder`. This program takes no locks; others that open its files with h5py do."""
    problem = files.try_lock(folder)
    if not problem:
        return Finding("HDF5 locks", "ok", f"work on {host.file_system(folder)}")
    remedy = "training and analysis need none; for your own programs set HDF5_USE_FILE_LOCKING=FALSE"
    return Finding("HDF5 locks", "warning", f"refused on {host.file_system(folder)}: {problem}", remedy)


def gpu(settings: Config, world: World) -> Finding:
    """Check that this rank can use its GPU at the same time as the other ranks."""
    count = torch.cuda.device_count()
    if settings.device == "cpu":
        return Finding("GPU", "ok", f"not requested (--device cpu); this host has {count}")
    own = device.pick(settings.device, world.node.rank)
    try:
        torch.zeros(1, device=own)
    except RuntimeError as error:
        remedy = "several ranks share a GPU only in compute mode DEFAULT (nvidia-smi -c 0) or under MPS; or start fewer ranks"
        return Finding("GPU", "error", f"{own} cannot be used: {str(error).splitlines()[0]}", remedy)
    sharing = math.ceil(world.node.size / count) if settings.device == "cuda" else world.node.size
    seen = f"{torch.cuda.get_device_name(own)}, {count} a host, {sharing} ranks on each"
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
    if sharing > 1 and not mps:
        return Finding(
            "GPU", "warning", f"{seen} take turns", "start MPS, so that they run at the same time: nvidia-cuda-mps-control -d"
        )
    return Finding("GPU", "ok", f"{seen}, served by MPS" if mps else seen)


def cma(world: World) -> Finding:
    """Check that ranks of a host may read each other's memory. Windows do not need it; large messages are faster with it."""
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


def gets(readings: Readings, world: World) -> Iterator[Finding]:
    """Yield the findings of the self-test of the transport."""
    if readings.error:
        remedy = "one-sided MPI is off or broken: unset OMPI_MCA_osc and the like, or use another MPI (MPICH works as it is)"
        yield Finding("gets", "error", f"no window can be made: {readings.error}", remedy)
        return
    if readings.faults:
        remedy = (
            "this MPI's request-based gets (MPI_Rget) do not work: use another version, MPI or transport "
            "(MPIR_CVAR_CH4_NETMOD=ofi|ucx, OMPI_MCA_osc=rdma), and unset variables that change them"
        )
        yield Finding("gets", "error", "; ".join(readings.faults[:2]), remedy)
        return
    if readings.timed_out:
        remedy = "see which rank does not answer; if all do, this transport does not serve ranks inside MPI: use another"
        yield Finding("busy target", "error", "a get, or another rank, took too long", remedy)
        return
    yield Finding("gets", "ok", "request-based gets complete and return the right data")
    if not readings.bandwidth:  # gets failed on another rank, and nothing more was measured
        return
    yield speed(readings, world)
    if not math.isnan(readings.busy):
        yield busy_target(readings, world)


def speed(readings: Readings, world: World) -> Finding:
    """Check latency and bandwidth of the slowest neighbour."""
    peer = min(readings.bandwidth, key=lambda peer: readings.bandwidth[peer])
    bandwidth, latency = readings.bandwidth[peer], max(readings.latency.values())
    inside = world.hosts[peer] == world.host
    where = "inside the host" if inside else "between hosts"
    seen = f"{where}: {1e6 * latency:,.0f} µs, {bandwidth / 1e9:,.2f} GB/s a message"
    if bandwidth >= SLOW_BANDWIDTH[inside] and latency <= SLOW_LATENCY:
        return Finding("speed", "ok", seen)
    remedy = (
        "check the cores first (above); between hosts choose the fast network (-iface, UCX_NET_DEVICES, FI_PROVIDER); "
        "training works, with a larger lag of messages"
    )
    return Finding("speed", "warning", f"slow {where}, from rank {peer} on {world.hosts[peer]}: {seen}", remedy)


def busy_target(readings: Readings, world: World) -> Finding:
    """Check that a rank that computes can be read. Agents make progress between environment steps and network layers."""
    peer = f"rank {readings.target} on {world.hosts[readings.target]}"
    if readings.busy < selftest.SECONDS_BUSY / 2:
        return Finding("busy target", "ok", f"a rank that computes is read in {1e3 * readings.busy:.1f} ms")
    seen = f"{peer} is not served while it computes outside MPI ({1e3 * readings.busy:.0f} ms)"
    seen += f"; while it makes progress, in {1e3 * readings.busy_with_progress:.0f} ms"
    if readings.busy_with_progress < selftest.SECONDS_BUSY / 2:
        remedy = (
            "nothing need be done: agents make progress after every environment step. The lag is larger with slow "
            "environments; a network with RDMA, or MPIR_CVAR_ASYNC_PROGRESS=1 and a spare core a rank, serves at once"
        )
        return Finding("busy target", "warning", seen, remedy)
    remedy = (
        "use another transport (MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp) or MPIR_CVAR_ASYNC_PROGRESS=1 and a spare core a rank"
    )
    return Finding("busy target", "error", seen, remedy)


def show(findings: list[Finding], prepared: Prepared, world: World, seconds: float) -> None:
    """Print the findings and the resource plan, as a table or as one JSON object."""
    hosts = preflight.demands(prepared.settings, prepared.network, world.host_views)
    if prepared.options.json:
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
    all_ok = not any(counts.values())
    display.say("all ok" if all_ok else ", ".join(f"{n} {state}{'s' * (n != 1)}" for state, n in counts.items() if n))


if __name__ == "__main__":
    launch.run(main)
