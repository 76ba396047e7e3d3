"""Training over several hosts: a network with a delay and a rate between them (benchmarks/network.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import launch
import network
from commandline import SMALL, STEPS_PER_UPDATE, assert_complete, parameters, start, table, train
from gala_mpi import errors
from network import Network

GOSSIP = ("--exchange", "gossip")
LONG = ("--total-steps", 100_000_000)
SECONDS_AWAY = 5.0  # that a rank is cut off or stopped
STALL = 2.0  # s; a busy machine may keep a rank waiting for a core, but not as long as its neighbour is away

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists(network.TUN), reason=str(network.missing()))


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def hosts(monkeypatch):
    """Three hosts. Whatever is launched runs over them, a rank on each."""
    with Network(hosts=3) as hosts:
        monkeypatch.setattr(launch, "LAUNCHER", hosts.launcher)
        yield hosts


def seconds(run, rank: int, updates=slice(None)) -> np.ndarray:
    """When a rank did its updates, by its own clock."""
    return 3600 * table(run, rank, "updates")["hours"][updates]


def longest_pause(run, rank: int) -> float:
    """The longest time between two updates, s."""
    return np.diff(seconds(run, rank)).max()


def seconds_of_mixes(run, rank: int) -> np.ndarray:
    return seconds(run, rank, table(run, rank, "mixes")["update"] - 1)


def wait_for_mixes(job, run) -> None:
    """Until every rank has mixed messages that it had not mixed before."""

    def mixed() -> list[int]:
        try:
            return [len(table(run, rank, "mixes")) for rank in range(job.n)]
        except (OSError, KeyError, ValueError):  # files that are not there yet
            return [0] * job.n

    before = mixed()
    job.wait_until(lambda: all(now > then for now, then in zip(mixed(), before)))


def end(job) -> None:
    """Ask all ranks to save and stop."""
    os.kill(job.launcher.pid, signal.SIGUSR1)
    result = job.wait()
    assert result.returncode == errors.RESUME, result.stdout + result.stderr


def test_every_host_is_one_of_its_own():
    command = [sys.executable, network.__file__, "--hosts", "2", "--ranks-per-host", "2", "--"]
    program = "from mpi4py import MPI; world = MPI.COMM_WORLD; print(world.gather(MPI.Get_processor_name())); world.Barrier(); "
    result = subprocess.run(
        [*command, "-c", program + "raise SystemExit(7)"], capture_output=True, text=True, timeout=launch.HANGS
    )
    assert result.returncode == 7, result.stderr
    assert "['host0', 'host0', 'host1', 'host1']" in result.stdout
    assert "network: packets" in result.stderr


@pytest.mark.long
def test_training_over_hosts(run, hosts, record_property):
    updates = 500
    train(3, run, *SMALL, *GOSSIP, "--total-steps", updates * 3 * STEPS_PER_UPDATE)
    assert_complete(run, 3, updates)
    for rank in range(3):
        ages = table(run, rank, "updates")["age"]
        record_property(f"median age on rank {rank}, updates", float(np.nanmedian(ages)))
        print(f"rank {rank}: {np.isfinite(ages).sum()} mixes in {updates} updates, median age {np.nanmedian(ages):g} updates")
        assert np.isfinite(ages).any()
    hosts.close()
    assert hosts.traffic["bytes"] > len(parameters(run, 3)[0]) * 4


@pytest.mark.long
def test_host_cut_off(run, hosts):
    """Nobody waits for it, nor it for the others; once it is back its messages are mixed again."""
    with start(3, run, *SMALL, *LONG, *GOSSIP) as job:
        wait_for_mixes(job, run)
        hosts.cut(1)
        time.sleep(SECONDS_AWAY)
        hosts.mend(1)
        wait_for_mixes(job, run)
        wait_for_mixes(job, run)
        end(job)
    for rank in range(3):
        assert longest_pause(run, rank) < STALL
    for rank in (1, 2):  # each reads the one before it; rank 0 reads rank 2, which was there
        assert np.diff(seconds_of_mixes(run, rank)).max() > SECONDS_AWAY - 1
    assert np.diff(seconds_of_mixes(run, 0)).max() < STALL


@pytest.mark.long
def test_stopped_rank(run, hosts):
    """A rank that is stopped holds up nobody, though it serves nobody: over TCP a target must enter MPI to be read."""
    with start(3, run, *SMALL, *LONG, *GOSSIP) as job:
        wait_for_mixes(job, run)
        stopped = job.ranks()[1]
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(SECONDS_AWAY)
        os.kill(stopped, signal.SIGCONT)
        wait_for_mixes(job, run)
        wait_for_mixes(job, run)
        end(job)
    assert longest_pause(run, 1) > SECONDS_AWAY - 0.5
    for rank in (0, 2):
        assert longest_pause(run, rank) < STALL


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 3])
def test_lockstep_is_the_same_as_in_shared_memory(tmp_path, n, monkeypatch):
    flags = (*SMALL, *GOSSIP, "--staleness", 0, "--topology", "exponential", "--total-steps", 20 * n * STEPS_PER_UPDATE)
    here, far = tmp_path / "here", tmp_path / "far"
    train(n, here, *flags)
    with Network(hosts=n) as hosts:
        monkeypatch.setattr(launch, "LAUNCHER", hosts.launcher)
        train(n, far, *flags)
    for one, other in zip(parameters(here, n), parameters(far, n), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.long
def test_a_hierarchy_sends_less_between_hosts(tmp_path, monkeypatch):
    """4 hosts with 2 ranks each, in lock-step, so that nothing is skipped. What the start costs is counted with a short run
    and taken away. What rank 0 reads for the display goes by time, and is little beside messages of 3.5 MB."""
    every = 4

    def traffic(topology: str, updates: int) -> float:
        flags = ("--env", "pong", "--num-envs", 1, *GOSSIP, "--staleness", 0, "--topology", topology, "--sketch-updates", 0)
        with Network(hosts=4, ranks_per_host=2) as hosts:
            monkeypatch.setattr(launch, "LAUNCHER", hosts.launcher)
            train(8, tmp_path / f"{topology}-{updates}", *flags, "--total-steps", 8 * 5 * updates)
            hosts.close()
            return hosts.traffic["bytes"]

    def sent(topology: str) -> float:
        return traffic(topology, 6 * every) - traffic(topology, every)

    ring, hierarchy = sent("ring"), sent(f"hierarchical:{every}")
    print(f"between hosts: {ring:,.0f} bytes on a ring, {hierarchy:,.0f} in a hierarchy, {hierarchy / ring:.4f} of them")
    assert hierarchy <= 1.01 * ring / every
