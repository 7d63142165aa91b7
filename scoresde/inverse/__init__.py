"""Inverse problems: measurements, scores of their posteriors, and solvers that keep to them."""

from scoresde.inverse.diffpir import DiffPIR
from scoresde.inverse.dps import dps
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.moment_matching import moment_matching
from scoresde.inverse.operators import LinearOperator
from scoresde.inverse.operators_function import FunctionOperator, PhaseRetrieval
from scoresde.inverse.operators_members import (
    REC_709,
    Blur,
    Downsample,
    Grayscale,
    Identity,
    Mask,
    Matrix,
    gaussian_kernel,
)
from scoresde.inverse.pigdm import pigdm
from scoresde.inverse.repaint import RePaint
from scoresde.inverse.replacement import Replacement

__all__ = [
    "REC_709",
    "Blur",
    "DiffPIR",
    "Downsample",
    "FunctionOperator",
    "Grayscale",
    "Identity",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Measurement",
    "PhaseRetrieval",
    "RePaint",
    "Replacement",
    "dps",
    "gaussian_kernel",
    "moment_matching",
    "pigdm",
]
