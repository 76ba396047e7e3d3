"""The paper's claims beside our own runs: make docs/results.md, and its figures, from the numbers in results/.

python analysis/results.py                        after benchmarks/paper.py; `make paper` calls both
python analysis/results.py --results elsewhere --to page
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

import checkout
import claims
from claims import CLAIMS, Claim, Finding
from kept import Kept, read
from layout import save
from tables import Table, markdown


@dataclass(frozen=True)
class Options:
    """Make the page of results."""

    results: Path = checkout.ROOT / "results"
    """The numbers of runs, a folder a part."""
    table: Path = checkout.ROOT / "benchmarks" / "paper.toml"
    """What the runs were."""
    to: Path = checkout.ROOT / "docs"
    """The folder of results.md; figures go to its folder `results`."""


def load(options: Options) -> dict[str, Kept]:
    """Return the runs of every part."""
    table = tomllib.loads(options.table.read_text())
    names = {method: name for method, (name, _) in table["methods"].items()}
    return {name: read(options.results, [name], names) for name in dict.fromkeys(part["name"] for part in table["parts"])}


def page(found: dict[Claim, Finding], parts: dict[str, Kept]) -> str:
    """Return the page."""
    costs = {claim: claims.cost(*(parts[name] for name in claim.parts)) for claim in found}
    chapters = "\n".join(chapter(claim, finding, costs[claim]) for claim, finding in found.items())
    rows = [(f"[{claim.says}](#{anchor(claim.says)})", finding.verdict, costs[claim]) for claim, finding in found.items()]
    summary = Table(("claim", "verdict", "runs"), rows)
    all_of_them = Kept([run for kept in parts.values() for run in kept.runs], {}, {})
    where = "; ".join(f"{claims.counted(count, 'run')} on {machine}" for machine, count in made(all_of_them, "machine"))
    return f"""# Results

What the paper (Assran et al. 2019) claims, and what our own runs say of it. `make paper` does the runs that are missing and
makes this page again from the numbers in [`results/`](../results); `python benchmarks/paper.py --seeds 5` adds a seed,
`--status` says what is missing. The runs are listed in [`benchmarks/paper.toml`](../benchmarks/paper.toml).

{markdown(summary).strip()}

A claim that one is better is *shown* where the whole 95% interval of the difference is above 0, *opposite* where it is below,
else *not shown*. Scores of several games are in parts of the best run of the game; intervals, in brackets, are over runs within
games (stratified bootstrap; shares: Wilson). Definitions: [`analysis/digest.py`](../analysis/digest.py) and
[`analysis/claims.py`](../analysis/claims.py).

{claims.counted(len(all_of_them.runs), "run")}, {all_of_them.hours:.1f} hours: {where or "–"}.
Of {", ".join(packages(all_of_them)) or "–"}.

{chapters}
## Several agents on one GPU give more frames/s, and keep it busier, at like power

**not tried**: no GPU was at hand for it. `benchmarks/gpu.sh` measures frames/s, how busy the GPU is, and watts, of
1, 2, 4 and 8 agents beside one A2C. What is known of one GPU: [performance.md](performance.md#on-a-gpu).
"""


def chapter(claim: Claim, finding: Finding, cost: str) -> str:
    figure = f"![{finding.alt}](results/{claim.name}.png)\n\n" if finding.figure else ""
    tables = "".join(f"{markdown(table).strip()}\n\n" for table in finding.tables if table.rows)
    heading = f"## {claim.says[0].upper()}{claim.says[1:]}"
    return f"{heading}\n\n**{finding.verdict}** ({cost}). {finding.sentence}\n\n{figure}{tables}".rstrip() + "\n"


def anchor(heading: str) -> str:
    """Return what a heading is linked by: lower case, without punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def made(kept: Kept, name: str) -> list[tuple[str, int]]:
    return Counter(str(run[name]) for run in kept.runs).most_common()


def packages(kept: Kept) -> list[str]:
    return [words for words, _ in made(kept, "packages")]


def main(options: Options) -> None:
    parts = load(options)
    found = {claim: claim.finding(*(parts[name] for name in claim.parts)) for claim in CLAIMS}
    (options.to / "results").mkdir(parents=True, exist_ok=True)
    for claim, finding in found.items():
        if finding.figure:
            save(finding.figure, options.to / "results" / f"{claim.name}.png", dpi=110)
            plt.close(finding.figure)
    (options.to / "results.md").write_text(page(found, parts))
    print(options.to / "results.md")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
