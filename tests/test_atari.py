"""Atari: frame by frame against gymnasium's own wrappers, and the protocols that ids of games stand for."""

import dataclasses

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from gala_mpi.envs import base, registry
from gala_mpi.envs.atari import AtariEnvironments
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.settings import PAPER, AtariSettings

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
FRAMES_PER_STEP, NO_OPS = 4, 30
STICKY = AtariSettings(sticky=0.25)


class Opening(gymnasium.Wrapper):
    """After a reset, plays FIRE (where there is one) and no-ops until the emulator has shown `frames` frames."""

    frames, fires = 0, True

    def reset(self, **options):
        result = self.env.reset(**options)
        meanings = self.unwrapped.get_action_meanings()
        if self.fires and "FIRE" in meanings:
            self.env.step(meanings.index("FIRE"))
        while self.unwrapped.ale.getEpisodeFrameNumber() < self.frames:
            self.env.step(0)
        return result


class Reference:
    """One game in gymnasium's wrappers, with what should be seen of lives and scores worked out from the emulator."""

    def __init__(self, game: str, limit: int = 108_000):
        specs = gymnasium.registry.items()
        self.name = next(name for name, spec in specs if spec.kwargs.get("game") == game and name.startswith("ALE/"))
        self.limit = limit

    def reset(self, frames: int) -> np.ndarray:
        """The first observation of a new emulator after an opening of `frames` frames; the limit counts from there."""
        options = {"frameskip": 1, "repeat_action_probability": 0.0, "max_num_frames_per_episode": self.limit + frames}
        opening = Opening(gymnasium.make(self.name, **options))
        opening.frames = frames
        shown = AtariPreprocessing(opening, noop_max=0, frame_skip=FRAMES_PER_STEP, screen_size=84)
        self.env = FrameStackObservation(shown, 4, padding_type="zero")
        self.ale = self.env.unwrapped.ale
        observation, _ = self.env.reset()
        self.lives, self.score, self.length = self.ale.lives(), 0.0, 0
        return observation

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Observation, reward, whether a life or the game was lost, whether the game was, whether it was cut off."""
        observation, reward, over, cut, _ = self.env.step(action)
        lost = over or self.ale.lives() < self.lives
        self.lives = self.ale.lives()
        self.score += reward
        self.length += 1
        return observation, reward, lost, over, cut


def frames_shown(environments: AtariEnvironments) -> int:
    """How many frames the first environment's emulator has shown since its episode began."""
    return int(environments._frames[0])


def assert_same_screens(mine: np.ndarray, theirs: np.ndarray) -> None:
    """Equal as ale-py's own tests demand: no pixel differs by more than 2, and at most 25 of a frame do at all."""
    difference = np.abs(mine.astype(int) - theirs.astype(int))
    assert mine.shape == theirs.shape and difference.max() <= 2
    assert ((difference > 0).sum(axis=(1, 2)) <= 25).all()


@pytest.mark.parametrize(
    "game, steps, games, lives_lost",
    [("breakout", 400, 2, 8), ("pong", 1000, 1, 0), ("seaquest", 500, 1, 3)],
)
def test_atari_equals_the_wrappers_of_gymnasium(game, steps, games, lives_lost):
    """Observations, rewards, ends of lives and games, scores and lengths, across lost lives and the ends of games."""
    environments, reference = AtariEnvironments(game, 1), Reference(game)
    first = environments.reset(np.array([5]))
    assert 1 <= frames_shown(environments) <= NO_OPS
    assert_same_screens(first[0], reference.reset(frames_shown(environments)))
    rng = np.random.default_rng(0)
    seen_games = seen_losses = 0
    for _ in range(steps):
        action = rng.integers(environments.spaces.actions)
        step = environments.step(np.array([action]))
        expected, reward, lost, over, _ = reference.step(action)
        assert step.rewards[0] == reward and step.terminated[0] == lost and not step.truncated[0]
        assert [(e.environment, e.score, e.length) for e in step.episodes] == [(0, reference.score, reference.length)] * over
        if over:  # the observation is the next game's
            assert 1 <= frames_shown(environments) <= NO_OPS
            expected = reference.reset(frames_shown(environments))
        assert_same_screens(step.observations[0], expected)
        seen_games += over
        seen_losses += lost and not over
    assert seen_games >= games and seen_losses >= lives_lost
    environments.close()


