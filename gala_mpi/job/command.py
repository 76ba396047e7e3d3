"""Commands that a run prints at its end: each works when it is pasted into a shell, or says what to do in its place."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from gala_mpi import networks
from gala_mpi.config import Config
from gala_mpi.envs import modules, registry
from gala_mpi.lazy import Member
from gala_mpi.learners import LEARNERS

TRAIN = "gala_mpi.train"

_given: list[str] | None = None  # what this program gave `train.main`, which need not be its command line; None: no words
_here: Path | None = None  # the working directory then


def remember(arguments: list[str] | None) -> None:
    """Remember what `train.main` was given, and where; None: `gala_mpi.train` was called, with settings."""
    global _given, _here
    _given, _here = arguments, Path.cwd()


def here() -> Path:
    """Return the working directory of the start: an environment may have changed it."""
    return _here or Path.cwd()


def shown(path: Path) -> str:
    """Return a path as the user types it: from the working directory of the start on, unless it was given in full."""
    in_full = any(str(path) in word for word in _given or ())
    return str(path if _here is None or in_full or not path.is_relative_to(_here) else path.relative_to(_here))


def resume(ranks: int, run: Path) -> str:
    """Return the command that continues a run on so many ranks."""
    flags = ["--resume", "--run-dir", shown(run)]
    if _given is None:
        return f"call {TRAIN}(resume=True, run_dir={shown(run)!r}) in {_name()}, on {ranks} ranks"
    own = _arguments_of_its_own()
    if own is None or not _program():
        return f"call {TRAIN}.main({flags}) in {_name()}, on {ranks} ranks"
    return shlex.join(["mpirun", "-n", str(ranks), *_program(), *own, *flags])


def play(config: Config) -> str:
    """Return the command that plays a run's policies."""
    run = shown(config.directory)
    if _program() == ["python", "-m", TRAIN] or known_elsewhere(config):
        return _where_it_is_found(config) + shlex.join(["python", "-m", "gala_mpi.evaluate", run])
    if _given is None:
        return f"call gala_mpi.evaluate.main({[run]}) after {TRAIN} in {_name()}, which alone knows what it plays"
    return f"call gala_mpi.evaluate.main({[run]}) in place of train.main in {_name()}, which alone knows what it plays"


def _program() -> list[str]:
    """Return how this program was started, without its arguments; nothing where that cannot be told (python -c)."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    return ["python", sys.argv[0]] if getattr(main, "__file__", None) else []


def _name() -> str:
    """Return what to call this program."""
    return _program()[-1] if _program() else "your program"


def _where_it_is_found(config: Config) -> str:
    """Return what goes before a command so that it finds functions of the main program; nothing where it does anyhow."""
    folder = modules.main_folder()
    given = [modules.given("env", config.env), modules.given("network", config.network or "")]
    if folder in (None, _here) or modules.MAIN not in [getattr(function, "__module__", None) for function in given]:
        return ""
    paths = dict.fromkeys([str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    return f"PYTHONPATH={shlex.quote(os.pathsep.join(paths))} "


def _arguments_of_its_own() -> list[str] | None:
    """Return the words of the command line before those that `train.main` was given; None where it was given others."""
    words = sys.argv[1:]
    if _given is None:
        return None
    kept = len(words) - len(_given)
    return words[:kept] if kept >= 0 and words[kept:] == _given else None


def known_elsewhere(config: Config) -> bool:
    """Whether other programs know this run's environment, network and learner too: nobody has added them in this one."""
    members: list[Member] = [LEARNERS[config.learner]]
    if not modules.is_for_all(config.network or ""):
        return False
    if not networks.is_own(config.network or "mlp"):  # which every program finds
        members.append(networks.member(config.network or "mlp"))
    return all(member.place.startswith("gala_mpi.") for member in members) and registry.is_known_to_all(config.env)
