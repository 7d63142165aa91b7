"""Weights divided among processes: the steps of one process, and checkpoints that any number of them read.

Two processes are started once, and go through all of it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from launch import launched, made_once
from test_processes import (
    CLASSES,
    Net,
    broken,
    case,
    counting,
    frozen,
    losses_of,
    magnitudes,
    momentum,
    net,
    normalised,
    pictures,
    points,
    samples,
    tied,
    told,
    unreadable,
    whole,
)
from test_train import classifier
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoresde import losses
from scoresde.data import Augmentation, Scaling, from_tensors
from scoresde.hub import save_pretrained
from scoresde.models import ScoreModel
from scoresde.nn import MLP, UNet
from scoresde.sde import VP
from scoresde.times import AdaptiveTimes, UniformTime
from scoresde.train import (
    CheckpointError,
    Run,
    Snapshots,
    TrainOptions,
    describe,
    ema_model,
    load_model,
    reconstruct_ema,
    sharded,
    sums,
    train,
    train_classifier,
)
from scoresde.train.contents import AVERAGE, MODEL, OPTIMIZER, part_name, parts, read_rows_of, read_tensors
from scoresde.train.draws import seeded
from scoresde.train.objective import Denoising
from scoresde.train.processes import _check_plugin
from scoresde.train.shard_files import _owners, rows_held
from scoresde.train.trial import usable_units

OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 9, "progress": False, "cpu": True, "ema": 0.9}
FULL: dict[str, Any] = {**OPTIONS, "sharding": "full"}


def wide(seed: int = 0) -> ScoreModel:
    with seeded(torch.device("cpu"), seed):
        made = MLP(2, width=24, depth=2, num_classes=CLASSES)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.1)
    return ScoreModel(made, VP())


def unet() -> ScoreModel:
    with seeded(torch.device("cpu"), 0):
        made = UNet(1, width=16, multipliers=(1, 1), blocks=1, num_classes=CLASSES)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.05)
    return ScoreModel(made, VP())


def images() -> Any:
    generator = torch.Generator().manual_seed(0)
    return from_tensors(torch.randn(16, 1, 4, 4, generator=generator), torch.arange(16) % CLASSES, num_classes=CLASSES)


class Blocks(nn.Module):
    """Blocks in a list, and a number; ``use(net, x)`` is the answer."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.factor = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(2, 2)
        self.use = use

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.use(self, x) * self.factor


def blocks(use: Callable[[Any, Tensor], Tensor]) -> Callable[[], ScoreModel]:
    def make() -> ScoreModel:
        with seeded(torch.device("cpu"), 0):
            return ScoreModel(Blocks(use), VP())

    return make


def in_turn(n: Blocks, x: Tensor) -> Tensor:
    for block in n.blocks:
        x = checkpoint(block, x, use_reentrant=False).tanh()
    return x


def past_their_calls(n: Blocks, x: Tensor) -> Tensor:
    return n.blocks[1](x @ n.blocks[0].weight)


def learned() -> ScoreModel:
    return ScoreModel(wide().net, VP(beta_min=nn.Parameter(torch.tensor(0.2))))


def looked_at(rank: int, folder: Path) -> dict[str, Any]:
    """Between two steps, all processes call the network with averaged weights; the next step is as if they had not."""
    run = train(wide(), points(), **FULL)
    x = torch.ones(2, 2)
    for step in run:
        if step.step == 2:
            copy = run.ema_model()
            with run.ema.applied(), torch.no_grad():
                seen = run.model(x, 0.5, {"label": torch.tensor([0, 1])})
            assert torch.allclose(seen, copy(x, 0.5, {"label": torch.tensor([0, 1])}), atol=1e-6)
    return losses_of(run) | {"losses": seen.flatten().tolist()}


def measured(
    model: Callable[[], ScoreModel], data: Callable[[], Any], rank: int, folder: Path, **options: Any
) -> dict[str, Any]:
    """Held-out losses are beside those of training, and reconstructed averages beside the weights."""
    given: dict[str, Any] = {**FULL, "held_out": 0.6, "held_out_every": 2, "ema": (0.9, 0.5), "folder": folder}
    run = train(model(), data(), **{**given, **options})
    records = list(run)
    losses = [record.loss for record in records] + [r.held_out.loss for r in records if r.held_out is not None]
    found = losses_of(run) | {"losses": losses}
    for i, decay in enumerate(run.averages):
        assert run.ema_model(decay).loss_curve == run.model.loss_curve is not None
        found["state"] |= {f"{i} {name}": whole(value) for name, value in run.ema_model(decay).state_dict().items()}
    if "snapshots" in options:
        made = reconstruct_ema(folder, 0.07).state_dict()
        found["state"] |= {f"reconstructed {name}": value.clone() for name, value in made.items()}
    return found


