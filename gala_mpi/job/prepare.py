"""From a command line to what will be done, before it is done: every check that can fail early fails here.

Rank 0 makes the plan and the others receive it (`World.decide`), so that bad input is one line and status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from gala_mpi import config, config_checks, config_file, device, networks, topology
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.modules import is_for_all
from gala_mpi.envs.options import instead_of
from gala_mpi.errors import SettingError
from gala_mpi.exchange import EXCHANGES, preemption
from gala_mpi.job import command, elastic, preflight, reproduce, resume
from gala_mpi.job.resume import Origin
from gala_mpi.learners.settings import LearnerSettings
from gala_mpi.mpi.world import World
from gala_mpi.networks import NETWORKS, policy, sizes
from gala_mpi.networks.sizes import Sizes
from gala_mpi.record import logs, provenance
from gala_mpi.run import files, layout, lock, reader, writer
from gala_mpi.topology import Topology

# What a run keeps when it is resumed. Of another exchange agents may differ, and stand at different updates.
KEPT = ("exchange", "spaces", "normalise_observations", "normalise_rewards", "learner", "memory", "memory_size")
KEPT += networks.SETTINGS


@dataclass(frozen=True)
class Plan:
    """What all ranks agree on at the start.

    Attributes:
        config: every setting, with nothing left to choose: `topology`, `network`, `precision` and `run_dir` are resolved.
        origin: the checkpoint to go on from.
        mixes_per_update: the most messages that an agent averages in one update.
        propagation_delay: how many updates may pass between a wish to stop and the stop.
        advice: lines to print: what is taken of each host, and what speaks against it.
    """

    config: Config
    origin: Origin
    mixes_per_update: int
    propagation_delay: int
    advice: list[str]


def make(arguments: list[str], world: World) -> Plan:
    """A command line → plan. Rank 0 only.

    Raises:
        SettingError: as `plan`.
        SystemExit: after --help, or a flag that does not parse.
    """
    return plan(read(arguments), world)


def plan(wanted: Config, world: World) -> Plan:
    """Check, resolve, and begin the run directory. Rank 0 only.

    Raises:
        SettingError: names the setting, the value seen and the values allowed. Nothing good on disk was touched.
    """
    config_checks.check(wanted)
    logs.check(wanted.log)
    settings, network, advice = settle(wanted, world)
    threads = [machine.threads for machine in world.host_views]
    if settings.replay:
        reproduce.check(settings, threads)
    if settings.evaluate_minutes is not None and not command.known_elsewhere(settings):
        raise SettingError(
            f"--evaluate-minutes {settings.evaluate_minutes:g}: a process of its own evaluates, which does not know what this "
            "program has added; None is expected"
        )
    idle = [f"warning: {line}" for line in config_checks.without_effect(wanted)]
    advice = _advise(settings, network, world) + advice + idle
    if not settings.resume:
        settings = _new_run(settings, given=wanted.run_dir is not None)
    origin = _resume(settings, network.parameters, len(_hosts(settings, world))) if settings.resume else Origin()
    hosts = _hosts(settings, world)
    graph = _graph(settings, len(hosts))
    metadata = provenance.metadata(graph, world.library, hosts, threads[:: settings.ranks(1)], origin.number)
    try:
        writer.write_run(settings.directory, settings, len(hosts), metadata)
    except OSError as error:  # access() says yes where a file system is read-only, full or odd
        raise SettingError(f"--run-dir {settings.run_dir} cannot be written: {error}") from None
    propagation_delay = EXCHANGES[settings.exchange].load().propagation_delay(settings, len(hosts))
    propagation_delay += settings.exact_updates if settings.exact_resume else 0
    return Plan(_absolute(settings), origin, graph.degree if graph else 0, propagation_delay, advice)


def _absolute(settings: Config) -> Config:
    """Return the settings with full paths: an environment may change the working directory."""
    replay = settings.replay.absolute() if settings.replay else None
    return dataclasses.replace(settings, run_dir=settings.directory.absolute(), replay=replay)


def read(arguments: list[str]) -> Config:
    """The command line → settings; with --resume or --replay the flags replace settings of the run that they name.

    Raises:
        SystemExit: after --help, or a flag that does not parse.
        SettingError: --resume or --replay without a run, or a file of --config that cannot be read.
    """
    words = config_file.expand(arguments)
    return config.parse(words, stored(words))


def stored(arguments: list[str]) -> Config:
    """The settings that the command line is read against (see `before`). Raises SettingError."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume", action="store_true")
    early.add_argument("--run-dir", "--run_dir", type=Path)
    early.add_argument("--replay", type=Path)
    try:
        known, _ = early.parse_known_args(arguments)
    except SystemExit:  # a flag without its value: tyro says so better
        return Config()
    return before(known.resume, known.run_dir, known.replay)


