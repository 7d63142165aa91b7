"""On a device without float64, as Apple's MPS is, schedules are worked out on the CPU: no float64 tensor is ever made
there, and what comes out is what the CPU computes. The device is a stand-in (:mod:`elsewhere`), for tests run
where there is none; what its kernels would round differently is not tested here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import MPS, OnDevice, device
from torch import Tensor, nn

from scoresde import losses
from scoresde.data import Scaling, from_tensors
from scoresde.guidance import classifier, classifier_free
from scoresde.likelihood import log_prob
from scoresde.models import ClassifierModel, ScoreModel
from scoresde.nn import MLP
from scoresde.sampling import sample
from scoresde.sde import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import catalogue
from scoresde.train import load_model, train
from scoresde.train.processes import Processes

IN_FLOAT64 = {"AdaptiveODE", "AdaptiveSDE", "ProbabilityFlow", "TorchSDE"}
"""Solvers that keep each sample's time beside it, or hand it to a library that does: they are refused there."""


def model(sde: Any = None, predicts: str = "v") -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(2, width=8, depth=1, num_classes=3)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    return ScoreModel(net, VP() if sde is None else sde, predicts, sigma_data=1.0)


def on_both(answer: Callable[[torch.device], Tensor]) -> tuple[Tensor, Tensor]:
    """What is computed on the CPU and on the device, the second brought back."""
    here = answer(torch.device("cpu")).detach()
    with device() as there:
        found = answer(there)
        assert isinstance(found, OnDevice)
        return here, found.detach().held


def test_the_stand_in_refuses_float64_and_tensors_of_two_devices() -> None:
    with device() as there:
        x = torch.ones(3, device=there, requires_grad=True)
        assert x.device == MPS and not x.is_cpu and (2 * x).sum().item() == 6
        (x * torch.tensor(2.0, dtype=torch.float64)).sum().backward()
        assert isinstance(x.grad, OnDevice) and torch.equal(x.grad.held, torch.full((3,), 2.0))
        for wide in (
            lambda: x.double(),
            lambda: torch.zeros(3, dtype=torch.float64, device=there),
            lambda: torch.tensor([1.0], dtype=torch.float64, device=there),
            lambda: torch.zeros(3, dtype=torch.float64).to(there),
            lambda: x.sum(dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="a device that has none"):
                wide()
        with pytest.raises(RuntimeError, match="tensors on mps and cpu"):
            x + torch.ones(3)
        assert x.cpu().double().dtype == torch.float64 and not isinstance(x.cpu(), OnDevice)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_the_loss_and_its_gradient(weighting: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 5, 2, generator=generator)
    t, label = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def answer(where: torch.device) -> Tensor:
        made = model().to(where)
        given = {"label": label.to(where)}
        loss = losses.dsm_loss(made, x.to(where), t, eps.to(where), weighting, conditions=given)
        loss.mean().backward()
        grads = [p.grad.flatten() for p in made.parameters() if p.grad is not None]
        return torch.cat([loss.detach(), *grads])

    here, there = on_both(answer)
    # the same float32 operations in the same order, but for foreach and fused kernels
    assert torch.allclose(here, there, rtol=1e-5, atol=1e-6 * float(here.abs().max()))


@pytest.mark.parametrize("kind", catalogue.classes(), ids=lambda kind: kind.__name__)
def test_each_solver_samples_there_or_says_that_it_needs_float64(kind: Any) -> None:
    def answer(where: torch.device) -> Tensor:
        score = model().to(where).bind(label=1)
        return sample(score, (3, 2), solver=kind(), steps=4, seed=0, device=where).x

    if kind.__name__ in IN_FLOAT64:
        with (
            device() as there,
            pytest.raises(ValueError, match="works in float64 on the device of x, and mps:0 has none"),
        ):
            answer(there)
        return
    here, there = on_both(answer)
    # float32 to a few roundings: in-place and fused kernels differ in their order
    assert torch.allclose(here, there, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(0.01, 50.0), Cosine(), RectifiedFlow(), EDM()], ids=str)
