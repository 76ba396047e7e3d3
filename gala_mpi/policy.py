"""A trained policy, for programs of one's own: it acts, and is written as a file of torch or of ONNX. No MPI is needed.

policy = gala_mpi.load_policy("runs/pong", checkpoint="best")
environment = policy.environment()
observation, _ = environment.reset(seed=1)
observation, reward, terminated, truncated, info = environment.step(policy.act(observation))
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from gala_mpi import networks
from gala_mpi.cli import require
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Environments, Spaces
from gala_mpi.envs.envpool import PREFIX
from gala_mpi.envs.modules import is_for_all
from gala_mpi.errors import JobError, SettingError
from gala_mpi.flat import Flat
from gala_mpi.networks import onnx
from gala_mpi.networks.acting import Acting
from gala_mpi.networks.plain import Plain
from gala_mpi.networks.policy import Network, Precision, described_spaces
from gala_mpi.run import checkpoints, files, policies, reader

if TYPE_CHECKING:
    from gala_mpi.envs.single import SingleEnvironment

FORMAT = "gala_mpi policy 1"


class Policy:
    """A policy, as `load_policy` returns it. It computes on the CPU.

    Args:
        settings: of the run.
        network: with the policy's parameters.

    Attributes:
        module: a torch module, which maps observations, a tensor [N, ...], to logits of the actions (or the means of a box of
            actions) float32 [N, A] and values float32 [N]. With a memory: (observations, state) to these and the next state,
            float32 [N, S], of which zeros, or None, are the one before the first step of an episode.
        generator: what actions that are not deterministic are drawn from, a `torch.Generator`, seeded with 0.
    """

    def __init__(self, settings: Config, network: Network):
        self._settings, self._network = settings, network
        self.module = Plain(network)
        self.generator = torch.Generator().manual_seed(0)
        self._acting: Acting | None = None
        self._number = 0  # of the episodes that are remembered

    @property
    def description(self) -> dict[str, Any]:
        """What the policy takes and gives, as plain values: `policy` in docs/checkpoints.md."""
        return self._network.description()

    def act(self, observation: Any, deterministic: bool = True) -> np.ndarray:
        """Choose an action for one observation, or one for each of N.

        Observations are those of `environment()`. That is, of an Atari game the last 4 screens, grey, 84×84 pixels, uint8
        [4, 84, 84]; images are [channels, height, width], bytes as they are; other observations are a vector, float32, into
        which several parts are packed one behind the other, one-hot where they are choices (docs/environments.md). If the
        environment has an action mask, it is the vector's end, and actions that it excludes are never chosen. The network does
        the rest: it divides bytes by 255, and applies the statistics of runs with --normalise-observations.

        A policy with a memory remembers the episodes of the observations that it has seen, one or N; see `reset`.

        Args:
            observation: an array [*shape], or [N, *shape].
            deterministic: take the most probable action, of a box of actions the mean, as `gala_mpi.evaluate` does; else one
                is drawn by `generator`.

        Returns:
            What `environment()` takes: int64 [] of discrete actions, int64 [k] of k choices, float32 [*shape] of a box, in the
            network's units (see `unscaled`); behind the N of N observations.

        Raises:
            SettingError: the observation has another shape or another kind of numbers, or one is not finite; or with a memory
                there are more or fewer observations than before and nobody has called `reset`.
        """
        observations = self._read(observation)
        one = observations.ndim == len(self._network.spaces.observation_shape)
        chosen = self._actor(1 if one else len(observations)).choose(
            observations[None] if one else observations, None if deterministic else self.generator
        )
        return chosen[0] if one else chosen

    def reset(self, which: np.ndarray | None = None) -> None:
        """Forget the episodes so far: new ones begin. A policy without a memory has nothing to forget.

        Args:
            which: of N episodes those that begin anew, bool [N]; None: all, and there may be another number of them then.

        Raises:
            SettingError: `which` is not of so many.
        """
        if which is None:
            self._acting = None
        elif self._acting is not None:
            which = np.asarray(which, bool)
            require(which.shape == (self._number,), "which of shape", list(which.shape), f"[{self._number}], as of `act`,")
            self._acting.forget(which)

    def unscaled(self, actions: np.ndarray) -> np.ndarray:
        """Bring a box of actions from the network's units to those of the environment as it is made elsewhere.

        `environment()` does that itself. What comes out is offset + scale · action, clipped to the bounds, float32; discrete
        actions stay as they are.
        """
        spaces = self._network.spaces
        if spaces.discrete:
            return actions
        scale, offset = (np.reshape(each, spaces.action_shape) for each in (spaces.action_scale, spaces.action_offset))
        low, high = (
            infinite if bound is None else np.reshape(bound, spaces.action_shape)
            for bound, infinite in ((spaces.low, -np.inf), (spaces.high, np.inf))
        )
        return np.clip(offset + scale * actions, low, high).astype(np.float32)

    def environment(self, render_mode: Literal["rgb_array"] | None = None) -> SingleEnvironment:
        """Make one environment as in training, with the same preprocessing, by gymnasium's interface.

        Args:
            render_mode: "rgb_array": its `render` returns the screen, uint8 [height, width, 3].

        Raises:
            SettingError: it is not there, or has other spaces than the policy.
        """
        from gala_mpi.envs.film import make_filmed
        from gala_mpi.envs.single import SingleEnvironment  # gymnasium is slow to import

        allowed = render_mode in (None, "rgb_array")
        require(allowed, "render_mode", render_mode, "None or rgb_array")
        env, options = self._settings.env, self._settings.env_options
        start_once(self._settings)
        made = make_filmed(env, **options) if render_mode else registry.make(env, 1, **options)
        if made.spaces != self._network.spaces:
            made.close()
            raise SettingError(f"--env {env}: its observations or actions are not those of the policy, whose are expected")
        return SingleEnvironment(made, render_mode)

    def save(self, file: str | Path) -> None:
        """Write the policy to a file, by torch.save, which `load_policy` reads without the run; it appears whole or not at all.

        It holds strings and tensors alone, which torch.load reads with weights_only=True: `settings` (JSON, those of the run),
        `policy` (JSON, see `description`) and `parameters` (by name, as of a state_dict). A network of one's own is stored by
        its name.

        Raises:
            DiskError: it cannot be written.
        """
        settings = dataclasses.replace(self._settings, config=None, run_dir=None, replay=None)
        parameters = {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}
        contents = {"format": FORMAT, "settings": settings.to_json(), "policy": json.dumps(self.description)}
        with files.replaced(Path(file)) as temporary:
            torch.save(contents | {"parameters": parameters}, temporary)

    def to_onnx(self, file: str | Path) -> None:
        """Write `module` as an ONNX model, which is checked first: ONNX Runtime gives the same outputs to 1e-5 (if some
        are larger than 1, of the largest).

        Inputs: `observations` [N, ...] and, with a memory, `state` float32 [N, S]. Outputs: `outputs`, `values` and
        `next_state`, as of `module`. N is free. Of a network in bfloat16 the model is in float32, and is checked against that.
        It needs the packages of the extra `onnx`. The file appears whole or not at all.

        Raises:
            SettingError: a package is missing, or the network cannot be exported.
            DiskError: the file cannot be written.
        """
        with files.replaced(Path(file)) as temporary:
            onnx.write(self._network, temporary)

    def _actor(self, number: int) -> Acting:
        """Return what acts in so many environments."""
        if self._acting is None or (self._network.memory is None and number != self._number):
            self._acting, self._number = Acting(self._network, number), number
        require(number == self._number, "observations:", number, f"{self._number}, as before, or a call of `reset`")
        return self._acting

    def _read(self, observation: Any) -> np.ndarray:
        """Return what is an observation, or N of them, as an array that torch takes. Raises SettingError."""
        spaces, given = self._network.spaces, np.asarray(observation)
        shape, dtype = spaces.observation_shape, spaces.observation_dtype
        shown = ", ".join(map(str, shape))
        fits = given.shape in (shape, (*given.shape[:1], *shape)) and given.size > 0
        require(fits, "observation of shape", list(given.shape), f"[{shown}] or [N, {shown}]")
        require(np.can_cast(given.dtype, dtype, "same_kind"), "observation of", given.dtype, dtype.name)
        require(dtype.kind != "f" or np.isfinite(given).all(), "observation of", "nan or inf", "one of finite numbers")
        return np.require(given, dtype, ["C", "W"])


def load_policy(
    run: str | Path,
    checkpoint: str | int = "best",
    agent: Literal["mean", "ema"] | int = "mean",
    *,
    env: str | None = None,
    network: str | None = None,
) -> Policy:
    """Load a policy of a run, or the one in a file that `Policy.save` has written.

    It is the policy that `gala_mpi.evaluate` plays. Neither MPI nor the run's environment is needed, but by runs so old that
    their checkpoints do not say what they are of. A file of `Policy.save` holds no code; of a network of one's own it names the
    module, which is imported, and the function, which is called.

    Args:
        run: the run directory, which may be that of a run that goes on; or a file of `Policy.save`, of which nothing else is
            to be chosen.
        checkpoint: "best" by evaluations while the run trained, else by training score; "last", or a checkpoint's number. It
            must be complete.
        agent: "mean" of all agents' parameters (under --exchange server the vector that they share); "ema" of their moving
            averages, of a run with --ema; or one agent's rank.
        env: the run's environment as MODULE:ID, where the run does not say which module registers it, or it has moved.
        network: the run's network of one's own as MODULE:FUNCTION, where the module has moved.

    Raises:
        SettingError: there is no such run, checkpoint or agent, a file is damaged, or the network is another one by now.
    """
    path = Path(run)
    if os.path.isfile(path):
        require(checkpoint == "best", f"{path}: checkpoint", checkpoint, "none, since the file has one policy,")
        require(agent == "mean", f"{path}: agent", agent, "none, since the file has one policy,")
        return _from_file(path, env, network)
    settings = named_anew(reader.read_config(path, "run directory"), env, network)
    policies.check_name(str(checkpoint), "checkpoint")
    number = policies.find(path, str(checkpoint), "checkpoint")
    ranks = checkpoints.ranks(path, number)
    together = {"mean": policies.MEAN, "ema": policies.EMA}
    known = agent in together if isinstance(agent, str) else isinstance(agent, Integral) and agent in ranks
    require(known, "agent", agent, f"mean, ema or a rank ({', '.join(map(str, ranks))})")
    try:
        found = policies.read(path, number, ranks if isinstance(agent, str) else [agent], ema=agent == "ema")
    except JobError as error:
        raise SettingError(f"checkpoint {checkpoint}: {error}") from None
    key = together[agent] if isinstance(agent, str) else agent
    require(key in found.vectors, "agent", agent, "mean, since agents of --exchange server share one vector,")
    spaces = described_spaces(found.description) if found.description else start_once(settings).spaces
    made, flat = make_network(settings, spaces)
    vector = found.vectors[key]
    _require_size(settings, len(flat), len(vector))
    flat.data.copy_(torch.as_tensor(vector))
    return Policy(settings, made)


def _from_file(path: Path, env: str | None, network: str | None) -> Policy:
    try:
        if zipfile.is_zipfile(path):  # whose checksums torch does not look at
            with zipfile.ZipFile(path) as archive:
                require(archive.testzip() is None, f"{path}:", "damaged", "a file that Policy.save has written")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if contents["format"] != FORMAT:
            raise ValueError(f"format {contents['format']}")
        settings = Config.from_json(contents["settings"])
        spaces, parameters = described_spaces(json.loads(contents["policy"])), contents["parameters"]
        made, flat = make_network(named_anew(settings, env, network), spaces)
        saved = sum(tensor.numel() for tensor in parameters.values())
    except SettingError:
        raise
    except Exception as error:  # pickle and zip raise many kinds, and whatever takes in settings that are none
        said = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
        raise SettingError(f"{path}: a file that Policy.save has written is expected ({said})") from None
    _require_size(settings, len(flat), saved)
    try:
        made.load_state_dict(parameters)
    except RuntimeError as error:
        raise SettingError(f"{path}: its parameters are not those of its network ({' '.join(str(error).split())})") from None
    return Policy(settings, made)


def _require_size(settings: Config, needed: int, saved: int) -> None:
    """Refuse parameters of another network than the run has. Raises SettingError."""
    expected = f"one of {saved:,}, as when the run was started,"
    require(needed == saved, f"--network {settings.network}", f"has {needed:,} parameters", expected)


def named_anew(settings: Config, env: str | None, network: str | None = None) -> Config:
    """Return a run's settings with other names of its environment and network. Raises SettingError where they name others."""
    if env is not None:
        require(registry.bare(env) == registry.bare(settings.env), "--env", env, f"MODULE:{registry.bare(settings.env)}")
    has = str(settings.network)
    if network not in (None, has):
        expected = f"MODULE:{has.rpartition(':')[2]}" if networks.is_own(has) else f"{has}, which the run has,"
        require(networks.moved(network, has), "--network", network, expected)
    return dataclasses.replace(settings, env=env or settings.env, network=network or has)


