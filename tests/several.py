"""Run several Python programs one after the other in one process (under mpirun: in each of its ranks), each in a folder of its
own and with what it prints in files: most of a short program's time goes by while it imports torch.

    python tests/several.py PROGRAMS.json

PROGRAMS.json is a list of [folder, words], words as behind `python`. In each folder `stdout` and `stderr` come to be, and
`status-RANK` once the program has ended.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def main() -> None:
    programs = json.loads(Path(sys.argv[1]).read_text())
    rank = next((os.environ[name] for name in ("PMI_RANK", "PMIX_RANK") if name in os.environ), "0")
    for folder, words in programs:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
        status = run(words, folder)
        sys.stdout.flush()
        sys.stderr.flush()
        Path(f"status-{rank}").write_text(str(status))


def run(words: list[str], folder: str) -> int:
    """Run a program as `python` would with these words, and return its exit status."""
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], folder
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
