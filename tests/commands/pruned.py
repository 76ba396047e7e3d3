"""`pruned.py RUN flags...`: an evaluation under which the run's checkpoints are deleted once the first game has begun."""

import shutil
import sys
from pathlib import Path

from gala_mpi import evaluate
from gala_mpi.games import Games

play = Games.play


def prune_and_play(*arguments):
    shutil.rmtree(Path(sys.argv[1]) / "checkpoints", ignore_errors=True)
    return play(*arguments)


Games.play = prune_and_play
evaluate.main(sys.argv[1:])
