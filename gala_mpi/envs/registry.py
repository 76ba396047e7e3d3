"""Make environments by name: an Atari game, any id of gymnasium, module:id, module:function, or one of EnvPool's."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from gala_mpi.envs import minatar, modules
from gala_mpi.envs.atari import AtariEnvironments
from gala_mpi.envs.base import Environments
from gala_mpi.envs.envpool import PREFIX, EnvPoolEnvironments, require_task
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.modules import in_a_line, same_directory
from gala_mpi.envs.options import check_keywords, keywords
from gala_mpi.envs.options import wrappers as wrappers_of
from gala_mpi.envs.settings import AS_NAMED, PAPER, AtariSettings
from gala_mpi.envs.workers import WorkerEnvironments, WorkerError
from gala_mpi.errors import JobError, SettingError

RANDOM_SKIP = 2, 5  # frames of an action of Pong-v4 and the like: 2 to 4
# Games that nobody plays alone. ale-py ships their ROMs, and ends the whole process when it loads one.
FOR_SEVERAL = frozenset({"combat", "joust", "maze_craze", "warlords"})


class Found(NamedTuple):
    """What an environment's name stands for.

    Attributes:
        kind: "atari", "gymnasium" or "envpool".
        name: ale-py's name of the game; or the id of gymnasium, with its module if that registers it; or EnvPool's id.
        says: the protocol that an Atari game's name stands for, in which nothing is None.
        stored: what a run calls it: one name for one game and protocol, however it was typed.
        differs: in which way an Atari game is played otherwise than its id says, in one line; empty: in none.
    """

    kind: str
    name: str
    says: AtariSettings = PAPER
    stored: str = ""
    differs: str = ""


def resolve(env: str) -> Found:
    """Return what a name stands for. In this order:

    * envpool:id, one of EnvPool's;
    * module:id: the module is imported, which registers the id (gymnasium's own form);
    * module:function: the module is imported, whose function (or class) makes the environment;
    * an id of gymnasium's registry, or of MinAtar's; those of ale-py are Atari games;
    * an Atari game in ale-py's way of writing (ms_pacman), or in the way of older ids (PongDeterministic-v4).

    Raises:
        SettingError: there is no such environment, none for one player, or the module cannot be imported.
    """
    import gymnasium

    if env.startswith(PREFIX):
        require_task(env.removeprefix(PREFIX))
        return Found("envpool", env.removeprefix(PREFIX), stored=env)
    games = atari_games()
    module, _, name = env.rpartition(":")
    function = modules.given("env", env)
    if module and function is None:
        found = _import(env, module)
        function = None if name in gymnasium.registry else modules.reached(found, name)
    if callable(function):
        return Found("gymnasium", _register(env, function), stored=env)
    if env.startswith(minatar.PREFIX):
        minatar.register(env)
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return _found_atari(env, **spec.kwargs) if _is_ale(spec) else Found("gymnasium", env, stored=env)
    if module:
        _refuse_unregistered(env, module, name)
    # ale-py's ids have versions 0, 4 and 5; gymnasium's own Blackjack-v1 is not the Atari game.
    match = re.fullmatch(r"(?:ALE/)?([A-Za-z0-9]+?)(NoFrameskip|Deterministic)?-v([045])", env)
    by_plain_name = {game.replace("_", ""): game for game in {*games, *FOR_SEVERAL}}
    game = by_plain_name.get(match[1].lower(), env) if match else env
    if game in FOR_SEVERAL:
        raise SettingError(f"--env {env}: the Atari game {game} needs two players; one that is played alone is expected")
    if match and game in games:
        random = match[2] is None and match[3] != "5"
        return _found_atari(env, game, 0.0 if match[3] == "4" else 0.25, RANDOM_SKIP if random else 4)
    if game in games:
        return Found("atari", game, stored=game)
    near = difflib.get_close_matches(env, [*games, *gymnasium.registry], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "for example pong, ms_pacman, ALE/Pong-v5 or CartPole-v1"
    raise SettingError(
        f"--env {env}: no such environment; an Atari game, a gymnasium id, or MODULE:ID where a module of yours "
        f"registers it is expected ({hint})"
    )


def _found_atari(
    env: str,
    game: str,
    repeat_action_probability: float,
    frameskip: int | tuple[int, int],
    full_action_space: bool = False,
    max_num_frames_per_episode: int = 108_000,
) -> Found:
    """Return what an id of ale-py's stands for, by the options that it is registered with.

    An id that skips no frames (NoFrameskip) leaves that to the preprocessing, which skips 4. A random number of frames cannot
    be skipped here.
    """
    skip, differs = 4 if frameskip == 1 else frameskip, ""
    if not isinstance(skip, int):
        low, high = skip
        differs = f"--env {env}: by gymnasium's registry each action lasts {low} to {high - 1} frames, at random; here 4"
        skip = 4
    protocol = {"sticky": repeat_action_probability, "frame_skip": skip, "full_actions": full_action_space}
    says = dataclasses.replace(PAPER, **protocol, frame_limit=max_num_frames_per_episode)
    five = f"ALE/{game.title().replace('_', '')}-v5"
    stored = {PAPER: game, dataclasses.replace(PAPER, sticky=0.25): five}.get(says, env)
    return Found("atari", game, says, stored, differs)


def _register(env: str, function: Callable[..., Any]) -> str:
    """Register a function that makes an environment with gymnasium, if it is not, and return its id there."""
    import gymnasium

    name = re.sub(r"[^\w.]", ".", env)
    spec = gymnasium.registry.get(name)
    if spec is None or spec.entry_point is not function:
        gymnasium.registry.pop(name, None)
        gymnasium.register(name, function)
    return name


def is_known_to_all(env: str) -> bool:
    """Return whether every program knows an environment: an Atari game, gymnasium's own, or one that names its module."""
    import gymnasium

    if ":" in env or resolve(env).kind != "gymnasium":
        return modules.is_for_all(env)
    return str(gymnasium.registry[env].entry_point).startswith(("gymnasium.", "minatar."))


def bare(env: str) -> str:
    """Return an environment's name without the module that registers it. EnvPool's are others than gymnasium's."""
    return env if env.startswith(PREFIX) else env.rpartition(":")[2]


def _import(env: str, module: str) -> Any:
    """Import the module that registers or makes an environment. Raises SettingError where that cannot be done."""
    try:
        modules.refuse_unnamed(env)
        return modules.find(module)
    except SettingError as error:
        raise SettingError(f"--env {env}: {error}") from None


def _refuse_unregistered(env: str, module: str, name: str) -> None:
    import gymnasium

    near = difflib.get_close_matches(name, list(gymnasium.registry), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise SettingError(
        f"--env {env}: importing {module} registers no {name}; an id that it registers, or its function, is expected{hint}"
    )


def _is_ale(spec: Any) -> bool:
    """Whether an id of gymnasium is a game of ale-py's as it registers them itself, and not with options of somebody's."""
    options = {"game", "repeat_action_probability", "full_action_space", "frameskip", "max_num_frames_per_episode"}
    plain = spec.max_episode_steps is None and not spec.additional_wrappers
    return spec.entry_point == "ale_py.env:AtariEnv" and set(spec.kwargs) == options and plain


def atari_games() -> list[str]:
    """Return ale-py's names of the games for one player whose ROMs it ships, in snake_case."""
    import gymnasium

    registered = dict(gymnasium.registry)
    from ale_py import roms

    gymnasium.registry.update(registered)  # as it is imported, ale-py takes ids that somebody has registered before
    return [game for game in roms.get_all_rom_ids() if game not in FOR_SEVERAL]


def make(
    env: str,
    num_envs: int,
    *,
    threads: int = 1,
    workers: int = 0,
    atari: AtariSettings = AS_NAMED,
    kwargs: Sequence[str] = (),
    wrappers: Sequence[str] = (),
    raw: bool = False,
    first: int = 0,
) -> Environments:
    """Make `num_envs` environments of `env` (see `resolve`).

    Args:
        threads: how many environments are stepped at the same time (Atari, EnvPool).
        workers: how many processes step environments of gymnasium; 0: this one. No more than there are environments.
        atari: what of an Atari game's protocol is otherwise than its name says.
        kwargs: what an environment of gymnasium or EnvPool is told, as KEY=VALUE (see `options.keywords`).
        wrappers: around each environment of gymnasium, the innermost first (see `options.wrappers`).
        raw: see `envs.spaces` (gymnasium).
        first: the number of the first one among a rank's, for messages.

    Raises:
        SettingError: there is no such environment, it takes no such keywords or wrappers, or its spaces are not supported.
        JobError, WorkerError: see `WorkerEnvironments`.
    """
    found = resolve(env)
    if found.kind == "atari":
        return AtariEnvironments(found.name, num_envs, threads, atari.over(found.says))
    if found.kind == "envpool":
        return EnvPoolEnvironments(found.name, num_envs, threads, kwargs=keywords(kwargs), raw=raw)
    make_here = partial(_make_here, env, kwargs=kwargs, wrappers=wrappers, raw=raw)
    if workers:
        return WorkerEnvironments(env, num_envs, min(workers, num_envs), make_here, _known_without_main(env), first)
    return make_here(num_envs, first)


def _make_here(
    env: str, num_envs: int, first: int = 0, *, kwargs: Sequence[str], wrappers: Sequence[str], raw: bool
) -> GymEnvironments:
    """Make environments of gymnasium in this process: a rank, or a worker of one."""
    name = resolve(env).name
    return GymEnvironments(name, num_envs, raw=raw, first=first, **gymnasium_options(env, kwargs, wrappers))


def _known_without_main(env: str) -> partial[bool]:
    """Return what tells, in another process, whether an id means there what it means here."""
    import gymnasium

    spec = None if ":" in env else gymnasium.registry[env]
    return partial(_is_registered, env, spec if spec and isinstance(spec.entry_point, str) else None)


def _is_registered(env: str, spec: Any) -> bool:
    """Return whether an id is registered as `spec` says, or names the module that registers it. None: it is not."""
    import gymnasium

    if env.startswith(minatar.PREFIX):
        minatar.register(env)
    return ":" in env or (spec is not None and gymnasium.registry.get(env) == spec)


def gymnasium_options(env: str, kwargs: Sequence[str], wrappers: Sequence[str]) -> dict[str, Any]:
    """Return `kwargs` and `wrappers` of GymEnvironments. Raises SettingError as `make` does."""
    import gymnasium

    given = keywords(kwargs)
    if given:
        check_keywords(env, gymnasium.registry[bare(resolve(env).name)], given)
    own = [minatar.channels_first] if env.startswith(minatar.PREFIX) else []
    return {"kwargs": given, "wrappers": [*own, *wrappers_of(wrappers)]}


def try_out(env: str, **options: Any) -> Environments:
    """Make one environment of `env`, take a step in it, close it and return it: for its spaces, and what to say of it.

    Args:
        options: as for `make`.

    Raises:
        SettingError: there is no such environment, it does not start, or not do as it has declared: the reason, in one line.
    """
    with same_directory():
        try:
            with closing(make(env, 1, **options)) as environments:
                environments.rehearse()
        except SettingError:
            raise
        except JobError as error:
            raise SettingError(str(error)) from None
        except (Exception, SystemExit) as error:  # a game of some other package that lacks a dependency, say
            line = error.line if isinstance(error, WorkerError) else in_a_line(error)
            raise SettingError(f"--env {env}: it does not start ({line})") from None
    return environments
