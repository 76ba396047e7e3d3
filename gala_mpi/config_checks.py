"""Settings that cannot work, or do not go together, are refused before any long work starts."""

from __future__ import annotations

import dataclasses
import math
import re

from gala_mpi.cli import require, require_whole
from gala_mpi.config import SLOW_RANK, Config
from gala_mpi.errors import SettingError
from gala_mpi.exchange import EXCHANGES
from gala_mpi.learners import LEARNERS
from gala_mpi.learners.settings import LearnerSettings
from gala_mpi.networks import NETWORKS

LARGEST_LR = 1e6  # with it parameters do not overflow, whatever the gradients (see learners/settings.py)
SHORTEST_PAUSE = 0.001  # minutes: checkpoints take about as long
MOST_EPISODES = 1000  # of an evaluation beside training: each has an environment of its own
LONGEST_HANG = 1_000_000  # minutes; timers of the system end somewhere
OWN_NETWORK = re.compile(r"[\w<>-]+(\.[\w-]+)*:[\w<>]+(\.[\w<>]+)*")  # MODULE:FUNCTION; see envs/modules.py
WIDTHS, MOST_UNITS = re.compile(r"\d+(,\d+)*", re.ASCII), 10_000


def check(config: Config) -> None:
    """Refuse settings that cannot work, before any long work starts.

    Raises:
        SettingError: names the flag, the value seen and the values allowed.
    """
    c = config
    require_whole("--num-envs", c.num_envs, 1)
    require_whole("--env-workers", c.env_workers, 0)
    require_whole("--rollout-length", c.rollout_length, 1)
    require_whole("--total-steps", c.total_steps, 1)
    require_whole("--seed", c.seed, 0)
    require_whole("--staleness", c.staleness, 0)
    require_whole("--max-lag", c.max_lag, 0)
    require(c.lag in (0, 1), "--lag", c.lag, "0 or 1")
    require_whole("--actors", c.actors, 0)
    require_whole("--sync-updates", c.sync_updates, 1)
    require_whole("--mix-steps", c.mix_steps, 1)
    require_whole("--checkpoint-updates", c.checkpoint_updates, 1)
    require_whole("--memory-size", c.memory_size, 1)
    require_whole("--sketch-updates", c.sketch_updates, 0)
    require_whole("--keep-checkpoints", c.keep_checkpoints, 1)
    require_whole("--max-skipped", c.max_skipped, 0)
    require(c.lr is None or 0 < c.lr <= LARGEST_LR, "--lr", c.lr, f"a positive number, {LARGEST_LR:g} at most,")
    base = c.base_lr
    require(base is None or 0 < base <= LARGEST_LR, "--base-lr", base, f"a positive number, {LARGEST_LR:g} at most,")
    pause = c.checkpoint_minutes
    require(SHORTEST_PAUSE <= pause < math.inf, "--checkpoint-minutes", pause, f"a number, {SHORTEST_PAUSE} or more,")
    pause = c.evaluate_minutes
    allowed = f"a number, {SHORTEST_PAUSE} or more,"
    require(pause is None or SHORTEST_PAUSE <= pause < math.inf, "--evaluate-minutes", pause, allowed)
    games = c.evaluate_episodes
    require(1 <= games <= MOST_EPISODES, "--evaluate-episodes", games, f"a whole number from 1 to {MOST_EPISODES:,}")
    _require_positive("--wall-minutes", c.wall_minutes)
    _require_positive("--survive", c.survive)
    hang = c.hang_minutes
    require(hang is None or 0 < hang <= LONGEST_HANG, "--hang-minutes", hang, f"a positive number, {LONGEST_HANG:,} at most,")
    require(c.ema is None or 0 < c.ema < 1, "--ema", c.ema, "a number between 0 and 1, as 0.999,")
    outer = c.outer_momentum
    require(outer is None or 0 <= outer < 1, "--outer-momentum", outer, "0 or more and less than 1")
    outer = c.outer_lr
    require(outer is None or 0 < outer <= LARGEST_LR, "--outer-lr", outer, f"a positive number, {LARGEST_LR:g} at most,")
    require(c.preempt is None or 0 < c.preempt <= 1, "--preempt", c.preempt, "a share of the ranks, above 0 and 1 at most,")
    require(1e-6 <= c.action_std <= 1e6, "--action-std", c.action_std, "a number from 1e-6 to 1e6")
    sticky = c.atari.sticky
    require(sticky is None or 0 <= sticky <= 1, "--atari.sticky", sticky, "a probability, 0 to 1,")
    require_whole("--atari.frame-skip", c.atari.frame_skip, 1)
    require_whole("--atari.no-ops", c.atari.no_ops, 0)
    require_whole("--atari.frame-limit", c.atari.frame_limit, 1)
    known = c.network is None or c.network in NETWORKS or OWN_NETWORK.fullmatch(c.network)
    require(known, "--network", c.network, f"{', '.join(NETWORKS)}, or MODULE:FUNCTION of yours")
    widths = c.hidden is None or (WIDTHS.fullmatch(c.hidden) and all(1 <= int(w) <= MOST_UNITS for w in c.hidden.split(",")))
    require(widths, "--hidden", c.hidden, f"a number of units a layer, 1 to {MOST_UNITS:,} each, as 256,256,")
    slow = c.slow_rank is None or SLOW_RANK.fullmatch(c.slow_rank)
    require(slow, "--slow-rank", c.slow_rank, "RANK:TIME, for example 3:200ms or 0:1.5s,")
    c.a2c.check("--a2c")
    c.ppo.check("--ppo")
    c.vtrace.check("--vtrace")
    _check_together(config)


