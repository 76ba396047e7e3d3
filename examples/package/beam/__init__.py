"""A ball on a beam: an environment and a network of one's own, in a package of their own.

    pip install examples/package
    mpirun -n 2 python -m gala_mpi.train --env beam:Beam-v0 --network beam.networks:apart --learner ppo --total-steps 60000

Importing it registers the environment with gymnasium. That takes no torch and no MPI.
"""

import gymnasium

gymnasium.register("Beam-v0", "beam.environment:Beam", max_episode_steps=200)
