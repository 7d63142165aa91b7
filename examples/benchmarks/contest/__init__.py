"""What every contest rests on: problems with exact answers, one fair run of a solver, results in files, fair timings.

    import contest

    contest.evaluate(ss.Heun(), ss.grids.karras, "mixture2d-edm", 20)      # the whole benchmark of one of our solvers

:mod:`contest.problems` are what is solved: the laws of :mod:`contest.mixtures` and the networks of
:mod:`contest.learned`; :mod:`contest.reference` says where their flow ends. :mod:`contest.run` is a run and its error,
:mod:`contest.results` keeps what was measured and puts it into tables, :mod:`contest.timing` takes turns. The peers are
in a package of their own, which builds on this one.
"""

from contest.results import (
    CACHE,
    Key,
    LawResult,
    Measuring,
    Outcome,
    Result,
    best,
    markdown,
    measured,
    read,
    verdict,
    write,
    write_array,
)
from contest.run import (
    BANDS,
    ContestFlags,
    GridRule,
    Setting,
    bands,
    compete,
    distance,
    errors,
    evaluate,
    most,
    named,
    parsed,
    setting,
    solve,
)

__all__ = [
    "BANDS",
    "CACHE",
    "ContestFlags",
    "GridRule",
    "Key",
    "LawResult",
    "Measuring",
    "Outcome",
    "Result",
    "Setting",
    "bands",
    "best",
    "compete",
    "distance",
    "errors",
    "evaluate",
    "markdown",
    "measured",
    "most",
    "named",
    "parsed",
    "read",
    "setting",
    "solve",
    "verdict",
    "write",
    "write_array",
]