def before(resumes: bool, run: Path | None, replays: Path | None) -> Config:
    """The settings that those which are given replace: the defaults, or those of the run that is resumed or replayed.

    Raises:
        SettingError: --resume or --replay without a run.
    """
    if replays is not None:
        stored = reader.read_config(replays, "--replay")
        return dataclasses.replace(stored, run_dir=None, resume=False, wall_minutes=None, slow_rank=None, survive=None)
    if not resumes:
        return Config()
    if run is None:
        raise SettingError("--resume needs --run-dir DIR, the run to continue")
    return reader.read_config(run)


def settle(wanted: Config, world: World) -> tuple[Config, Sizes, list[str]]:
    """The settings with everything filled in, what the network takes, and what to say of the environments.

    Whether they fit is not asked.
    """
    hosts = _hosts(wanted, world)
    agents = len(hosts)
    spaces, advice = _try_out(wanted)
    image = spaces.picture
    network = wanted.network or networks.default(image)
    member = networks.member(network)
    takes = {None, spaces.image, image is not None}  # an image packed with numbers is either
    if member.images not in takes:
        shown = "images" if spaces.image else "no images"
        others = " or ".join(name for name, other in NETWORKS.items() if other.images in takes)
        raise SettingError(f"--network {network}: {wanted.env} shows {shown}; {others} is expected")
    if image and min(image[1:]) < member.smallest:
        others = " or ".join(
            name for name, each in NETWORKS.items() if each.images is not False and each.smallest <= min(image[1:])
        )
        raise SettingError(
            f"--network {network}: images of {wanted.env} have {image[1]}×{image[2]} pixels; "
            f"{member.smallest} or more a side, or --network {others}, is expected"
        )
    _require_taken(wanted, network)
    wanted = dataclasses.replace(wanted, network=network)
    wanted = dataclasses.replace(wanted, **wanted.encoder_settings)
    wanted = dataclasses.replace(
        wanted, topology=topology.resolve(wanted.topology, hosts), **wanted.left_to_learner(image is not None)
    )
    _graph(wanted, agents)
    device = _device(wanted.device)
    slow, _ = wanted.slowness()
    if slow >= agents:
        raise SettingError(f"--slow-rank {wanted.slow_rank}: a rank from 0 to {agents - 1} is expected")
    if wanted.exact_resume and agents > 1 and not wanted.in_step:
        in_step = ["--staleness 0", *(f"--exchange {name}" for name in EXCHANGES if Config(exchange=name).in_step)]
        raise SettingError(
            f"--exact-resume: agents of --exchange {wanted.exchange} do not wait for each other; "
            f"{', '.join(in_step)} or one rank is expected"
        )
    environments = wanted.num_envs if wanted.memory else None
    told = wanted.learner_settings.settled(spaces.discrete, image is not None, wanted.steps_per_update, environments)
    _check_preemption(wanted, told, agents)
    built = policy.Network(network, spaces, "fp32", **wanted.network_options)
    precision = wanted.precision
    if precision == "auto":
        rows = told.at_once(wanted.steps_per_update) or min(wanted.num_envs, 64)
        precision = policy.fastest_precision(network, spaces, rows, device, wanted.encoder_settings)
    game = registry.resolve(wanted.env).stored
    name = f"{re.sub('[/:<>]', '-', game)}-{wanted.exchange}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = wanted.run_dir or Path("runs") / name
    settled = {"env": game, "precision": precision, "run_dir": run_dir}
    settled[wanted.learner_field] = told
    return dataclasses.replace(wanted, **settled), sizes.measure(built), advice


def _hosts(wanted: Config, world: World) -> list[str]:
    """Return the hosts of all agents, in their order.

    Raises:
        SettingError: ranks are left over when each agent has its actors.
    """
    crew = wanted.ranks(1)
    if world.size % crew:
        raise SettingError(f"--actors {wanted.actors}: mpirun -n {world.size}: a multiple of {crew} ranks is expected")
    return world.hosts[::crew]


def _require_taken(wanted: Config, network: str) -> None:
    """Refuse settings that the network is not told."""
    for name in networks.SETTINGS:
        value = getattr(wanted, name)
        if value is not None and name not in networks.member(network).settings:
            takers = " or ".join(other for other, member in NETWORKS.items() if name in member.settings)
            flag = f"--{name.replace('_', '-')}"
            raise SettingError(f"--network {network} {flag} {value}: --network {takers} is expected with it")


