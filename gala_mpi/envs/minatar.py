"""MinAtar (Young & Tian 2019): five small games in the manner of Atari's, by their ids of gymnasium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from gala_mpi.errors import SettingError

PREFIX = "MinAtar/"
FOR_FILMS = ("seaborn", "matplotlib.pyplot", "matplotlib.colors")  # 2 s of a core, of every rank, with pandas and scipy


def register(env: str) -> None:
    """Have MinAtar's games registered, which its package does only when it is told to. Raises SettingError: not installed."""
    import gymnasium

    if env in gymnasium.registry:
        return
    with _imported_late(*FOR_FILMS):
        try:
            from minatar.gym import register_envs  # pyright: ignore[reportMissingImports]  # optional
        except ModuleNotFoundError:
            raise SettingError(f"--env {env}: MinAtar is not installed; pip install 'gala_mpi[minatar]'") from None
    register_envs()


@contextmanager
def _imported_late(*names: str) -> Iterator[None]:
    """Let modules, `package.module` or without a package, be imported when they are first used, unless they are already."""
    stand_ins: dict[str, ModuleType] = {}
    for name in names:
        package, _, module = name.partition(".")
        if package not in sys.modules:
            stand_in = stand_ins.setdefault(package, ModuleType(package) if module else _Late(name))
            if module:
                setattr(stand_in, module, _Late(name))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _Late(ModuleType):
    """Stands for a module until it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def channels_first(env: Any) -> Any:
    """Wrap one game: its observations, [10, 10, channels], would be ambiguous where there are 10 channels (Seaquest)."""
    from gymnasium import spaces
    from gymnasium.wrappers import TransformObservation

    was = env.observation_space
    shown = spaces.Box(0, 1, (was.shape[-1], *was.shape[:-1]), was.dtype)
    return TransformObservation(env, lambda observation: observation.transpose(2, 0, 1), shown)
