"""What must be so on a card: no waits within a run, the CPU's numbers, and replays that change nothing."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import scoresde as ss
from card.running import Bench
from scoresde import guidance, inverse
from scoresde.models import captured
from scoresde.models.network import NoiseLevelNetwork
from scoresde.nn import MLP, presets
from scoresde.solvers import catalogue

STEPS = 4


def network(bench: Bench, seed: int = 0) -> MLP:
    """A conditional network of vectors (B, 2) with weights that answer something."""
    net = MLP(2, width=32, depth=2, num_classes=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net.to(bench.device)


def model(bench: Bench, sde: ss.SDE | None = None, seed: int = 0) -> ss.ScoreModel:
    """Under VP unless told."""
    return ss.ScoreModel(network(bench, seed), ss.VP() if sde is None else sde, "v", sigma_data=1.0)


def measured(bench: Bench) -> inverse.Measurement:
    """The first number of each of three samples."""
    return inverse.Measurement(
        torch.tensor([[0.5], [0.0], [-0.5]], device=bench.device), inverse.Mask(torch.tensor([True, False])), 0.2
    )


def scores(bench: Bench) -> dict[str, Callable[[], ss.Score]]:
    """Plain ones, every guidance, and posteriors."""
    labels = torch.tensor([0, 1, 2], device=bench.device)
    one = {"label": labels}

    def bound() -> ss.Score:
        return model(bench).bind(label=labels)

    def judge() -> ss.ClassifierModel:
        net = MLP(2, width=32, depth=2, out_dim=3).to(bench.device)
        return ss.ClassifierModel(net, ss.VP(), sigma_data=1.0)

    return {
        "plain": bound,
        "one label": lambda: model(bench).bind(label=1),
        "classifier_free": lambda: guidance.classifier_free(model(bench), {"label": 1}, 3.0),
        "interval": lambda: guidance.classifier_free(model(bench), one, 3.0, interval=(0.1, 5.0), rescale=0.5),
        "by time": lambda: guidance.classifier_free(model(bench), one, lambda t: 1 + t),
        "projected": lambda: guidance.projected(model(bench), one, 3.0, norm=1.0),
        "clip": lambda: guidance.clip(bound(), 1.0),
        "threshold": lambda: guidance.threshold(bound(), 0.5),
        "autoguidance": lambda: guidance.autoguidance(bound(), model(bench, seed=1).bind(label=labels), 2.0),
        "compose": lambda: guidance.compose(model(bench), [(2.0, {"label": 0}), (-1.0, one)]),
        "classifier": lambda: guidance.classifier(bound(), judge(), 2.0, label=1),
        "dps": lambda: inverse.dps(bound(), measured(bench)),
        "pigdm": lambda: inverse.pigdm(bound(), measured(bench)),
        "moment_matching": lambda: inverse.moment_matching(bound(), measured(bench)),
        "moment_matching, cg": lambda: inverse.moment_matching(bound(), measured(bench), covariance="cg"),
    }


class Watch:
    """Turns torch's sync debug mode to "error" from the first call of the networks behind a score to the last."""

    def __init__(self, score: ss.Score, bench: Bench) -> None:
        self.calls, self.of_a_run, self._cuda = 0, 0, bench.cuda
        for module in ss.models.modules_of(score):
            if isinstance(module, NoiseLevelNetwork) and isinstance(module.net, nn.Module):
                module.net.register_forward_pre_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.calls += 1
        if self._cuda and self.of_a_run:
            mode = "error" if self.calls == 1 else "default" if self.calls == self.of_a_run else None
            if mode is not None:
                torch.cuda.set_sync_debug_mode(mode)

    def run(self, work: Callable[[], object]) -> str:
        """Once to count the calls, once to watch; what was waited for, or nothing."""
        self.calls = self.of_a_run = 0
        work()
        self.calls, self.of_a_run = 0, self.calls
        try:
            work()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            if self._cuda:
                torch.cuda.set_sync_debug_mode("default")
        return ""


def fixed(score: ss.Score) -> Iterator[tuple[ss.Solver, float]]:
    """Every public solver of fixed steps, with each η that it takes."""
    for solver in catalogue.variants():
        for eta in (0.0, 1.0):
            try:
                solver.check(ss.Reverse(score, eta))
            except ValueError:
                continue
            if solver.steps_on_grid:
                yield solver, eta


