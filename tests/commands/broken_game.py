"""`gala_mpi.train` with one game more: BrokenPole-v0."""

import sys

import broken_pole  # noqa: F401  which registers it

from gala_mpi import train

train.main(sys.argv[1:])
