"""Energy counters: a kernel's files in a folder of our own, and this machine's as they are."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gala_mpi.record import energy


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> Path:
    """An empty kernel: no RAPL, no node counter, no GPU."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "NODE", tmp_path / "energy")
    monkeypatch.setattr(energy, "STAT", tmp_path / "stat")
    monkeypatch.setattr(energy, "gpus", list)
    ticks(tmp_path, 0, 0)
    return tmp_path


def zone(kernel: Path, number: str, name: str, joules: float, wraps: float = 1000) -> None:
    folder = kernel / "powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps * 1e6:.0f}\n")


def ticks(kernel: Path, busy: int, idle: int) -> None:
    (kernel / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")


def test_what_is_not_there_is_not_available(kernel):
    reading = energy.Meter().read()
    for name in ("cpu_joules", "gpu_joules", "node_joules", "cores_busy", "gpus_busy"):
        assert math.isnan(getattr(reading, name)), name


def test_packages_and_memory_are_added_and_nothing_twice(kernel):
    for number, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys")):
        zone(kernel, number, name, 10)
    meter = energy.Meter()
    for number, name, joules in (("0", "package-0", 17), ("0:0", "core", 16), ("0:1", "dram", 12), ("1", "package-1", 15)):
        zone(kernel, number, name, joules)
    assert meter.read().cpu_joules == pytest.approx(7 + 2 + 5)
    assert meter.read().cpu_joules == 0


def test_a_counter_that_begins_anew(kernel):
    zone(kernel, "0", "package-0", 990, wraps=1000)
    meter = energy.Meter()
    zone(kernel, "0", "package-0", 5, wraps=1000)
    assert meter.read().cpu_joules == pytest.approx(15)


def test_a_counter_that_only_root_may_read(kernel, monkeypatch):
    zone(kernel, "0", "package-0", 10)
    read = Path.read_text

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(path)
        return read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert math.isnan(energy.Meter().read().cpu_joules)


def test_the_node_s_own_counter_and_its_cores(kernel):
    (kernel / "energy").write_text("1000 J 123456789 us\n")
    meter = energy.Meter()
    (kernel / "energy").write_text("1250 J 123456799 us\n")
    ticks(kernel, 30, 10)
    reading = meter.read()
    assert (reading.node_joules, reading.cores_busy) == (250, 0.75)


def test_a_lost_gpu_is_as_none(monkeypatch):
    """The driver counts it, and it does not answer."""

    def lost(index: int):
        raise RuntimeError("GPU is lost")

    driver = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lost)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert energy.gpus() == []


def test_this_machine():
    """Whatever it shows: nothing negative, and cores are busy while we are."""
    meter = energy.Meter()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    reading = meter.read()
    assert reading.seconds >= 0.3
    assert 0 < reading.cores_busy <= 1
    for joules in (reading.cpu_joules, reading.gpu_joules, reading.node_joules):
        assert math.isnan(joules) or joules >= 0
