"""`impatient.py RUN flags...`: an evaluation that says how far it is as often as it can."""

import sys

from gala_mpi import display, evaluate

display.SECONDS_BETWEEN_LINES = 0.0
evaluate.main(sys.argv[1:])
