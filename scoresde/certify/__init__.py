"""The laboratory: what a solver claims of its order is measured, and what rounding costs it.

    certify(MySolver()).require()                  # a test of a solver of your own
    print(certify(MySolver()))

The parts may be called on their own: order on the probability-flow ODE (:func:`ode_order`), in law
(:func:`weak_order`), on one Brownian path (:func:`strong_order`), error against tolerance (:func:`tolerance_slope`),
evaluations and memory (:func:`costs`), and the floor of the error in float32 and bfloat16 (:func:`precision`).
``python -m scoresde.certify`` writes the table of the package's own solvers, which :mod:`scoresde.solvers.catalogue`
finds.
"""

from __future__ import annotations

from scoresde.certify.affine import NotAffine
from scoresde.certify.cases import FLOW, GRIDS, LAW, PATH, WIDE
from scoresde.certify.certificate import Certificate, CertificateRow, NotCertified, certify
from scoresde.certify.counting import Costs, costs
from scoresde.certify.ode import ToleranceSlope, ode_order, tolerance_slope
from scoresde.certify.rounding import SCHEDULES, Floor, FloorCell, floors, precision
from scoresde.certify.slopes import Slope
from scoresde.certify.strong import strong_order, strong_order_sampled
from scoresde.certify.table import page
from scoresde.certify.weak import SampledOrder, weak_order, weak_order_sampled

__all__ = [
    "FLOW",
    "GRIDS",
    "LAW",
    "PATH",
    "SCHEDULES",
    "WIDE",
    "Certificate",
    "CertificateRow",
    "Costs",
    "Floor",
    "FloorCell",
    "NotAffine",
    "NotCertified",
    "SampledOrder",
    "Slope",
    "ToleranceSlope",
    "certify",
    "costs",
    "floors",
    "ode_order",
    "page",
    "precision",
    "strong_order",
    "strong_order_sampled",
    "tolerance_slope",
    "weak_order",
    "weak_order_sampled",
]
