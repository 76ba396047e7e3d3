"""What a program gives `gala_mpi.train`: settings as a command line stands for them, and functions by names."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gala_mpi import config, config_file
from gala_mpi.callbacks import Callbacks, Updated
from gala_mpi.config import Config
from gala_mpi.envs import modules, registry
from gala_mpi.errors import SettingError
from gala_mpi.job import command, given
from gala_mpi.topology import Graph

TOPOLOGY = Graph("base:2")
SEVERAL = Config(
    env="CartPole-v1",
    env_kwargs=("gravity=5",),
    topology=TOPOLOGY,
    staleness=0,
    num_envs=3,
    lr=0.25,
    memory="lstm",
    normalise_rewards=False,
    checksum=True,
    log=("tensorboard",),
    wall_minutes=2.5,
    ppo=dataclasses.replace(Config().ppo, epochs=7),
    atari=dataclasses.replace(Config().atari, fire=False),
)


def test_a_config_is_what_the_flags_that_differ_are(tmp_path):
    words = config_file.expand(["--config", str(_written(tmp_path, config_file.to_toml(SEVERAL)))])
    assert given.read(given.gather(SEVERAL, {})) == config.parse(words) == SEVERAL
    assert given.gather(Config(), {}) == {}


def _written(folder: Path, text: str) -> Path:
    (folder / "settings.toml").write_text(text)
    return folder / "settings.toml"


def test_keywords_win_and_are_brought_to_their_kinds():
    keywords = {
        **{"num_envs": np.int64(5), "lr": 1, "run_dir": "some/where", "topology": "exponential", "staleness": None},
        **{"checksum": np.True_, "normalise_rewards": np.False_},
        **{"env_kwargs": ["a=1"], "ppo": {"clip": 0.3}, "a2c": dataclasses.replace(Config().a2c, discount=0.5)},
    }
    found = given.read(given.gather(SEVERAL, keywords))
    assert (found.num_envs, type(found.num_envs), found.lr, type(found.lr)) == (5, int, 1.0, float)
    assert (found.run_dir, found.topology, found.env_kwargs) == (Path("some/where"), Graph("exponential"), ("a=1",))
    assert (found.ppo.epochs, found.ppo.clip, found.a2c.discount) == (7, 0.3, 0.5)
    assert found.staleness is None and found.wall_minutes == 2.5
    assert found.checksum is True and found.normalise_rewards is False
    assert Config.from_json(found.to_json()) == found


def test_of_a_run_that_goes_on_what_is_not_given_is_its_own(monkeypatch):
    """None, where it is given as a keyword, is a value as any other."""
    stored = dataclasses.replace(SEVERAL, total_steps=123)
    monkeypatch.setattr(given.prepare.reader, "read_config", lambda run: stored)
    found = given.read(given.gather(Config(resume=True, run_dir=Path("r")), {"wall_minutes": None, "ppo": {"epochs": 2}}))
    expected = dataclasses.replace(stored, resume=True, run_dir=Path("r"), wall_minutes=None)
    assert found == dataclasses.replace(expected, ppo=dataclasses.replace(stored.ppo, epochs=2))


def test_every_setting_has_a_kind_that_is_checked():
    for field in dataclasses.fields(Config):
        with pytest.raises(SettingError, match=rf"^(--)?{field.name.replace('_', '.')}"):
            given.gather(None, {field.name: object()})
    with pytest.raises(SettingError, match=r"^--num-envs True: a whole number is expected"):
        given.gather(None, {"num_envs": True})
    with pytest.raises(SettingError, match=r"^--env-kwargs {'length': 6}: a list of strings is expected"):
        given.gather(None, {"env_kwargs": {"length": 6}})
    with pytest.raises(SettingError, match=r"^--network 3: a name or a function is expected"):
        given.gather(None, {"network": 3})
    with pytest.raises(SettingError, match=r"^--lr: a number that large cannot be computed with"):
        given.gather(None, {"lr": 10**400})


def test_the_hint_at_the_end_names_the_programs_folder_once(monkeypatch):
    monkeypatch.setattr(modules, "main_folder", lambda: Path("/there"))
    monkeypatch.setattr(modules, "given", lambda name, word: SimpleNamespace(__module__=modules.MAIN))
    monkeypatch.setenv("PYTHONPATH", "/other:/there")
    assert command._where_it_is_found(Config()) == "PYTHONPATH=/there:/other "


@pytest.mark.parametrize("wish", [True, np.True_, "tired", False, np.False_, None])
def test_what_a_callback_may_return(wish):
    callbacks = Callbacks([lambda done: wish])
    callbacks.update(Updated(0, 1, 1, 1, 1, *4 * (0.0,), *3 * (0.0,), 0, ""))
    assert bool(callbacks.reason) == bool(wish)


def top() -> None:
    """At the top of a module."""


@functools.wraps(top)
def wraps() -> None:
    """Called `top` too."""


def test_names_of_functions(monkeypatch):
    def inside():
        pass

    assert modules.remember("env", top) == "test_given:top" and modules.is_for_all("test_given:top")
    assert modules.remember("network", math.sqrt) == "math:sqrt"
    nameless = {inside: "<locals>.inside", (lambda: 0): "<lambda>", functools.partial(top): "<partial>", wraps: "<top>"}
    for function, name in nameless.items():
        place = modules.remember("env", function)
        assert place.endswith(name) and not modules.is_for_all(place)
        assert modules.load(place, "env") is function
        with pytest.raises(SettingError, match="only the program that has trained it knows"):
            modules.load(place, "network")  # for which nobody has given it
    main = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(top, "__module__", "__main__")
    main.top = top
    for file, name in (("/some/my_script.py", "my_script:top"), ("/some/a.b.py", "<program>:top"), (None, "<program>:top")):
        main.__file__ = file
        assert modules.remember("env", top) == name
        assert modules.main_folder() == (Path("/some") if file else None)
    main.__spec__ = type("Spec", (), {"name": "package.script"})()
    assert modules.remember("env", top) == "package.script:top" and modules.main_folder() is None


POLES = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

def pole(gravity=9.8):
    environment = gymnasium.make("CartPole-v1")
    environment.unwrapped.gravity = gravity
    return environment

class Pole(CartPoleEnv):
    pass

number = 5
"""


@pytest.mark.parametrize("name", ["pole", "Pole"])
def test_an_environment_that_a_function_makes(tmp_path, monkeypatch, name):
    (tmp_path / "made_poles.py").write_text(POLES)
    monkeypatch.syspath_prepend(tmp_path)
    env = f"made_poles:{name}"
    assert registry.make(env, 2).reset(np.array([1, 2])).shape == (2, 4)
    assert registry.resolve(env).stored == env and registry.is_known_to_all(env)
    for other in ("number", "nothing"):
        with pytest.raises(SettingError, match=f"registers no {other}; an id that it registers, or its function, is expected"):
            registry.make(f"made_poles:{other}", 1)


def test_a_function_is_told_keywords(tmp_path, monkeypatch):
    (tmp_path / "told_poles.py").write_text(POLES)
    monkeypatch.syspath_prepend(tmp_path)
    (environment,) = registry.make("told_poles:pole", 1, kwargs=["gravity=1.5"]).envs
    assert environment.unwrapped.gravity == 1.5
    with pytest.raises(
        SettingError, match="told_poles:pole takes no wind; one of these is expected: gravity, max_episode_steps"
    ):
        registry.make("told_poles:pole", 1, kwargs=["wind=1"])
