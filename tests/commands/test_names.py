"""Environments in modules of the user's own, and the commands that a run prints at its end, pasted into a shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import TRAIN, complaints, states
from gala_mpi import errors, open_run, policy
from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.job import command
from gala_mpi.run import checkpoints, reader
from launch import HANGS, LAUNCHER, environment, mpirun

HERE = Path(__file__).parent
BROKEN_GAME = HERE / "broken_game.py"
POLE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Mine-v0", CartPoleEnv, max_episode_steps=9)
"""
FLAGS = ("--env", "poles_of_mine:Mine-v0", "--num-envs", 2, "--precision", "fp32")


def pasted(command: str, folder: Path) -> subprocess.CompletedProcess:
    """What a command does that is pasted into a shell, in which `python` and `mpirun` are those of this interpreter."""
    path = os.pathsep.join([str(LAUNCHER.parent), os.environ["PATH"]])
    variables = environment() | {"PATH": path}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=HANGS)


def hint(said: str, words: str) -> str:
    """The command that was printed after `words`."""
    (found,) = re.findall(rf"^{words}:  (.+)$", said, re.MULTILINE)
    return found


def test_an_environment_in_a_module_of_ones_own(tmp_path):
    """Trained, continued and played by the commands that are printed, in a directory whose name needs quotes."""
    (tmp_path / "poles_of_mine.py").write_text(POLE)
    run = tmp_path / "my runs" / "it's [red]"
    begun = mpirun(2, *TRAIN, *FLAGS, "--run-dir", run.relative_to(tmp_path), "--wall-minutes", 0.02, cwd=tmp_path)
    assert begun.returncode == 75, begun.stdout + begun.stderr
    assert reader.read_config(run).env == "poles_of_mine:Mine-v0"
    before = checkpoints.newest(run)
    again = pasted(hint(begun.stdout, "continue") + " --wall-minutes None --total-steps 400", tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert checkpoints.newest(run) > before
    played = pasted(hint(again.stdout, "play the policies") + " --episodes 2", tmp_path)
    assert played.returncode == 0 and "poles_of_mine:Mine-v0, checkpoint" in played.stdout, played.stdout + played.stderr
    (tmp_path / "poles_of_mine.py").rename(tmp_path / "moved.py")
    gone = mpirun(2, "-m", "gala_mpi.evaluate", run, cwd=tmp_path)
    (line,) = complaints(gone)
    assert gone.returncode == 2 and "Traceback" not in gone.stderr
    assert line.startswith("gala_mpi: --env poles_of_mine:Mine-v0: there is no module poles_of_mine")
    assert "--env MODULE:Mine-v0 names a module that registers it" in line
    moved = mpirun(1, "-m", "gala_mpi.evaluate", run, "--env", "moved:Mine-v0", "--episodes", 1, cwd=tmp_path)
    assert moved.returncode == 0, moved.stderr


@pytest.mark.long
def test_a_program_of_ones_own_is_named_by_the_hints(tmp_path):
    """BrokenPole-v0 is registered by broken_game.py alone."""
    flags = ("--env", "BrokenPole-v0", "--num-envs", 1, "--precision", "fp32", "--run-dir", "run")
    begun = mpirun(1, BROKEN_GAME, *flags, "--wall-minutes", 0.02, cwd=tmp_path)
    assert begun.returncode == 75, begun.stdout + begun.stderr
    continued = hint(begun.stdout, "continue")
    assert str(BROKEN_GAME) in continued
    again = pasted(continued + " --wall-minutes None --total-steps 100", tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    words = hint(again.stdout, "play the policies")
    assert words.startswith("call gala_mpi.evaluate.main(['run']) in place of train.main in ") and str(BROKEN_GAME) in words
    for program in (("-m", "gala_mpi.evaluate", "run"), (*TRAIN, "--resume", "--run-dir", "run")):
        refused = mpirun(2, *program, cwd=tmp_path)
        (line,) = complaints(refused)
        assert refused.returncode == 2 and line.startswith("gala_mpi: --env BrokenPole-v0: no such environment"), line


def as_if_started(monkeypatch, program: str, words: list[str], given: list[str]) -> None:
    """As if this were a program of that name and command line, which has given `train.main` so many words."""
    main = type(sys)("__main__")
    main.__spec__, main.__file__ = None, program
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [program, *words])
    monkeypatch.setattr(command, "_given", given)


def test_the_words_of_a_wrapper_of_its_own_are_kept(monkeypatch):
    as_if_started(monkeypatch, "my wrapper.py", ["nan", "1", "--env", "pong"], ["--env", "pong"])
    expected = ["mpirun", "-n", "3", "python", "my wrapper.py", "nan", "1", "--resume", "--run-dir", "a b"]
    assert shlex.split(command.resume(3, Path("a b"))) == expected


def test_a_wrapper_that_gives_other_words_is_told_what_to_call(monkeypatch):
    as_if_started(monkeypatch, "wrapper.py", ["--fast"], ["--env", "pong"])
    assert command.resume(3, Path("r")) == "call gala_mpi.train.main(['--resume', '--run-dir', 'r']) in wrapper.py, on 3 ranks"
    assert command.play(Config(run_dir=Path("a b"), network="gala")) == "python -m gala_mpi.evaluate 'a b'"


def test_resuming_what_has_moved(tmp_path, monkeypatch):
    """Another module that registers the same id may be named; another id may not."""
    settings = Config(env="gone:Mine-v0", run_dir=tmp_path)
    assert policy.named_anew(settings, "here:Mine-v0").env == "here:Mine-v0"
    with pytest.raises(SettingError, match="--env here:Other-v0: MODULE:Mine-v0 is expected"):
        policy.named_anew(settings, "here:Other-v0")


def test_an_environment_may_change_the_working_directory(tmp_path):
    """A run is where it was asked for, and is called what it was called."""
    flags = ("--env", "moving_pole:MovingPole-v0", "--num-envs", 2, "--precision", "fp32", "--total-steps", 100)
    path = {"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], str(HERE)])}
    done = mpirun(2, *TRAIN, *flags, "--run-dir", "runs/mine", cwd=tmp_path, env=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run directory: runs/mine\n" in done.stdout and "finished: runs/mine\n" in done.stdout
    assert hint(done.stdout, "play the policies") == "python -m gala_mpi.evaluate runs/mine"
    run = tmp_path / "runs" / "mine"
    assert [file.name for file in sorted((run / "metrics").iterdir())] == ["rank00000.h5", "rank00001.h5"]
    assert checkpoints.complete(run) and [path.name for path in tmp_path.iterdir()] == ["runs"]
    played = mpirun(2, "-m", "gala_mpi.evaluate", "runs/mine", "--episodes", 2, cwd=tmp_path, env=path)
    assert played.returncode == 0 and str(run) in played.stdout, played.stdout + played.stderr


def test_an_environment_that_cannot_be_closed_or_leaves_costs_no_work(tmp_path):
    """What has been trained is saved before it is closed. One that calls sys.exit while it is evaluated ends all ranks."""
    run = tmp_path / "run"
    flags = ("--env", "stubborn_pole:StubbornPole-v0", "--num-envs", 4, "--precision", "fp32", "--total-steps", 4000)
    done = mpirun(2, *TRAIN, *flags, "--run-dir", run, cwd=HERE)
    said = [line for line in done.stdout.splitlines() if line.startswith("warning: environments of ")]
    assert done.returncode == errors.FINISHED and "rank 1 cannot be closed (RuntimeError: the pole stays, in " in said[0]
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= 4000
    done = mpirun(2, "-m", "gala_mpi.evaluate", run, cwd=HERE)
    assert done.returncode == errors.FAILED and "RuntimeError: the pole stays" in done.stderr
    assert len(open_run(run).evaluations) == 1
    done = mpirun(2, "-m", "gala_mpi.evaluate", run, "--checkpoint", 1, cwd=HERE, env={"LEAVES": "1"})
    assert done.returncode == errors.REFUSED
    (line,) = complaints(done)
    assert "environment 0 of --env stubborn_pole:StubbornPole-v0 has called sys.exit(0) at its step 1" in line