def check_no_run(config: Config, who: str) -> None:
    """For programs that read no run: refuse the flags that name one. Raises SettingError."""
    for flag, value in (("--resume", config.resume), ("--replay", config.replay)):
        if value:
            raise SettingError(f"{flag}: {who} reads no run; the flags that the run was started with are expected")


def without_effect(config: Config) -> list[str]:
    """Return what is set and changes nothing beside the rest, a line each. Nothing of a run that goes on, which has its own."""
    c, usual = config, Config()
    if c.resume or c.replay:
        return []
    idle = [
        (name, getattr(c, name), getattr(usual, name), why)
        for name, why, is_idle in (
            ("topology", f"beside --exchange {c.exchange}", "topology" not in EXCHANGES[c.exchange].load().takes),
            ("base_lr", f"beside --lr {c.lr}", c.lr is not None),
            ("memory_size", "without --memory", c.memory is None),
            ("evaluate_episodes", "without --evaluate-minutes", c.evaluate_minutes is None),
        )
        if is_idle
    ]
    for table in (field.name for field in dataclasses.fields(c)):
        told = getattr(c, table)
        if isinstance(told, LearnerSettings) and table != c.learner_field:
            idle += [
                (f"{table}.{name}", value, getattr(getattr(usual, table), name), f"beside --learner {c.learner}")
                for name, value in dataclasses.asdict(told).items()
            ]
    return [f"--{name.replace('_', '-')} {value}: no effect {why}" for name, value, default, why in idle if value != default]


