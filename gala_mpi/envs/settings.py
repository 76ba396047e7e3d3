"""What environments are told: dataclasses that are read from the command line and stored with a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class AtariSettings:
    """The protocol by which Atari games are played. None: as the name of the environment says (docs/environments.md)."""

    sticky: Optional[float] = None
    """Probability, at each frame, that the emulator repeats the last action (Machado et al. 2018). --sticky is the same flag.
    None: as the name says: 0.25 for ALE/Pong-v5 and Pong-v0; 0 for pong, PongNoFrameskip-v4 and the like."""
    frame_skip: Optional[int] = None
    """Frames of one step, in which the action is repeated; the last two of them are joined by their maximum. None: 4."""
    no_ops: Optional[int] = None
    """Episodes begin with fewer no-ops than this, a random number. None: 30."""
    fire: Optional[bool] = None
    """Press FIRE at the start of an episode, in games that have it. None: yes."""
    life_loss: Optional[bool] = None
    """A lost life ends the return, not the episode. None: yes."""
    full_actions: Optional[bool] = None
    """Offer all 18 actions of the console, not only those that do something in the game. None: no."""
    frame_limit: Optional[int] = None
    """An episode is cut off after so many frames (of 60 a second), not counting those at its start. None: 108000."""

    def given(self) -> dict[str, object]:
        """Return the settings that are not None, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def over(self, defaults: AtariSettings) -> AtariSettings:
        """Return these settings, with those of `defaults` in place of None."""
        return dataclasses.replace(defaults, **self.given())


# The GALA authors' code, after Mnih et al. 2015: what a game's plain name (pong) means.
PAPER = AtariSettings(0.0, frame_skip=4, no_ops=30, fire=True, life_loss=True, full_actions=False, frame_limit=108_000)
AS_NAMED = AtariSettings()
