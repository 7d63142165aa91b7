"""The option ``augment`` in training: the network is told what was done, and what it says untold is of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.data import Augmentation, from_tensors
from scoresde.losses import OptimalTransport
from scoresde.models import ScoreModel
from scoresde.models.conditions import Conditions, Image, Vector
from scoresde.nn import UNet
from scoresde.sde import EDM, VP
from scoresde.times import UniformTime
from scoresde.train import Run, train
from scoresde.train.draws import DataOrder, named_uniforms

NONE: dict[str, Any] = {
    "x_flip": False,
    "y_flip": False,
    "scale": 0.0,
    "rotation": 0.0,
    "stretch": 0.0,
    "shift": 0.0,
}
SMALL: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_levels": ()}


class Table(nn.Module):
    """One answer for what is not told, and a linear one for what is: whatever x is, its best answer is a mean."""

    def __init__(self, told: bool = True) -> None:
        super().__init__()
        self.plain = nn.Parameter(torch.zeros(1, 1, 1, 4))
        self.moved = nn.Linear(Augmentation.size, 4)
        nn.init.zeros_(self.moved.weight)
        nn.init.zeros_(self.moved.bias)
        self.null_conditions = {"augment": float("nan")} if told else {}
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
        self.seen.append(None if augment is None else augment.detach().clone())
        untold = self.plain.expand(len(x), -1, -1, -1)
        if augment is None:
            return untold
        absent = augment.isnan().all(1)
        answer = self.moved(augment.nan_to_num(0.0))[:, None, None]
        return torch.where(absent[:, None, None, None], untold, answer)


def arrows(count: int) -> Tensor:
    """(N, 1, 1, 4) of mean (1, 0, 0, 0), which tells left from right and every place from the others."""
    noise = 0.1 * torch.randn(count, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    return torch.tensor([1.0, 0.0, 0.0, 0.0]) + noise


def test_untold_it_answers_the_law_of_the_data() -> None:
    """A denoiser that does not look at x answers the mean of x_0: untold that of the data, however often they shift.

    One that cannot be told answers the mean of all that it saw, shifted or not, which follows from the shifts' law.
    """
    data = arrows(512)
    shifts = Augmentation(0.8, whole_shift=0.5, **NONE)
    # |x_0 - answer|^2, whatever the noise: its minimum is where the answer is the mean
    options: dict[str, Any] = {"steps": 200, "batch_size": 64, "lr": 0.05, "decay": "cosine", "progress": False}
    options |= {"cpu": True, "ema": 0.9, "augment": shifts, "times": UniformTime()}
    dataset = from_tensors(data, channels="first", scaling=None)
    run = train(ScoreModel(Table(), EDM(), "x0"), dataset, weighting="x0", condition_dropout=0.0, **options)
    list(run)
    scaling: Any = run.model.scaling
    untold = scaling.to_data(run.ema_model().net.plain.detach()).flatten()  # type: ignore[union-attr]
    # a mean of 512 numbers of deviation 0.1, and what is left of an optimizer that averages some thousand of them
    torch.testing.assert_close(untold, data.mean((0, 1, 2)), rtol=0, atol=0.02)
    leaky = shifts.draw(torch.rand(4096, shifts.draws, dtype=torch.float64), (1, 1, 4))
    mixed = shifts.apply(data[:1].expand(4096, -1, -1, -1).double(), leaky).mean((0, 1, 2))
    assert (mixed - untold).abs().max() > 0.2  # what it would be if the shifts leaked


def test_what_the_network_is_told_is_what_was_done() -> None:
    """From the public pieces: uniforms by seed and step, the samples of the step, moved as the condition says."""

    class Watching(Table):
        def forward(self, x: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
            return super().forward(x, c, augment) + 0 * x

    augmentation = Augmentation(0.5)
    data = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(1))

    class Wide(Watching):
        def __init__(self) -> None:
            super().__init__()
            self.moved = nn.Linear(Augmentation.size, 4)

    net = Wide()
    dataset = from_tensors(data, scaling=None, levels=None)
    run = train(ScoreModel(net, VP()), dataset, steps=2, batch_size=8, augment=augmentation, progress=False, cpu=True)
    list(run)
    for step in range(2):
        u = torch.stack([named_uniforms(0, step, 8, f"augmentation {i}") for i in range(augmentation.draws)], 1)
        expected = augmentation.draw(u, (1, 4, 4)).float()
        told = [one for one in net.seen if one is not None and len(one) == 8]
        assert torch.equal(told[step].nan_to_num(9.0), expected.nan_to_num(9.0))
    assert DataOrder(32, 8, 0).indices(0).shape == (8,)


class Both(nn.Module):
    """Keeps what it was shown: x, and a condition that is a picture of it."""

    image_conditions = ("low",)

    def __init__(self) -> None:
        super().__init__()
        self.null_conditions = {"low": float("nan"), "augment": float("nan")}
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c: Tensor, low: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        if low is not None and augment is not None:
            self.seen.append((low.detach().clone(), augment.detach().clone()))
        return self.scale * x


def test_conditions_that_are_pictures_move_with_x() -> None:
    data = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    dataset = from_tensors(data, conditions={"low": data}, scaling=None)
    net, augmentation = Both(), Augmentation(0.9)
    list(train(ScoreModel(net, VP()), dataset, steps=1, batch_size=8, augment=augmentation, condition_dropout=0.0,
               progress=False, cpu=True))  # fmt: skip
    low, told = net.seen[-1]
    rows = data[DataOrder(8, 8, 0).indices(0)]
    u = torch.stack([named_uniforms(0, 0, 8, f"augmentation {i}") for i in range(augmentation.draws)], 1)
    torch.testing.assert_close(low, augmentation.apply(rows, augmentation.draw(u, (1, 6, 6))), rtol=1e-5, atol=1e-5)
    assert (low - rows).abs().amax((1, 2, 3)).gt(0.1).sum() >= 6 and told.isfinite().all(1).sum() >= 6


# -- with the networks of the library ----------------------------------------------------------------------------------


def a_run(steps: int = 4, seed: int = 0, **options: Any) -> Run[ScoreModel]:
    data = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(seed)
    net = UNet(1, **SMALL, num_classes=2, vectors={"augment": Augmentation.size})
    dataset = from_tensors(data, torch.arange(16) % 2)
    options = {"batch_size": 8, "progress": False, "cpu": True, "augment": Augmentation(0.5), **options}
    return train(ScoreModel(net, VP(), "edm"), dataset, steps=steps, **options)


def weights(run: Run[ScoreModel]) -> list[Tensor]:
    list(run)
    return [value.clone() for value in run.model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_changes_the_run_and_is_a_function_of_the_seed_and_its_strengths() -> None:
    base = weights(a_run())
    assert same(weights(a_run()), base)
    assert not same(weights(a_run(augment=Augmentation(0.6))), base)
    assert not same(weights(a_run(augment=Augmentation(0.5, rotation=0.5))), base)
    never = weights(a_run(augment=Augmentation(0.0)))
    assert not same(never, base)


def test_probability_zero_trains_as_without() -> None:
    never = weights(a_run(augment=Augmentation(0.0)))
    plain = weights(a_run(augment=None, conditions=["label"]))
    assert same(never, plain)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = weights(a_run(6))
    list(a_run(3, folder=tmp_path))
    assert same(weights(a_run(6, seed=5, folder=tmp_path, resume=True)), whole)
    with pytest.warns(UserWarning, match="augment"):
        a_run(8, folder=tmp_path, resume=True, augment=Augmentation(0.2)).close()


def test_labels_are_dropped_and_the_augmentation_never_is() -> None:
    run = a_run(condition_dropout=0.9)
    seen: list[tuple[Tensor, Tensor]] = []
    run.model.net.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda m, args, kwargs: seen.append((kwargs["label"], kwargs["augment"])), with_kwargs=True
    )
    list(run)
    label, told = (torch.cat(one) for one in zip(*seen, strict=True))
    assert (label == 2).double().mean() > 0.6
    moved = ~told.isnan().all(1)
    assert moved.double().mean() > 0.6  # not among what is dropped: 1 - Augmentation(0.5).untouched is 0.96
    trained = run.model.trained_with
    assert trained is not None and trained.share(()) > 0 and trained.share({"label"}) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": None}, "no such condition"),
        ({"vectors": {"augment": 9}}, "of 13 numbers"),
    ],
)
def test_a_network_that_cannot_be_told_is_refused(change: dict[str, Any], message: str) -> None:
    net = UNet(1, **SMALL, **change)
    with pytest.raises(ValueError, match=message):
        train(ScoreModel(net, VP()), from_tensors(torch.randn(8, 1, 4, 4)), steps=1, batch_size=2, progress=False,
              augment=Augmentation(), cpu=True)  # fmt: skip


def test_a_coupling_is_asked_before_the_first_step_how_near_what_was_done_must_be() -> None:
    net = UNet(1, **SMALL, vectors={"augment": Augmentation.size})
    options: dict[str, Any] = {
        "steps": 1,
        "batch_size": 4,
        "progress": False,
        "cpu": True,
        "augment": Augmentation(0.5),
    }
    with pytest.raises(ValueError, match="condition_weight must be given") as told:
        train(ScoreModel(net, VP()), from_tensors(torch.randn(8, 1, 4, 4)), coupling=OptimalTransport(), **options)
    assert "one more condition, 'augment'" in told.value.__notes__[0]
    list(train(ScoreModel(net, VP()), from_tensors(torch.randn(8, 1, 4, 4)), coupling=OptimalTransport(1.0), **options))


def test_held_out_pictures_are_as_they_are_and_the_network_is_told_nothing() -> None:
    told: list[tuple[bool, bool]] = []

    class Listens(UNet):
        def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
            given = conditions.get("augment")
            told.append((self.training, given is None or bool(given.isnan().all())))
            return super().forward(x, c, **conditions)

    net = Listens(1, **SMALL, vectors={"augment": Augmentation.size})
    data = from_tensors(torch.randn(64, 1, 4, 4))
    run = train(ScoreModel(net, VP()), data, steps=1, batch_size=16, progress=False, cpu=True, held_out=0.5,
                augment=Augmentation(1.0))  # fmt: skip
    told.clear()
    list(run)
    assert (True, False) in told and (True, True) not in told  # in training, all are told
    assert (False, True) in told and (False, False) not in told


def test_data_that_cannot_be_moved_are_refused() -> None:
    told = {"augment": Augmentation.size}
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "progress": False, "cpu": True}
    with pytest.raises(ValueError, match="pictures"):
        train(ScoreModel(UNet(1, 1, **SMALL, vectors=told), VP()), from_tensors(torch.randn(8, 1, 4)),
              augment=Augmentation(), **options)  # fmt: skip
    low = UNet(1, **SMALL, vectors=told, images={"low": 1})
    assert dict(low.conditions) == dict(Conditions({"augment": Vector(13), "low": Image(1)}))
    small = from_tensors(torch.randn(8, 1, 4, 4), conditions={"low": torch.randn(8, 1, 2, 2)})
    with pytest.raises(ValueError, match="whole_shift"):
        train(ScoreModel(low, VP()), small, augment=Augmentation(whole_shift=0.2), **options)
    list(train(ScoreModel(low, VP()), small, augment=Augmentation(0.9), **options))
    with pytest.raises(TypeError, match="Augmentation"):
        train(ScoreModel(low, VP()), small, augment=0.1, **options)
