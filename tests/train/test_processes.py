"""One process and many are one test: a table of runs, each done by one process and by two, and compared.

The two processes are started once and go through the whole table: after an error of one, they must still be together.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from launch import launched, made_once
from test_train import CLASSES, Plain, classifier, levels, mlp, points
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from scoresde import losses, times
from scoresde.data import Augmentation, Scaling, from_tensors
from scoresde.models import ScoreModel
from scoresde.nn import MLP, MagnitudeUNet, UNet
from scoresde.sde import VP
from scoresde.train import (
    EarlyStopping,
    Snapshots,
    Terminated,
    describe,
    load_model,
    reconstruct_ema,
    train,
    train_classifier,
)
from scoresde.train.draws import DataOrder, seeded
from scoresde.train.processes import Processes

SIZE = 8


class Net(nn.Module):
    """Two layers and what a case does with them: ``use(net, x)`` is the answer."""

    def __init__(self, use: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fixed", torch.tensor([1.0, 2.0]))
        self.use = use

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.use(self, x)


def net(use: Callable[[Net, Tensor], Tensor]) -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        return ScoreModel(Net(use), VP())


def several(**options: Any) -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        made = MLP(2, width=8, depth=1, num_classes=CLASSES, vectors={"v": 3}, **options)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return ScoreModel(made, VP())


def convolutions() -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        return ScoreModel(UNet(2, width=8, multipliers=(1,), blocks=1, attention_levels=()), VP())


def images() -> Any:
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return from_tensors(x, channels="first", scaling=Scaling(0.0, 1.0))


def both() -> Any:
    data = points()
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(len(data), 3, generator=generator)
    return from_tensors(data.data, data.label, conditions={"v": v}, num_classes=CLASSES, scaling=Scaling(0.0, 1.0))


def losses_of(run: Any, **_: Any) -> dict[str, Any]:
    losses = [step.loss for step in run]
    return {"losses": losses, "state": {k: whole(v) for k, v in run.model.state_dict().items()}, "step": run.step}


def whole(value: Tensor) -> Tensor:
    """A copy, put together where it is divided among the processes."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def case(model: Callable[[], Any], data: Callable[[], Any] = points, start: Any = train, **options: Any) -> Any:
    given = {"steps": 3, "batch_size": SIZE, "progress": False, "cpu": True, "ema": 0.9, **options}
    return lambda rank, folder: losses_of(start(model(), data(), **given))


def pictures() -> Any:
    return from_tensors(torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(2)), scaling=Scaling(0.0, 1.0))


def told() -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        made = UNet(1, width=4, multipliers=(1,), blocks=1, attention_levels=(), vectors={"augment": Augmentation.size})
    return ScoreModel(made, VP())


def magnitudes() -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        return ScoreModel(MagnitudeUNet(1, width=4, multipliers=(1,), blocks=1, attention_levels=()), VP())


def frozen() -> ScoreModel:
    model = mlp()
    assert isinstance(model.net, MLP)
    model.net.embedding.requires_grad_(False)
    return model


def tied() -> ScoreModel:
    model = net(lambda n, x: n.second(n.first(x).tanh()))
    model.net.second.weight = model.net.first.weight  # type: ignore[union-attr]
    return model


def scaled_gradient() -> ScoreModel:
    model = mlp()
    next(model.parameters()).register_hook(lambda g: 3 * g)
    return model


