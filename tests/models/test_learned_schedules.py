"""Schedules that are learned: their parameters are the model's, in gradients, moves, copies and checkpoints."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import scoresde as ss
from scoresde.data import from_tensors
from scoresde.likelihood import log_prob
from scoresde.nn import MLP
from scoresde.sde import SDE, VP, ScheduleSDE
from scoresde.solvers import ProbabilityFlow
from scoresde.train import CheckpointError, TrainOptions, load_model, train

F64 = torch.float64


class Learned(SDE, nn.Module):
    """log-SNR from ``high`` down to ``high`` - softplus(``width``)."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.high, self.width = (nn.Parameter(torch.tensor(value, dtype=F64)) for value in (8.0, 16.0))

    def level(self, t: Tensor) -> Tensor:
        return self.high - nn.functional.softplus(self.width) * t

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.level(t).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (-self.level(t)).sigmoid().sqrt()


class Part(nn.Module):
    """The same as a function of time."""

    def __init__(self, width: nn.Parameter, sign: float) -> None:
        super().__init__()
        self.width, self.sign = width, sign

    def forward(self, t: Tensor) -> Tensor:
        return (self.sign * (8.0 - nn.functional.softplus(self.width) * t)).sigmoid().sqrt()


def of_functions() -> ScheduleSDE:
    width = nn.Parameter(torch.tensor(16.0, dtype=F64))
    return ScheduleSDE(Part(width, 1.0), Part(width, -1.0))


@dataclass(frozen=True)
class Held(SDE):
    """A module in a field."""

    level: nn.Module

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.level(t)

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (1 - self.level(t) ** 2).sqrt()


WAYS: dict[str, Callable[[], SDE]] = {
    "module": Learned,
    "parameter": lambda: VP(nn.Parameter(torch.tensor(0.1, dtype=F64)), 20.0),  # type: ignore[arg-type]
    "functions": of_functions,
    "field": lambda: Held(Part(nn.Parameter(torch.tensor(16.0, dtype=F64)), 1.0)),
}
NAMES = {
    "module": ["sde.high", "sde.width"],
    "parameter": ["learned.beta_min"],
    "functions": ["learned.alpha.width"],  # shared by both, and listed once
    "field": ["learned.level.width"],
}


def model(way: str, *, dtype: torch.dtype = F64) -> ss.ScoreModel:
    torch.manual_seed(0)
    return ss.ScoreModel(MLP(2, width=16, depth=1).to(dtype), WAYS[way](), "v")


def learned(one: ss.ScoreModel) -> dict[str, nn.Parameter]:
    return {name: value for name, value in one.named_parameters() if not name.startswith("net.")}


def loss(one: ss.ScoreModel) -> Tensor:
    random = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(16, 2, generator=random, dtype=F64) for _ in range(2))
    t = torch.linspace(0.1, 0.9, 16, dtype=F64)
    return ss.dsm_loss(one, x0, t, eps).mean()


@pytest.mark.parametrize("way", WAYS)
def test_its_parameters_are_the_models_and_have_the_right_gradient(way: str) -> None:
    one = model(way)
    with torch.no_grad():  # the last layer of a fresh network is 0, and its answer depends on nothing
        for value in one.net.parameters():  # type: ignore[union-attr]
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2), dtype=F64))
    own = learned(one)
    assert list(own) == NAMES[way] and set(own) <= set(one.state_dict())
    loss(one).backward()
    for value in own.values():
        assert value.grad is not None and value.grad != 0
        with torch.no_grad():
            ends = []
            for step in (1e-4, -2e-4):
                value += step
                ends.append(loss(one).item())
            value += 1e-4
        # central difference: an error of h² times the third derivative, and of rounding / h
        assert value.grad.item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_copies_and_moves_take_the_schedule_along(way: str) -> None:
    one = model(way)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        before = one.sde.alpha(0.5).item()
        with torch.no_grad():
            for value in learned(other).values():
                value += 0.5
        assert one.sde.alpha(0.5).item() == before != other.sde.alpha(0.5).item()
        other.load_state_dict(one.state_dict())
        assert other.sde.alpha(0.5).item() == before
    assert {value.dtype for value in learned(one.float()).values()} == {torch.float32}
    assert one.sde.alpha(torch.tensor(0.5, dtype=F64)).dtype == F64  # schedule arithmetic stays wide
    assert not any(value.requires_grad for value in learned(one.requires_grad_(False)).values())


