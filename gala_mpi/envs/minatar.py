"""MinAtar (Young & Tian 2019): five small games in the manner of Atari's, by their ids of gymnasium."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from gala_mpi.errors import SettingError

PREFIX = "MinAtar/"


def register(env: str) -> None:
    """Have MinAtar's games registered, which its package does only when it is told to. Raises SettingError: not installed."""
    import gymnasium

    if env in gymnasium.registry:
        return
    late = _Late("seaborn")
    sys.modules.setdefault(late.__name__, late)
    try:
        from minatar.gym import register_envs  # pyright: ignore[reportMissingImports]  # optional
    except ModuleNotFoundError:
        raise SettingError(f"--env {env}: MinAtar is not installed; pip install 'gala_mpi[minatar]'") from None
    finally:
        if sys.modules[late.__name__] is late:
            del sys.modules[late.__name__]
    register_envs()


class _Late(ModuleType):
    """Stands for a module until it is used. MinAtar imports seaborn for the colours of its films, which brings pandas and
    scipy: every rank would start 1.5 s later."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def channels_first(env: Any) -> Any:
    """Wrap one game: its observations, [10, 10, channels], would be ambiguous where there are 10 channels (Seaquest)."""
    from gymnasium import spaces
    from gymnasium.wrappers import TransformObservation

    was = env.observation_space
    shown = spaces.Box(0, 1, (was.shape[-1], *was.shape[:-1]), was.dtype)
    return TransformObservation(env, lambda observation: np.moveaxis(observation, -1, 0), shown)