def _check_preemption(wanted: Config, told: LearnerSettings, ranks: int) -> None:
    """Refuse --preempt where there is nobody else, or a rollout that is cut short has fewer parts: ranks meet at every part."""
    if wanted.preempt is None:
        return
    if ranks == 1:
        raise SettingError(f"--preempt {wanted.preempt}: one rank waits for nobody; None, or 2 ranks or more, is expected")
    fewest, parts = wanted.num_envs * preemption.shortest(wanted.length), told.parts(wanted.steps_per_update)
    if not wanted.memory and told.parts(fewest) < parts:
        raise SettingError(
            f"--preempt {wanted.preempt} --{wanted.learner_field}.minibatches {parts}: a rollout that is cut short may have "
            f"{fewest} steps; as many minibatches or less are expected"
        )


def _advise(settings: Config, network: Sizes, world: World) -> list[str]:
    """The resource plan, and what speaks against it. Raises SettingError where the run would fail."""
    hosts = preflight.demands(settings, network, world.host_views)
    findings = preflight.check_all(hosts)
    for finding in findings:
        if finding.state == "error":
            raise SettingError(f"{finding.what} on {finding.seen}: {finding.remedy}")
    warnings = [f"warning: {found.what}: {found.seen}; {found.remedy}" for found in findings if found.state == "warning"]
    if settings.overlap and settings.device == "cpu" and max(host.threads for host in hosts) == 1:
        warnings.append("warning: --overlap: each rank has one core; it pays from two on (fewer ranks a host)")
    threads = max(host.threads for host in hosts)
    if settings.env_workers > threads:
        cores = f"{threads} core{'s' * (threads > 1)}"
        warnings.append(
            f"warning: --env-workers {settings.env_workers}: each rank has {cores}, which its workers share; so many pay where "
            "environments wait (for a server, a device)"
        )
    return [f"plan: {line}" for line in preflight.resource_plan(hosts)] + warnings


def _graph(settings: Config, agents: int) -> Topology | None:
    """Who reads whom, where anybody does."""
    return EXCHANGES[settings.exchange].load().graph(settings, agents)


def _try_out(wanted: Config) -> tuple[Spaces, list[str]]:
    """Return an environment's spaces, and what to say of it. It is made once for them. Refuses settings that it cannot use."""
    found = registry.resolve(wanted.env)
    unused = "".join(f" --atari.{name.replace('_', '-')} {value}" for name, value in wanted.atari.given().items())
    if unused and found.kind != "atari":
        raise SettingError(f"{unused[1:]}: {wanted.env} is no Atari game; one (pong, ALE/Pong-v5) is expected, or None")
    told = wanted.env_kwargs if found.kind == "atari" else ()  # which has flags of its own
    if found.kind != "gymnasium" and (told or wanted.wrappers):
        flag = f"--env-kwargs {told[0]}" if told else f"--wrappers {wanted.wrappers[0]}"
        raise SettingError(f"{flag}: {wanted.env} is not made by gymnasium; an id that is, or --atari.* for games, is expected")
    if found.kind != "gymnasium" and wanted.env_workers:
        why = f"{wanted.env} steps its environments in a way of its own"
        raise SettingError(f"--env-workers {wanted.env_workers}: {why}; 0 is expected")
    named = (("--env", wanted.env), ("--network", wanted.network or ""))
    unnamed = [f"{flag} {name}" for flag, name in named if not is_for_all(name)]
    if wanted.env_workers and not is_for_all(wanted.env):
        why = f"worker processes cannot import {wanted.env}"
        raise SettingError(f"--env-workers {wanted.env_workers}: {why}; 0, or a function at the top of a module, is expected")
    environments = registry.try_out(wanted.env, workers=min(wanted.env_workers, 1), **wanted.env_options)
    differs = [found.differs] if found.differs and wanted.atari.frame_skip is None else []
    kept = "its statistics are each environment's own, neither saved nor shared; those of"
    learning = [f"--wrappers {word}: {kept} {flag} are both" for word in wanted.wrappers if (flag := instead_of(word))]
    _require_numbers(wanted, environments.spaces)
    alone = [
        f"{word}: no other process knows this function, which has no name of its own: no command can play or export the run; "
        "one at the top of a module is known to all"
        for word in unnamed
    ]
    return environments.spaces, [f"warning: {line}" for line in (*differs, *learning, *alone, *environments.advice)]


