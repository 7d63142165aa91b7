"""The table of the package's solvers, and what rounding costs them at every number of steps.

    python -m scoresde.certify > docs/solvers.md
    python -m scoresde.certify --thorough            # every cell that misses a bar of rounding, with its figure

The exit status is 1 where a claim does not hold, or a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from scoresde.certify.certificate import certify
from scoresde.certify.rounding import floors
from scoresde.certify.table import page
from scoresde.solvers import Solver
from scoresde.solvers.catalogue import label, variants


def main(arguments: Sequence[str] | None = None) -> int:
    """The page, or the precision, on standard output."""
    parser = argparse.ArgumentParser(prog="python -m scoresde.certify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--thorough", action="store_true", help="precision at 7, 10, 25 and 100 steps with every η")
    parser.add_argument("--solver", default="", help="only solvers whose label contains this")
    given = parser.parse_args(arguments)
    chosen = [solver for solver in variants() if given.solver in label(solver)]
    return thoroughly(chosen) if given.thorough else written(chosen)


def written(solvers: Sequence[Solver]) -> int:
    """Writes the page; 1 where a claim does not hold or a floor is above its bar."""
    certificates = []
    for solver in solvers:
        sys.stderr.write(f"{label(solver)}\n")
        certificates.append(certify(solver))
    sys.stdout.write(page(certificates))
    failed = [one for one in certificates if not one.holds]
    for certificate in failed:
        sys.stderr.write(f"\n{certificate}\n")
    return 1 if failed else 0


def thoroughly(solvers: Sequence[Solver]) -> int:
    """Writes the floors of each solver over all cells, and every cell that misses its bar; 1 where there is one."""
    missed = 0
    for solver in solvers:
        found = floors(solver, thorough=True)
        told = ", ".join(f"{floor.name} {floor.error:.1e} of {len(floor.cells)} cells" for floor in found)
        sys.stdout.write(f"{label(solver)}: {told}\n")
        for floor in found:
            missed += len(floor.missed)
            sys.stdout.writelines(f"  {floor.name}, {cell}\n" for cell in floor.missed)
    return 1 if missed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are small: a second thread only waits
    sys.exit(main())
