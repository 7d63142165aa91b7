"""The convergence laboratory: what a solver claims of its order is measured.

``certify(MySolver()).require()`` is a test of a solver of your own. The parts may be called on their own: order on the
probability-flow ODE, in law, on one Brownian path, and error against tolerance. ``python -m scoresde.certify`` writes
the table of the package's own solvers.
"""

from __future__ import annotations

from scoresde.certify.cases import FLOW, GRIDS, LAW, PATH, WIDE
from scoresde.certify.certificate import Certificate, NotCertified, Row, certify
from scoresde.certify.counting import Costs, costs
from scoresde.certify.ode import ode_order
from scoresde.certify.slopes import Slope
from scoresde.certify.strong import strong_order, strong_order_sampled
from scoresde.certify.table import page, solvers
from scoresde.certify.tolerance import ToleranceSlope, tolerance_slope
from scoresde.certify.weak import NotAffine, SampledOrder, weak_order, weak_order_sampled

__all__ = [
    "FLOW",
    "GRIDS",
    "LAW",
    "PATH",
    "WIDE",
    "Certificate",
    "Costs",
    "NotAffine",
    "NotCertified",
    "Row",
    "SampledOrder",
    "Slope",
    "ToleranceSlope",
    "certify",
    "costs",
    "ode_order",
    "page",
    "solvers",
    "strong_order",
    "strong_order_sampled",
    "tolerance_slope",
    "weak_order",
    "weak_order_sampled",
]