def _require_numbers(wanted: Config, spaces: Spaces) -> None:
    """Refuse to normalise where there is nothing but images."""
    numbers = spaces.numbers
    for name, given in wanted.statistics.items():
        if given and numbers.start == numbers.stop:
            flag = f"--{name.replace('_', '-')}"
            raise SettingError(f"{flag}: {wanted.env} shows nothing but images; observations that are numbers are expected")


def _device(name: str) -> torch.device:
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise SettingError(f"--device {name}: cpu, cuda or cuda:N is expected") from None
    if wanted.type not in ("cpu", "cuda"):
        raise SettingError(f"--device {name}: cpu, cuda or cuda:N is expected")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"--device {name}: this host shows {torch.cuda.device_count()} GPUs; cpu or one of them is expected")
    return device.pick(name, 0)


def _new_run(settings: Config, given: bool) -> Config:
    """Make the run directory and take its lock; return the settings with its name. Another one, if nobody has `given` it."""
    run = settings.directory
    if given:
        _require_new(run)
    parent = run
    while not os.path.exists(parent):  # pathlib's raises where a folder may not be entered, or a name is too long
        parent = parent.parent
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise SettingError(f"--run-dir {run}: {parent} cannot be written; a writable directory is expected")
    wants_locks = os.environ.get("HDF5_USE_FILE_LOCKING", "")  # goes before what a program says as it opens a file
    if wants_locks.upper() in ("TRUE", "1") and (problem := files.try_lock(parent)):
        raise SettingError(
            f"HDF5_USE_FILE_LOCKING={wants_locks}: FALSE is expected for --run-dir {run}, without locks: {problem}"
        )
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        run = run if given else _make_anew(run)
        run.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:  # access() says yes where a file system is read-only, full or odd; NUL in a name
        raise SettingError(f"--run-dir {run} cannot be written: {error}") from None
    _lock(run)
    _require_new(run)  # another job may have begun, and ended, since
    return dataclasses.replace(settings, run_dir=run)


def _require_new(run: Path) -> None:
    if os.path.exists(run) and (not os.path.isdir(run) or any(run.glob("[!.]*"))):
        raise SettingError(f"--run-dir {run} exists: a new directory is expected, or --resume to continue the run in it")


def _make_anew(run: Path) -> Path:
    """Make a directory of this name; where others have begun in the same second, with -2, -3, ... after it."""
    for number in itertools.count(1):
        numbered = run if number == 1 else run.with_name(f"{run.name}-{number}")
        with contextlib.suppress(FileExistsError):
            numbered.mkdir()
            break
    return numbered


def _lock(run: Path) -> None:
    try:
        lock.take(run)
    except OSError as error:
        raise SettingError(f"--run-dir {run} cannot be written: {error}") from None


def _resume(settings: Config, length: int, agents: int) -> Origin:
    run = settings.directory
    if not os.access(run, os.W_OK | os.X_OK):
        raise SettingError(f"--run-dir {run} cannot be written; a writable directory is expected")
    before = reader.read_config(run)
    moved = registry.bare(settings.env) == registry.bare(before.env)  # to another module, maybe: that may be gone
    if not moved and settings.env != registry.resolve(before.env).stored:
        raise SettingError(f"--env {settings.env}: the run in {run} plays {before.env}, and goes on with it")
    for name in KEPT:
        wanted, has = getattr(settings, name), getattr(before, name)
        if wanted != has:
            raise SettingError(f"--{name.replace('_', '-')} {wanted}: the run in {run} has {has}, and goes on with it")
    optimiser, saved = settings.learner_settings.optimiser, before.learner_settings.optimiser
    if optimiser != saved:  # whose state means something else
        raise SettingError(
            f"--{settings.learner_field}.optimiser {optimiser}: the checkpoints in {run} are of {saved}; {saved} is expected"
        )
    if settings.in_step and not before.in_step:
        raise SettingError(f"--staleness 0: agents in {run} may stand at different updates; 1 or more is expected")
    _lock(run)
    resume.replace_lost(run)
    layout.forget_ends(run)
    origin = resume.resumable(run, cast(str, settings.network), length)
    layout.remove_leftovers(run)
    if not origin.number:
        return origin
    return dataclasses.replace(origin, shares=elastic.shares(_graph_of(run, origin.agents), origin.agents, agents))


def _graph_of(run: Path, agents: int) -> Topology | None:
    """The graph on which a run had so many agents: that of the newest such start, for a later one may have saved nothing."""
    for start in reversed(reader.read_starts(run)):
        if len(start["hosts"]) == agents:
            return _graph(Config.from_json(start["config"]), agents)
    return None
