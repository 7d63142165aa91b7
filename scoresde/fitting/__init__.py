"""Samplers fitted to one score: the times of their few evaluations and all coefficients, by least squares.

    fitted = fit(model.bind(label=y), steps=5, shape=(1000, 3, 32, 32))
    fitted.save("five.json"), print(fitted.report)
    sample(score, shape, solver=fitted)             # or solver=Path("five.json")

:func:`fit` starts from the best of several fixed methods (:mod:`~scoresde.fitting.candidates`), each recorded as the
table of its coefficients (:mod:`~scoresde.fitting.recorded`), and moves those (:mod:`~scoresde.fitting.unknowns`) so
that trajectories end where the probability-flow ODE does (:mod:`~scoresde.fitting.trajectories`), by a damped
Gauss-Newton method (:mod:`~scoresde.fitting.gauss_newton`). The result is a :class:`~scoresde.solvers.fitted.Fitted`.
"""

from scoresde.fitting.gauss_newton import Iteration
from scoresde.fitting.procedure import fit

__all__ = ["Iteration", "fit"]