def start_once(settings: Config) -> Environments:
    """Make the run's environment, close it and return it. Raises SettingError where that cannot be done."""
    try:
        registry.resolve(settings.env)
    except SettingError as error:
        if settings.env.startswith(PREFIX) or not is_for_all(settings.env):
            raise
        way_out = f"--env MODULE:{registry.bare(settings.env)} names a module that registers it"
        raise SettingError(f"{error}; the run plays it: {way_out}") from None
    return registry.try_out(settings.env, workers=min(settings.env_workers, 1), **settings.env_options)


def make_network(settings: Config, spaces: Spaces) -> tuple[Network, Flat]:
    """Return a network of the run's kind, to be filled with parameters. On the CPU: a few episodes need no more.

    Raises:
        SettingError: it is one of the user's own that is not there.
    """
    name, precision = cast(str, settings.network), cast(Precision, settings.precision)  # settled by `job.prepare`
    try:
        with torch.inference_mode(False), torch.enable_grad():  # wherever this is called, one of the user's own is tried out
            network = Network(name, spaces, precision, **settings.network_options)
    except SettingError as error:
        if not is_for_all(name):
            raise
        function = name.rpartition(":")[2]
        raise SettingError(f"{error}; the run has it: --network MODULE:{function} names a module that defines it") from None
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack memory_format
    return network, Flat(network)