def test_openings_are_from_1_to_30_frames_long():
    environments = AtariEnvironments("breakout", 12)
    environments.reset(np.arange(12))
    assert environments._frames.min() >= 1 and environments._frames.max() <= NO_OPS
    assert len(set(environments._frames)) > 6
    environments.close()


def test_a_game_that_is_cut_off_shows_where_it_stood():
    """ale-py cuts a game after 108,000 frames; here after 80, so that the test need not wait."""
    environments, reference = AtariEnvironments("pong", 1, settings=AtariSettings(frame_limit=80)), Reference("pong", 80)
    environments.reset(np.array([5]))
    reference.reset(frames_shown(environments))
    cuts = 0
    for _ in range(60):
        step = environments.step(np.array([2]))
        expected, _, lost, _, cut = reference.step(2)
        assert step.truncated[0] == cut and not step.terminated[0] and not lost
        assert [(e.score, e.length) for e in step.episodes] == [(reference.score, reference.length)] * cut
        if cut:
            assert reference.length == 80 // FRAMES_PER_STEP
            assert_same_screens(step.final_observations[0], expected)
            expected = reference.reset(frames_shown(environments))
        assert_same_screens(step.observations[0], expected)
        cuts += cut
    assert cuts == 3
    environments.close()


def lost_and_cut(limit: int) -> tuple[list[bool], list[bool]]:
    """Terminations and truncations of 30 steps of Breakout that is cut after `limit` frames."""
    environments = AtariEnvironments("breakout", 1, settings=AtariSettings(frame_limit=limit))
    environments.reset(np.array([5]))
    rng = np.random.default_rng(0)
    steps = [environments.step(rng.integers(4, size=1)) for _ in range(30)]
    environments.close()
    return [bool(step.terminated[0]) for step in steps], [bool(step.truncated[0]) for step in steps]


def test_a_life_lost_in_the_step_that_cuts_the_game_off_counts_as_lost():
    terminated, _ = lost_and_cut(108_000)
    when = terminated.index(True)
    terminated, truncated = lost_and_cut(FRAMES_PER_STEP * (when + 1))
    assert terminated[when] and not truncated[when]
    _, truncated = lost_and_cut(FRAMES_PER_STEP * when)  # one step earlier the game was cut
    assert truncated[when - 1]


def play(environments: AtariEnvironments, seeds: list[int], steps: int = 60) -> np.ndarray:
    """Observations of some fixed random actions, [steps, N, ...]."""
    environments.reset(np.array(seeds))
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(steps):
        action = rng.integers(environments.spaces.actions)
        shown.append(environments.step(np.full(len(seeds), action)).observations.copy())
    environments.close()
    return np.stack(shown)


def test_the_same_seeds_give_the_same_games_and_other_seeds_others():
    shown = play(AtariEnvironments("breakout", 3, threads=2), [7, 7, 8])
    assert np.array_equal(shown[:, 0], shown[:, 1])
    assert not np.array_equal(shown[:, 0], shown[:, 2])
    assert np.array_equal(shown[:, 2], play(AtariEnvironments("breakout", 1), [8])[:, 0])


def test_sticky_actions_change_the_game():
    plain, sticky = (play(AtariEnvironments("breakout", 1, settings=settings), [7]) for settings in (PAPER, STICKY))
    assert np.array_equal(plain[0], play(AtariEnvironments("breakout", 1), [7], 1)[0])
    assert not np.array_equal(plain, sticky)


def test_sticky_actions_are_drawn_from_the_seed():
    shown = play(AtariEnvironments("breakout", 2, settings=STICKY), [7, 7])
    assert np.array_equal(shown[:, 0], shown[:, 1])


def test_make_hands_its_settings_on():
    environments = registry.make("breakout", 2, atari=STICKY)
    assert np.array_equal(play(environments, [7, 8]), play(AtariEnvironments("breakout", 2, 1, STICKY), [7, 8]))
    assert isinstance(registry.make("CartPole-v1", 1), GymEnvironments)