def test_the_default_sampler_under_each_schedule(sde: Any) -> None:
    here, there = on_both(lambda where: sample(model(sde).to(where).bind(label=1), (3, 2), steps=4, seed=0).x)
    assert torch.allclose(here, there, rtol=1e-4, atol=1e-4 * float(here.abs().max()))


def noisy_classifier() -> ClassifierModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ClassifierModel(MLP(2, width=8, depth=1, out_dim=3), VP())


def test_guidance() -> None:
    def both(where: torch.device) -> Tensor:
        free = classifier_free(model().to(where), {"label": 1}, scale=2.0)
        one = sample(free, (3, 2), steps=4, seed=0, device=where).x
        by = classifier(model().to(where).bind(label=0), noisy_classifier().to(where), scale=2.0, label=1)
        return torch.cat([one, sample(by, (3, 2), steps=4, seed=0, device=where).x])

    here, there = on_both(both)
    assert torch.allclose(here, there, rtol=1e-4, atol=1e-4)


def test_times_of_ones_own_may_lie_there() -> None:
    """One for each sample in float32 on the device: they are brought to the CPU and widened there."""
    x, t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.8])
    here, there = on_both(lambda where: model().to(where).bind(label=1)(x.to(where), t.to(where)))
    assert torch.allclose(here, there, rtol=1e-5, atol=1e-5)


def test_units_of_data_and_conditions() -> None:
    scaling = Scaling(torch.tensor([5.0, -2.0]), torch.tensor([3.0, 0.5]))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for convert in (scaling.to_model, scaling.to_data):
        here, there = on_both(lambda where, convert=convert: convert(x.to(where)))  # type: ignore[misc]
        assert torch.equal(here, there)
    with device() as where:  # float32 cannot hold these: they come back in main memory
        far = Scaling(1e9, 1.0).to_data(x.to(where))
        assert far.dtype == torch.float64 and far.device.type == "cpu"


def test_what_needs_float64_says_so() -> None:
    with device() as there:
        with pytest.raises(ValueError, match=r"torchdiffeq works in float64.*mps:0 has none"):
            log_prob(model().to(there).bind(label=1), torch.zeros(2, 2, device=there))
        with pytest.raises(ValueError, match="σ/α above 1e4"):
            sample(model(VE(0.01, 1e6)).to(there).bind(label=1), (2, 2), steps=4, seed=0)


def test_training_there_is_training_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(24, 2, generator=generator), 1000 + 50 * torch.randn(24, 3, generator=generator)
    data = from_tensors(x, torch.arange(24) % 3, conditions={"v": v})
    options: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "flip": True, "accumulate": 2}

    def made() -> ScoreModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ScoreModel(MLP(2, width=8, depth=1, num_classes=3, vectors={"v": 3}), VP(), "v", sigma_data=1.0)

    run = train(made(), data, folder=tmp_path / "cpu", cpu=True, **options)
    here = [step.loss for step in run]

    class There(Processes):
        def __init__(self, cpu: bool) -> None:
            super().__init__(cpu)
            self.device = MPS

    monkeypatch.setattr("scoresde.train.loop.Processes", There)
    with device():
        run = train(made(), data, folder=tmp_path / "there", save_every=2, **options)
        there = [step.loss for step in run]
        assert all(isinstance(p.data, OnDevice) for p in run.model.parameters())
    # the same float32 operations, but for the optimizer's kernels
    assert there == pytest.approx(here, rel=1e-4)
    one, other = (load_model(tmp_path / name) for name in ("cpu", "there"))
    for name, value in one.state_dict().items():
        # Adam's first steps magnify small gradients to the size of lr = 1e-3
        assert torch.allclose(value, other.state_dict()[name], atol=1e-5), name
