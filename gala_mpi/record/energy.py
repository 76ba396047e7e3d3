"""Energy and load of a node, from its counters: RAPL for CPUs, NVML for GPUs, and the node's own counter if it has one.

What a node does not measure is NaN, never an estimate. The counters cover everything that runs on the node, so only one of
its ranks reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")  # RAPL, of Intel's and AMD's CPUs; often readable by root only
NODE = Path("/sys/cray/pm_counters/energy")  # joules of the whole node; Slurm's acct_gather_energy/pm_counters reads it too
STAT = Path("/proc/stat")
NAN = float("nan")


@dataclass
class Reading:
    """Energy and load since the previous reading; NaN where not available."""

    seconds: float
    cpu_joules: float  # packages, and memory where it has a counter of its own
    gpu_joules: float  # all GPUs of the node
    node_joules: float
    cores_busy: float  # share of the node's cores, by all processes
    gpus_busy: float  # share of the time, mean over the node's GPUs


class Meter:
    """Reads the counters of this node."""

    def __init__(self):
        self._zones = rapl_zones()
        self._gpus = gpus()
        self._last = self._counters()

    def read(self) -> Reading:
        """Return energy and load since the last call, or since the meter was made."""
        last, self._last = self._last, self._counters()
        new = self._last
        busy, idle = (after - before for before, after in zip(last["cores"], new["cores"]))
        return Reading(
            new["time"] - last["time"],
            sum(growth(a, b, zone.wraps) for zone, a, b in zip(self._zones, last["rapl"], new["rapl"])) if self._zones else NAN,
            sum(b - a for a, b in zip(last["gpus"], new["gpus"])) if self._gpus else NAN,
            new["node"] - last["node"],
            busy / (busy + idle) if busy + idle else NAN,
            mean([gpu.busy() for gpu in self._gpus]),
        )

    def _counters(self) -> dict:
        return {
            "time": time.monotonic(),
            "rapl": [zone.joules() for zone in self._zones],
            "gpus": [gpu.joules() for gpu in self._gpus],
            "node": number(NODE),
            "cores": cores(),
        }


# CPUs.


@dataclass(frozen=True)
class Zone:
    """One RAPL counter, which starts again at 0 when it reaches `wraps` joules."""

    file: Path
    wraps: float

    def joules(self) -> float:
        return number(self.file) / 1e6


def rapl_zones() -> list[Zone]:
    """Return the counters of packages and, where they are separate, of memory; none where this user may not read them."""
    zones = []
    for folder in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            zone = Zone(folder / "energy_uj", number(folder / "max_energy_range_uj") / 1e6)
        except OSError:
            continue
        if (name.startswith("package") or name == "dram") and zone.joules() == zone.joules():
            zones.append(zone)
    return zones


def growth(before: float, after: float, wraps: float) -> float:
    """Return by how much a counter grew that starts again at 0 when it reaches `wraps`."""
    return after - before if after >= before else after - before + wraps


def cores() -> tuple[float, float]:
    """Return the ticks for which all cores together were busy, and those for which they were idle or waited for a disk."""
    ticks = [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, idle


# GPUs.


@dataclass(frozen=True)
class Gpu:
    """The counters of one GPU."""

    joules: Callable[[], float]
    busy: Callable[[], float]  # share of the time, over the last sixth of a second to a second


def gpus() -> list[Gpu]:
    """Return the node's GPUs; none without NVIDIA's driver and nvidia-ml-py, or where one of the GPUs does not answer."""
    try:
        import pynvml  # optional: only needed where there may be a GPU

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no GPU, or a lost one
        return []

    def or_nan(read: Callable[[], Any]) -> Callable[[], float]:
        def read_or_nan() -> float:
            try:
                return read()
            except pynvml.NVMLError:  # this GPU has no such counter, or has been lost since
                return NAN

        return read_or_nan

    def gpu(handle: object) -> Gpu:
        return Gpu(
            joules=or_nan(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
            busy=or_nan(lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100),
        )

    return [gpu(handle) for handle in handles]


def number(file: Path) -> float:
    """Return the first number in one of the kernel's files; NaN where it cannot be read."""
    try:
        return float(file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return NAN


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else NAN
