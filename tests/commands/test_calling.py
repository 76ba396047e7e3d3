"""`gala_mpi.train(...)` in programs of one's own: what it trains, whom it tells, how it ends, what it refuses (calling.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_names import hint, pasted

import gala_mpi
from commandline import SMALL, TRAIN, complaints, parameters, states, table, train
from gala_mpi import errors
from gala_mpi.run import checkpoints, layout, reader
from launch import OPEN_MPI, environment, mpirun

HERE = Path(__file__).parent
CALLING = HERE / "calling.py"


def called(n: int, part: str, folder: Path, *words: object, status: int = 0, cwd: Path | None = None):
    """Run a part of calling.py to its end → what it said, and what each rank has written."""
    done = mpirun(n, CALLING, part, folder, *words, cwd=cwd)
    assert done.returncode == status or (OPEN_MPI and status and done.returncode), done.stdout + done.stderr
    files = [folder / f"rank{rank}.json" for rank in range(n)]
    return done, [json.loads(file.read_text()) if file.exists() else None for file in files]


def test_a_call_trains_what_the_command_does_bit_for_bit(tmp_path):
    called(2, "equal", tmp_path)
    train(2, tmp_path / "flags", *SMALL, "--staleness", 0, "--total-steps", 4000, "--a2c.discount", 0.9)
    expected = parameters(tmp_path / "flags", 2)
    for name in ("config", "keywords"):
        assert all(np.array_equal(*pair) for pair in zip(parameters(tmp_path / name, 2), expected))
        stored = reader.read_config(tmp_path / name)
        assert stored.run_dir != reader.read_config(tmp_path / "flags").run_dir and stored.a2c.discount == 0.9


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4))])
def test_callbacks_are_told_what_is_in_the_files(tmp_path, n):
    _, seen = called(n, "noted", tmp_path)
    run = tmp_path / "run"
    for rank, told in enumerate(seen):
        updates, episodes = table(run, rank, "updates"), table(run, rank, "episodes")
        assert [each["update"] for each in told["update"]] == updates["update"].tolist()
        assert {(each["rank"], each["agents"]) for each in told["update"]} == {(rank, n)}
        for name in ("steps", "run_steps", "policy_loss", "value_loss", "entropy", "grad_norm", "step_norm"):
            assert np.array_equal(np.array([each[name] for each in told["update"]], updates[name].dtype), updates[name]), name
        mixed = np.bincount(table(run, rank, "mixes")["update"].astype(int), minlength=len(updates["update"]) + 1)[1:]
        assert [each["mixes"] for each in told["update"]] == mixed.tolist()
        for name, column in {"update": "update", "environment": "simulator", "length": "length", "score": "score"}.items():
            assert [each[name] for each in told["episode"]] == episodes[column].tolist(), name
        numbers = [each["number"] for each in told["checkpoint"]]
        assert len(numbers) > 1 and numbers == sorted(set(numbers)) and numbers[-1] == checkpoints.newest(run)
        assert told["checkpoint"][-1]["file"] == str(layout.checkpoint_file(run, numbers[-1], rank))
        assert told["checkpoint"][-1]["update"] == updates["update"][-1]
        (end,) = told["end"]
        assert end == {"rank": rank, "directory": str(run), "finished": True, "reason": "", "status": 0}


EXCHANGES = {
    "gossip": (),
    "lock-step": ("staleness=0",),
    "allreduce": ("exchange=allreduce",),
    "server": ("exchange=server",),
    "none": ("exchange=none",),
    "exact": ("staleness=0", "exact_resume=True", "checkpoint_updates=20"),
}


@pytest.mark.parametrize(
    "exchange", ["gossip", *(pytest.param(name, marks=pytest.mark.long) for name in EXCHANGES if name != "gossip")]
)
def test_a_stop_that_one_rank_asks_for_ends_all_at_a_checkpoint(tmp_path, exchange):
    done, ends = called(2, "stopped", tmp_path, *EXCHANGES[exchange])
    run = tmp_path / "run"
    assert ends == [
        {"rank": rank, "directory": str(run), "finished": False, "reason": "good enough", "status": errors.RESUME}
        for rank in (0, 1)
    ]
    assert hint(done.stdout, "continue") == f"call gala_mpi.train(resume=True, run_dir='{run}') in {CALLING}, on 2 ranks"
    before = [int(state.learner["updates"]) for state in states(run, 2)]
    for rank, updates in enumerate(before):
        assert table(run, rank, "updates")["update"][-1] == updates
    assert before == [40, 40] or exchange != "exact"  # its next checkpoint
    steps = sum(int(state.learner["steps"]) for state in states(run, 2)) + 400
    assert mpirun(2, *TRAIN, "--resume", "--run-dir", run, "--total-steps", steps).returncode == 0
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= steps


def test_one_run_after_another_in_one_process(tmp_path):
    """A signal stops the first, and nothing of that is left; the second goes on, the third finds nothing to do."""
    _, ends = called(2, "again", tmp_path)
    for rank, (first, second, third) in enumerate(ends):
        assert (first["finished"], first["reason"], first["status"]) == (False, "SIGTERM", 143)
        assert (
            second == third == {"rank": rank, "directory": str(tmp_path / "run"), "finished": True, "reason": "", "status": 0}
        )
        assert table(tmp_path / "run", rank, "updates")["update"].tolist() == [*range(1, 201)]


@pytest.mark.long
def test_functions_of_the_program_are_found_by_every_command(tmp_path):
    """From another directory, by the command that is printed; and with PYTHONPATH where the program is another one."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    done, _ = called(2, "factories", tmp_path, cwd=elsewhere)
    stored = reader.read_config(run)
    assert (stored.env, stored.network) == ("calling:make_pole", "calling:Net") and "warning" not in done.stdout
    words = hint(done.stdout, "play the policies")
    assert words.startswith(f"PYTHONPATH={HERE}")
    played = pasted(words + " --episodes 3", elsewhere)
    assert played.returncode == 0 and "calling:make_pole, checkpoint" in played.stdout, played.stdout + played.stderr
    lost = mpirun(1, *TRAIN, "--resume", "--run-dir", run, "--total-steps", 3000, cwd=elsewhere)
    (line,) = complaints(lost)
    assert lost.returncode == errors.REFUSED and line.startswith(
        "gala_mpi: --env calling:make_pole: there is no module calling; "
    )
    found = mpirun(2, *TRAIN, "--resume", "--run-dir", run, "--total-steps", 3000, "--env-workers", 1, cwd=HERE)
    assert found.returncode == 0, found.stderr
    policy = gala_mpi.load_policy(run)  # pytest's path has the folder
    assert policy.environment().reset(seed=1)[0].shape == (4,)


