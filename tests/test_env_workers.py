"""Environments in worker processes: the same numbers as in one process, and whatever happens to one, an end that says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gala_mpi.envs import registry, workers
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.workers import WorkerEnvironments, WorkerError
from gala_mpi.errors import JobError, SettingError

SEEDS = np.array([2, 1, 4, 6, 8])


@pytest.fixture
def make():
    """Make environments in workers, which are closed after the test."""
    made: list[WorkerEnvironments] = []

    def make(env: str, num_envs: int, number: int = 2, **options) -> WorkerEnvironments:
        environments = registry.make(env, num_envs, workers=number, **options)
        assert isinstance(environments, WorkerEnvironments)
        made.append(environments)
        return environments

    yield make
    for environments in made:
        environments.close()
        assert not any(lives(pid) for pid in environments.processes)


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def same(one, other) -> bool:
    """Whether two arrays hold the same bits."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


CASES = [
    ("CartPole-v1", {}, 300),
    ("CartPole-v1", {"kwargs": ("max_episode_steps=7",), "wrappers": ("FrameStackObservation:2",)}, 30),
    ("Pendulum-v1", {"kwargs": ("max_episode_steps=9",)}, 30),
    ("Taxi-v4", {"kwargs": ("max_episode_steps=9",)}, 40),  # with masks in its infos
    ("Taxi-v4", {"raw": True}, 3),
    ("worked:Nested-v0", {}, 40),
]


@pytest.mark.parametrize("env, options, steps", CASES)
def test_workers_give_what_one_process_gives_bit_for_bit(make, env, options, steps):
    theirs, mine = make(env, len(SEEDS), **options), registry.make(env, len(SEEDS), **options)
    assert isinstance(mine, GymEnvironments) and theirs.spaces == mine.spaces and theirs.num_envs == mine.num_envs
    rng, cut_off, ended = np.random.default_rng(0), 0, 0
    for seeds in (SEEDS, SEEDS + 1):
        observations = mine.reset(seeds)
        assert same(theirs.reset(seeds), observations)
        for _ in range(steps):
            actions = mine.spaces.random_actions(rng, observations)
            expected, step = mine.step(actions), theirs.step(actions)
            for name in ("observations", "rewards", "terminated", "truncated"):
                assert same(getattr(step, name), getattr(expected, name)), name
            assert step.episodes == expected.episodes
            assert (step.final_observations is None) == (expected.final_observations is None)
            if expected.final_observations is not None:
                assert same(step.final_observations, expected.final_observations)
            observations = expected.observations
            cut_off += expected.truncated.sum()
            ended += expected.terminated.sum()
    limited = "max_episode_steps" in str(options) or "Nested" in env
    assert ended if env == "CartPole-v1" and not limited else cut_off or not limited


def test_workers_compute_between_send_and_receive(make, tmp_path):
    """Nobody has asked for their results when all are at their step."""
    environments = make("worked:Gated-v0", 4, 4, kwargs=(f"folder={tmp_path}",))
    environments.reset(np.zeros(4, int))
    environments.send(np.zeros(4, int))
    while {path.name for path in tmp_path.iterdir()} != {str(pid) for pid in environments.processes}:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert environments.receive().rewards.tolist() == [1] * 4


def test_every_worker_has_a_share_and_neither_torch_nor_mpi(make):
    environments = make("worked:Telling-v0", 5, 3)
    environments.reset(SEEDS)
    whose = environments.step(np.zeros(5, int)).rewards.tolist()
    first, second, third = environments.processes
    assert whose == [np.float32(pid) for pid in (first, first, second, third, third)]


def drawn(make, seed: int) -> np.ndarray:
    np.random.seed(seed)
    environments = make("worked:Drawing-v0", 4)
    environments.reset(np.array([3, 3, 3, 3]))
    return environments.step(np.zeros(4, int)).observations


def test_environments_that_draw_from_global_streams_repeat(make):
    """By what the rank's stream says as they are made, and by the seeds of their episodes and the worker then."""
    first = drawn(make, 0)
    assert same(first, drawn(make, 0)) and not same(first, drawn(make, 1))
    assert len(np.unique(first[:, 0])) == 4


def test_a_reset_seeds_the_global_streams_anew(make):
    environments = make("worked:Drawing-v0", 4)
    played = []
    for seeds in (SEEDS[:4], SEEDS[:4], SEEDS[1:]):
        environments.reset(seeds)
        played.append(environments.step(np.zeros(4, int)).observations)
    assert same(played[0], played[1]) and not same(played[0], played[2])


@pytest.mark.parametrize(
    "how, error, text",
    [
        ("raise", WorkerError, "environments 0 to 1 has failed: RuntimeError: the pole has broken, in .*worked.py, line "),
        (
            "exit",
            WorkerError,
            r"environments 0 to 1 has failed: RuntimeError: environment 1 .* called sys.exit\(3\) at its step 1, in .*worked",
        ),
        ("crash", JobError, r"of environments 0 to 1 has ended by signal 11 \(SIGSEGV\)"),
        ("crash beside a child", JobError, r"of environments 0 to 1 has ended by signal 9 \(SIGKILL\)"),
        ("wrong", JobError, r"environment 1 returned at its step 1 observation of shape \(5,\); \(4,\) is declared"),
    ],
)
def test_a_fault_in_a_worker_names_the_environment(make, how, error, text):
    environments = make("worked:Worked-v0", 5, kwargs=(f"how={how}",))
    environments.reset(SEEDS)
    with pytest.raises(error, match=text) as caught:
        environments.step(np.zeros(5, int))
    if error is WorkerError:
        assert "environment 1 of --env worked:Worked-v0 has " in str(caught.value)
        assert "line" in str(caught.value.__cause__) and "in step" in str(caught.value.__cause__)  # its own traceback


