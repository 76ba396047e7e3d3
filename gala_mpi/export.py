"""Write a run's policy to a file of its own, of torch or an ONNX model, or the run's settings.

    python -m gala_mpi.export runs/pong --torch policy.pt
    python -m gala_mpi.export runs/pong --onnx policy.onnx --checkpoint last --agent 3
    python -m gala_mpi.export runs/pong --config pong.toml

No MPI is needed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional, cast

from gala_mpi import cli, config_file
from gala_mpi.cli import require, require_file
from gala_mpi.errors import FAILED, FINISHED, REFUSED, JobError, SettingError
from gala_mpi.run import files, reader


@dataclass(frozen=True)
class Export:
    """Write a run's policy, or its settings, to a file of its own."""

    run: Path
    """The run directory, or a file that --torch has written."""
    torch: Optional[Path] = None
    """FILE.pt, which gala_mpi.load_policy reads without the run."""
    onnx: Optional[Path] = None
    """FILE.onnx, which is checked with ONNX Runtime first. Needs: pip install gala_mpi[onnx]."""
    config: Optional[Path] = None
    """FILE.toml: the run's settings, for gala_mpi.train --config FILE.toml."""
    checkpoint: str = "best"
    """best (by evaluations while the run trained, else by training score), last or a checkpoint's number."""
    agent: str = "mean"
    """mean of all agents' parameters (under --exchange server the vector that they share), ema of their moving averages,
    of a run with --ema; or an agent's rank."""
    env: Optional[str] = None
    """The run's environment as MODULE:ID, where the module that registers it has moved."""
    network: Optional[str] = None
    """The run's network as MODULE:FUNCTION, where the module has moved."""


def main(arguments: list[str] | None = None) -> int:
    wanted = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        write(wanted)
    except (SettingError, JobError) as error:
        print(f"gala_mpi: {error}", file=sys.stderr)
        return REFUSED if isinstance(error, SettingError) else FAILED
    return FINISHED


def parse(arguments: list[str]) -> Export:
    return cli.parse(
        Export,
        "export",
        "Write a run's policy, or its settings, to a file of its own.\n\n"
        "  python -m gala_mpi.export runs/pong-... --torch policy.pt\n"
        "  python -m gala_mpi.export runs/pong-... --onnx policy.onnx --checkpoint last --agent 3\n"
        "  python -m gala_mpi.export runs/pong-... --config pong.toml",
        arguments,
    )


def write(wanted: Export) -> None:
    """Write the files that are wanted, each whole or not at all.

    Raises:
        SettingError: there is no such policy, or it cannot be exported.
        DiskError: a file cannot be written.
    """
    any_file = wanted.torch or wanted.onnx or wanted.config
    require(any_file, "export", wanted.run, "--torch FILE.pt, --onnx FILE.onnx or --config FILE.toml")
    require_file("--torch", wanted.torch, ".pt", ".pth")
    require_file("--onnx", wanted.onnx, ".onnx")
    require_file("--config", wanted.config, ".toml")
    is_rank = wanted.agent.isascii() and wanted.agent.isdigit()
    require(is_rank or wanted.agent in ("mean", "ema"), "--agent", wanted.agent, "mean, ema or a rank")
    if wanted.config is not None:
        settings = config_file.to_toml(reader.read_config(wanted.run, "run directory"))
        with files.replaced(wanted.config) as temporary:
            temporary.write_text(settings)
        print(f"written: {wanted.config}", flush=True)
    if wanted.torch or wanted.onnx:
        _write_policy(wanted, int(wanted.agent) if is_rank else cast(Literal["mean", "ema"], wanted.agent))


def _write_policy(wanted: Export, agent: int | Literal["mean", "ema"]) -> None:
    from gala_mpi.policy import load_policy  # torch, which --help does not wait for

    policy = load_policy(wanted.run, wanted.checkpoint, agent, env=wanted.env, network=wanted.network)
    for file, save in ((wanted.torch, policy.save), (wanted.onnx, policy.to_onnx)):
        if file is not None:
            save(file)
            print(f"written: {file}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