def test_functions_without_a_name_are_known_to_their_program_alone(tmp_path):
    done, _ = called(2, "unnamed", tmp_path)
    run = tmp_path / "run"
    warnings = [
        line for line in done.stdout.splitlines() if line.startswith("warning: --") and "no other process knows" in line
    ]
    assert len(warnings) == 4  # environment and network, at both starts
    assert "which alone knows what it plays" in hint(done.stdout.split("resumed from")[0], "play the policies")
    assert "mean of all agents" in done.stdout  # played by the program
    for program in (("-m", "gala_mpi.evaluate", run), (*TRAIN, "--resume", "--run-dir", run, "--total-steps", 4000)):
        refused = mpirun(1, *program, cwd=HERE)
        (line,) = complaints(refused)
        assert refused.returncode == errors.REFUSED
        assert line == (
            "gala_mpi: --env calling:unnamed.<locals>.<lambda>: only the program that has trained it knows this function, "
            "which has no name of its own to be imported by; one at the top of a module is expected"
        )


def test_what_a_callback_raises_ends_all_ranks(tmp_path):
    done, _ = called(2, "raising", tmp_path, status=errors.FAILED)
    (line,) = complaints(done)
    assert line.startswith("gala_mpi: rank 1 on ") and line.endswith(" failed; the job ends.")
    assert "KeyError: 'of mine'" in done.stderr and "in told" in done.stderr
    assert checkpoints.newest(tmp_path / "run") == 2  # of update 50
    assert [int(state.learner["updates"]) for state in states(tmp_path / "run", 2)] == [50, 50]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        pytest.param(
            "odd", "callback odd.<locals>.<lambda> has returned 1: None, True or a reason is expected", marks=pytest.mark.long
        ),
        ("nested", "gala_mpi.train while it trains: a call after its end is expected"),
    ],
)
def test_what_a_callback_may_not_do_is_said_in_a_line(tmp_path, part, words):
    done, _ = called(2, part, tmp_path, status=errors.FAILED)
    assert complaints(done) and all(line.endswith(f": {words}; the job ends.") for line in complaints(done)), done.stderr