def pictures_held() -> Any:
    return from_tensors(torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(2)), scaling=Scaling(0.0, 1.0))


class Unreadable(list[Any]):
    """The last samples cannot be read when some have been."""

    read = 0

    def __getitem__(self, place: Any) -> Any:
        self.read += 1
        if self.read > 50 and place > 90:
            raise OSError("this sample cannot be read")
        return super().__getitem__(place)


def unreadable_later(rank: int, folder: Path) -> dict[str, Any]:
    data = points(100)
    return losses_of(train(wide(), data, **FULL, held_out=Unreadable(data[i] for i in range(100)), held_out_every=2))


def resumed(rank: int, folder: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {**FULL, **options}
    for step in (run := train(wide(), points(), folder=folder, **given)):
        if step.step == 2:
            assert run.save() == folder / "step-00000002"
            break
    run.close()
    again = train(wide(seed=1), points(), folder=folder, resume=True, **given)
    assert again.step == 2
    return losses_of(again)


CASES: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "blocks": case(wide, **FULL),
    "clipped, in pieces that do not divide": case(wide, **{**FULL, "batch_size": 15, "accumulate": 5, "clip": 0.05}),
    "a U-Net": case(unet, images, **{**FULL, "steps": 2}),
    "an optimizer of one's own": case(wide, **FULL, optimizer=momentum, warmup=2),
    "tied weights": case(tied, **FULL),
    "frozen parameters": case(frozen, **FULL),
    "weight normalisation by hooks": case(normalised, **FULL),
    "buffers": case(lambda: net(counting), **FULL),
    "parameters without a gradient": case(lambda: net(lambda n, x: n.first(x)), **FULL),
    "a layer that is used twice": case(lambda: net(lambda n, x: n.second(n.first(n.first(x).tanh()))), **FULL),
    "recomputed activations, a number, unused weights": case(blocks(in_turn), **FULL),
    "weights used past their blocks": case(blocks(past_their_calls), **FULL),
    "a learned schedule": case(learned, **FULL),
    "float64": case(lambda: wide().double(), **FULL),
    "a classifier": case(classifier, start=train_classifier, **FULL),
    "a stream": case(wide, lambda: samples, **FULL),
    "a learned weighting": case(wide, **FULL, weighting=losses.Uncertainty("x0")),
    "a learned weighting, resumed": partial(resumed, weighting=losses.Uncertainty("x0"), ema=(0.9, 0.5)),
    "an optimizer of one's own with a learned weighting": case(
        wide, **FULL, weighting=losses.Uncertainty("x0"), optimizer=momentum
    ),
    "an adaptive density of times": case(wide, **FULL, times=AdaptiveTimes(cells=2, every=2)),
    "coupled noises": case(wide, **FULL, coupling=losses.OptimalTransport()),
    "a U-Net of magnitudes": case(magnitudes, pictures, **FULL),
    "samples held out": partial(measured, wide, lambda: points(100)),
    "snapshots": partial(measured, wide, lambda: points(100), snapshots=Snapshots(every=2)),
    "all at once": partial(
        measured,
        told,
        pictures_held,
        snapshots=Snapshots(every=2),
        augment=Augmentation(0.5),
        accumulate=3,
        batch_size=30,
        coupling=losses.OptimalTransport(2.0),
        weighting=losses.Uncertainty(),
        channels_last=True,
        times=AdaptiveTimes(cells=2, every=2),
    ),
    "a held-out sample that cannot be read": unreadable_later,
    "looked at between steps": looked_at,
    "saved in mid-run and resumed": resumed,
    "a sample that cannot be read": broken(unreadable, sharding="full"),
}

# Of these each is a mechanism of its own; the others, behind the marker, are the same ones in other networks.
QUICK = (
    "clipped, in pieces that do not divide", "a U-Net", "an optimizer of one's own", "tied weights",
    "parameters without a gradient", "weights used past their blocks", "a learned schedule",
    "a learned weighting, resumed", "all at once", "a held-out sample that cannot be read",
    "a sample that cannot be read",
)  # fmt: skip
SLOW = tuple(name for name in CASES if name not in QUICK)


