"""Solvers of this library inside the pipelines of diffusers, as schedulers::

    pipe.scheduler = to_diffusers(DPMSolverPP(), pipe.scheduler.config)
    pipe.scheduler = to_diffusers(None, pipe, guidance_scale=7.5)       # the default, planned for the pipeline's size
    image = pipe("a lighthouse", num_inference_steps=20, guidance_scale=7.5).images[0]

Images are those of :func:`~scoresde.sample`, to rounding, from the same noise.
"""

from __future__ import annotations

import importlib
from typing import Any

from scoresde import rules
from scoresde.extras import needs
from scoresde.solvers import Solver


def to_diffusers(
    solver: Solver | None,
    schedule: Any,
    *,
    eta: float | None = None,
    grid: rules.Rule | str | None = None,
    denoise: bool = True,
    integer_timesteps: bool = False,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    guidance_scale: float = 1.0,
    prediction_type: str | None = None,
    num_train_timesteps: int | None = None,
) -> Any:
    r"""A scheduler of diffusers that steps by ``solver``: a ``SchedulerMixin`` and ``ConfigMixin``, for every pipeline.

    Pipelines evaluate the network and hand over its output; between two outputs the solver's own step is run, whatever
    it is: methods with memory, with several evaluations a step (``order`` of them) and with noise. Those that choose
    their steps as they go (AdaptiveODE, AdaptiveSDE, ProbabilityFlow, TorchSDE) cannot be driven so.

    **Steps.** ``set_timesteps(n)`` makes n evaluations of a method with one a step: n - 1 steps on the solver's own
    grid and the denoising step, so that the images are those of ``sample(score, shape, solver=solver, steps=n - 1)``.
    Where the first step needs no evaluation, as the default's from 5 on, there is a step more, ``steps=n``; Heun
    evaluates 2 n - 1 times. ``scheduler.grid`` are the times themselves, ``scheduler.sde`` is the SDE. Timesteps
    between the trained ones are handed to the network as fractions; ``integer_timesteps`` moves the grid instead.

    **Noise.** x_T is what the pipeline hands in: those that multiply by ``init_noise_sigma`` make it N(0, σ(T)² I), as
    ``sample`` does (times what a first step without an evaluation makes of it); DDPMPipeline does not, and starts from
    standard normals. The solver draws from the pipeline's ``generator``, one draw after the other in the order of its
    steps, as ``sample(..., noise=generator)`` does after x_T.

    **Precision.** Coefficients are float64 and the state is float32 at least: a pipeline in half precision is shown it
    rounded, and where it hands that back the run goes on from the unrounded one.

    **From the middle.** ``set_begin_index``, and ``add_noise`` at that time, as image-to-image pipelines call them: the
    solver starts there, on the rest of the grid. What a pipeline hands in in place of what was returned, as inpainting
    does, is the state from then on.

    The config is the given scheduler's, with "solver" and "solver_options"; the pipeline is saved and loaded with it.

    Args:
        solver: any that steps on a grid; None for the default, :class:`~scoresde.solvers.SpectralMultistep`.
        schedule: what the network was trained with: a pipeline, its scheduler, the scheduler's config or the folder of
            one; or an SDE, of which the network is told ``num_train_timesteps`` t/T (of a ChainSDE the level, from 0).
            ``clip_sample`` and ``thresholding`` of a config are followed, by :func:`~scoresde.guidance.clip` and
            :func:`~scoresde.guidance.threshold`; its times only where ``grid`` says so.
        eta: the stochasticity; default the solver's own.
        grid: in place of the solver's own rule another of :mod:`scoresde.grids`, or its name: "uniform", "log_snr",
            "karras", "spectral"; or "scheduler", the times of the scheduler given, which is the default for those of
            flow matching, as their shift is made for the network.
        denoise: whether the last evaluation ends the run with E[x_0 | x]; without it the last step leads to t_min, of a
            chain its first level, which is what ``set_alpha_to_one=False`` means.
        integer_timesteps: for networks that know only whole timesteps.
        shape: (*event) of a sample, the latents of a latent model; needed by the default, whose plan depends on it, and
            taken from ``schedule`` where that is a pipeline.
        sigma_data: standard deviation of the data, for solvers that ask.
        guidance_scale: what the pipeline will be called with, where it has classifier-free guidance: the default solver
            is more careful with a large one, in few steps, as ``sample(classifier_free(...), ...)`` is.
        prediction_type: in place of the config's; of an SDE "epsilon", "sample", "v_prediction" or "flow_prediction".
        num_train_timesteps: of an SDE, default 1000.

    Returns:
        A :class:`~scoresde.interop.solver_scheduler.SolverScheduler`.

    Raises:
        TypeError, ValueError: a solver that cannot be driven, a scheduler that nothing here is equal to, or options
            that do not fit.
        ModuleNotFoundError: diffusers is not installed.
    """
    with needs("diffusers"):
        module = importlib.import_module("scoresde.interop.solver_scheduler")
    return module.SolverScheduler(
        solver,
        schedule,
        eta=eta,
        grid=grid,
        denoise=denoise,
        integer_timesteps=integer_timesteps,
        shape=shape,
        sigma_data=sigma_data,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        num_train_timesteps=num_train_timesteps,
    )
