"""`pruned.py RUN flags...`: an evaluation under which the run's checkpoints are deleted once the first game has begun."""

import shutil
import sys
from pathlib import Path

from gala_mpi import evaluate

play = evaluate.Games.play


def prune_and_play(*arguments):
    shutil.rmtree(Path(sys.argv[1]) / "checkpoints", ignore_errors=True)
    return play(*arguments)


evaluate.Games.play = prune_and_play
evaluate.main(sys.argv[1:])