def test_atari_spaces():
    environments = AtariEnvironments("pong", 2)
    assert environments.spaces == base.Spaces((4, 84, 84), True, 6)
    observations = environments.reset(np.array([0, 1]))
    assert observations.shape == (2, 4, 84, 84) and observations.dtype == np.uint8
    environments.close()


# The protocols that ids of Atari games stand for


def says(**otherwise) -> AtariSettings:
    return dataclasses.replace(PAPER, **otherwise)


@pytest.mark.parametrize(
    "env, protocol, stored, differs",
    [
        ("pong", PAPER, "pong", ""),
        ("ALE/Pong-v5", says(sticky=0.25), "ALE/Pong-v5", ""),
        ("PongNoFrameskip-v4", PAPER, "pong", ""),
        ("PongNoFrameskip-v0", says(sticky=0.25), "ALE/Pong-v5", ""),
        ("PongDeterministic-v4", PAPER, "pong", ""),
        ("PongDeterministic-v0", says(sticky=0.25), "ALE/Pong-v5", ""),
        ("Pong-v4", PAPER, "pong", "--env Pong-v4: by gymnasium's registry each action lasts 2 to 4 frames, at random; here 4"),
        ("Pong-v0", says(sticky=0.25), "ALE/Pong-v5", "--env Pong-v0: by gymnasium's registry each action lasts 2 to 4 "),
        ("ALE/MsPacman-v5", says(sticky=0.25), "ALE/MsPacman-v5", ""),
    ],
)
def test_what_an_id_stands_for(env, protocol, stored, differs):
    found = registry.resolve(env)
    assert (found.says, found.stored) == (protocol, stored)
    assert found.differs.startswith(differs) and bool(found.differs) == bool(differs)
    again = registry.resolve(found.stored)
    assert (again.name, again.says, again.stored, again.differs) == (found.name, protocol, stored, "")


def test_every_id_of_ale_py_means_what_its_registry_says():
    for name, spec in gymnasium.registry.items():
        if spec.entry_point == "ale_py.env:AtariEnv":
            found, kwargs = registry.resolve(name), spec.kwargs
            assert found.says == says(sticky=kwargs["repeat_action_probability"]), name
            assert kwargs["max_num_frames_per_episode"] == PAPER.frame_limit and not kwargs["full_action_space"]
            assert bool(found.differs) == isinstance(kwargs["frameskip"], tuple), name


def test_a_game_that_the_user_has_registered_otherwise_is_played_so(registered):
    options = {"game": "pong", "repeat_action_probability": 0.1, "frameskip": 8, "full_action_space": True}
    gymnasium.register("MyPong-v0", "ale_py.env:AtariEnv", kwargs=options | {"max_num_frames_per_episode": 999})
    found = registry.resolve("MyPong-v0")
    assert found[:2] == ("atari", "pong") and found.stored == "MyPong-v0"
    assert found.says == says(sticky=0.1, frame_skip=8, full_actions=True, frame_limit=999)
    gymnasium.register("RamPong-v0", "ale_py.env:AtariEnv", kwargs={"game": "pong", "obs_type": "ram"})
    assert registry.resolve("RamPong-v0").kind == "gymnasium"  # as it comes


def seeds_of_gymnasium(count: int) -> list[tuple[int, int]]:
    """Seeds of gymnasium's Atari environment, each with the one that it gives the emulator (`AtariEnv.seed_game`).

    Only those that the vector environment takes: it has 31 bits, and gymnasium 32.
    """
    pairs = ((seed, int(np.random.SeedSequence(seed).generate_state(2)[1])) for seed in range(100))
    return [pair for pair in pairs if pair[1] < 2**31][:count]