def outcome(name: str, rank: int, folder: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CASES[name](rank, folder)
    except BaseException as error:
        return {"error": type(error).__name__, "message": str(error)}


def said(action: Callable[[], Any]) -> str:
    try:
        return f"nothing: {action()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder: Path) -> None:
    """One of the two processes."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    sharded.SMALLEST_UNIT = 1
    found: dict[str, Any] = {"cases": {name: outcome(name, rank, folder / name) for name in QUICK}}

    # From one process's checkpoint to two processes, whose own is for one and three.
    found["of one"] = losses_of(train(wide(1), points(), folder=folder / "of one", resume=True, **FULL))
    run = train(wide(), points(), folder=folder / "of two", **FULL)
    for step in run:
        if step.step == 2:
            run.save()
            break
    run.close()
    found["average"] = {k: whole(v) for k, v in run.ema_model().state_dict().items()}
    found["held"] = [
        value.numel() for value in map(sharded.local_part, (*run.model.parameters(), *run.ema.state().values()))
    ]
    found["state"] = [sharded.local_part(value).numel() for value in run._optimizer.state().values()]

    counted = train(net(counting), points(), **FULL)
    list(counted)
    found["counted"] = [int(model.net.calls) for model in (counted.model, counted.ema_model())]  # type: ignore[union-attr]

    # What cannot be done says so.
    found["again"] = said(lambda: train(run.model, points(), **FULL))
    found["copied"] = said(lambda: ema_model(run.model, run.ema))
    own = wide()
    sgd = torch.optim.SGD(own.parameters(), lr=0.1)
    found["instance"] = said(lambda: train(own, points(), optimizer=sgd, **FULL))
    found["adafactor"] = said(lambda: train(wide(), points(), optimizer=torch.optim.Adafactor, **FULL))
    fused: dict[str, Any] = {"weighting": losses.Uncertainty(), "optimizer": lambda p: torch.optim.AdamW(p, fused=True)}
    found["mixed"] = said(lambda: train(wide(), points(), **FULL, **fused))
    found["few"] = said(lambda: train(wide(), points(), **{**FULL, "batch_size": 3, "accumulate": 3}))
    alone: list[str] = []

    def watch(run: Run[ScoreModel], record: Any) -> None:
        alone.extend(map(said, (run.ema_model, lambda: run.model(torch.ones(1, 2), 0.5))))

    list(train(wide(), points(), callbacks=[watch], **{**FULL, "steps": 1}))
    found["alone"] = alone

    # bfloat16: against the same processes with whole weights, whose parts are rounded alike.
    for name, how in (("whole in bfloat16", "no"), ("in bfloat16", "full")):
        found[name] = losses_of(train(wide(), points(), mixed_precision="bf16", **{**OPTIONS, "sharding": how}))

    # A disk that is full for one of them, at the second checkpoint.
    run = train(wide(), points(), folder=folder / "full disk", save_every=1, keep=9, **FULL)
    next(run)
    if rank == 1:
        folders = sharded.contents.folders
        kept, folders.written_files = folders.written_files, lambda *_: (_ for _ in ()).throw(OSError("no space left"))
    found["full disk"] = said(lambda: list(run))
    if rank == 1:
        folders.written_files = kept
    found["left"] = sorted(path.name for path in (folder / "full disk").iterdir())

    # Sums of whole gradients are on their way before the backward pass is over, and once a step.
    events: list[str] = []
    send = sums._Bucket.send
    sums._Bucket.send = lambda bucket: (events.append("sent"), send(bucket))[1]  # type: ignore[method-assign]
    sums.BUCKET_BYTES = 1
    model = net(lambda n, x: n.second(n.first(x).tanh()))
    model.net.first.weight.register_hook(lambda g: events.append("first layer"))  # type: ignore[union-attr]
    list(train(model, points(), **{**OPTIONS, "steps": 2, "batch_size": 8, "accumulate": 2, "ema": 0.0}))
    found["events"], sums._Bucket.send = events, send  # type: ignore[method-assign]
    twice = case(lambda: net(lambda n, x: inner(n, inner(n, x))), **{**OPTIONS, "batch_size": 8})
    found["inner passes"] = twice(rank, folder)

    # The second fails in the middle of a pass and lives on; what was meant for all of them still works.
    sharded.PATIENCE = timedelta(seconds=5)
    bad = blocks(lambda n, x: n.blocks[2](fails(n.blocks[0](x), n, rank)))()
    run = train(bad, points(), **FULL)
    found["failed"] = said(lambda: list(run)), said(lambda: next(run))
    torch.save(found, folder / f"{rank}.pt")


def rest(folder: Path) -> None:
    """One of two processes, with the cases that are not QUICK."""
    sharded.SMALLEST_UNIT = 1
    rank = int(os.environ["RANK"])
    found = {"cases": {name: outcome(name, rank, folder / name) for name in SLOW}}
    torch.save(found, folder / f"rest-{rank}.pt")


def inner(n: Net, x: Tensor) -> Tensor:
    """Recomputed by a backward pass of its own, each time."""
    return checkpoint(lambda y: n.second(n.first(y).tanh()), x.requires_grad_(), use_reentrant=True)


def fails(x: Tensor, n: nn.Module, rank: int) -> Tensor:
    if rank == 1 and n.training:
        raise KeyError("no such thing")
    return x


def more(folder: Path) -> None:
    """One of three processes, which go on from the checkpoint of two."""
    sharded.SMALLEST_UNIT = 1
    found = losses_of(train(wide(1), points(), folder=folder / "of two, for three", resume=True, **FULL))
    torch.save(found, folder / f"three-{os.environ['RANK']}.pt")


def compiled(folder: Path) -> None:
    """One of two processes, with a compiled network."""
    sharded.SMALLEST_UNIT = 1
    model = wide()
    model.net.compile()  # type: ignore[operator]
    torch.save(losses_of(train(model, points(), **FULL)), folder / f"compiled-{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "divided", of_two_processes)


def of_two_processes(made: Path) -> None:
    for step in (run := train(wide(), points(), folder=made / "of one", **OPTIONS)):
        if step.step == 2:
            run.save()
            break
    run.close()
    launched(2, __file__, str(made))


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes met."""
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def others(folder: Path) -> list[dict[str, Any]]:
    launched(2, __file__, str(folder), "rest")
    return [torch.load(folder / f"rest-{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    return losses_of(train(wide(), points(), **OPTIONS))


def check_same(found: dict[str, Any], alone: dict[str, Any], losses: slice = slice(None)) -> None:
    # float32: sums in another order; Adam's first steps magnify small components to the size of lr = 1e-3
    assert torch.allclose(torch.tensor(alone["losses"][losses]), torch.tensor(found["losses"]), rtol=1e-4, atol=1e-6)
    for key, value in alone["state"].items():
        assert torch.allclose(value, found["state"][key], rtol=0, atol=2e-5), key


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.thorough) for name in SLOW)])
def test_divided_weights_take_the_steps_of_one_process(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    both = request.getfixturevalue("both" if name in QUICK else "others")
    alone = outcome(name, 0, tmp_path / "run")
    zero, one = (of_rank["cases"][name] for of_rank in both)
    assert ("error" in alone) == ("error" in zero) == ("error" in one), (alone, zero, one)
    if "error" in alone:
        assert alone["message"] in zero["message"] and alone["message"] in one["message"]
        assert alone["error"] in (zero["error"], one["error"])
        return
    assert zero["losses"] == one["losses"] and zero["step"] == one["step"] == alone["step"]
    for key, value in zero["state"].items():
        assert torch.equal(value, one["state"][key])
    check_same(zero, alone)


def test_bfloat16_is_that_of_whole_weights(both: Any) -> None:
    """Each process rounds its samples alike, however it holds the weights: what differs is the order of sums."""
    check_same(both[0]["in bfloat16"], both[0]["whole in bfloat16"])


def test_a_process_holds_its_part_alone(both: Any) -> None:
    """Rows of each tensor, half of them or one more; also of the averages and of the optimizer's two moments."""
    model = wide()
    total = sum(p.numel() for p in model.parameters())
    for kind, copies in (("held", 2), ("state", 2)):
        sizes = [sum(found[kind]) for found in both]
        steps = len(list(model.parameters())) if kind == "state" else 0  # a counter for each, whole
        assert sum(sizes) == copies * total + 2 * steps
        assert max(sizes) <= copies * sum(-(-len(p) // 2) * p[0].numel() for p in model.parameters()) + steps


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_from_one_process_to_two_and_back(folder: Path, both: Any, uninterrupted: Any) -> None:
    check_same(both[0]["of one"], uninterrupted, slice(2, None))
    shutil.copytree(folder / "of two", folder / "of two, for one")
    killed = folder / "of two, for one" / ".partial-step-00000003"  # as a kill in the middle of a save leaves it
    shutil.copytree(folder / "of two" / "step-00000002", killed, ignore=lambda *_: ["config.json"])
    with pytest.warns(UserWarning, match="processes: 2 -> 1"):
        run = train(wide(1), points(), folder=folder / "of two, for one", resume=True, **OPTIONS)
    assert run.step == 2 and not killed.exists()
    check_same(losses_of(run), uninterrupted, slice(2, None))


def test_each_process_writes_its_share_of_each_file(folder: Path) -> None:
    description = describe(folder / "of two")
    model = wide()
    largest = max(p.numel() for p in model.parameters()) * 4
    for name, copies in ((MODEL, 1), (AVERAGE, 1), (OPTIMIZER, 2)):
        files = parts(description.files, name)
        assert files == [part_name(name, rank, 2) for rank in (0, 1)] and name not in description.files
        sizes = [(description.path / file).stat().st_size for file in files]
        # the largest tensors first, each to who has least: apart by one of them at most, and by their headers
        assert abs(sizes[0] - sizes[1]) <= largest + 500, sizes
        assert min(sizes) > copies * (sum(p.numel() for p in model.parameters()) * 2 - largest)


def test_a_copy_has_the_buffers_of_the_model(both: Any) -> None:
    assert both[0]["counted"] == both[1]["counted"] == [OPTIONS["steps"]] * 2


def test_one_process_loads_it_and_makes_one_file_of_it(folder: Path, both: Any, tmp_path: Path) -> None:
    model = load_model(folder / "of two")
    assert all(torch.equal(value, both[0]["average"][key]) for key, value in model.state_dict().items())
    assert type(model.net) is MLP and model.averaged
    last = load_model(folder / "of two", ema=False)
    assert not torch.equal(last.net.head.weight, model.net.head.weight)  # type: ignore[union-attr, arg-type]
    out = save_pretrained(ScoreModel.from_pretrained(folder / "of two"), tmp_path / "one")
    assert [path.name for path in out.glob("*.safetensors")] == [MODEL]
    again = load_model(out)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [MODEL, AVERAGE, OPTIMIZER])
def test_a_part_that_is_damaged_or_missing_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "of two", tmp_path / "run")
    second = tmp_path / "run" / "step-00000002" / part_name(name, 1, 2)
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{second.name} is damaged: its SHA-256"):
        train(wide(1), points(), folder=tmp_path / "run", resume=True, **OPTIONS)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"{second.name} is missing"):
        read_tensors(describe(tmp_path / "run"), name)
    with pytest.raises(CheckpointError, match=rf"{second.name} is missing"):
        train(wide(1), points(), folder=tmp_path / "run", resume=True, **OPTIONS)


