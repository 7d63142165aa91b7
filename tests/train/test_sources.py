"""What can be trained on besides a map data set: iterables, DataLoaders, Hugging Face's data sets; each against what
the same samples do by other ways."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_train import CLASSES, mlp, points, weights
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from scoresde.data import Scaling, from_huggingface, from_tensors
from scoresde.models import ScoreModel
from scoresde.nn import MLP
from scoresde.sde import VP
from scoresde.train import describe, load_model, train, train_classifier
from scoresde.train.streams import Passes, StepReader

OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 6, "progress": False, "ema": 0.9, "cpu": True}
DATA = points(16)


def trained(data: Any, model: ScoreModel | None = None, **options: Any) -> ScoreModel:
    run = train(mlp() if model is None else model, data, **{**OPTIONS, **options})
    for _ in run:
        pass
    return run.model


class Seen(nn.Module):
    """Remembers x (almost: at t near 0 under a schedule without noise it would be) and the labels it was given."""

    null_conditions = {"label": CLASSES}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.labels: list[int] = []

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        if self.training:
            self.labels += label.tolist()
        return self.weight * x


def labels_seen(data: Any, **options: Any) -> list[int]:
    """The labels that training met, in their order, without dropping any: they tell which samples came when."""
    net = Seen()
    trained(data, ScoreModel(net, VP()), condition_dropout=0.0, **options)
    return net.labels


def numbered(count: int = 16) -> Iterator[dict[str, Any]]:
    """Samples whose labels tell which they are, modulo the classes."""
    for i in range(count):
        yield {"x": torch.full((2,), 0.1 * i), "label": i % CLASSES}


class Stream(IterableDataset[dict[str, Any]]):
    """A user's own; the pass is told by ``set_epoch`` and shifts the samples."""

    def __init__(self, count: int = 16) -> None:
        self.count, self.epoch, self.starts = count, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.starts += 1
        for i in range(self.count):
            yield {"x": torch.full((2,), 0.1 * i), "label": (i + self.epoch) % CLASSES}


def drawing() -> Iterator[dict[str, Any]]:
    """Draws from all three default generators, as augmentations do."""
    for _ in range(10):
        noise = torch.randn(2) + random.random() + float(np.random.standard_normal())  # noqa: NPY002
        yield {"x": 0.3 * noise, "label": int(torch.randint(CLASSES, ()))}


# -- iterables ---------------------------------------------------------------------------------------------------------


