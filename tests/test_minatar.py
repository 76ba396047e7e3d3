"""MinAtar's games, by their ids of gymnasium, which their package registers only when it is told to."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import minatar
import numpy as np
import pytest

from gala_mpi.envs import registry
from gala_mpi.errors import SettingError


@pytest.fixture
def unregistered(registered):
    """Gymnasium's registry as it is in a process that has asked for none of MinAtar's games."""
    for name in [name for name in registered if name.startswith("MinAtar/")]:
        del registered[name]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_games_are_minatar_s_own_step_by_step(game, workers, unregistered):
    seeds, random = np.array([3, 5, 8]), np.random.default_rng(0)
    own = [minatar.Environment(game) for _ in seeds]
    with closing(registry.make(f"MinAtar/{game.title().replace('_', '')}-v1", 3, workers=workers)) as environments:
        spaces, seen = environments.spaces, environments.reset(seeds)
        for environment, seed in zip(own, seeds):
            environment.seed(int(seed))
            environment.reset()
        allowed = own[0].minimal_action_set()
        assert (spaces.actions, spaces.image) == (len(allowed), True)
        for _ in range(300):
            shown = np.array([environment.state() for environment in own])
            assert np.array_equal(seen * spaces.scale, np.moveaxis(shown, -1, 1))
            actions = random.integers(0, len(allowed), 3)
            environments.send(actions)
            step = environments.receive()
            outcomes = [environment.act(allowed[action]) for environment, action in zip(own, actions)]
            assert [(r, t) for r, t in zip(step.rewards, step.terminated)] == outcomes
            assert not step.truncated.any()
            for environment, (_, ended) in zip(own, outcomes):
                if ended:
                    environment.reset()
            seen = step.observations


def test_one_that_there_is_not(unregistered):
    with pytest.raises(SettingError, match=r"--env MinAtar/Breakuot-v1: no such environment.*MinAtar/Breakout-v1"):
        registry.resolve("MinAtar/Breakuot-v1")


def test_not_installed(unregistered, monkeypatch):
    monkeypatch.setitem(sys.modules, "minatar", None)
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    with pytest.raises(
        SettingError, match=r"--env MinAtar/Breakout-v1: MinAtar is not installed; pip install 'gala_mpi\[minatar\]'"
    ):
        registry.resolve("MinAtar/Breakout-v1")


FILMED = """
import sys
from gala_mpi.envs import registry
registry.resolve("MinAtar/Breakout-v1")
assert not {"matplotlib", "seaborn", "pandas"} & sys.modules.keys()
import gymnasium
env = gymnasium.make("MinAtar/Breakout-v1", render_mode="rgb_array")
env.reset(seed=0)
picture = env.unwrapped.render()
import seaborn
palette = [(0, 0, 0), *seaborn.color_palette("cubehelix", 4)]
colours = set(map(tuple, picture.reshape(-1, 3)))
from minatar.environment import colors, plt  # for windows on a screen
assert callable(colors.ListedColormap) and callable(plt.subplots)
assert seaborn.__version__ and len(colours) > 2 and colours <= set(palette), (colours, palette)
"""


def test_what_pictures_need_is_imported_for_them_alone():
    """In a process of its own: this one may have imported it."""
    done = subprocess.run([sys.executable, "-c", FILMED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