def test_a_tensor_in_two_parts_is_refused(folder: Path, tmp_path: Path) -> None:
    """A file with a good hash, for config.json is written anew with it."""
    from scoresde.train.folder import CONFIG, sealed

    shutil.copytree(folder / "of two" / "step-00000002", tmp_path / "run")
    first, second = (tmp_path / "run" / part_name(MODEL, rank, 2) for rank in (0, 1))
    shutil.copyfile(first, second)
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    config["files"][second.name] = config["files"][first.name]
    (tmp_path / "run" / CONFIG).write_text(json.dumps(sealed(config)))
    with pytest.raises(CheckpointError, match=rf"{second.name} is damaged: it holds .*, which another"):
        load_model(tmp_path / "run")


def test_where_one_cannot_write_all_fail_and_the_checkpoint_before_stays(folder: Path, both: Any) -> None:
    assert all("no space left" in found["full disk"] for found in both)
    assert both[1]["full disk"].startswith("CheckpointError: could not write the checkpoint of step 2")
    assert both[0]["full disk"].startswith("CheckpointError: process 1 failed")
    # the main process sweeps before it raises; the other may look a moment earlier
    assert [name for name in both[0]["left"] if "step" in name] == ["step-00000001"]
    assert describe(folder / "full disk").step == 1