class Twin:
    """gymnasium's own environment of an id in gymnasium's own wrappers, from a seed on: its emulator is never made anew.

    Args:
        size: [height, width] of the screen; None: that of the console, so that nothing is scaled.
    """

    def __init__(self, id: str, seed: int, frame_skip: int, size: tuple[int, int] = (210, 160), **options):
        # AtariPreprocessing skips the frames itself, and wants an environment that skips none.
        self.opening = Opening(gymnasium.make(id, frameskip=1, **options))
        shown = AtariPreprocessing(self.opening, noop_max=0, frame_skip=frame_skip, screen_size=size[::-1])
        self.env = FrameStackObservation(shown, 4, padding_type="zero")
        self.seed: int | None = seed

    def reset(self, frames: int) -> np.ndarray:
        """The first observation of an episode that begins with so many frames, FIRE in the first; 0: with none."""
        self.opening.frames = frames
        observation, _ = self.env.reset(seed=self.seed)
        self.seed = None
        return observation

    def step(self, action: int):
        return self.env.step(action)


GYMNASIUMS_OWN = [
    ("ALE/Pong-v5", "ALE/Pong-v5", {}, {}, 3000),
    pytest.param("PongNoFrameskip-v4", "PongNoFrameskip-v4", {}, {}, 3000, marks=pytest.mark.long),
    # ale-py registers no PongDeterministic-v4 any more: it was PongNoFrameskip-v4 with a frame skip of 4.
    pytest.param("PongDeterministic-v4", "PongNoFrameskip-v4", {}, {}, 3000, marks=pytest.mark.long),
    ("ALE/Breakout-v5", "ALE/Breakout-v5", {}, {}, 600),
    ("ALE/Breakout-v5", "ALE/Breakout-v5", {"life_loss": False}, {}, 300),
    ("ALE/Breakout-v5", "ALE/Breakout-v5", {"fire": False, "no_ops": 0}, {}, 300),
    ("ALE/Pong-v5", "ALE/Pong-v5", {"sticky": 0.5, "frame_skip": 2}, {"repeat_action_probability": 0.5}, 300),
    ("ALE/Pong-v5", "ALE/Pong-v5", {"full_actions": True}, {"full_action_space": True}, 300),
]


@pytest.mark.parametrize("env, id, given, options, steps", GYMNASIUMS_OWN)
def test_the_frames_of_an_id_are_gymnasiums_own(env, id, given, options, steps):
    """Every pixel, reward and end over random actions from the same seed of the emulator, which the sticky actions are drawn
    from; the screen is not scaled. Only the number of no-ops at the start is drawn otherwise, and taken from here."""
    ((seed, of_the_emulator),) = seeds_of_gymnasium(1)
    found = registry.resolve(env)
    settings = AtariSettings(**given).over(found.says)
    environments = AtariEnvironments(found.name, 1, settings=settings, img_height=210, img_width=160)
    twin = Twin(id, seed, environments.frame_skip, **options)
    assert environments.spaces.actions == twin.env.action_space.n
    first = environments.reset(np.array([of_the_emulator]))
    twin.opening.fires = bool(settings.fire)
    assert np.array_equal(first[0], twin.reset(frames_shown(environments)))
    rng, lives, episodes = np.random.default_rng(0), twin.env.unwrapped.ale.lives(), 0
    for _ in range(steps):
        action = rng.integers(environments.spaces.actions)
        step = environments.step(np.array([action]))
        expected, reward, over, cut, _ = twin.step(action)
        lost = over or (settings.life_loss and twin.env.unwrapped.ale.lives() < lives)
        assert step.rewards[0] == reward and step.terminated[0] == lost and not (step.truncated[0] or cut)
        assert len(step.episodes) == over
        if over:
            expected = twin.reset(frames_shown(environments))
            episodes += 1
        assert np.array_equal(step.observations[0], expected)
        lives = twin.env.unwrapped.ale.lives()
    assert episodes >= steps // 1500
    environments.close()


def test_actions_that_stick_are_drawn_from_the_emulators_seed_alone():
    """The comparison above would see it: from another seed the same actions play another game."""
    protocol = AtariSettings(no_ops=0, fire=False)
    shown = [play(registry.make("ALE/Pong-v5", 1, atari=protocol), [seed]) for _, seed in seeds_of_gymnasium(2)]
    assert not np.array_equal(*shown)
