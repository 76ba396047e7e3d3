"""`python -m gala_mpi.doctor`: a healthy machine is all well; each planted illness is found, with its remedy."""

from __future__ import annotations

import json
import mmap
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import launch
from commandline import complaints
from gala_mpi import config, host
from gala_mpi.host import HostView
from gala_mpi.job import preflight
from gala_mpi.mpi import mailbox
from gala_mpi.networks.sizes import Sizes
from launch import mpirun

DOCTOR = ("-m", "gala_mpi.doctor")
SMALL = ("--env", "CartPole-v1")
NETWORK = Sizes(parameters=5000, observation=16, step=528, images=False)
HERE = Path(__file__).parent
root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")
mpich = pytest.mark.skipif(launch.OPEN_MPI, reason="by variables of MPICH")


def examine(n: int, *flags: object, status: int, program=DOCTOR, env: Mapping[str, str] = {}) -> dict:
    """What the doctor says, by what was looked at."""
    result = mpirun(n, *program, *flags, "--json", env=env)
    assert result.returncode == status, result.stdout + result.stderr
    said = json.loads(result.stdout.splitlines()[0])
    assert said["ranks"] == n
    return {finding["what"]: finding for finding in said["findings"]} | {"seconds": said["seconds"]}


def within(setup: str, monkeypatch, folder: Path) -> None:
    """From now on jobs run in a mount namespace of their own, in which `setup` has been done."""
    command = f'{setup} && exec {shlex.quote(str(launch.LAUNCHER))} "$@"'
    launch_by(f"unshare --mount --propagation private sh -c {shlex.quote(command)} sh", monkeypatch, folder)


def launch_by(command: str, monkeypatch, folder: Path) -> None:
    """From now on mpirun is started by another command."""
    script = folder / "mpirun"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(launch, "LAUNCHER", script)


