"""EnvPool's environments: names, what is refused, and every step against gymnasium's own version of them."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest

from gala_mpi import envs
from gala_mpi.config import Config
from gala_mpi.envs import film, registry
from gala_mpi.envs.base import Environments, Spaces
from gala_mpi.envs.settings import AtariSettings
from gala_mpi.errors import SettingError
from gala_mpi.job import prepare

SEEDS = np.array([3, 4, 3])


def test_without_envpool_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(SettingError) as error:
        registry.resolve("envpool:CartPole-v1")
    assert str(error.value) == '--env envpool:...: EnvPool is not installed; pip install "gala_mpi[envpool]" is expected'


def test_the_rest_does_without_envpool(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert registry.resolve("CartPole-v1").kind == "gymnasium"
    assert envs.__doc__


envpool = pytest.importorskip("envpool", reason='pip install "gala_mpi[envpool]"; make test-envpool')


def test_names():
    assert registry.resolve("envpool:CartPole-v1")[:2] == ("envpool", "CartPole-v1")
    assert registry.resolve("envpool:CartPole-v1").stored == "envpool:CartPole-v1"
    assert registry.is_known_to_all("envpool:CartPole-v1") and registry.bare("envpool:CartPole-v1") != "CartPole-v1"
    with pytest.raises(SettingError, match=r"--env envpool:CartPole-v7: EnvPool has no .*envpool:CartPole-v1"):
        registry.resolve("envpool:CartPole-v7")


@pytest.mark.parametrize(
    "env, words, complaint",
    [
        (
            "CartPole-v1",
            ("gravity=3",),
            "--env-kwargs gravity=3: envpool:CartPole-v1 takes no gravity; one of these is expected: ",
        ),
        ("CartPole-v1", ("num_envs=3",), "--env-kwargs num_envs=3: envpool:CartPole-v1 is told so by --num-envs"),
        ("CartPole-v1", ("max_episode_steps=much",), "--env-kwargs max_episode_steps=much: TypeError: "),
        ("CartPole-v1", ("max_episode_steps=0",), "--env-kwargs max_episode_steps=0: 1 or more is expected"),
        ("TicTacToe-v1", (), "--env envpool:TicTacToe-v1: 2 play it; one that is played alone is expected"),
    ],
)
def test_what_is_refused(env, words, complaint):
    with pytest.raises(SettingError) as error:
        registry.make(f"envpool:{env}", 2, kwargs=words)
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"wrappers": ("ClipReward",)}, "--wrappers ClipReward: envpool:CartPole-v1 is not made by gymnasium"),
        ({"atari": AtariSettings(sticky=0.25)}, "--atari.sticky 0.25: envpool:CartPole-v1 is no Atari game"),
        ({"env_workers": 2}, "--env-workers 2: envpool:CartPole-v1 steps its environments in a way of its own; 0 is expected"),
    ],
)
def test_settings_of_others_are_refused(settings, complaint):
    with pytest.raises(SettingError) as error:
        prepare._try_out(Config(env="envpool:CartPole-v1", **settings))
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)


def test_films_are_refused():
    with pytest.raises(SettingError, match="--env envpool:CartPole-v1: it cannot be filmed; a run of "):
        film.make_filmed("envpool:CartPole-v1")


@pytest.mark.parametrize(
    "env, spaces",
    [
        ("CartPole-v1", Spaces((4,), False, 2)),
        ("Taxi-v3", Spaces((500,), False, 6)),
        ("Pendulum-v1", Spaces((3,), False, None, (1,), (-2.0,), (2.0,), action_scale=(2.0,))),
        ("HalfCheetah-v4", Spaces((17,), False, None, (6,), (-1.0,) * 6, (1.0,) * 6)),
        ("Pong-v5", Spaces((4, 84, 84), True, 6)),
        ("MiniGrid-Empty-5x5-v0", Spaces((247,), False, 7, image_shape=(3, 7, 7))),
    ],
)
def test_spaces(env, spaces):
    environments = registry.make(f"envpool:{env}", 2, threads=2)
    assert environments.spaces == spaces
    observations = environments.reset(SEEDS[:2])
    assert observations.shape == (2, *spaces.observation_shape) and observations.dtype == spaces.observation_dtype
    environments.rehearse()
    environments.close()


def set_pole(env, state):
    env.state = np.array(state, np.float64)


def set_pendulum(env, state):
    cosine, sine, speed = (float(number) for number in state)
    env.state, env.last_u = np.array([np.arctan2(sine, cosine), speed]), None


def set_acrobot(env, state):
    cosine1, sine1, cosine2, sine2, *speeds = (float(number) for number in state)
    env.state = np.array([np.arctan2(sine1, cosine1), np.arctan2(sine2, cosine2), *speeds])


def set_taxi(env, state):
    env.s = int(state.argmax())


# EnvPool's id and limit, gymnasium's id and what it is told, how its state is set to an observation, and how near it then stays
# in one step: EnvPool and gymnasium round otherwise.
TWINS = {
    "CartPole-v1": ((), "CartPole-v1", {}, set_pole, 1e-5),
    "CartPole-v1 cut off": (("max_episode_steps=9",), "CartPole-v1", {"max_episode_steps": 9}, set_pole, 1e-5),
    "Pendulum-v1": ((), "Pendulum-v1", {}, set_pendulum, 1e-4),
    "Acrobot-v1": (("max_episode_steps=40",), "Acrobot-v1", {"max_episode_steps": 40}, set_acrobot, 1e-3),
    "MountainCar-v0": (("max_episode_steps=30",), "MountainCar-v0", {"max_episode_steps": 30}, set_pole, 1e-5),
    "Taxi-v3": ((), "Taxi-v4", {}, set_taxi, 0),
}


def is_fastest(name: str, after: np.ndarray) -> bool:
    """Whether a pendulum turns as fast as it may: EnvPool moves it by its speed before that is bounded."""
    return "Pendulum" in name and abs(after[2]) > 7.99


class Twin:
    """gymnasium's version of an environment, which is set to the state that is observed before every step."""

    def __init__(self, id: str, options: dict, set_state):
        self.env, self.set_state = gymnasium.make(id, disable_env_checker=True, **options), set_state
        self.env.reset(seed=0)
        self.score, self.length = 0.0, 0

    def step(self, observation: np.ndarray, action):
        """The observation, reward, terminated, truncated, and what the episode that has ended counts."""
        self.set_state(self.env.unwrapped, observation)
        after, reward, terminated, truncated, _ = self.env.step(action)
        self.score, self.length = self.score + float(reward), self.length + 1
        ended = (self.score, self.length)
        if terminated or truncated:
            self.env.reset()
            self.score, self.length = 0.0, 0
        return after, reward, terminated, truncated and not terminated, ended


