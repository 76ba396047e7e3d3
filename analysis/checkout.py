"""The package of this checkout, importable whether it is installed or not: every script imports this module first.

The scripts need its rooms `run`, `topology` and `exchange`, and these neither torch nor MPI.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