REFUSED = (
    "colour 1: a setting of gala_mpi.Config is expected",
    "num_env 1: a setting of gala_mpi.Config (did you mean num_envs?) is expected",
    "--num-envs '4': a whole number is expected",
    "--num-envs True: a whole number is expected",
    "--num-envs 0: a whole number, 1 or more, is expected",
    "--exchange shouting: gossip or allreduce or periodic or server or none is expected",
    "--total-steps 1.5: a whole number is expected",
    "ppo.clipp 1: a setting of gala_mpi.Config (did you mean ppo.clip?) is expected",
    "--a2c 0.9: a dict of its settings is expected",
    "--topology nowhere: ring, ",
    "--resume needs --run-dir DIR, the run to continue",
    "seed on rank 1: 1: seed 0, as on rank 0, is expected",
    "env on rank 1: calling:make_pole: env calling:Net, as on rank 0, is expected",
    "callbacks 5: a gala_mpi.Callback, or a function of an update, is expected",
    "callbacks type: a list of callbacks is expected",
    "config str: a gala_mpi.Config is expected",
    "config some.toml: settings, of which only the command reads a file, is expected",
    "--env calling:refused.<locals>.<lambda>: it does not start (TypeError: The environment must inherit from",
    "--env calling:refused.<locals>.<lambda>: it does not start (ZeroDivisionError: division by zero, in ",
    "--env-workers 1: worker processes cannot import calling:refused.<locals>.<lambda>; 0, or a function at the top of ",
    "--network calling:refused.<locals>.<lambda>: it returns an object of type int; a torch module is expected",
    "--run-dir /proc/run cannot be written: ",
    "--run-dir {folder} exists: a new directory is expected, or --resume to continue the run in it",
)


def test_bad_input_is_an_exception_on_all_ranks(tmp_path):
    (tmp_path / "something").touch()
    done, (said, other) = called(2, "refused", tmp_path)
    assert said == other and len(said) == len(REFUSED) and not complaints(done)
    for line, words in zip(said, REFUSED):
        assert line.startswith(words.format(folder=tmp_path)), line
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.long
def test_actors_tell_nobody(tmp_path):
    _, seen = called(4, "actors", tmp_path)
    for rank, told in enumerate(seen):
        assert told["ended"]["finished"] and told["ended"]["rank"] == rank // 2
        assert [each["update"] for each in told["update"]] == (
            [] if rank % 2 else table(tmp_path / "run", rank // 2, "updates")["update"].tolist()
        )
        assert len(told["end"]) == 1 - rank % 2


def test_a_program_without_a_guard_is_not_run_again_by_commands(tmp_path):
    (tmp_path / "bare.py").write_text(
        "import gymnasium, gala_mpi\n\ndef pole():\n    return gymnasium.make('CartPole-v1')\n\n"
        "gala_mpi.train(env=pole, num_envs=2, precision='fp32', total_steps=100, run_dir='run')\n"
    )
    assert mpirun(1, "bare.py", cwd=tmp_path).returncode == 0
    refused = mpirun(1, "-m", "gala_mpi.evaluate", "run", cwd=tmp_path)
    (line,) = complaints(refused)
    assert refused.returncode == errors.REFUSED and "gala_mpi.train while bare is imported" in line
    assert "is to stand below `if __name__ == '__main__':`" in line


IMPORTS = {
    "attribute": "import gala_mpi\nfound = gala_mpi.train",
    "module": "import gala_mpi.train\nfound = gala_mpi.train",
    "both": "import gala_mpi\ngala_mpi.train\nimport gala_mpi.train\nfound = gala_mpi.train",
    "name": "from gala_mpi import train as found",
    "function": "from gala_mpi.train import main\nimport gala_mpi\nfound = gala_mpi.train",
}


@pytest.mark.parametrize(
    "order", [name if name in ("attribute", "both") else pytest.param(name, marks=pytest.mark.long) for name in IMPORTS]
)
def test_the_name_is_one_thing_however_it_is_imported(order):
    """The module, which can be called. It leaves signals alone, and `mpi4py` as any program knows it."""
    program = (
        f"import signal, sys\nbefore = [signal.getsignal(number) for number in signal.valid_signals()]\n{IMPORTS[order]}\n"
        "assert found is sys.modules['gala_mpi.train'] and callable(found) and found.main and found.__call__ is found.call\n"
        "assert [signal.getsignal(number) for number in signal.valid_signals()] == before\n"
        "from mpi4py import MPI\nassert MPI.COMM_WORLD.size == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