def test_rows_are_read_as_the_whole_has_them(folder: Path) -> None:
    description = describe(folder / "of two")
    everything = read_tensors(description, AVERAGE)
    some = read_rows_of(description, AVERAGE, lambda name, shape: slice(1, 3) if len(shape) > 1 else None)
    assert some.keys() == everything.keys()
    for name, (value, shape) in some.items():
        assert shape == everything[name].shape
        assert torch.equal(value, everything[name][1:3] if len(shape) > 1 else everything[name])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_rows_are_divided_as_torch_does(count: int) -> None:
    for length in range(1, 20):
        here = [SimpleNamespace(count=count, rank=rank) for rank in range(count)]
        rows = [torch.arange(length)[rows_held(length, one)] for one in here]  # type: ignore[arg-type]
        chunks = torch.arange(length).chunk(count)
        assert all(torch.equal(*pair) for pair in zip(rows, chunks, strict=False))
        assert all(len(one) == 0 for one in rows[len(chunks) :])


def test_tensors_are_given_to_who_has_least() -> None:
    sizes = {f"w{i}": (i * 37) % 101 for i in range(40)}
    assert _owners({"a": 1, "b": 1, "c": 2}, 2) == {"c": 0, "a": 1, "b": 1}  # the largest first
    owners = _owners(sizes, 3)
    load = [sum(sizes[name] for name, owner in owners.items() if owner == rank) for rank in range(3)]
    # by Graham's bound for the largest first: no load is above the mean by more than the largest size
    assert owners.keys() == sizes.keys() and max(load) <= sum(load) / 3 + max(sizes.values())


