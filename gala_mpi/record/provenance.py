"""Metadata of one start of a run: what ran, and where.

It comes from files and the environment only. No child process is started, because forking after MPI has started is not safe
on every network.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gala_mpi
from gala_mpi import topology
from gala_mpi.topology import Topology

PACKAGES = ("mpi4py", "torch", "gymnasium", "ale-py", "numpy", "h5py")


def metadata(graph: Topology | None, library: str, hosts: list[str], threads: list[int], number: int) -> dict[str, object]:
    """Return the metadata that is known before the first step.

    Args:
        graph: who reads whom; None: no agent reads another.
        library: the MPI library and its version.
        hosts: of every rank.
        threads: of every rank.
        number: the checkpoint that this start resumes from; 0: it starts from scratch.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "gala_mpi": gala_mpi.__version__,
        "commit": commit(Path(gala_mpi.__file__).parents[1]),
        "python": platform.python_version(),
        "packages": [f"{package} {version(package)}" for package in PACKAGES],
        "mpi": library,
        "hosts": hosts,
        "threads": threads,
        "cores": os.cpu_count(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "resumed_from": number,
        **({"degree": graph.degree, "period": graph.period, "beta": topology.mixing_rate(graph)} if graph else {}),
    }


def commit(repository: Path) -> str:
    """Return the hash of the commit that is checked out in `repository`; empty outside a checkout."""
    git = repository / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        if (git / reference).exists():
            return (git / reference).read_text().strip()
        packed = (git / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), "")
    except OSError:
        return ""