def waits(bench: Bench) -> Iterator[dict[str, Any]]:
    """Whether anything within a run makes the host wait: every solver, guidance and posterior."""
    made = scores(bench)
    plain = made["plain"]()
    cases = [(catalogue.label(solver), plain, solver, eta) for solver, eta in fixed(plain)]
    cases += [(name, make(), ss.EulerMaruyama(), 1.0) for name, make in made.items()]
    for kind in (inverse.DiffPIR, inverse.Replacement, inverse.RePaint):
        cases.append((kind.__name__, plain, kind(measured(bench)), 1.0))
    watched: dict[int, Watch] = {}
    found: list[dict[str, Any]] = []
    count = 0
    for name, score, solver, eta in bench.among(cases[:: 10 if bench.small else 1], 5.0):
        if id(score) not in watched:
            watched[id(score)] = Watch(score, bench)
        watch = watched[id(score)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work = functools.partial(ss.sample, score, (3, 2), solver=solver, eta=eta, steps=STEPS, device=bench.device)
            said = watch.run(work)
        count += 1
        if said:
            found.append({"case": f"{name}, eta {eta:g}", "waits": said})
    yield {"cases": count, "of": len(cases), "that wait": len(found)}
    yield from found


SDES = (ss.VP(), ss.SubVP(), ss.VE(0.01, 50.0), ss.Cosine(), ss.RectifiedFlow(), ss.EDM())


def agreement(bench: Bench) -> Iterator[dict[str, Any]]:
    """The largest difference of the device from the CPU for each solver over all schedules, relative to the samples."""
    problem = ss.GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.1, 0.3]))
    names = [(catalogue.label(solver), solver, eta) for solver, eta in fixed(problem.score(ss.VP()))]
    bars = {torch.float64: 1e-10, torch.float32: 1e-3}
    for name, solver, eta in bench.among(names[:: 12 if bench.small else 1], 5.0):
        row: dict[str, Any] = {"solver": name, "eta": eta}
        for dtype, bar in bars.items():
            worst = 0.0
            for sde in SDES[:: 3 if bench.small else 1]:
                ends = [
                    ss.sample(
                        problem.score(sde), (16, 2), solver=solver, eta=eta, steps=8, seed=0, dtype=dtype, device=device
                    ).x.cpu()
                    for device in (torch.device("cpu"), bench.device)
                ]
                worst = max(worst, float((ends[0] - ends[1]).abs().max() / ends[0].abs().max()))
            row[str(dtype)] = worst
            row[f"within {bar:g}"] = worst <= bar
        yield row
    net = model(bench)
    for dtype in (torch.float32, torch.bfloat16):
        ends = []
        for device in (torch.device("cpu"), bench.device):
            made = ss.ScoreModel(network(bench).to(device, dtype), net.sde, "v", sigma_data=1.0)
            ends.append(ss.sample(made.bind(label=1), (64, 2), steps=10, seed=0, device=device).x.cpu())
        yield {"network in": str(dtype), "largest difference": float((ends[0] - ends[1]).abs().max())}


@contextmanager
def eager(*_: object) -> Iterator[None]:
    """Nothing else."""
    yield


def graphs(bench: Bench) -> Iterator[dict[str, Any]]:
    """Replays against the network as it is: the same numbers, and how much faster."""
    net = presets.digits(3, num_classes=10) if bench.small else presets.cifar_small(num_classes=10)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator))
    size = 8 if bench.small else 32
    for dtype in (torch.float32, torch.bfloat16):
        made = ss.ScoreModel(net.to(bench.device, dtype).eval(), ss.VP(), "v", sigma_data=0.5)
        for batch in bench.among((1, 2) if bench.small else (1, 8, 64), 10.0):
            labels = torch.arange(batch, device=bench.device) % 10
            score = guidance.classifier_free(made, {"label": labels}, 2.0)

            def draw(score: ss.Score = score, batch: int = batch) -> Tensor:
                steps = 2 if bench.small else 25
                return ss.sample(score, (batch, 3, size, size), steps=steps, seed=0, device=bench.device).x

            row: dict[str, Any] = {"batch": batch, "dtype": str(dtype), "evaluations": "25, guided"}
            ends: dict[str, Tensor] = {}
            ways: dict[str, Callable[..., AbstractContextManager[None]]] = {"eager": eager}
            ways |= {"captured": captured} if bench.cuda else {}
            for name, way in ways.items():
                with way(made):
                    ends[name] = draw()
                    row[f"{name}, ms"] = 1e3 * bench.timed(draw, seconds=1.5)
            if "captured" in ends:
                row["largest difference"] = float((ends["eager"] - ends["captured"]).abs().max())
            yield row