def test_samples_of_an_iterable_are_taken_in_order_across_the_ends_of_passes() -> None:
    """24 samples of a stream of 16, and the trial of the first alone before them."""
    wanted = [i % 16 % CLASSES for i in range(24)]
    assert labels_seen(numbered) == wanted
    assert labels_seen(functools.partial(numbered, 16)) == wanted
    assert labels_seen(numbered, accumulate=3) == wanted
    shifted = [(i % 16 + i // 16) % CLASSES for i in range(24)]
    assert labels_seen(Stream()) == shifted


def test_an_iterable_is_a_map_data_set_in_the_same_order() -> None:
    """A list trained on as a stream, and the DataLoader over it: the same weights to the last bit."""
    samples = list(numbered())

    def again() -> Iterator[dict[str, Any]]:
        return iter(samples)

    expected = weights(trained(again))
    assert torch.equal(weights(trained(again, num_workers=1)), expected)
    assert torch.equal(weights(trained(DataLoader(samples, batch_size=6))), expected)  # type: ignore[arg-type]
    assert torch.equal(weights(trained(DataLoader(samples, batch_size=4), batch_size=6)), expected)  # type: ignore[arg-type]
    assert torch.equal(weights(trained(DataLoader(samples, batch_size=3, num_workers=1), batch_size=6)), expected)  # type: ignore[arg-type]
    assert torch.equal(weights(trained(DataLoader(Stream(), batch_size=None))), weights(trained(Stream())))


SOURCES: dict[str, Callable[[], Any]] = {
    "a generator function": lambda: drawing,
    "an IterableDataset": Stream,
    "a DataLoader that shuffles": lambda: DataLoader(list(numbered()), batch_size=6, shuffle=True),  # type: ignore[arg-type]
    "a DataLoader with a generator": lambda: DataLoader(
        list(numbered()),  # type: ignore[arg-type]
        batch_size=6,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    ),
    "a stream of datasets": lambda: hf_table().to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=5),
}
NAMES = {"a stream of datasets": {"x": "point", "label": "kind"}}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_resumed_run_takes_the_samples_of_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    options = {"columns": NAMES.get(kind), "save_every": 2, "folder": tmp_path, "steps": 7}
    expected = weights(trained(SOURCES[kind](), **{**options, "folder": None, "save_every": None}))
    run = train(mlp(), SOURCES[kind](), **{**OPTIONS, **options})
    for step in run:
        if step.step == 4:
            break
    run.close()
    assert torch.equal(weights(trained(SOURCES[kind](), mlp(seed=5), resume=True, **options)), expected)
    # and in the same process, closed and iterated again
    run = train(mlp(), SOURCES[kind](), **{**OPTIONS, **options, "folder": None, "save_every": None})
    for step in run:
        if step.step in (1, 4):
            run.close()
    assert torch.equal(weights(run.model), expected)


def test_a_worker_makes_no_difference_and_default_generators_are_left_alone() -> None:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    expected = weights(trained(drawing))
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    torch.manual_seed(7)
    assert torch.equal(weights(trained(drawing, num_workers=1)), expected)
    assert not torch.equal(weights(trained(drawing, seed=1)), expected)


def test_an_interrupted_step_is_done_again_with_its_samples() -> None:
    class Failing(Stream):
        left = 10

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for sample in super().__iter__():
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
                yield sample

    run = train(mlp(), Failing(), **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert run.step == 1 and len(list(run)) == 3
    assert torch.equal(weights(run.model), weights(trained(Stream())))


def test_a_stream_is_not_begun_anew_for_each_session() -> None:
    stream = Stream()
    run = train(mlp(), stream, **OPTIONS)
    before = stream.starts
    for _ in run:
        run.close()
    assert stream.starts == before + 2  # 24 samples of 16


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "a generator": (numbered, {}, "can be gone through once only.*Give the function"),
    "an iterator": (lambda: iter(list(numbered())), {}, "can be gone through once only"),
    "an iterator hidden in a function": (lambda: (lambda it: lambda: it)(numbered()), {}, "gave no sample.*once only"),
    "an empty one": (lambda: lambda: iter(()), {}, "the data set is empty"),
    "a function with arguments": (lambda: lambda folder: [], {}, "needs folder.*functools.partial"),
    "a function of numbers": (lambda: lambda: 3, {}, "must return an iterable of samples.* returned 3"),
    "tensors": (lambda: lambda: iter([torch.zeros(2)]), {}, "first sample must be a dict with a tensor 'x'"),
    "tuples": (lambda: lambda: iter([(torch.zeros(2), 1)]), {}, r'a tuple of 2.*columns=\{"x": 0, "label": 1\}'),
    "other names": (lambda: lambda: iter([{"pixels": 1}]), {}, r"mapping with 'pixels'.*columns=\{\"x\": 'pixels'"),
    "two workers": (lambda: numbered, {"num_workers": 2}, "one worker reads"),
    "workers beside a loader's": (lambda: DataLoader(DATA, 6), {"num_workers": 1}, "workers of its own"),
    "no such column": (lambda: numbered, {"columns": {"x": "image"}}, "'image' for x.*mapping with 'x', 'label'"),
    "no such position": (lambda: TensorDataset(DATA.data), {"columns": {"x": 1}}, "takes 1 for x.*a tuple of 1"),
    "columns of ours": (lambda: DATA, {"columns": {"x": "x"}}, "columns cannot be given with a scoresde.data.Dataset"),
    "scaling of ours": (lambda: DATA, {"scaling": Scaling(0.0, 1.0)}, "scaling cannot be given"),
    "tuples with positions": (lambda: [(torch.zeros(2), 1)], {}, r'a tuple of 2.*columns=\{"x": 0, "label": 1\}'),
    "lists of numbers": (lambda: [{"x": [0.0, 1.0], "label": 0}], {}, r'x\' of type list.*columns=\{"x": "x"'),
    "a loader hidden in a function": (lambda: lambda: DataLoader(DATA, 6), {}, "give the DataLoader itself"),
    "a loader without a whole batch": (
        lambda: DataLoader(DATA, 30, drop_last=True),
        {},
        "DataLoader gave no batch. drop_last=True",
    ),
    "a scaling beside one that is told": (
        lambda: DataLoader(DATA, 6),
        {"scaling": Scaling(0.0, 2.0)},
        "tells of a scaling of its own",
    ),
    "parts in different units": (
        lambda: ConcatDataset([DATA, from_tensors(9 * DATA.data + 3, DATA.label)]),
        {},
        "parts of a ConcatDataset tell of different scaling",
    ),
    "different samples": (
        lambda: lambda: iter([{"x": torch.zeros(2), "label": 0}, {"x": torch.zeros(3), "label": 0}]),
        {},
        "samples of step 1 do not make a batch",
    ),
    "a batch of a loader with texts": (
        lambda: DataLoader([{"x": torch.zeros(2), "label": "a"}], batch_size=1),  # type: ignore[arg-type]
        {},
        "label of the first batch must be numbers or a picture, got .*'a'",
    ),
    "levels out of range": (
        lambda: lambda: iter([{"x": torch.tensor([0, 9]), "label": 0}]),
        {"scaling": Scaling.to_unit_range(5)},
        r"one of 5 levels.*got values in \[0, 9\]",
    ),
    "a scaling of another shape": (
        lambda: numbered,
        {"scaling": Scaling(torch.zeros(3), torch.ones(3))},
        "does not broadcast to a sample",
    ),
    "a splits' dict": (
        lambda: datasets.DatasetDict(train=hf_table(), test=hf_table()),
        {},
        r"holds several data sets, 'train', 'test': give one of them, dataset\['train'\]",
    ),
    "x unsaid": (lambda: hf_images(), {}, r'\'digit\'.*columns=\{"x": "picture", "label": "digit"\}'),
    "a column missing": (lambda: hf_images(), {"columns": {"x": "image"}}, "takes 'image'.*has the columns 'picture'"),
    "a stream's column": (
        lambda: hf_table().to_iterable_dataset(),
        {"columns": {"x": "nothing"}},
        "takes 'nothing'.*has the columns 'point'",
    ),
    "texts": (lambda: hf_table(), {"columns": {"x": "point", "label": "name"}}, "column 'name' must hold numbers"),
    "nulls": (
        lambda: datasets.Dataset.from_dict({"x": [[1.0, None], [2.0, 3.0]]}),
        {},
        "NaN or infinite",
    ),
    "rows of two lengths": (
        lambda: datasets.Dataset.from_dict({"x": [[1.0], [2.0, 3.0]]}),
        {},
        "rows of column 'x' have different shapes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused_in_words(case: str) -> None:
    make, options, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        trained(make(), **options)


@pytest.mark.parametrize("error", [KeyError("row"), RuntimeError("no disk"), OSError("no file")])
@pytest.mark.parametrize("wrap", [lambda source: source, lambda source: DataLoader(Listed(source), batch_size=3)])
def test_errors_of_the_data_are_handed_on_as_they_are(error: Exception, wrap: Callable[[Any], Any]) -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield from numbered(9)
        raise error

    with pytest.raises(type(error)) as caught:
        trained(wrap(failing))
    assert caught.value is error and "step 2" in caught.value.__notes__[0]


class Listed(IterableDataset[dict[str, Any]]):
    """A function as torch's kind of data set."""

    def __init__(self, source: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.source()


def test_what_torch_makes_of_data_sets_knows_their_units() -> None:
    """A part chosen, parts joined, and loaders over them: samples come back in the units of the whole."""
    whole = from_tensors(100 * DATA.data + 7, DATA.label, num_classes=CLASSES)
    places = [5, 1, 8, 2, 9, 0]
    expected = trained(whole.subset(places))
    assert torch.equal(weights(trained(Subset(Subset(whole, [0, *places]), range(1, 7)))), weights(expected))
    joined = ConcatDataset([whole.subset(places[:4]), Subset(whole, places[4:])])
    assert torch.equal(weights(trained(joined)), weights(expected))
    for data in (joined, Subset(Renaming(whole), places), DataLoader(Subset(whole, places), 6), DataLoader(joined, 6)):
        model = trained(data)
        assert model.scaling == whole.scaling and model.class_names == whole.class_names, data
    pictures = hf_images()
    model = trained(Subset(pictures, [3, 1]), ScoreModel(Colours(), VP()), columns={"x": "picture", "label": "digit"})
    assert model.class_names == ("even", "odd") and model.scaling == Scaling.to_unit_range(256)


class Renaming(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A user's own over one of ours, which tells what that does."""

    def __init__(self, whole: Any) -> None:
        self.whole, self.scaling, self.class_names = whole, whole.scaling, whole.class_names

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.whole[index]  # type: ignore[no-any-return]


def test_texts_that_nobody_asked_for_stay_out() -> None:
    """Where samples are named as ours, whatever else is in them, in each kind of source."""
    plain = list(numbered())
    rows: Any = [{**one, "url": "...", "note": None, "tags": ["a"]} for one in plain]
    expected = weights(trained(lambda: iter(plain)))
    assert torch.equal(weights(trained(lambda: iter(rows))), expected)
    together = DataLoader(rows, 6, collate_fn=lambda many: {
        "x": torch.stack([one["x"] for one in many]), "label": [one["label"] for one in many], "url": ["..."], "n": 6,
    })  # fmt: skip
    assert torch.equal(weights(trained(together)), expected)


def test_numbers_in_units_of_their_own_are_noticed_or_scaled() -> None:
    def incomes() -> Iterator[dict[str, Any]]:
        for i in range(4):
            yield {"x": torch.tensor([30_000.0 + i, 20_000.0]), "label": 0}

    with pytest.warns(UserWarning, match="root mean square of 2.5.*scaling=Scaling"):
        trained(incomes, steps=1)
    with pytest.warns(UserWarning, match="root mean square of 2.5.*scaling=Scaling"):
        trained(list(incomes()), steps=1)
    scaling = Scaling(25_000.0, 5_000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = trained(incomes, steps=1, scaling=scaling)
    assert model.scaling == scaling


class Pair(NamedTuple):
    pos: Tensor
    kind: int


# -- columns -----------------------------------------------------------------------------------------------------------


def test_columns_name_entries_of_dicts_tuples_and_rows_alike() -> None:
    """The same points under three names, in three kinds of source, are the same run."""
    x, label = DATA[:]["x"], DATA.label
    assert label is not None
    rows = [{"pos": x[i], "kind": int(label[i]), "url": "..."} for i in range(len(x))]
    expected = weights(trained([{"x": x[i], "label": label[i]} for i in range(len(x))]))
    for data, columns in (
        (rows, {"x": "pos", "label": "kind"}),
        (TensorDataset(x, label), {"x": 0, "label": 1}),
        ([(label[i], x[i].numpy()) for i in range(len(x))], {"x": 1, "label": 0}),
        ([Pair(kind=int(label[i]), pos=x[i]) for i in range(len(x))], {"x": "pos", "label": "kind"}),
        (datasets.Dataset.from_list([{"pos": r["pos"].tolist(), "kind": r["kind"]} for r in rows]), "hugging face"),
    ):
        if columns == "hugging face":  # which reads a table into memory, in units of its own unless told otherwise
            given = trained(data, columns={"x": "pos", "label": "kind"}, scaling=Scaling(0.0, 1.0))
        else:
            given = trained(data, columns=columns)
        assert torch.equal(weights(given), expected), columns


def test_pictures_arrays_and_uint8_are_levels_in_every_source() -> None:
    pixels = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3) * 7
    expected = from_tensors(torch.from_numpy(pixels), channels="none")
    net = nn.Conv2d(1, 1, 3, padding=1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.conv.load_state_dict(net.state_dict())

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.conv(x)

    def run(data: Any, **options: Any) -> Tensor:
        model = trained(data, ScoreModel(Net(), VP()), **options)
        assert model.scaling == Scaling.to_unit_range(256)
        return weights(model)

    wanted = run(expected)
    pictures = [{"x": Image.fromarray(one)} for one in pixels]
    assert torch.equal(run(pictures), wanted)
    assert torch.equal(run([{"x": one[None]} for one in pixels]), wanted)
    assert torch.equal(run([(torch.from_numpy(one)[None], 3) for one in pixels], columns={"x": 0}), wanted)
    with pytest.raises(ValueError, match="mode RGBA; expected L"):
        run([{"x": Image.new("RGBA", (3, 3))}])
    with pytest.raises(ValueError, match=r"shape \(8, 8, 3\), and the channels must come first"):
        run([{"x": np.zeros((8, 8, 3), np.uint8)}])
    with pytest.raises(ValueError, match="give all samples one dtype"):
        run([{"x": torch.zeros(1, 3, 3, dtype=torch.uint8)}, {"x": torch.zeros(1, 3, 3)}])


# -- DataLoaders -------------------------------------------------------------------------------------------------------


def test_the_batch_size_of_a_loader_is_that_of_the_steps_unless_given() -> None:
    samples: Any = list(numbered())
    run = train(mlp(), DataLoader(samples, batch_size=5), steps=1, progress=False, cpu=True)
    assert run.options.batch_size == 5
    run.close()
    with pytest.raises(TypeError, match="batch_size"):
        train(mlp(), DataLoader(samples, batch_size=None), steps=1, progress=False)
    sampler: Any = BatchSampler(SequentialSampler(samples), 4, drop_last=False)
    run = train(mlp(), DataLoader(samples, batch_sampler=sampler), steps=1, progress=False, cpu=True)
    assert run.options.batch_size == 4
    run.close()
    # a short last batch is filled up from the next pass; with drop_last it is none
    assert labels_seen(DataLoader(samples, batch_size=6)) == [i % 16 % CLASSES for i in range(24)]
    dropped = [i % 12 % CLASSES for i in range(24)]
    assert labels_seen(DataLoader(samples, batch_size=6, drop_last=True)) == dropped


def test_a_loader_with_workers_that_persist_can_be_closed_and_gone_on_with() -> None:
    samples: Any = list(numbered())
    loader: Any = DataLoader(samples, batch_size=6, num_workers=1, persistent_workers=True)
    run = train(mlp(), loader, **OPTIONS)
    for step in run:
        if step.step == 2:
            run.close()
    assert torch.equal(weights(run.model), weights(trained(DataLoader(samples, batch_size=6))))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_is_the_loaders_own_however_often_it_is_begun(workers: int) -> None:
    """By a generator of its own: as a plain loop over the same loader meets the samples, look and restart or not."""

    def loader() -> Any:
        generator = torch.Generator().manual_seed(3)
        return DataLoader(list(numbered(12)), 6, shuffle=True, generator=generator, num_workers=workers)  # type: ignore[arg-type]

    plain = loader()
    wanted = [int(label) for _ in range(2) for batch in plain for label in batch["label"]]
    assert labels_seen(loader()) == wanted
    net = Seen()
    run = train(ScoreModel(net, VP()), loader(), condition_dropout=0.0, **OPTIONS)
    for step in run:
        if step.step == 3:
            run.close()
    assert net.labels == wanted


def test_a_reader_that_is_asked_for_an_earlier_step_begins_anew() -> None:
    def opened() -> Any:
        count = iter(range(100))
        return (lambda wanted: {"x": torch.tensor(next(count))}), Passes(lambda number: iter([]))

    read = StepReader(opened, 0)
    assert [int(read(step)["x"]) for step in (0, 3, 3, 1, 4)] == [0, 3, 3, 1, 4]


def test_a_classifier_learns_from_a_loader_and_a_stream() -> None:
    from test_train import classifier

    def run(data: Any) -> Tensor:
        made = train_classifier(classifier(), data, **OPTIONS)
        return torch.tensor([step.loss for step in made])

    assert torch.equal(run(numbered), run(DataLoader(list(numbered()), batch_size=6)))  # type: ignore[arg-type]


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def hf_table() -> Any:
    return datasets.Dataset.from_dict(
        {
            "point": [[0.1 * i, 5.0 - i] for i in range(12)],
            "kind": [i % CLASSES for i in range(12)],
            "name": [str(i) for i in range(12)],
        },
        features=datasets.Features(
            point=datasets.Sequence(datasets.Value("float64")),
            kind=datasets.ClassLabel(names=["red", "green", "blue"]),
            name=datasets.Value("string"),
        ),
    )


def hf_images() -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    return datasets.Dataset.from_dict(
        {"picture": [Image.fromarray(one) for one in pixels], "digit": [0, 1] * 4},
        features=datasets.Features(picture=datasets.Image(), digit=datasets.ClassLabel(names=["even", "odd"])),
    )


def pixels_of(data: Any) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(row["picture"])).movedim(-1, 0) for row in data])


class Colours(nn.Module):
    null_conditions = {"label": 2}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return self.weight * x * (1 + label.float())[:, None, None, None]


def test_local_pictures_of_hugging_face_are_those_of_tensors(tmp_path: Path) -> None:
    data, columns = hf_images(), {"x": "picture", "label": "digit"}
    names = ("even", "odd")
    reference = from_tensors(pixels_of(data), torch.tensor([0, 1] * 4), class_names=names)
    expected = weights(trained(reference, ScoreModel(Colours(), VP())))
    model = trained(data, ScoreModel(Colours(), VP()), columns=columns, folder=tmp_path)
    assert torch.equal(weights(model), expected)
    told = describe(tmp_path)
    assert told.class_names == names and told.scaling == Scaling.to_unit_range(256) and told.event_shape == (3, 4, 4)
    for form in ("torch", "numpy"):  # a format of the user's does not change what the samples are
        formatted = data.with_format(form)
        assert torch.equal(weights(trained(formatted, ScoreModel(Colours(), VP()), columns=columns)), expected)
    in_memory = from_huggingface(data, columns)
    assert torch.equal(in_memory.data, reference.data) and in_memory.class_names == names
    assert torch.equal(weights(trained(in_memory, ScoreModel(Colours(), VP()))), expected)


def test_a_transform_of_the_users_is_kept() -> None:
    def mirrored(rows: dict[str, Any]) -> dict[str, Any]:
        return {"x": [np.array(one)[:, ::-1].transpose(2, 0, 1) for one in rows["picture"]], "label": rows["digit"]}

    data = hf_images()
    reference = from_tensors(pixels_of(data).flip(-1), torch.tensor([0, 1] * 4))
    given = trained(data.with_transform(mirrored), ScoreModel(Colours(), VP()))
    assert torch.equal(weights(given), weights(trained(reference, ScoreModel(Colours(), VP()))))


def test_a_local_table_of_hugging_face_is_standardised_column_by_column() -> None:
    data, columns = hf_table().shuffle(seed=0).select(range(10)), {"x": "point", "label": "kind"}
    x = torch.tensor([row["point"] for row in data], dtype=torch.float64)
    reference = from_tensors(x, torch.tensor([row["kind"] for row in data]), class_names=["red", "green", "blue"])
    read = from_huggingface(data, columns)
    assert torch.equal(read.data, x) and read.scaling == reference.scaling
    model = trained(data, columns=columns)
    assert torch.equal(weights(model), weights(trained(reference))) and model.scaling == reference.scaling


def test_a_stream_of_hugging_face_is_the_local_set_in_its_order(tmp_path: Path) -> None:
    data, columns = hf_images(), {"x": "picture", "label": "digit"}
    rows = [{"x": Image.fromarray(np.array(row["picture"])), "label": row["digit"]} for row in data]
    expected = weights(trained(lambda: iter(rows), ScoreModel(Colours(), VP())))
    stream = data.to_iterable_dataset()
    model = trained(stream, ScoreModel(Colours(), VP()), columns=columns, folder=tmp_path)
    assert torch.equal(weights(model), expected)
    assert describe(tmp_path).class_names == ("even", "odd")
    assert load_model(tmp_path, net=Colours()).scaling == Scaling.to_unit_range(256)
    unknown = datasets.IterableDataset.from_generator(lambda: iter(rows))  # no features known
    assert torch.equal(weights(trained(unknown, ScoreModel(Colours(), VP()))), expected)


def test_arrays_of_bytes_are_levels_local_and_streaming() -> None:
    """Their rows come as lists of whole numbers; the features of the table say that they are bytes."""
    pixels = np.random.default_rng(1).integers(0, 256, (8, 3, 4, 4), dtype=np.uint8)
    features = datasets.Features(x=datasets.Array3D((3, 4, 4), "uint8"), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"x": pixels.tolist(), "label": [0, 1] * 4}, features=features)
    reference = from_tensors(torch.from_numpy(pixels), torch.tensor([0, 1] * 4))
    model = trained(table, ScoreModel(Colours(), VP()))
    assert model.scaling == reference.scaling
    assert torch.equal(weights(model), weights(trained(reference, ScoreModel(Colours(), VP()))))
    rows = [{"x": torch.from_numpy(one), "label": i % 2} for i, one in enumerate(pixels)]
    model = trained(table.to_iterable_dataset(), ScoreModel(Colours(), VP()))
    assert model.scaling == reference.scaling
    assert torch.equal(weights(model), weights(trained(lambda: iter(rows), ScoreModel(Colours(), VP()))))


def test_conditions_in_columns_are_standardised_and_stored(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"a": [[0.1 * i] for i in range(9)], "euros": [10_000.0 * i for i in range(9)]})
    net = MLP(1, width=8, depth=1, vectors={"income": 1})
    model = trained(data, ScoreModel(net, VP()), columns={"x": "a", "income": "euros"}, folder=tmp_path)
    scaling = model.condition_scalings["income"]
    # the mean and deviation of 0 ... 8 times 10000
    assert float(scaling.shift) == pytest.approx(40_000, rel=1e-12)
    assert float(scaling.scale) == pytest.approx(10_000 * (60 / 9) ** 0.5, rel=1e-12)
    assert load_model(tmp_path).condition_scalings["income"] == scaling