@pytest.mark.parametrize("name", TWINS)
def test_every_step_is_that_of_gymnasiums_own(name):
    """Observation, reward, end or cut, score and length, over whole episodes; and the next one begins as EnvPool's do."""
    kwargs, id, options, set_state, near = TWINS[name]
    environments = registry.make(f"envpool:{name.split()[0]}", 3, kwargs=kwargs)
    twins = [Twin(id, options, set_state) for _ in SEEDS]
    observations, rng = environments.reset(SEEDS), np.random.default_rng(0)
    lost = cut_off = 0
    for _ in range(450):
        actions = environments.spaces.random_actions(rng, observations)
        step = environments.step(actions)
        for i, twin in enumerate(twins):
            played = np.clip(2 * actions[i], -2, 2) if "Pendulum" in name else actions[i]
            after, reward, terminated, truncated, ended = twin.step(observations[i], played)
            after = np.float32(np.arange(500) == after) if "Taxi" in name else after
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            assert step.rewards[i] == pytest.approx(reward, abs=max(near, 1e-6))
            if truncated:
                assert step.final_observations is not None
                assert np.abs(step.final_observations[i] - after).max() <= near
            elif not terminated and not is_fastest(name, after):
                assert np.abs(step.observations[i] - after).max() <= near
            over = [(e.score, e.length) for e in step.episodes if e.environment == i]
            expected = [(pytest.approx(ended[0], rel=1e-4), ended[1])] if terminated or truncated else []
            assert over == expected
            lost, cut_off = lost + terminated, cut_off + truncated
        observations = step.observations
    assert lost if name == "CartPole-v1" else cut_off
    environments.close()