def normalised() -> ScoreModel:
    model = net(lambda n, x: n.second(n.first(x).tanh()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight_norm(model.net.first)  # type: ignore[union-attr]
    return model


def counting(n: Net, x: Tensor) -> Tensor:
    n.calls += n.training
    return n.first(x * n.fixed)


def second_where_positive(n: Net, x: Tensor) -> Tensor:
    """The second layer is used by those samples that need it, and perhaps by none of a process's."""
    where = x[:, 0] > 1.5
    return n.first(x) if not where.any() else n.first(x) + torch.where(where[:, None], n.second(x), 0)


def fails_in_training(n: Net, x: Tensor) -> Tensor:
    if n.training:
        raise KeyError("no such thing")
    return n.first(x)


def resumed(rank: int, folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": 4, "batch_size": SIZE, "progress": False, "cpu": True, "folder": folder}
    for step in (run := train(mlp(), points(), **options)):
        if step.step == 2:
            assert run.save() == folder / "step-00000002"
            break
    run.close()
    again = train(mlp(seed=1), points(), resume=True, **options)
    assert again.step == 2
    found = losses_of(again)
    assert torch.equal(torch.tensor(load_model(folder).trained_with.share({"label"})), torch.tensor(0.9))  # type: ignore[union-attr]
    return found


def without_gradients(rank: int, folder: Path) -> dict[str, Any]:
    with torch.no_grad():
        return case(mlp)(rank, folder)


def out_of_time(rank: int, folder: Path) -> dict[str, Any]:
    run = train(mlp(), points(), steps=100, batch_size=SIZE, max_seconds=1e-9, progress=False, cpu=True)
    found = losses_of(run)
    return {**found, "again": losses_of(run)["losses"]}


class Broken(Plain):
    """What is wrong with one sample, which the second of two processes meets in step 2."""

    def __init__(self, wrong: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(points())
        self.wrong, self.bad = wrong, int(DataOrder(len(self), SIZE, 0).indices(1)[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return self.wrong(sample) if index == self.bad else sample


def unreadable(sample: dict[str, Any]) -> dict[str, Any]:
    raise OSError("this sample cannot be read")


def interrupting(sample: dict[str, Any]) -> dict[str, Any]:
    raise KeyboardInterrupt


def broken(wrong: Callable[[dict[str, Any]], dict[str, Any]], **options: Any) -> Any:
    """Another try must say why; the folder is there to have something to lose."""

    def run(rank: int, folder: Path) -> dict[str, Any]:
        given = {"steps": 3, "batch_size": SIZE, "progress": False, "cpu": True, **options}
        made = train(mlp(predicts="x0"), Broken(wrong), **given)
        assert next(made).step == 1
        with pytest.raises(BaseException) as first:
            next(made)
        with pytest.raises(
            (type(first.value), RuntimeError)
        ) as again:  # of many processes the run is over, and says so
            next(made)
        assert str(first.value).split(": ")[-1] in str(again.value)
        raise first.value

    return run


def held_out(rank: int, folder: Path) -> dict[str, Any]:
    """The held-out losses beside those of training, of a run that ends by them."""
    run = train(
        mlp(), points(100), steps=40, batch_size=64, progress=False, cpu=True, held_out=0.4, held_out_every=2, lr=1e-5,
        early_stopping=EarlyStopping(), folder=folder,
    )  # fmt: skip
    records = list(run)
    assert run.verdict == "converged" and run.step == 10 and (folder / "step-00000010").is_dir()
    measured = [record.held_out for record in records if record.held_out is not None]
    losses = [value for one in measured for value in (one.loss, one.standard_error, *(one.curve or one).loss)]  # type: ignore[misc]
    return {**losses_of(run), "losses": [record.loss for record in records] + losses}


def unwritable(rank: int, folder: Path) -> dict[str, Any]:
    run = train(mlp(), points(), steps=2, batch_size=SIZE, progress=False, cpu=True, folder=folder)
    next(run)
    if rank == 0:
        run._write = lambda path: (_ for _ in ()).throw(OSError("no space left"))  # type: ignore[method-assign]
    list(run)
    raise AssertionError("it was saved")


def samples() -> Iterator[dict[str, Any]]:
    """A stream that draws from a default generator, as augmentations do."""
    data = points()
    for i in range(len(data)):
        sample = data[i]
        yield {"x": sample["x"] + 0.1 * torch.randn(2), "label": int(sample["label"])}


def shuffled() -> Any:
    return DataLoader(Plain(points()), batch_size=5, shuffle=True, drop_last=True)


def stopped(rank: int, folder: Path) -> dict[str, Any]:
    """A callback runs on the main process, and all end together; in it, saving is refused where others would wait."""
    called: list[int] = []

    def watch(run: Any, record: Any) -> None:
        called.append(record.step)
        if run._processes.count > 1:
            with pytest.raises(RuntimeError, match="callbacks run on one process"):
                run.save()
        if record.step == 2:
            run.stop()

    run = train(mlp(), points(), steps=5, batch_size=SIZE, progress=False, cpu=True, folder=folder, callbacks=[watch])
    found = losses_of(run)
    assert called == ([1, 2] if rank == 0 else []) and run.step == 2
    assert (folder / "step-00000002").exists()
    return found


def set_by_main(rank: int, folder: Path) -> dict[str, Any]:
    """Learning rate and momentum set by a callback, which the main process alone was given."""

    def change(run: Any, record: Any) -> None:
        for group in run.optimizer.param_groups:
            group["lr"], group["momentum"] = 1e-3 * run.step, 0.5

    options: dict[str, Any] = {"steps": 4, "batch_size": SIZE, "progress": False, "cpu": True, "optimizer": momentum}
    return losses_of(train(mlp(), points(), callbacks=[change] if rank == 0 else [], **options))


def interrupted(rank: int, folder: Path) -> dict[str, Any]:
    """Ctrl-C in a callback of the main process stops all, and leaves each as after the step."""

    def watch(run: Any, record: Any) -> None:
        if record.step == 2:
            raise KeyboardInterrupt

    run = train(mlp(), points(), steps=5, batch_size=SIZE, progress=False, cpu=True, callbacks=[watch])
    with pytest.raises((KeyboardInterrupt, RuntimeError), match=None if rank == 0 else "process 0 failed.*Keyboard"):
        list(run)
    return {"losses": [], "state": {k: v.clone() for k, v in run.model.state_dict().items()}, "step": run.step}


class Terminating(Plain):
    """SIGTERM comes to one process alone while the samples of the third step are read."""

    def __init__(self, rank: int) -> None:
        super().__init__(points())
        self.left = 3 if rank == int(os.environ.get("WORLD_SIZE", "1")) - 1 else 0

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return [self[i] for i in indices]


def terminated(rank: int, folder: Path) -> dict[str, Any]:
    """All finish the step, and leave with the same status; caught, it goes on."""
    options = {"batch_size": SIZE, "progress": False, "cpu": True, "folder": folder, "steps": 5}
    run = train(mlp(), Terminating(rank), **options)
    with pytest.raises(Terminated) as told:
        list(run)
    assert told.value.code == 143 and run.step == 3 and describe(folder).step == 3
    resumed = train(mlp(), Plain(points()), resume=True, **options)
    return {**losses_of(resumed), "step": resumed.step}


def fails_later(x0: Tensor, eps: Tensor, conditions: Any) -> Tensor:
    if len(x0) > 2:
        raise KeyError("no such coupling")
    return eps


def with_snapshots(rank: int, folder: Path) -> dict[str, Any]:
    """The main process writes them, and all read the same."""
    options: dict[str, Any] = {"steps": 4, "batch_size": SIZE, "progress": False, "cpu": True, "folder": folder}
    found = losses_of(train(mlp(), points(), snapshots=Snapshots(every=2), **options))
    return {**found, "state": {k: v.clone() for k, v in reconstruct_ema(folder, 0.07).state_dict().items()}}


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True)


CASES: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "plain": case(mlp, flip=True),
    "a condition that is not asked for": case(several, both, conditions=["label"]),
    "dropped by name": case(several, both, condition_dropout={"label": 0.5, "v": 0.3}),
    "frozen parameters": case(frozen),
    "parameters without a gradient": case(lambda: net(lambda n, x: n.first(x))),
    "parameters that some samples use": case(lambda: net(second_where_positive), batch_size=4, steps=12),
    "the same in pieces": case(lambda: net(second_where_positive), accumulate=2, steps=6),
    "a layer that is used twice": case(lambda: net(lambda n, x: n.second(n.first(n.first(x).tanh())))),
    "tied weights": case(tied),
    "a hook on a gradient": case(scaled_gradient),
    "weight normalisation by hooks": case(normalised),
    "buffers": case(lambda: net(counting)),
    "recomputed activations": case(
        lambda: net(lambda n, x: checkpoint(lambda y: n.second(n.first(y).tanh()), x, use_reentrant=False))
    ),
    "accumulated, with the channels innermost": case(convolutions, images, accumulate=2, channels_last=True),
    "read ahead": case(mlp, prefetch=2),
    "accumulated": case(mlp, accumulate=2, times=times.Stratified()),
    "a batch that does not divide": case(mlp, batch_size=9, condition_dropout=0.5),
    "nor its pieces": case(mlp, batch_size=15, accumulate=5),
    "one sample": case(mlp, batch_size=1),
    "float64": case(lambda: mlp().double()),
    "pictures that are moved about": case(told, pictures, augment=Augmentation(0.5), batch_size=7),
    "weights of unit length": case(magnitudes, pictures),
    "levels": case(mlp, levels, dequantize=True),
    "a classifier": case(classifier, start=train_classifier, batch_size=7),
    "a stream": case(mlp, lambda: samples),
    "a stream in a worker, in pieces": case(mlp, lambda: samples, num_workers=1, accumulate=2),
    "a stream with fewer rows than processes": case(mlp, lambda: samples, batch_size=1),
    "a DataLoader that shuffles": case(mlp, shuffled, steps=9),
    "a learned weighting": case(mlp, weighting=losses.Uncertainty("x0"), accumulate=2),
    "an adaptive density of times": case(mlp, times=times.Stratified(times.AdaptiveTimes(cells=2, every=2)), steps=6),
    "the same, with fewer rows than processes": case(
        mlp, times=times.AdaptiveTimes(cells=2, every=2), batch_size=1, steps=6
    ),
    "coupled noises": case(mlp, coupling=losses.OptimalTransport(), batch_size=9, accumulate=3),
    "coupled by conditions": case(several, both, coupling=losses.OptimalTransport(2.0), condition_dropout=0.3),
    "coupled, with fewer rows than processes": case(mlp, coupling=losses.OptimalTransport(), batch_size=1),
    "a coupling that fails": case(mlp, coupling=fails_later),
    "snapshots": with_snapshots,
    "an optimizer of one's own": case(mlp, optimizer=momentum, warmup=2),
    "a callback that stops": stopped,
    "a callback that sets the optimizer": set_by_main,
    "Ctrl-C in a callback": interrupted,
    "SIGTERM to one of them": terminated,
    "a data set of one's own": case(mlp, lambda: Plain(points()), num_workers=1),
    "under no_grad": without_gradients,
    "out of time, and again": out_of_time,
    "saved in mid-run and resumed": resumed,
    "samples held out": held_out,
    "labels out of range": broken(lambda sample: {**sample, "label": CLASSES + 5}),
    "a sample that cannot be read": broken(unreadable),
    "Ctrl-C in one of them": broken(interrupting),
    "a loss that is not finite": broken(lambda sample: {**sample, "x": sample["x"] * 1e30}),
    "a network that fails": case(lambda: net(fails_in_training)),
    "a folder that cannot be written": unwritable,
}


def outcome(name: str, rank: int, folder: Path) -> dict[str, Any]:
    try:
        return CASES[name](rank, folder)
    except BaseException as error:
        return {"error": type(error).__name__, "message": str(error)}


def main(folder: Path) -> None:
    """One of the two processes."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.save({name: outcome(name, rank, folder / name) for name in CASES}, folder / f"{rank}.pt")
    found = {}

    processes = Processes(cpu=True)  # what one process alone meets, all hear of
    for kind in (ValueError, KeyError, KeyboardInterrupt):
        try:
            with processes.together():
                if rank == 1:
                    raise kind("here")
        except BaseException as error:
            found[kind.__name__] = type(error).__name__, str(error)
    model = net(lambda n, x: n.first(x)) if rank == 0 else mlp()
    try:
        processes.share_state(model)
    except ValueError as error:
        found["networks"] = "", str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(ScoreModel(WithBatchNorm(), VP()), points(), steps=2, batch_size=8, cpu=True, progress=False)
        list(run)
    found["norm"] = [str(w.message) for w in caught], {k: v.clone() for k, v in run.model.state_dict().items()}
    found["shares"] = {name: labels_of(make()) for name, make in SHARED.items()}
    torch.save(found, folder / f"found-{rank}.pt")


class Tells(nn.Module):
    """Remembers the condition ``number`` of each sample that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor, c: Tensor, number: Tensor) -> Tensor:
        if self.training:
            self.seen += number.flatten().tolist()
        return self.weight * x


def rows() -> list[dict[str, Any]]:
    return [{"x": torch.tensor([0.1 * i]), "number": i} for i in range(12)]


def apart() -> Any:
    return DataLoader(rows(), batch_size=2, sampler=DistributedSampler(rows(), shuffle=False))  # type: ignore[arg-type]


def sharded() -> Any:
    table = datasets.Dataset.from_dict({"x": [[0.1 * i] for i in range(12)], "number": list(range(12))})
    return table.to_iterable_dataset(num_shards=2)


SHARED = {"a DistributedSampler": apart, "a stream of datasets": sharded}


def labels_of(data: Any) -> list[int]:
    net = Tells()
    list(train(ScoreModel(net, VP()), data, steps=3, batch_size=4, conditions=["number"], cpu=True, progress=False))
    return net.seen


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(2), nn.Linear(2, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.head(self.norm(x))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each of two processes met."""
    folder = made_once(tmp_path_factory, "two", lambda made: launched(2, __file__, str(made)))
    read = [[torch.load(folder / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("", "found-")]
    return read[0], read[1]


@pytest.mark.parametrize("name", CASES)
def test_one_process_and_two_do_the_same(name: str, two: Any, tmp_path: Path) -> None:
    alone = outcome(name, 0, tmp_path / "run")
    zero, one = (of_rank[name] for of_rank in two[0])
    assert ("error" in alone) == ("error" in zero) == ("error" in one), (alone, zero, one)
    if "error" in alone:
        said = alone["message"]
        failed = [answer for answer in (zero, one) if said in answer["message"]]
        assert len(failed) == 2, (alone, zero, one)  # the one that met it, and the one that was told
        assert any(answer["error"] == alone["error"] for answer in failed)
        return
    assert zero["losses"] == one["losses"] and zero["step"] == alone["step"]
    # float32: sums in another order; Adam's first steps magnify small components to the size of lr = 1e-3
    assert torch.allclose(torch.tensor(alone["losses"]), torch.tensor(zero["losses"]), rtol=1e-4, atol=1e-6)
    for key, value in alone["state"].items():
        assert torch.equal(zero["state"][key], one["state"][key]), key
        assert torch.allclose(value, zero["state"][key], rtol=0, atol=2e-5), key


def test_each_process_reads_its_share_of_what_is_shared_out(two: Any) -> None:
    """Two rows of each batch of four: every second sample, or the samples of one shard."""
    shares = [found["shares"] for found in two[1]]
    assert [one["a DistributedSampler"] for one in shares] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert [one["a stream of datasets"] for one in shares] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_what_one_process_meets_all_hear_of(two: Any) -> None:
    zero, one = two[1]
    assert one["ValueError"] == ("ValueError", "here") and one["KeyboardInterrupt"][0] == "KeyboardInterrupt"
    assert zero["ValueError"] == ("ValueError", "process 1 failed, and the others with it: ValueError: here")
    assert zero["KeyError"] == ("RuntimeError", "process 1 failed, and the others with it: KeyError: 'here'")
    assert zero["KeyboardInterrupt"][0] == "RuntimeError" and "KeyboardInterrupt" in zero["KeyboardInterrupt"][1]
    assert zero["networks"] == one["networks"] and "different networks" in zero["networks"][1]


def test_batch_normalisation_in_parts_is_warned_of(two: Any) -> None:
    for said, state in (found["norm"] for found in two[1]):
        assert any("batch normalisation" in text and "2 parts" in text for text in said)
        for key, value in state.items():
            assert torch.equal(value, two[1][0]["norm"][1][key])
    with pytest.warns(UserWarning, match="4 parts") as caught:
        train(ScoreModel(WithBatchNorm(), VP()), points(), steps=2, batch_size=8, accumulate=4, progress=False)
    assert caught[0].filename == __file__


if __name__ == "__main__":
    main(Path(sys.argv[1]))
