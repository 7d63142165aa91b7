"""``python -m scoresde.certify > docs/solvers.md`` writes the table of the package's solvers."""

from __future__ import annotations

import sys
from pathlib import PurePath

from scoresde.certify.certificate import certify
from scoresde.certify.table import page, solvers


def main(arguments: list[str]) -> int:
    """The page on standard output; 1 where a claim does not hold."""
    if arguments:
        sys.stderr.write(f"{PurePath(sys.argv[0]).parent.name} takes no arguments, got {' '.join(arguments)}.\n")
        return 2
    certificates = []
    for solver in solvers():
        sys.stderr.write(f"{solver!r}\n")
        certificates.append(certify(solver))
    sys.stdout.write(page(certificates))
    failed = [certificate for certificate in certificates if certificate.claims and not certificate.passed]
    for certificate in failed:
        sys.stderr.write(f"\n{certificate}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
