"""`own.py flags...`: train, with a learner and networks of the user's own; each is one file and one line of a table."""

import sys

from gala_mpi.lazy import Member
from gala_mpi.learners import LEARNERS
from gala_mpi.networks import NETWORKS, NetworkMember

LEARNERS_OF_MINE = {"reinforce": Member("reinforce:Reinforce", "REINFORCE with a baseline (Williams 1992)")}
NETWORKS_OF_MINE = {
    "residual": NetworkMember("shapes:residual", "an MLP with a residual block and LayerNorm", False),
    "skipping": NetworkMember("shapes:Skipping", "convolutions with a skip connection", True),
    "counting": NetworkMember("shapes:Counting", "one layer, and a buffer", False),
}

if __name__ == "__main__":
    LEARNERS |= LEARNERS_OF_MINE
    NETWORKS |= NETWORKS_OF_MINE
    from gala_mpi import train

    train.main(sys.argv[1:])
