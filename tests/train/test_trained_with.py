"""What a network was trained with is known to its model and its checkpoints; guidance says what was never trained."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import CLASSES, mlp, points, trained
from torch import Tensor, nn

from scoresde.data import Scaling, from_tensors
from scoresde.guidance import autoguidance, classifier_free, compose, projected
from scoresde.models import ScoreModel
from scoresde.models.conditions import TrainedWith
from scoresde.nn import MLP
from scoresde.sde import EDM, VP
from scoresde.train import CheckpointError, describe, load_model, save, train
from scoresde.train.draws import seeded
from scoresde.train.folder import sealed

LABEL = {"label": torch.tensor([1])}
V = {"v": torch.zeros(1, 3)}


def both(*, absent: bool = False) -> Any:
    data, generator = points(), torch.Generator().manual_seed(1)
    v = torch.randn(len(data), 3, generator=generator)
    if absent:
        v[::4] = torch.nan  # a quarter is not given
    return from_tensors(data.data, data.label, conditions={"v": v}, num_classes=CLASSES, scaling=Scaling(0.0, 1.0))


def several() -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        return ScoreModel(MLP(2, width=8, depth=1, num_classes=CLASSES, vectors={"v": 3}), VP())


def model(dataset: Any = None, **options: Any) -> ScoreModel:
    run = trained(several(), both() if dataset is None else dataset, **{"steps": 1, **options})
    found: ScoreModel = run.ema_model()
    return found


@contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- the probabilities -------------------------------------------------------------------------------------------------


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, k) for k in range(len(names) + 1))


@pytest.mark.parametrize("dropout", [0.0, 0.3, {"label": 0.3}, {"label": 0.3, "v": 0.4}, {}])
def test_the_share_of_what_was_given_is_what_training_did(dropout: Any) -> None:
    """Over all sets they sum to 1, and they are the frequencies with which the network was called."""
    names = ("label", "v")

    class Counts(nn.Module):
        null_conditions = {"label": CLASSES, "v": float("nan")}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor, c: Tensor, label: Tensor, v: Tensor) -> Tensor:
            self.seen.append(torch.stack([label != CLASSES, ~v.isnan().all(1)], 1))
            return self.weight * x

    net = Counts()
    run = train(ScoreModel(net, VP()), both(), steps=20, batch_size=100, condition_dropout=dropout, progress=False)
    net.seen.clear()
    list(run)
    told = run.model.trained_with
    assert told is not None
    seen = torch.cat(net.seen)
    shares = {given: told.share(given) for given in subsets(names)}
    assert sum(shares.values()) == pytest.approx(1, rel=1e-12)
    for given, share in shares.items():
        wanted = torch.tensor([name in given for name in names])
        frequency = (seen == wanted).all(1).double().mean().item()
        # five standard deviations of a binomial share of 2000; none at all where it must not occur
        assert abs(frequency - share) <= 5 * (share * (1 - share) / len(seen)) ** 0.5
    assert told.share(("label", "other")) == 0


# -- who says what -----------------------------------------------------------------------------------------------------


def guide(given: Mapping[str, Any], scale: Any = 3.0, **options: Any) -> Callable[[ScoreModel], Any]:
    return lambda made: classifier_free(made, given, scale, **options)


@pytest.mark.parametrize(
    ("dropout", "ask", "message"),
    [
        (
            0.0,
            guide({**LABEL, **V}),
            r"classifier_free asks .*without 'label' and 'v', which it was always given.*0\.1",
        ),
        (0.0, guide({**LABEL, **V}, 0.0), "without 'label' and 'v'"),
        (0.0, guide({**LABEL, **V}, lambda t: 2.0), "without 'label' and 'v'"),
        (0.0, guide({**LABEL, **V}, 1.0, interval=(0.1, 1.0)), "without 'label' and 'v'"),
        (0.0, lambda made: projected(made, {**LABEL, **V}, 3.0), "projected asks .*without 'label' and 'v'"),
        (0.0, lambda made: compose(made, [(2.0, {**LABEL, **V})]), "compose asks .*without 'label' and 'v'"),
        (0.0, guide({**LABEL, **V}, negative=V), "without 'label', "),
        (0.0, lambda made: made.bind(**V), "bind asks .*without 'label'"),
        (0.0, lambda made: made.bind(), "without 'label' and 'v'"),
        (0.0, lambda made: made.bind(label=CLASSES, **V), "without 'label'"),  # the null itself
        (0.0, lambda made: made.bind(label=torch.tensor([CLASSES, CLASSES]), **V), "without 'label'"),
        (0.0, lambda made: made.bind(**LABEL, v=torch.full((1, 3), torch.nan)), "without 'v'"),
        (0.0, guide({**LABEL, "v": torch.full((1, 3), torch.nan)}, 1.0), "without 'v'"),
        (0.0, lambda made: made(torch.zeros(1, 2), torch.tensor(0.5)), "ScoreModel asks .*without 'label' and 'v'"),
        (0.0, lambda made: made.under(EDM(t_min=0.1, T=10.0)).bind(), "without 'label' and 'v'"),
        ({"label": 0.1}, guide({**LABEL, **V}), r"without 'v', .*\{'v': 0\.1"),
        ({"label": 0.1}, guide(LABEL), "without 'v'"),
        (0.1, guide(LABEL), r"with 'label' alone, .*'label' and 'v' were left out together .*each on its own"),
        (0.1, lambda made: compose(made, [(1.0, LABEL), (1.0, V)]), "with 'label' alone"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*runs over log-SNR", "ignore:compose asks the network with 'v' alone")
def test_what_was_never_trained_is_said(dropout: Any, ask: Callable[[ScoreModel], Any], message: str) -> None:
    made = model(condition_dropout=dropout)
    with pytest.warns(UserWarning, match=message) as caught:
        ask(made)
    if "ScoreModel" not in message:
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("dropout", "ask"),
    [
        (0.0, guide({**LABEL, **V}, 1.0)),
        (0.0, guide({**LABEL, **V}, negative={"label": 0, **V})),
        (0.0, guide({**LABEL, **V}, null={"label": 0, "v": torch.ones(3)})),  # the caller's own word for it
        (0.0, lambda made: made.bind(**LABEL, **V)),
        (0.1, guide({**LABEL, **V})),
        (0.1, lambda made: made.bind()),
        (0.1, lambda made: made(torch.zeros(1, 2), torch.tensor(0.5))),
        (None, guide({**LABEL, **V})),
        ({"label": 0.1, "v": 0.2}, guide(LABEL)),
        ({"label": 0.1, "v": 0.2}, guide({**LABEL, **V})),
        ({"label": 0.1, "v": 0.2}, lambda made: compose(made, [(1.0, LABEL), (1.0, V)])),
        ({"label": 0.1, "v": 0.2}, lambda made: made.bind(**V)),
    ],
)
def test_what_was_trained_needs_no_word(dropout: Any, ask: Callable[[ScoreModel], Any]) -> None:
    made = model(condition_dropout=dropout)
    with silent():
        ask(made)


def test_what_is_not_known_is_not_judged() -> None:
    made = several()
    assert made.trained_with is None
    with silent():
        classifier_free(made, {**LABEL, **V}, 3.0)
        made.bind()
        foreign = ScoreModel(nn.Bilinear(2, 1, 2), VP())
        foreign.net.null_conditions = {"label": 0}  # type: ignore[union-attr, assignment]
    always = model(condition_dropout=0.0)
    with silent():
        autoguidance(always.bind(**LABEL, **V), always.bind(**LABEL, **V), 2.0)


def test_conditions_that_were_not_in_training_are_named() -> None:
    made = model(conditions=["label"])
    with pytest.warns(
        UserWarning, match=r"with 'v', which it never was .*given \['label'\].*conditions=\['label', 'v'\]"
    ):
        made.bind(**LABEL, **V)
    with silent():
        made.bind(**LABEL)
        classifier_free(made, LABEL, 3.0)
    with pytest.warns(UserWarning, match=r"with 'label', which .*given no condition"):
        model(conditions=[]).bind(**LABEL)


def test_what_the_data_do_not_give_was_trained_as_well() -> None:
    made = model(both(absent=True), condition_dropout=0.0)
    with silent():
        made.bind(**LABEL)
    with pytest.warns(UserWarning, match="without 'label'"):
        made.bind(**V)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_knows_and_hands_it_on(tmp_path: Path) -> None:
    for i, dropout in enumerate((0.0, 0.2, {"label": 0.1})):
        folder = tmp_path / str(i)
        told = model(condition_dropout=dropout, folder=folder).trained_with
        assert told is not None and describe(folder).trained_with == told == load_model(folder).trained_with
        save(folder / "again", load_model(folder), step=7)
        assert load_model(folder / "again", ema=False).trained_with == told
        resumed = train(several(), both(), steps=2, batch_size=8, folder=folder, resume=True, progress=False, ema=0.9,
                        condition_dropout=dropout)  # fmt: skip
        assert resumed.model.trained_with == told
    with pytest.warns(UserWarning, match="always given"):
        classifier_free(load_model(tmp_path / "0"), {**LABEL, **V}, 3.0)


def _edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (config,) = folder.glob("*/config.json")
    content = json.loads(config.read_text())
    change(content)
    config.write_text(json.dumps(sealed(content)))


def test_a_checkpoint_of_before_says_nothing_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    for i, bad in enumerate(
        [3, [], {}, {"conditions": "label", "dropout": {}, "together": True},
         {"conditions": ["label"], "dropout": {"v": 0.1}, "together": True},
         {"conditions": ["label"], "dropout": {"label": 2.0}, "together": True},
         {"conditions": ["label"], "dropout": {"label": "0.1"}, "together": True},
         {"conditions": ["label"], "dropout": {}, "together": "no"}]
    ):  # fmt: skip
        folder = tmp_path / str(i)
        trained(folder=folder, steps=1)
        _edited(folder, lambda content, bad=bad: content.update(trained_with=bad))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match="trained_with"):
            load_model(folder)
    _edited(tmp_path / "0", lambda content: content.pop("trained_with"))
    with silent():
        made = load_model(tmp_path / "0")
        assert made.trained_with is None
        classifier_free(made, LABEL, 3.0)


def test_labels_that_the_network_does_not_have_are_refused_where_they_are_bound() -> None:
    made = mlp()
    for bad in (CLASSES + 2, -1, torch.tensor([0, CLASSES + 2])):
        for attempt in (lambda: made.bind(label=bad), lambda: classifier_free(made, {"label": bad}, 2.0)):  # noqa: B023
            with pytest.raises(ValueError, match=f"run from .* for {CLASSES} classes"):
                attempt()
    made.bind(label=CLASSES), made.bind(label=torch.tensor(0))


def test_json_and_back() -> None:
    for told in (
        TrainedWith.of(["a", "b"], 0.5, ["a"]), TrainedWith.of(["a", "b"], {"a": 0.5, "b": 0.0}, ["a"]),
        TrainedWith.of([], 0.0, []),
    ):  # fmt: skip
        assert TrainedWith.from_json(json.loads(json.dumps(told.to_json()))) == told