def test_parts_of_a_file_are_all_or_none() -> None:
    three = [part_name(MODEL, rank, 3) for rank in range(3)]
    assert three[0] == "model-00001-of-00003.safetensors"
    assert parts([*three, AVERAGE], MODEL) == three and parts([AVERAGE, *three], AVERAGE) == [AVERAGE]
    assert parts(three[:2], MODEL) == [] and parts([], MODEL) == []
    assert parts([*three, part_name(MODEL, 0, 2)], MODEL) == []  # of two numbers of processes
    assert parts([MODEL, *three], MODEL) == [MODEL]


# -- what it cannot do -------------------------------------------------------------------------------------------------


def test_what_cannot_be_divided_is_refused(both: Any) -> None:
    for found in both:
        assert "is divided among processes, by an earlier run" in found["again"]
        assert "take run.ema_model(), which all of them call" in found["copied"]
        assert "give optimizer=lambda p: SGD(p, ...)" in found["instance"]
        assert "Adafactor keeps row_var/" in found["adafactor"] and "cannot be divided" in found["adafactor"]
        assert "let them be two groups, as by isinstance(p, DTensor)" in found["mixed"]
        assert "batch_size of at least 2 processes x accumulate=3, 6; got 3" in found["few"]
    assert len(both[0]["alone"]) == 2 and both[1]["alone"] == []
    assert all("callbacks run on one process" in one for one in both[0]["alone"])


def test_a_process_that_fails_in_the_middle_of_a_pass_ends_all(both: Any) -> None:
    (first, again), (one, after) = both[0]["failed"], both[1]["failed"]
    assert one == "KeyError: 'no such thing'"
    assert first == "RuntimeError: process 1 failed, and the others with it: KeyError: 'no such thing'"
    assert all("this run stopped in step 1 and cannot go on" in text for text in (again, after))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"fsdp_version": 2}, None),
        ({"fsdp_version": 1}, r"with --fsdp_version 2 here"),
        ({"fsdp_version": 2, "cpu_offload": True}, r"with --fsdp_offload_params false here"),
        ({"fsdp_version": 2, "reshard_after_forward": False}, r"with --fsdp_reshard_after_forward true here"),
    ],
)
def test_what_accelerate_asks_for_is_done_or_refused(settings: dict[str, Any], wanted: str | None) -> None:
    """On GPUs ``accelerate launch --use_fsdp`` makes such a plugin; on CPUs it has no effect in Accelerate itself."""
    plugin = FullyShardedDataParallelPlugin(**settings)
    with pytest.raises(ValueError, match=wanted) if wanted else nullcontext():
        _check_plugin(plugin)
    told = SimpleNamespace(sharded=True, count=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "Sharded", lambda processes: "divided")
        assert sharded.placed(None, told) == "divided"  # type: ignore[arg-type, comparison-overlap]
        assert not sharded.placed("no", told).divided  # type: ignore[arg-type]
        assert not sharded.placed("full", SimpleNamespace(sharded=True, count=1)).divided  # type: ignore[arg-type]