def test_a_worker_that_is_killed_is_missed_at_the_next_step(make):
    environments = make("CartPole-v1", 3, 3)
    environments.reset(SEEDS[:3])
    os.kill(environments.processes[2], signal.SIGKILL)
    with pytest.raises(JobError, match=r"worker process .* of environment 2 has ended by signal 9"):
        for _ in range(2):
            environments.step(np.zeros(3, int))


@pytest.mark.parametrize(
    "how, error, text",
    [
        ("raise", WorkerError, "environments 0 to 2 has failed: RuntimeError: the pole has broken"),
        ("exit", WorkerError, "environments 0 to 2 has failed: SystemExit: 3"),
        ("crash", JobError, "environments 0 to 2 has ended by signal 11"),
    ],
)
def test_a_worker_that_cannot_make_its_environments_says_so(how, error, text):
    with pytest.raises(error, match=text):
        registry.make("worked:Worked-v0", 6, workers=2, kwargs=(f"how={how}", "at=0"))


def test_what_a_worker_refuses_is_refused():
    with pytest.raises(SettingError, match="--env-kwargs no=1: CartPole-v1 takes no no"):
        registry.make("CartPole-v1", 2, workers=1, kwargs=("no=1",))


def test_an_interpreter_that_does_not_start_is_no_hang(monkeypatch):
    monkeypatch.setattr(workers, "BOOT", "import sys; sys.exit(4) # {pipe} {rank}")
    with pytest.raises(JobError, match="of environments 0 to 1 has ended with status 4"):
        registry.make("CartPole-v1", 2, workers=1)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(JobError, match="--env-workers: a worker process for environments 0 to 1 of CartPole-v1 cannot be"):
        registry.make("CartPole-v1", 2, workers=1)


def test_workers_leave_the_signals_of_a_job_to_their_rank(make):
    environments = make("CartPole-v1", 2)
    environments.reset(SEEDS[:2])
    for number in workers.OF_THE_RANK:
        for pid in environments.processes:
            os.kill(pid, number)
            assert os.getpgid(pid) != os.getpgid(0)
    environments.step(np.zeros(2, int))


def test_a_signal_during_the_start_of_a_worker_waits(make):
    """Before it has told the system to leave signals alone, their default action would end it."""
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    start = subprocess.Popen.__init__

    def started(self, *arguments, **options):
        start(self, *arguments, **options)
        os.kill(self.pid, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess.Popen, "__init__", started)
            environments = make("CartPole-v1", 2)
        environments.reset(SEEDS[:2])
        environments.step(np.zeros(2, int))
        assert len(heard) == 2  # the rank's own
    finally:
        signal.signal(signal.SIGUSR1, before)


RANK = """
import sys
import numpy as np
from gala_mpi.envs import registry
environments = registry.make("worked:Worked-v0", 4, workers=2, kwargs=("how=sleep", "at=1"))
environments.reset(np.array([0, 2, 1, 3]))
environments.send(np.zeros(4, int))
print(*environments.processes, flush=True)
environments.receive() if sys.argv[1] == "waits" else sys.stdin.read()
"""


@pytest.mark.parametrize("what", ["waits", "computes"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_is_left_when_its_rank_dies(what, number):
    """One worker waits for its rank, the other one is in the middle of a step that never ends."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, what],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rank.stdout and rank.stdin
    processes = [int(pid) for pid in rank.stdout.readline().split()]
    assert len(processes) == 2 and all(lives(pid) for pid in processes)
    rank.send_signal(number)
    rank.wait()
    assert wait_for(lambda: not any(lives(pid) for pid in processes))
    rank.stdin.close(), rank.stdout.close()


def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_TO_CLOSE", 0.5)
    environments = registry.make("worked:Worked-v0", 2, workers=2, kwargs=("how=sleep", "at=1"))
    assert isinstance(environments, WorkerEnvironments)
    environments.reset(np.array([0, 1]))
    environments.send(np.zeros(2, int))
    environments.close()
    assert not any(lives(pid) for pid in environments.processes)


PROGRAM = """
import sys
import gymnasium
import numpy as np
from gala_mpi.envs import registry

def register():
    gymnasium.register("{env}", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=1)

{guard}

if __name__ == "__main__":
    register()
    try:
        environments = registry.make("{env}", 2, workers=1)
        environments.reset(np.arange(2))
        print(environments.step(np.zeros(2, int)).truncated.tolist())
        environments.close()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "env, guard, said",
    [
        ("OfTheProgram-v0", "register()", r"^\[True, True\]$"),
        (
            "OfTheProgram-v0",
            "",
            "SettingError --env OfTheProgram-v0: no such environment; .* stands below its `if",
        ),
        ("CartPole-v1", "register()", r"^\[True, True\]$"),  # another one than gymnasium's
    ],
)
def test_an_environment_that_the_main_program_registers(tmp_path, env, guard, said):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(env=env, guard=guard))
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", program], env=paths, capture_output=True, text=True, timeout=120)
    assert re.search(said, done.stdout), done.stdout + done.stderr


LAMBDAS = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Scaled(CartPoleEnv):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, self.scale(reward), *rest

gymnasium.register("Scaled-v0", "lambdas_of_mine:Scaled", kwargs={"scale": lambda reward: 3 * reward})
"""


def test_what_a_module_registers_need_not_be_pickled(tmp_path, monkeypatch):
    """Workers import the module."""
    (tmp_path / "lambdas_of_mine.py").write_text(LAMBDAS)
    monkeypatch.syspath_prepend(tmp_path)
    environments = registry.make("lambdas_of_mine:Scaled-v0", 2, workers=1)
    environments.reset(np.arange(2))
    assert environments.step(np.zeros(2, int)).rewards.tolist() == [3, 3]
    environments.close()