def test_a_pole_that_falls_in_the_last_step_that_it_has_is_lost():
    """EnvPool says of it that it was cut off."""
    when = falls(500)
    assert falls(when) == falls(when + 1) == when
    with pytest.raises(AssertionError):
        falls(when - 1)


def falls(limit: int) -> int:
    """The step in which a pole falls that is pushed to the right; it must not be cut off before."""
    environments = registry.make("envpool:CartPole-v1", 1, kwargs=(f"max_episode_steps={limit}",))
    environments.reset(SEEDS[:1])
    for step in range(1, 99):
        result = environments.step(np.ones(1, int))
        assert not result.truncated.any()
        if result.terminated[0]:
            return step
    raise AssertionError


def test_half_cheetah_moves_as_gymnasiums_own(tmp_path, monkeypatch):
    """From the same positions and velocities, which EnvPool shows but for the place: its reward does not depend on it."""
    mujoco = pytest.importorskip("mujoco", reason="pip install mujoco")
    assert mujoco
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there
    environments = registry.make("envpool:HalfCheetah-v4", 1)
    twin = gymnasium.make("HalfCheetah-v5")
    twin.reset(seed=0)
    observations, rng = environments.reset(SEEDS[:1]), np.random.default_rng(0)
    for _ in range(100):
        actions = rng.uniform(-1, 1, (1, 6)).astype(np.float32)
        positions, velocities = np.split(observations[0].astype(np.float64), [8])
        twin.unwrapped.set_state(np.concatenate([[0.0], positions]), velocities)
        step = environments.step(actions)
        after, reward, *_ = twin.step(actions[0])
        assert step.rewards[0] == pytest.approx(reward, abs=1e-4) and np.abs(step.observations[0] - after).max() < 1e-3
        observations = step.observations


def play(environments: Environments, seeds: np.ndarray, steps: int = 60) -> list[np.ndarray]:
    """Everything that some fixed random actions bring."""
    observations, rng = environments.reset(seeds), np.random.default_rng(0)
    shown = [observations]
    for _ in range(steps):
        step = environments.step(environments.spaces.random_actions(rng, observations))
        observations = step.observations
        shown += [observations, step.rewards, step.terminated, step.truncated]
    return shown


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "HalfCheetah-v4", "LunarLander-v3"])
def test_the_same_seeds_give_the_same_episodes_whatever_the_threads(env):
    one, other = (registry.make(f"envpool:{env}", 3, threads=threads) for threads in (1, 3))
    first = play(one, SEEDS)
    assert all(np.array_equal(*pair) for pair in zip(first, play(other, SEEDS)))
    assert all(np.array_equal(*pair) for pair in zip(first, play(one, SEEDS)))  # once more, after a reset
    assert env == "FrozenLake-v1" or not all(np.array_equal(*pair) for pair in zip(first, play(one, SEEDS + 10)))
    assert np.array_equal(first[0][0], first[0][2])


def test_observations_that_were_handed_out_do_not_change():
    environments = registry.make("envpool:CartPole-v1", 2)
    shown = play(environments, SEEDS[:2], 30)
    kept = [array.copy() for array in shown]
    for _ in range(30):
        environments.step(np.zeros(2, int))
    assert all(np.array_equal(*pair) for pair in zip(shown, kept))


def steps_of_a_game(limit: int) -> int:
    """In how many steps a game of Breakout is lost; it must not be cut off before."""
    environments = registry.make("envpool:Breakout-v5", 1, kwargs=(f"max_episode_steps={limit}",))
    observations, rng = environments.reset(SEEDS[:1]), np.random.default_rng(0)
    for step in range(1, limit + 1):
        result = environments.step(environments.spaces.random_actions(rng, observations))
        assert not result.truncated[0]
        if result.terminated[0]:
            return step
    raise AssertionError


def test_a_game_of_atari_that_is_lost_in_its_last_step_is_lost():
    when = steps_of_a_game(400)
    assert when < 400 and steps_of_a_game(when) == when
