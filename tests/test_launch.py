"""What the commands set before torch is loaded, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from gala_mpi.job import launch

PREPARED = "from gala_mpi.job import launch; launch.set_environment()"


@pytest.mark.parametrize("begin, spins", [(PREPARED, "0"), ("", "300000")])
def test_threads_of_torch_sleep_while_they_wait(begin, spins):
    """How often a thread looks for the next operation before it sleeps, as the library says that torch has loaded."""
    bare = {name: value for name, value in os.environ.items() if name not in launch.WAITING} | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", f"{begin}\nimport torch"], env=bare, capture_output=True, text=True)
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [spins], done.stderr


COLLECTS = """
import gc
{begin}
import torch
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
launch.run(lambda words: print(gc.isenabled(), gc.get_freeze_count() > 100_000))
"""


@pytest.mark.parametrize(
    "begin, said",
    [
        ("from gala_mpi.job import launch; launch.set_environment(command=True)", "False False\nTrue True\n"),
        ("from gala_mpi.job import launch; launch.prepare_to_train(2)", "False False\nTrue True\n"),
        (PREPARED, "True False\nTrue True\n"),
        ("import gala_mpi.train; from gala_mpi.job import launch", "True False\nTrue True\n"),
    ],
)
def test_garbage_is_not_sought_in_what_a_command_imports(begin, said):
    """Nor is the collector of a program stopped that only imports one."""
    done = subprocess.run([sys.executable, "-c", COLLECTS.format(begin=begin)], capture_output=True, text=True)
    assert done.stdout == said, done.stderr


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    launch.set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_written_at_once(stream, unbuffered):
    """Into a pipe that keeps each write by itself."""
    say = f"print('one', 1, file=sys.{stream}, flush=True), print('two', file=sys.{stream}, flush=True)"
    program = f"import sys; from gala_mpi.job import launch; launch.run(lambda words: ({say}))"
    out, into = os.pipe2(os.O_DIRECT)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, **{stream: into})
    os.close(into)
    assert [os.read(out, 1000), os.read(out, 1000), os.read(out, 1000)] == [b"one 1\n", b"two\n", b""]
    os.close(out)


LINGERS = """
import sys, threading, time
from gala_mpi.job import launch
launch.SECONDS_FOR_THREADS = 0.1
launch.set_environment()
from gala_mpi.mpi.world import World

def main(arguments):
    with World():
        threading.Thread(target=time.sleep, args=[1000]).start()
        print("done")
        sys.exit({status})

launch.run(main)
"""


@pytest.mark.parametrize("status", [0, 75])
def test_a_thread_that_is_left_does_not_keep_the_process(status):
    command = [sys.executable, "-c", LINGERS.format(status=status)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (status, "done\n"), done.stderr