def test_a_healthy_machine(tmp_path):
    ranks = 2 * len(os.sched_getaffinity(0))
    found = examine(ranks, "--run-dir", tmp_path / "run", status=0)
    assert found.pop("seconds") > 0
    assert {finding["state"] for finding in found.values()} == {"ok"}, found
    asked = {"MPI", "answers", "cores", "/dev/shm", "memory", "run directory", "HDF5 locks", "GPU", "CMA", "gets", "speed"}
    assert set(found) == asked | {"busy target"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_it_takes_some_seconds():
    """15 on a machine that does nothing else."""
    assert examine(2 * len(os.sched_getaffinity(0)), status=0)["seconds"] < 60


def test_one_rank_and_a_table(tmp_path):
    result = mpirun(1, *DOCTOR, *SMALL, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("all ok", "run directory", "1 rank × 16 environments"):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_bad_flags_are_refused():
    result = mpirun(2, *DOCTOR, *SMALL, "--num-envs", 0)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (line,) = complaints(result)
    assert "--num-envs 0" in line


@root
def test_tiny_shared_memory(tmp_path, monkeypatch):
    within("mount -t tmpfs -o size=30M tmpfs /dev/shm", monkeypatch, tmp_path)
    flags = ("--network", "nature", "--env", "pong", "--run-dir", tmp_path / "run")
    finding = examine(2, *flags, status=1)["/dev/shm"]
    assert finding["state"] == "error" and "of 30 MiB" in finding["seen"] and "--shm-size" in finding["remedy"]
    result = mpirun(2, "-m", "gala_mpi.train", *flags)
    assert result.returncode == 2 and "/dev/shm" in result.stderr and "--shm-size" in result.stderr


@root
@pytest.mark.parametrize("program, status", [pytest.param("doctor", 1, marks=pytest.mark.long), ("train", 2)])
def test_shared_memory_in_which_mpi_itself_would_crash(tmp_path, monkeypatch, program, status):
    within("mount -t tmpfs -o size=12M tmpfs /dev/shm", monkeypatch, tmp_path)
    result = mpirun(2, "-m", f"gala_mpi.{program}", *SMALL, "--run-dir", tmp_path / "run")
    assert result.returncode == status
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("gala_mpi: ")]
    assert "12 MiB free" in line and "--shm-size" in line
    assert "Segmentation fault" not in result.stderr


@root
def test_read_only_run_directory(tmp_path, monkeypatch):
    """root ignores the bits of permissions, but not this."""
    place = tmp_path / "archive"
    place.mkdir()
    setup = f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"
    within(setup, monkeypatch, tmp_path)
    finding = examine(2, *SMALL, "--run-dir", place / "run", status=1)["run directory"]
    assert finding["state"] == "error" and "Read-only file system" in finding["seen"] and "--run-dir" in finding["remedy"]


@pytest.mark.parametrize("needed, state", [(9, "ok"), (10, "warning"), (16, "warning"), (17, "error")])
def test_memory_that_is_in_use_and_memory_that_is_not_there(needed, state):
    """7 of 16 GiB are free, and 3 are the ranks' own already."""
    machine = HostView("here", 2, 1, 0, 0, "", memory_free=7 << 30, memory_size=16 << 30)
    finding = preflight.memory(preflight.HostDemand("here", [0], 16, 1, machine, 1, 0, needed << 30, memory_held=3 << 30))
    assert finding.state == state and f"{needed}.0 GiB needed, 10.0 GiB free of 16.0 GiB" in finding.seen


def test_many_ranks_that_fit_are_not_refused():
    """What they have as they start is theirs; the code that they share is there once."""
    views = [HostView("here", 100, 1, 10**9, 10**9, "", 6 << 30, 32 << 30, memory_held=160 << 20) for _ in range(100)]
    settings = config.Config(env="CartPole-v1", network="mlp", exchange="none")
    (demand,) = preflight.demands(settings, NETWORK, views)
    assert demand.memory_free == (6 << 30) + 100 * (160 << 20)
    assert 17 << 30 < demand.memory < 19 << 30 and preflight.memory(demand).state == "ok"


def test_windows_of_agents_and_of_their_actors():
    """2 agents with 2 actors each on 2 hosts: agents publish parameters, to agents and to actors, and actors rollouts."""
    views = [HostView("ab"[rank // 3], 8, 1, 10**9, 10**9, "", 6 << 30, 32 << 30) for rank in range(6)]
    settings = config.Config(env="CartPole-v1", network="mlp", learner="vtrace", actors=2, num_envs=4, rollout_length=20)
    for host_demand in preflight.demands(settings, NETWORK, views):
        assert (len(host_demand.ranks), host_demand.actors) == (3, 2) and "3 ranks (2 actors) × 4 env" in str(host_demand)
        parameters = mailbox.window_bytes(5000, mailbox.REMOTE)
        rollouts = host_demand.windows - 2 * parameters
        step = 4 * 4 + 8 + 4 * 4 + 1 + 24  # an observation, an action, four numbers, whether an episode begins, one that ends
        assert 1 < rollouts / (2 * 21 * 4 * step) < 3


PEAK = """
import atexit, re, runpy
atexit.register(lambda: print("peak", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
runpy.run_module("gala_mpi.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        ("--network", "impala"),
        ("--learner", "ppo", "--ppo.epochs", 1),
        ("--learner", "vtrace", "--lag", 1),
        ("--learner", "ppo", "--network", "impala", "--num-envs", 8, "--rollout-length", 32, "--memory", "lstm"),
    ],
)
def test_the_plan_has_room_for_what_training_takes(tmp_path, flags):
    """By the most resident memory that its process has had; not many times as much."""
    told = ("--env", "pong", "--precision", "fp32", "--run-dir", tmp_path / "run", "--total-steps", 2000, *flags)
    result = mpirun(1, "-c", PEAK, *told)
    assert result.returncode == 0, result.stdout + result.stderr
    peak = int(re.search(r"peak (\d+)", result.stdout)[1]) / 1024
    number, unit = re.search(r"memory about (\S+) ([MG])iB", result.stdout).groups()
    planned = float(number) * (1024 if unit == "G" else 1)
    assert 0.85 * peak < planned < 2.5 * peak, (planned, peak)


def test_memory_held_is_what_no_other_process_has():
    before = host.memory_held()
    with mmap.mmap(-1, 64 << 20) as held:
        held.write(b"1" * len(held))
        alone = host.memory_held()
        assert 50 << 20 < alone - before < 80 << 20
        shared, done = os.pipe()
        if not os.fork():  # has the same pages until it ends
            os.close(done)
            os.read(shared, 1)
            os._exit(0)
        assert host.memory_held() < alone - (50 << 20)
        os.close(done)
        os.wait()
        os.close(shared)


def test_more_environments_than_any_memory_holds():
    """Images do not fit; what CartPole shows is next to nothing."""
    finding = examine(1, "--env", "pong", "--num-envs", 1_000_000, status=1)["memory"]
    assert finding["state"] == "error" and "--num-envs" in finding["remedy"]
    assert examine(1, *SMALL, "--num-envs", 10_000, status=0)["memory"]["state"] == "ok"


@pytest.mark.long
def test_too_many_ranks_for_the_cores(tmp_path, monkeypatch):
    core = min(os.sched_getaffinity(0))
    launch_by(f"taskset -c {core} {launch.LAUNCHER}", monkeypatch, tmp_path)
    found = examine(4, *SMALL, status=0)
    assert found["cores"]["state"] == "warning"
    assert "4 ranks share a core" in found["cores"]["seen"] and "fewer ranks" in found["cores"]["remedy"]
    assert found["gets"]["state"] == found["busy target"]["state"] == "ok"
    result = mpirun(4, "-m", "gala_mpi.train", *SMALL, "--total-steps", 320, "--run-dir", tmp_path / "run")
    assert result.returncode == 0 and "warning: cores: " in result.stdout and "plan: " in result.stdout


@mpich
def test_a_busy_target_is_not_served(tmp_path):
    """TCP between all ranks: nothing moves while the target is outside MPI."""
    network = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
    finding = examine(2, "--env", "pong", status=0, env=network)["busy target"]
    assert finding["state"] == "warning", finding
    assert "not served while it computes" in finding["seen"] and "MPIR_CVAR_ASYNC_PROGRESS=1" in finding["remedy"]


@pytest.mark.parametrize("where", [pytest.param("before", marks=pytest.mark.long), "among"])
def test_a_rank_that_is_stopped(where):
    """By SIGSTOP, before the reads or in the middle of them: it is named."""
    found = examine(3, *SMALL, status=1, program=(HERE / "ill.py", f"stopped-{where}"))
    assert found["answers"]["state"] == "error"
    assert "rank 1 on" in found["answers"]["seen"] and "stopped" in found["answers"]["remedy"]


@pytest.mark.parametrize("place", ["before-mpi", pytest.param("before-world", marks=pytest.mark.long)])
def test_a_rank_that_never_starts(place):
    """MPI then begins nowhere, or the ranks never meet: one line, and no rank hangs."""
    result = mpirun(3, HERE / "late.py", place, *SMALL)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    (line,) = complaints(result)
    assert line.startswith("gala_mpi: not all ranks have started within 3 s: look for one that is stopped")


@pytest.mark.parametrize(
    "illness, words",
    [
        pytest.param("lost-gets", "something else", marks=pytest.mark.long),
        ("endless-gets", "not complete"),
        ("other-memory", "as MPI_Win_shared_query shows it"),
    ],
)
def test_broken_one_sided_mpi(illness, words):
    """Request-based gets that do not bring anything, or never end; memory that is shown and is not what is read."""
    finding = examine(2, *SMALL, status=1, program=(HERE / "ill.py", illness))["gets"]
    assert finding["state"] == "error" and words in finding["seen"] and "another version, MPI or transport" in finding["remedy"]


def test_gets_that_fail_on_one_rank_alone():
    found = examine(3, *SMALL, status=1, program=(HERE / "ill.py", "lost-gets-of-one"))
    assert found["gets"]["state"] == "error" and found["gets"]["seen"].startswith("rank 1: a get from rank 0 was complete")
    assert "speed" not in found


@pytest.mark.skipif(not launch.OPEN_MPI, reason="by a variable of Open MPI")
def test_one_sided_mpi_is_off():
    finding = examine(2, *SMALL, status=1, env={"OMPI_MCA_osc": "monitoring"})["gets"]
    assert finding["state"] == "error" and "no window" in finding["seen"] and "OMPI_MCA_osc" in finding["remedy"]


@mpich
def test_ranks_that_do_not_know_each_other():
    """As under a launcher that is not this MPI's."""
    result = subprocess.run(
        [sys.executable, *DOCTOR, *SMALL, "--json"],
        env=launch.environment() | {"SLURM_STEP_NUM_TASKS": "4"},
        capture_output=True,
        text=True,
        timeout=launch.HANGS,
    )
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert result.returncode == 1 and findings["MPI"]["state"] == "error"
    assert "4 were started" in findings["MPI"]["seen"] and "--mpi=pmi2" in findings["MPI"]["remedy"]
