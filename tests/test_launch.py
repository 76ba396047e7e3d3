"""What the commands set before torch is loaded, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gala_mpi.job import launch

NAPS = """
import time
{begin}
import torch
torch.set_num_threads(2)
numbers, used = torch.ones(1 << 20), []
for _ in range(30):
    numbers.mul_(1.0)
    before = time.process_time()
    time.sleep(0.01)
    used.append(time.process_time() - before)
print(sorted(used)[15], max(used))
"""


@pytest.mark.parametrize("begin, spins", [("from gala_mpi.job import launch; launch.set_environment()", False), ("", True)])
def test_threads_of_torch_sleep_while_they_wait(begin, spins):
    """In a nap of 10 ms after each operation this process computes nothing; a thread that spins takes 8 ms of it."""
    bare = {name: value for name, value in os.environ.items() if name not in launch.WAITING}
    done = subprocess.run([sys.executable, "-c", NAPS.format(begin=begin)], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    middle, most = map(float, done.stdout.split())  # on busy cores a thread that spins may not get its turn each time
    assert most > 2e-3 if spins else middle < 1e-3


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
