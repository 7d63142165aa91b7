"""The scheduler of diffusers that steps by a solver of this library; made by :func:`~scoresde.interop.to_diffusers`.

This module needs diffusers, and is loaded when one is made, or when a pipeline is loaded that was saved with one::

    from scoresde.interop.solver_scheduler import SolverScheduler

    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver=Heun())
    pipe.save_pretrained(folder)                        # its scheduler is read back with it
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from scoresde import checks, rules
from scoresde.interop.driven import Course, DrivenRun, Reading
from scoresde.interop.forward_process import ForwardProcess, check_together
from scoresde.interop.generator_noise import Draws, GeneratorNoise
from scoresde.interop.routes import Route, RoutePlanner
from scoresde.interop.times_of import timestep_of
from scoresde.interop.trained import flows, read_trained, reading_of
from scoresde.interop.written import arguments_of, as_json, name_of, rule_named
from scoresde.models import Score
from scoresde.reverse import Reverse
from scoresde.solvers import Solver, SpectralMultistep
from scoresde.solvers.defaults import chosen_grid
from scoresde.solvers.wrapping import require_solver, require_steps

THEIRS = "scheduler"
"""The grid that is the scheduler's own times."""


@dataclass
class SolverSchedulerOutput(BaseOutput):
    """What a step answers.

    Attributes:
        prev_sample: (B, *event), what the network is to be shown next; at the end the samples.
        pred_original_sample: (B, *event) E[x_0 | x_t] by the output given; None where it says nothing of x_0.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SolverScheduler(ForwardProcess, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    r"""A solver in the place of a scheduler of diffusers; for its arguments see :func:`~scoresde.interop.to_diffusers`.

    Attributes:
        timesteps: (K,) what the network is told at each evaluation, in order, float32 (or int64).
        sigmas: (K + 1,) σ/α there and at the end, float32; σ under a schedule of flow matching.
        times: (K,) the same as times of the SDE, float64.
        grid: (m + 1,) the times that the solver steps on; ``sample(score, shape, grid=scheduler.grid, ...)`` equals it.
        order: evaluations of the network a step.
        init_noise_sigma: standard deviation of what the pipeline hands in first.
        sde: the schedule.
        solver: the solver.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012
    order: int = 1

    def __init__(
        self,
        solver: Solver | None = None,
        schedule: Any = None,
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
    ) -> None:
        given = SpectralMultistep() if solver is None else require_solver(solver)
        require_steps(given, "while a pipeline evaluates the network at times that are known before")
        self._unwritten: list[str] = []
        trained = read_trained(schedule, prediction_type, num_train_timesteps)
        self._schedule, shape = trained.schedule, trained.shape if shape is None else shape
        self._theirs = trained.scheduler
        if grid == THEIRS and self._theirs is None:
            raise ValueError(f"grid = {THEIRS!r} are the times of a scheduler; schedule is the SDE {trained.sde!r}.")
        self._on_theirs = grid == THEIRS or (grid is None and self._theirs is not None and flows(self._theirs.config))
        rule = None if grid is None or grid == THEIRS else rule_named(grid)
        self._rule, self._shape = rule, None if shape is None else checks.shape(shape, what="(*event)", name="shape")
        self._eta = given.default_eta if eta is None else checks.number(eta, name="eta")
        self._denoise = checks.flag(denoise, name="denoise")
        self._whole = checks.flag(integer_timesteps, name="integer_timesteps")
        if sigma_data is not None:
            sigma_data = checks.positive(sigma_data, name="sigma_data")
        self._guidance_scale = checks.not_negative(guidance_scale, name="guidance_scale")
        self._sigma_data = self._schedule.sigma_data if sigma_data is None else sigma_data
        options = {
            "eta": eta,
            "grid": grid if rule is None else self._written("grid", rule, name_of),
            "denoise": self._denoise,
            "integer_timesteps": self._whole,
            "shape": None if self._shape is None else list(self._shape),
            "sigma_data": sigma_data,
            "guidance_scale": self._guidance_scale,
        }
        sde = {} if trained.sde is None else {"sde": self._written("sde", trained.sde, as_json)}
        self.register_to_config(
            **trained.config, **sde, solver=self._written("solver", given, as_json), solver_options=options
        )
        self.solver = given = self._made(given)
        given.check(Reverse(self._score(), self._eta))
        self.order = self._evaluations_a_step()
        self.num_inference_steps: int | None = None
        self._route: Route | None = None
        self._run: DrivenRun | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self.times = trained.times
        self._show(None)

    # -- what it is made of -------------------------------------------------------------------------------------------

    @property
    def init_noise_sigma(self) -> float:
        """σ at the first time, times what the solver makes of x before it asks the network for the first time."""
        if self._route is None:
            return float(self.sde.prior_std)
        course = self._route.course
        return float(self.sde.sigma(course.grid[0])) * course.lead(self._event).scale

    @property
    def _event(self) -> tuple[int, ...]:
        """Shape of a sample, or of one that does in its place."""
        return (1,) if self._shape is None else self._shape

    def _reading(self) -> Reading:
        """With what the config says now: pipelines change ``clip_sample`` after the scheduler is made."""
        return reading_of(self.config, self._schedule, self._sigma_data, self._guidance_scale)

    def _score(self) -> Score:
        """A score of zeros, for what solvers and rules ask of one before the run."""
        return self._reading().score(lambda x, c: torch.zeros_like(x))

    def _made(self, solver: Solver) -> Solver:
        score = self._score()
        if self._shape is None:
            small, large = (solver.made_for(score, event) for event in ((1,), (4, 64, 64)))
            if small != large:
                raise ValueError(
                    f"{type(solver).__name__} is planned for the size of a sample: pass shape, such as shape=(4, 64, "
                    "64) for the latents of Stable Diffusion at 512 pixels, or the whole pipeline in place of its "
                    "scheduler's config."
                )
        return solver.made_for(score, self._event)

    def _evaluations_a_step(self) -> int:
        route = self._planner().on(chosen_grid(self._score(), None, 4, self.solver, self._event))
        last = len(route.course.grid) - 1
        return max(1, sum(e.part == last for e in route.evaluations))

    def _written(self, name: str, value: Any, how: Any) -> Any:
        try:
            return how(value)
        except TypeError:
            self._unwritten.append(name)
            return {"unwritten": repr(value)}

    # -- times ---------------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """The times of a run; a run that has begun is forgotten.

        Args:
            num_inference_steps: n; the grid has n - 1 steps, and the denoising step is the n-th: n evaluations for
                methods with one a step, n where the first of the steps needs none, and 2 n - 1 for Heun.
            device: of ``timesteps``.
            timesteps: in place of n, decreasing, what the network is told at the times of the grid, within what it was
                trained for; the last is where the denoising step starts, without one where the run ends.
            sigmas: in place of these, σ/α, where a last 0 is the denoising step; under a scheduler of flow matching
                what that takes, σ before its shift.
            mu: of flow matching, the shift for the size of the sample; it acts on the scheduler's own times alone.

        Raises:
            TypeError, ValueError: none of the three or two that disagree; times that do not decrease, or which the
                network was not trained for; a number of steps that the solver, or whole numbers, do not allow.
        """
        where = None if device is None else checks.device(device)
        if timesteps is not None and sigmas is not None:
            raise ValueError("give timesteps or sigmas, not both.")
        if mu is not None and not self._flows:
            raise ValueError(f"mu belongs to flow matching; this network was trained under {self.sde!r}.")
        if timesteps is None and sigmas is None:
            if num_inference_steps is None:
                raise ValueError("num_inference_steps must be given where timesteps and sigmas are not; got None.")
            n = checks.count(num_inference_steps, name="num_inference_steps", most=rules.MOST_STEPS)
            route = self._planner().by_steps(n, mu)
        else:
            route = self._planner().by_times(timesteps, sigmas, mu)
            n = len(route.course.grid) - 1 + route.course.denoise
            if num_inference_steps is not None and num_inference_steps != n:
                raise ValueError(
                    f"num_inference_steps = {num_inference_steps!r}, but the times given are of {n}; leave it out."
                )
        self.num_inference_steps, self._route = n, route
        self._run, self._begin_index, self._step_index = None, None, None
        self.times = torch.tensor([e.t for e in route.evaluations], dtype=torch.float64)
        self._show(where)

    @property
    def grid(self) -> Tensor:
        """(m + 1,) the times that the solver steps on."""
        return self._set().course.grid

    def _set(self) -> Route:
        if self._route is None:
            raise ValueError("there are no timesteps yet: call set_timesteps(num_inference_steps) first.")
        return self._route

    @property
    def _flows(self) -> bool:
        """Whether the network was trained by flow matching of diffusers, whose times are shifted."""
        return self._theirs is not None and flows(self._theirs.config)

    def _planner(self) -> RoutePlanner:
        """With what the config says now, as of the reading."""
        return RoutePlanner(
            self.solver,
            self._reading(),
            self._schedule,
            self._eta,
            self._denoise,
            self._event,
            rule=self._rule,
            theirs=self._theirs if self._on_theirs else None,
            shifted=self._theirs if self._flows else None,
            whole=self._whole,
        )

    def _show(self, device: torch.device | None) -> None:
        """timesteps and sigmas of the times."""
        steps = timestep_of(self._schedule, self.times)
        self.timesteps = (steps.round().long() if self._whole else steps.float()).to(device)
        self._expected: list[float] = self.timesteps.tolist()
        end = torch.zeros(1, dtype=torch.float64)
        denoises = self._route is None or self._route.course.denoises
        if self._route is not None and not denoises:
            end = self._route.course.grid[-1:]
        at = torch.cat([self.times, end]) if len(self.times) else end
        alpha, sigma = self.sde.alpha(at), self.sde.sigma(at)
        sigmas = sigma if self._flows else sigma / alpha
        if denoises:
            sigmas[-1] = 0.0
        self.sigmas = sigmas.float()

    # -- the run -------------------------------------------------------------------------------------------------------

    @property
    def begin_index(self) -> int | None:
        """Where in ``timesteps`` the run begins, if that was said."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """How many evaluations of ``timesteps`` are behind; None before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The evaluation at which the pipeline begins, as image-to-image does; the solver then starts there.

        Raises:
            ValueError: not the first evaluation of a step, or a solver that starts otherwise there.
        """
        known = len(self._set().evaluations)
        begin = checks.count(begin_index, name="begin_index", least=0)
        if begin >= known:
            raise ValueError(
                f"begin_index must be one of the {known} evaluations, 0 to {known - 1}; got {begin}. With img2img, "
                "raise strength or the number of steps."
            )
        self._from(begin)
        self._begin_index, self._step_index, self._run = begin, None, None

    def _from(self, begin: int) -> Course:
        """The run from an evaluation on."""
        return self._planner().tail(self._set(), begin)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Draws = None,
        return_dict: bool = True,
    ) -> SolverSchedulerOutput | tuple[Tensor, Tensor | None]:
        """One output of the network in, and out what it is to be shown next; at the end the samples.

        Args:
            model_output: (B, *event), of the network at (sample, timestep); after guidance, if there is any.
            timestep: the next of ``timesteps``.
            sample: (B, *event), what the step before returned. Where it is something else, as in inpainting, it is
                taken for the state. Handed back as it was returned, the state goes on in float32 at least, however it
                was rounded to be shown.
            generator: where the solver's noise is drawn from, in the order of its draws, float32 at least. None is
                torch's global generator, from which pipelines without a generator draw everything.
            return_dict: an output with names, or a tuple.

        Raises:
            TypeError, ValueError: no timesteps yet, a timestep out of turn, tensors that do not fit.
        """
        self._set()
        check_together({"sample": sample, "model_output": model_output})
        output = self._mean(model_output, sample)
        noise = GeneratorNoise(generator)
        index = self._index(timestep)
        if self._run is None:
            run = DrivenRun(self._from(index), sample)
        else:
            run = self._run
            if sample.shape != run.shown.shape or sample.device != run.shown.device:
                raise ValueError(
                    f"sample must be {tuple(run.shown.shape)} on {run.shown.device}, as at the steps before; got "
                    f"{tuple(sample.shape)} on {sample.device}. For other samples call set_timesteps first."
                )
            if not torch.equal(sample, run.shown.to(sample.dtype)):
                run.move(sample)
        assert run.asked is not None
        at, t = run.asked
        original = run.course.reading.x0(at, t, output.to(at.dtype))
        run.tell(output, noise)
        self._run, self._step_index = run, index + 1
        shown = run.shown
        # never the state itself, which the pipeline may change in place
        before = shown.clone() if shown.dtype == sample.dtype else shown.to(sample.dtype)
        original = None if original is None else original.to(sample.dtype)
        return SolverSchedulerOutput(before, original) if return_dict else (before, original)

    def _mean(self, output: Tensor, sample: Tensor) -> Tensor:
        """The output, without the second half of channels where a variance was learned."""
        learned = self.config.get("variance_type") in ("learned", "learned_range")
        if learned and output.ndim > 1 and output.shape[1] == 2 * sample.shape[1]:
            output = output[:, : sample.shape[1]]
        if output.shape != sample.shape:
            raise ValueError(
                f"model_output must have the shape of sample, {tuple(sample.shape)}; got {tuple(output.shape)}."
            )
        return output

    def _index(self, timestep: float | Tensor) -> int:
        """Which evaluation the timestep is: the next one; at the beginning any that a run can begin at."""
        value = _timestep(timestep)
        if self._step_index is None and self._begin_index is None:
            found = [i for i, known in enumerate(self._expected) if _same(known, value)]
            for i in found:
                try:
                    self._from(i)
                except ValueError:
                    if i == found[-1]:
                        raise
                else:
                    return i
            raise ValueError(f"timestep must be one of scheduler.timesteps, {self._listed()}; got {value:g}.")
        index = self._begin_index if self._step_index is None else self._step_index
        assert index is not None
        if index >= len(self._expected):
            raise ValueError("the run is over: all timesteps are behind. Call set_timesteps for another one.")
        if not _same(self._expected[index], value):
            raise ValueError(
                f"timestep must be the next of scheduler.timesteps, {self._expected[index]:g} (number {index}); got "
                f"{value:g}. Each is stepped once, in order; for a new run call set_timesteps first."
            )
        return index

    def _listed(self) -> str:
        shown = ", ".join(f"{v:g}" for v in self._expected[:3])
        return f"{shown}, ... {self._expected[-1]:g}" if len(self._expected) > 3 else shown

    # -- configs -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From the config of one of these, or of another scheduler; ``kwargs`` go before what stands there.

        Raises:
            TypeError, ValueError: see :func:`~scoresde.interop.to_diffusers`; the config of a solver, or of a rule,
                that could not be written.
        """
        checks.instance(config, Mapping, name="config", hint="Read one by SolverScheduler.load_config(folder).")
        trained, options, others = arguments_of(config, kwargs)
        made = cls(schedule=trained, **options)
        return (made, others) if return_unused_kwargs else made

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As of every scheduler.

        Raises:
            ValueError: the solver, or the rule of the grid, is none of this library's, and cannot be read back.
        """
        if self._unwritten:
            raise ValueError(
                f"{' and '.join(self._unwritten)} of this scheduler cannot be written to a config: it is, or holds, "
                "something that is not scoresde's. Save the pipeline with its first scheduler, and call "
                "to_diffusers after loading."
            )
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


def _timestep(timestep: Any) -> float:
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        raise ValueError(f"timestep must be one for all samples; got shape {tuple(timestep.shape)}.")
    return float(timestep) if isinstance(timestep, Tensor) else checks.number(timestep, name="timestep")


def _same(known: float, given: float) -> bool:
    return abs(known - given) <= 1e-6 * max(1.0, abs(known))
