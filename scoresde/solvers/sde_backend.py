"""The reverse SDE through torchsde::

    sample(score, shape, solver=TorchSDE("srk"), steps=100)

:class:`TorchSDE` runs a method of torchsde on the grid, for any η; ``adjoint=True`` takes gradients by its adjoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.modules import modules_of
from scoresde.noise import BrownianNoise, Noise, brownian_path, drawn_seed
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver
from scoresde.solvers.planned import from_prior
from scoresde.solvers.solution import Ending, Report, unheard

_ITO = ("euler", "milstein", "srk")
_STRATONOVICH = ("euler_heun", "heun", "midpoint", "log_ode", "reversible_heun")
# the Lévy area approximation that each of these methods asks of its path
_AREA = {"srk": "space-time", "log_ode": "foster"}


@dataclass(frozen=True)
class TorchSDE(Solver):
    """The reverse process by a method of torchsde, on the grid, for any event shape and any η.

    With additive noise the Itô and the Stratonovich process are one, so methods of both kinds apply. They run on the
    path of their noise (:func:`~scoresde.noise.brownian_path`): a :class:`~scoresde.noise.BrownianNoise` is shared
    with our own solvers, and on it or a PerSampleNoise the samples do not depend on the batch. The exceptions are "srk"
    and "log_ode", which need Lévy areas: any noise but a BrownianNoise seeds a ``torchsde.BrownianInterval`` for them,
    whose path depends on the shape of the batch. From a first time with α = 0, where the drift of the SDE is infinite,
    the first step is α_s E[x_0 | x_t] + σ_s z. Gradients do not reach the grid, whose times torchsde takes as given,
    nor through the noise, of which it uses a path of its own; our solvers carry both.

    Args:
        method: "euler", "milstein", "srk" (Itô), "euler_heun", "heun", "midpoint", "log_ode", "reversible_heun".
        adjoint: gradients by torchsde's stochastic adjoint. They reach x and the parameters of every module behind the
            score (:func:`~scoresde.models.modules_of`), but not those that a plain function has closed over.

    Raises:
        ValueError: unknown method, a method that needs Lévy areas on a BrownianNoise, which has none, or a grid that
            requires a gradient.
    """

    method: str = "euler"
    adjoint: bool = False
    order: ClassVar[int | None] = None
    default_eta: ClassVar[float] = 1.0
    steps_on_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in _ITO + _STRATONOVICH:
            raise ValueError(f"method must be one of {', '.join(_ITO + _STRATONOVICH)}; got {self.method!r}.")

    def draws_noise(self, process: Reverse) -> bool:
        """Always: torchsde asks for a path even where η = 0."""
        return True

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """From t to s."""
        return self.integrate(process, x, torch.stack([t, s]), noise, unheard).x, None

    def integrate(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Report) -> Ending:
        """Interval by interval of the grid."""
        import torchsde

        checks.refuse_without_float64(x, "torchsde", "take EulerMaruyama() or StochasticRungeKutta()")

        if grid.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "torchsde gives no gradients for the times of a grid: detach the grid, or take EulerMaruyama or "
                "another solver of ours, which do."
            )
        done, first = 0, from_prior(process.sde, grid[0], grid[1], draws=bool(process.eta > 0))
        if first is not None:  # the drift of the SDE is infinite there
            x, done = first.take(process, x, grid[0], grid[1], noise), 1
            report(1, x)
            if len(grid) == 2:
                return Ending(x)
            grid = grid[1:]
        # torchsde runs forward, on (B, D): u = grid[0] - t rises from 0.
        elapsed = (grid[0] - grid).to(x.device)
        system = _Flattened(process, x.shape[1:], grid[0].item(), "ito" if self.method in _ITO else "stratonovich")
        y = x.flatten(1) if x.ndim > 1 else x[:, None]
        path = self._path(noise, y, x, grid)
        run = torchsde.sdeint_adjoint if self.adjoint else torchsde.sdeint
        for i in range(len(grid) - 1):
            ends = elapsed[i : i + 2].detach()
            # A step a hair too long is cut at the end of the interval: exactly one step, never a sliver of one more.
            length = float(ends[1] - ends[0]) * (1 + 1e-6)
            y = run(system, y, ends, bm=path, method=self.method, dt=length)[-1]
            report(done + i + 1, y.reshape(x.shape))
        return Ending(y.reshape(x.shape))

    def _path(self, noise: Noise, y: Tensor, x: Tensor, grid: Tensor) -> Any:
        import torchsde

        if self.method not in _AREA:
            return _shared_path(brownian_path(noise, grid[0].item()), x, y, grid)
        if isinstance(noise, BrownianNoise):
            raise ValueError(
                f"torchsde's {self.method} needs the path's Lévy areas, which BrownianNoise does not keep; use "
                "another method, or IndependentNoise (torchsde then keeps a path of its own)."
            )
        return torchsde.BrownianInterval(
            t0=0.0,
            t1=float(grid[0] - grid[-1]),
            size=tuple(y.shape),
            dtype=y.dtype,
            device=y.device,
            entropy=drawn_seed(noise),
            levy_area_approximation=_AREA[self.method],
        )


class _Flattened(nn.Module):
    """The process as torchsde wants it: dy = -drift du + diffusion dw on (B, D), u = start - t."""

    noise_type = "diagonal"

    def __init__(self, process: Reverse, event: torch.Size, start: float, sde_type: str) -> None:
        super().__init__()
        self.process, self.event, self.start, self.sde_type = process, event, start, sde_type
        self.behind = nn.ModuleList(modules_of(process.score))  # so that the adjoint finds their parameters
        self._last: tuple[float, Tensor, bool, Tensor] | None = None

    def _t(self, u: Any) -> Tensor:
        return (self.start - torch.as_tensor(u, dtype=torch.float64)).to("cpu")

    def f(self, u: Any, y: Tensor) -> Tensor:
        # torchsde calls f once more before each interval, to look at its shape: that evaluation is kept and used.
        key = (float(u), y, torch.is_grad_enabled())
        if self._last is None or self._last[0] != key[0] or self._last[1] is not y or self._last[2] != key[2]:
            x = y.reshape(y.shape[0], *self.event)
            self._last = (*key, -self.process.drift(x, self._t(u)).reshape(y.shape))
        return self._last[3]

    def g(self, u: Any, y: Tensor) -> Tensor:
        # 0 * y keeps the graph that torchsde's adjoint differentiates
        return self.process.diffusion(self._t(u)) + 0 * y


def _shared_path(noise: BrownianNoise, x: Tensor, y: Tensor, grid: Tensor) -> Any:
    """Our path as one of torchsde's."""
    import torchsde

    start = grid[0].item()

    class Path(torchsde.BaseBrownian):
        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
            return noise.increment(x, start - float(ta), start - float(tb)).reshape(y.shape)

        def __repr__(self) -> str:
            return f"Path({noise!r})"

        dtype, device, shape = y.dtype, y.device, y.shape
        levy_area_approximation = "none"

        def size(self) -> torch.Size:
            return y.shape

    return Path()