@pytest.mark.parametrize("bases", [(SDE, nn.Module), (nn.Module, SDE)])
def test_a_module_says_where_its_time_ends(bases: tuple[type, ...]) -> None:
    def __init__(self: object) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self.T, self.t_min = 2, 0.01  # type: ignore[attr-defined]
        self.high, self.width = nn.Parameter(torch.tensor(8.0)), nn.Parameter(torch.tensor(4.0))  # type: ignore[attr-defined]

    names = ("level", "alpha", "sigma")
    sde = type("Ended", bases, {"__init__": __init__, **{name: vars(Learned)[name] for name in names}})()
    assert (sde.T, sde.t_min) == (2.0, 0.01) and len(list(sde.parameters())) == 2
    assert copy.deepcopy(sde).T == 2.0 and sde.alpha(1.9) < sde.alpha(0.1)
    for name, value in (("T", 0.0), ("T", float("inf")), ("t_min", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(sde, name, value)
    with pytest.raises(AttributeError, match="cannot assign to field 'T'"):
        VP().T = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_the_network_alone(way: str, dtype: torch.dtype) -> None:
    one = model(way)
    before = one.sde.alpha(0.5).item()
    nn.Sequential(one).to(dtype)  # type: ignore[arg-type]
    assert one.dtype == dtype and {value.dtype for value in learned(one).values()} == {torch.float32}
    assert one.sde.alpha(0.5).item() == pytest.approx(before, rel=1e-6)  # one rounding to float32


def test_two_modules_are_two_schedules() -> None:
    one, other = Learned(), Learned()
    assert one == one and one != other and len({one, other}) == 2
    assert "_parameters" in vars(one)

    @dataclass(frozen=True)
    class Both(SDE, nn.Module):
        level: nn.Module

        def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return self.level(t)

        sigma = alpha

    with pytest.raises(TypeError, match=r"leave nn\.Module out, .* or leave @dataclass out"):
        Both(nn.Identity())


def run(folder: Path, way: str, steps: int, *, resume: bool = False) -> ss.ScoreModel:
    data = from_tensors(torch.randn(40, 2, generator=torch.Generator().manual_seed(3)))
    one = model(way, dtype=torch.float32)
    options = TrainOptions(
        steps=6,
        batch_size=8,
        lr=0.05,
        warmup=0,
        decay="constant",
        save_every=3,
        folder=folder,
        resume=resume,
        progress=False,
    )
    going = train(one, data, options)
    for _ in going:
        if going.step == steps:
            break
    going.close()
    return one


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_hold_what_was_learned_and_go_on_from_it(way: str, tmp_path: Path) -> None:
    trained = run(tmp_path / "whole", way, 6)
    moved = {name: value.item() for name, value in learned(trained).items()}
    assert all(value != learned(model(way))[name].item() for name, value in moved.items())
    if way == "parameter":  # made of numbers: rebuilt from the file alone
        loaded = load_model(tmp_path / "whole", ema=False)
        assert isinstance(loaded.sde.beta_min, nn.Parameter)  # type: ignore[attr-defined]
    else:
        with pytest.raises(CheckpointError, match="an SDE of its own"):
            load_model(tmp_path / "whole")
        loaded = load_model(tmp_path / "whole", sde=WAYS[way](), ema=False)
    assert {name: value.item() for name, value in learned(loaded).items()} == moved
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(loaded(x, 0.4), trained.eval()(x, 0.4))
    averaged = load_model(tmp_path / "whole", sde=WAYS[way]())
    assert {name: value.item() for name, value in learned(averaged).items()} != moved
    # stopped in the middle, and gone on with from a fresh model
    run(tmp_path / "parts", way, 3)
    again = run(tmp_path / "parts", way, 6, resume=True)
    assert {name: value.item() for name, value in learned(again).items()} == moved


@pytest.mark.parametrize("way", ["module", "parameter"])
def test_the_adjoint_reaches_it(way: str) -> None:
    one, x = model(way), torch.tensor([[0.3, -0.4]], dtype=F64)
    gradients = []
    for adjoint in (False, True):
        solver = ProbabilityFlow(rtol=1e-5, atol=1e-5, adjoint=adjoint)
        value = log_prob(one, x, "exact", solver=solver, differentiable=True).sum()
        gradients.append(torch.autograd.grad(value, list(learned(one).values())))
    for direct, other in zip(*gradients, strict=True):
        # two solves of the tolerance 1e-5, whose errors some tens of steps add up
        torch.testing.assert_close(direct, other, rtol=2e-3, atol=5e-4)


def test_all_parts_that_a_file_does_not_rebuild_are_named_at_once(tmp_path: Path) -> None:
    one = ss.ScoreModel(nn.Linear(2, 2), Learned(), "v")
    one.save_pretrained(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"a network .*Linear, and an SDE .*Learned, .*: net=Linear\(...\), sde="):
        load_model(tmp_path / "own")
