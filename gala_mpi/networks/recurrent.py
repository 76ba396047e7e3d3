"""Memory: a recurrent core between a network's encoder and its heads, by torch's LSTM or GRU.

What it holds of the episodes of N environments is one tensor, the state, float32 [N, S]: of an LSTM h and c side by side
(S = 2H), of a GRU h (S = H). Zeros are the state before the first step of an episode.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

Kind = Literal["lstm", "gru"]
# Parameters are views of one vector (flat.py), where cuDNN does not look for them; it copies them, which takes next to no time.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")


class Memory(nn.Module):
    """Map features of observations to features of episodes so far.

    Weights are orthogonal, biases zero.

    Args:
        kind: `lstm` (Hochreiter & Schmidhuber 1997, with the forget gates of Gers et al. 2000) or `gru` (Cho et al. 2014).
        inputs: F, how many features an observation has.
        size: H, how many units there are, and features come out.

    Attributes:
        state_size: S.
    """

    def __init__(self, kind: Kind, inputs: int, size: int):
        super().__init__()
        self.kind, self.size = kind, size
        self.core = nn.LSTM(inputs, size) if kind == "lstm" else nn.GRU(inputs, size)
        self.state_size = 2 * size if kind == "lstm" else size
        for parameter in self.core.parameters():
            nn.init.orthogonal_(parameter) if parameter.dim() == 2 else nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step: map [N, F] and a state [N, S] to [N, H] and the next state.

        The cell alone takes half of the time that a core of one step does, and can be recorded for GPUs (`device.cuda_graph`).
        """
        weights = list(self.core.parameters())
        if self.kind == "gru":
            hidden = torch.gru_cell(features, state, *weights)
            return hidden, hidden
        hidden, cell = torch.lstm_cell(features, state.split(self.size, 1), *weights)
        return hidden, torch.cat([hidden, cell], 1)

    def unroll(self, features: torch.Tensor, state: torch.Tensor, resets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do T steps: map [T, N, F] and the state before the first one, [N, S], to [T, N, H] and the state after the last one.

        Args:
            resets: bool [T, N], whether an environment begins an episode at a step, with a state of zeros. The host looks.
        """
        layout = lay_out(resets.cpu().numpy())
        rows, places, environments, carried, last = (torch.from_numpy(each).to(state.device) for each in layout[1:])
        now = torch.where(carried[:, None], state[environments], 0.0)
        inputs = features.flatten(0, 1)[rows].split([steps * sequences for steps, sequences in layout.blocks])
        outputs, ended = [], []
        for part, (steps, sequences) in zip(inputs, layout.blocks):
            ended.append(now[sequences:])
            output, now = self._run(part.view(steps, sequences, -1), now[:sequences])
            outputs.append(output.flatten(0, 1))
        after = torch.cat([now, *reversed(ended)])[last]
        return torch.cat(outputs)[places].view(*resets.shape, self.size), after

    def _run(self, features: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run over sequences that are equally long, as `unroll` without resets."""
        if self.kind == "gru":
            outputs, hidden = self.core(features, state[None])
            return outputs, hidden[0]
        outputs, (hidden, cell) = self.core(features, tuple(part.contiguous() for part in state[None].split(self.size, 2)))
        return outputs, torch.cat([hidden[0], cell[0]], 1)


class Layout(NamedTuple):
    """The steps of N environments as sequences, one for each episode or what there is of it, the longest first.

    They lie step by step: the first ones of all, then the second ones of those that have one, and so on. (So do torch's packed
    sequences. Where lengths differ, the time to differentiate those grows with the square of the longest.)

    Attributes:
        blocks: numbers of steps, one after the other, at which as many sequences go on: pairs of both.
        rows: which of the T · N steps they are, in this order; int64 [T · N].
        places: where each of the T · N steps is then, int64 [T · N].
        environments: whose each sequence is, int64.
        carried: whether it goes on with an episode that has begun before, bool.
        last: the last sequence of each environment, int64 [N].
    """

    blocks: list[tuple[int, int]]
    rows: np.ndarray
    places: np.ndarray
    environments: np.ndarray
    carried: np.ndarray
    last: np.ndarray


def lay_out(resets: np.ndarray) -> Layout:
    """Lay out the steps of N environments by where episodes begin, bool [T, N]."""
    steps, environments = resets.shape
    begins = resets.T.copy()
    begins[:, 0] = True
    starts = np.flatnonzero(begins)  # environment by environment
    lengths = np.diff(starts, append=begins.size)
    order = np.argsort(-lengths, kind="stable")
    number = np.arange(lengths.max())[:, None]  # of a step in its sequence
    environment, step = np.divmod((starts[order] + number)[number < lengths[order]], steps)
    rows = step * environments + environment
    ends = np.unique(lengths)
    mine, first = np.divmod(starts, steps)
    last = np.cumsum(begins.sum(1)) - 1
    return Layout(
        [(int(end - before), int((lengths >= end).sum())) for before, end in zip([0, *ends], ends)],
        rows,
        np.argsort(rows),
        mine[order],
        ((first == 0) & ~resets[0, mine])[order],
        np.argsort(order)[last],
    )