def _check_together(c: Config) -> None:
    """Refuse what does not go together."""
    require(c.num_envs % 2 == 0 or not c.overlap, "--overlap --num-envs", c.num_envs, "an even number")
    require(c.env_workers % 2 == 0 or not c.overlap, "--overlap --env-workers", c.env_workers, "an even number")
    require(c.env_workers <= c.num_envs, f"--num-envs {c.num_envs} --env-workers", c.env_workers, f"{c.num_envs} or less")
    require(not c.lag or c.preempt is None, f"--lag {c.lag} --preempt", c.preempt, "one of the two")
    require(not c.exact_resume or c.preempt is None, "--exact-resume --preempt", c.preempt, "one of the two")
    momentum = c.outer_lr is None or c.outer_momentum is not None
    require(momentum, "--outer-lr", c.outer_lr, "--outer-momentum with it")
    if c.mix_steps is not None:
        _check_mix_steps(c)
    marks = c.exact_resume or c.checkpoint_updates is None
    require(marks, "--checkpoint-updates", c.checkpoint_updates, "--exact-resume with it")
    for flag, other in (("--resume", c.resume), ("--survive", c.survive), ("--wall-minutes", c.wall_minutes)):
        require(not (c.replay and other), f"{flag} --replay", c.replay, "one of the two")
    clipped = f"--{c.learner_field}.clip-rewards"
    require(
        not (c.normalise_rewards and c.learner_settings.clip_rewards), f"--normalise-rewards {clipped}", True, "one of the two"
    )
    for flag, given in (("--lag", c.lag), ("--actors", c.actors)):
        if given and not LEARNERS[c.learner].load().corrects:
            others = [learner for learner, member in LEARNERS.items() if member.load().corrects]
            raise SettingError(
                f"{flag} {given} --learner {c.learner}: it learns from what its own parameters have played; "
                f"{flag} 0 or --learner {' or '.join(others)} is expected"
            )
    if c.actors:
        _check_actors(c)
    target = c.ppo.target_kl if c.learner_settings is c.ppo else None
    if target is not None and EXCHANGES[c.exchange].load().averages_gradients:
        others = [exchange for exchange, member in EXCHANGES.items() if not member.load().averages_gradients]
        raise SettingError(
            f"--ppo.target-kl {target} --exchange {c.exchange}: ranks average the gradient of every minibatch, so all take as "
            f"many; None or --exchange {' or '.join(others)} is expected"
        )
    minibatches = c.ppo.minibatches if c.memory and c.learner_settings is c.ppo else None
    few = minibatches is None or minibatches <= c.num_envs
    require(few, f"--memory {c.memory} --num-envs {c.num_envs} --ppo.minibatches", minibatches, f"{c.num_envs} or less")
    alone = not (c.memory and c.value_network == "copy")
    require(alone, f"--memory {c.memory} --value-network", c.value_network, "shared, since one memory is behind both,")
    if c.survive is not None:
        require(c.staleness != 0, f"--survive {c.survive} --staleness", c.staleness, "a bound of 1 or more, or none,")
    if c.max_lag is not None:
        require(c.staleness != 0, f"--max-lag {c.max_lag} --staleness", c.staleness, "a bound of 1 or more, or none,")
    for name, flag, given in (
        ("survive", f"--survive {c.survive}", c.survive is not None),
        ("staleness", f"--staleness {c.staleness}", c.staleness is not None),
        ("max_lag", f"--max-lag {c.max_lag}", c.max_lag is not None),
        ("checksum", "--checksum", c.checksum),
        ("sync_updates", f"--sync-updates {c.sync_updates}", c.sync_updates is not None),
        ("outer_momentum", f"--outer-momentum {c.outer_momentum}", c.outer_momentum is not None),
        ("outer_lr", f"--outer-lr {c.outer_lr}", c.outer_lr is not None),
        ("preempt", f"--preempt {c.preempt}", c.preempt is not None),
        ("mix_steps", f"--mix-steps {c.mix_steps}", c.mix_steps is not None),
    ):
        if given and name not in EXCHANGES[c.exchange].load().takes:
            takers = [exchange for exchange, member in EXCHANGES.items() if name in member.load().takes]
            raise SettingError(f"{flag} --exchange {c.exchange}: --exchange {' or '.join(takers)} is expected")


def _check_actors(c: Config) -> None:
    """Refuse what makes no sense, or cannot be kept, where actors play: which rollout comes when depends on who is how fast."""
    for flag, value, given in (
        ("--lag", c.lag, c.lag),
        ("--preempt", c.preempt, c.preempt is not None),
        ("--exact-resume", c.exact_resume, c.exact_resume),
        ("--replay", c.replay, c.replay is not None),
        ("--slow-rank", c.slow_rank, c.slow_rank is not None),
    ):
        require(not given, f"--actors {c.actors} {flag}", value, "one of the two")


def _check_mix_steps(c: Config) -> None:
    """Refuse --mix-steps where a rollout is learnt from in one step, or where updates must come out even."""
    flag = f"--mix-steps {c.mix_steps}"
    if c.learner_settings.at_once(1) is None:
        raise SettingError(f"{flag} --learner {c.learner}: it takes one step on a rollout; --learner ppo is expected")
    require(not c.exact_resume, f"{flag} --exact-resume", c.exact_resume, "one of the two")
    if c.staleness == 0 and c.learner_settings is c.ppo:
        target = c.ppo.target_kl
        require(target is None, f"{flag} --staleness 0 --ppo.target-kl", target, "None, so that all do as many updates,")


def _require_positive(flag: str, value: float | None) -> None:
    require(value is None or 0 < value < math.inf, flag, value, "a positive number")
