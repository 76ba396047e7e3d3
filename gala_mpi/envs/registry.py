"""Make environments by name: an Atari game, or any gymnasium id."""

from __future__ import annotations

import difflib
import re

from gala_mpi.envs.atari import AtariEnvironments
from gala_mpi.envs.base import Environments
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.errors import SettingError

# Games that nobody plays alone. ale-py ships their ROMs, and ends the whole process when it loads one.
FOR_SEVERAL = frozenset({"combat", "joust", "maze_craze", "warlords"})


def resolve(env: str) -> tuple[str, str]:
    """Return the kind and name of an environment.

    These are ("atari", "pong") for `pong`, `ALE/Pong-v5` and `PongNoFrameskip-v4`, and ("gymnasium", id) for other ids of
    gymnasium.

    Raises:
        SettingError: there is no such environment, or none for one player.
    """
    games = atari_games()
    # ale-py's ids have versions 0, 4 and 5; gymnasium's own Blackjack-v1 is not the Atari game.
    match = re.fullmatch(r"(?:ALE/)?([A-Za-z0-9]+?)(?:NoFrameskip|Deterministic)?-v[045]", env)
    by_plain_name = {game.replace("_", ""): game for game in {*games, *FOR_SEVERAL}}
    game = by_plain_name.get(match[1].lower(), env) if match else env
    if game in FOR_SEVERAL:
        raise SettingError(f"--env {env}: the Atari game {game} needs two players; one that is played alone is expected")
    if game in games:
        return "atari", game
    import gymnasium  # slow to import, and not needed to recognise an Atari game

    if env in gymnasium.registry:
        return "gymnasium", env
    near = difflib.get_close_matches(env, [*games, *gymnasium.registry], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "for example pong, ms_pacman, ALE/Pong-v5 or CartPole-v1"
    raise SettingError(f"--env {env}: no such environment; an Atari game or a gymnasium id is expected ({hint})")


def atari_games() -> list[str]:
    """Return ale-py's names of the games for one player whose ROMs it ships, in snake_case."""
    from ale_py import roms

    return [game for game in roms.get_all_rom_ids() if game not in FOR_SEVERAL]


def make(env: str, num_envs: int, *, threads: int = 1, sticky: float = 0.0) -> Environments:
    """Make `num_envs` environments of `env` (see `resolve`).

    Args:
        threads: how many emulators run at the same time (Atari).
        sticky: probability that an emulator repeats the last action, per frame (Machado et al. 2018; Atari).

    Raises:
        SettingError: there is no such environment, or its spaces are not supported.
    """
    kind, name = resolve(env)
    return AtariEnvironments(name, num_envs, threads, sticky) if kind == "atari" else GymEnvironments(name, num_envs)