def test_blocks_are_found_unless_their_weights_are_used_elsewhere() -> None:
    placement = sharded.Sharded.__new__(sharded.Sharded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "SMALLEST_UNIT", 1)
        for make, found in ((blocks(in_turn), 3), (blocks(past_their_calls), 3), (wide, 2)):
            model = make()
            units = placement.units(model)
            assert len(units) == found
            model.net.tied = units[0]  # type: ignore[union-attr]
            assert len(placement.units(model)) == found  # the same block under another name
            model.net.shared = next(units[0].parameters())  # type: ignore[union-attr]
            assert len(placement.units(model)) == found - 1  # a weight of it that is the whole network's, too
        patch.setattr(sharded, "SMALLEST_UNIT", 10**6)
        assert placement.units(wide()) == []
    task = Denoising(blocks(in_turn)(), TrainOptions(steps=1, batch_size=2))
    before = [p.clone() for p in task.model.parameters()]
    units = list(task.model.net.blocks)  # type: ignore[union-attr]
    assert usable_units(task, points(), UniformTime(), units) == units
    assert all(map(torch.equal, before, task.model.parameters()))
    task = Denoising(blocks(past_their_calls)(), TrainOptions(steps=1, batch_size=2))
    with pytest.warns(UserWarning, match="gathered whole"):
        assert usable_units(task, points(), UniformTime(), list(task.model.net.blocks)) == []  # type: ignore[union-attr]


# -- whole weights -----------------------------------------------------------------------------------------------------


def test_gradients_are_sent_during_the_last_backward_pass_alone(both: Any) -> None:
    """Four buckets of one tensor each: the second layer's are on their way before the first layer's is computed, and
    none is sent in the first of two pieces.
    """
    for found in both:
        events = found["events"]
        first = [i for i, event in enumerate(events) if event == "first layer"]
        sent = [events[a:b].count("sent") for a, b in pairwise([0, *first, None])]
        assert len(first) == 4 and sent[0] == 0 and sent[1] >= 2 and sent[3] >= 2, events
        assert sent[1] + sent[2] == sent[3] + sent[4] == 4, events


def test_gradients_of_several_inner_backward_passes_are_all_summed(both: Any, tmp_path: Path) -> None:
    twice = case(lambda: net(lambda n, x: inner(n, inner(n, x))), **{**OPTIONS, "batch_size": 8})
    check_same(both[0]["inner passes"], twice(0, tmp_path))


@pytest.mark.thorough
def test_three_processes_go_on_from_two(folder: Path, uninterrupted: Any) -> None:
    shutil.copytree(folder / "of two", folder / "of two, for three")
    launched(3, __file__, str(folder), "three")
    for found in (torch.load(folder / f"three-{rank}.pt") for rank in range(3)):
        check_same(found, uninterrupted, slice(2, None))


@pytest.mark.thorough
def test_a_compiled_network_is_divided(tmp_path: Path, uninterrupted: Any) -> None:
    launched(2, __file__, str(tmp_path), "compiled")
    for rank in range(2):
        check_same(torch.load(tmp_path / f"compiled-{rank}.pt"), uninterrupted)


@pytest.mark.thorough
@pytest.mark.parametrize("dies", ["exits", "killed"])
def test_where_a_process_is_gone_the_others_end(dies: str, tmp_path: Path) -> None:
    """At once, and not after ten minutes: in its place there is nothing to wait for."""
    said = launched(2, __file__, str(tmp_path), dies, fails=True)
    wanted = (
        "process 1 failed, and the others with it: KeyError" if dies == "exits" else "remote worker"
    )  # of the transport
    assert wanted in said[0].err


def dying(how: str) -> None:
    def go(n: Blocks, x: Tensor) -> Tensor:
        x = n.blocks[0](x)
        if int(os.environ["RANK"]) == 1 and n.training:
            if how == "exits":
                raise KeyError("no such thing")
            os.kill(os.getpid(), 9)
        return n.blocks[2](x)

    list(train(blocks(go)(), points(), **FULL))


if __name__ == "__main__":
    last = sys.argv[2:]
    if not last:
        main(Path(sys.argv[1]))
    elif last[0] in ("three", "compiled", "rest"):
        {"three": more, "compiled": compiled, "rest": rest}[last[0]](Path(sys.argv[1]))
    else:
        sharded.SMALLEST_UNIT = 1
        dying(last[0])
