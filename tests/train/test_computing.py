"""Compiled, with the channels innermost, in TF32, read ahead: each changes what it says, and nothing else."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_train import CLASSES, Plain, classifier, mlp, points, weights
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import VP, ScoreModel, checks, sample
from scoresde import losses as losses_module
from scoresde.cli.train import TrainConfig
from scoresde.cli.train import main as train_command
from scoresde.data import Dataset, from_tensors
from scoresde.models.conditions import drop_conditions
from scoresde.train import Callback, Run, load_model, train, train_classifier
from scoresde.train import compiled as compiled_module
from scoresde.train.ahead import Ahead
from scoresde.train.batches import Fetched
from scoresde.train.computing import channels_innermost, tf32_allowed
from scoresde.train.draws import seeded
from scoresde.train.options import option_fields

PICTURE = (3, 4, 4)
OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 6, "progress": False, "ema": 0.9, "lr": 1e-3}
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
"""Two orders of the sums of a few hundred float32 numbers, through four steps of AdamW: 2**-24 times some hundreds. An
entry whose gradient is rounding alone would move by lr in a direction of chance: there is none below."""


def pictures(count: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, *PICTURE), dtype=torch.uint8, generator=generator)
    return from_tensors(x, torch.arange(count) % CLASSES, channels="first")


class Picture(nn.Module):
    """Convolutions of more channels than one, that answer something from the first step on."""

    null_conditions = {"label": CLASSES}  # noqa: RUF012

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with seeded(torch.device("cpu"), 0):
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
            self.label, self.dropout = nn.Embedding(CLASSES + 1, 8), nn.Dropout(dropout)
        self.innermost: list[bool] = []

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        if self.training and not torch.compiler.is_compiling():
            self.innermost.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        hidden = self.first(x) + self.label(label)[:, :, None, None] + c[:, None, None, None]
        return self.last(self.dropout(nn.functional.silu(hidden)))


def picture_run(net: nn.Module | None = None, **options: Any) -> Run:
    return train(ScoreModel(net or Picture(), VP(), "edm"), pictures(), **{**OPTIONS, **options})


def losses(run: Run) -> list[float]:
    return [record.loss for record in run]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """A compiler that takes no time, and counts what it was given."""
    counter = CompileCounter()
    monkeypatch.setattr(compiled_module, "BACKEND", counter)
    check = compiled_module.check_compiler
    check.cache_clear()
    check("cpu")
    counter.frame_count = 0
    yield counter
    check.cache_clear()
    torch._dynamo.reset()


# -- compile -----------------------------------------------------------------------------------------------------------


def test_a_compiled_run_is_the_plain_one_but_for_rounding(tmp_path: Path) -> None:
    """With the real compiler, in pieces of 2, 2, 2 and resumed without it."""
    plain = picture_run()
    expected = losses(plain)
    run = picture_run(compile=True, folder=tmp_path, accumulate=3)
    assert losses(run) == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(weights(run.model), weights(plain.model), **ROUNDING)
    assert torch.allclose(weights(run.ema_model()), weights(plain.ema_model()), **ROUNDING)
    assert list(run.model.state_dict()) == list(plain.model.state_dict())
    assert torch.equal(weights(load_model(tmp_path, net=Picture(), ema=False)), weights(run.model))
    with pytest.warns(UserWarning, match="compile: True -> False"):  # for it rounds otherwise, and is told
        longer = picture_run(folder=tmp_path, resume=True, accumulate=3, steps=6)
    assert losses(longer) == pytest.approx(losses(picture_run(steps=6))[4:], rel=1e-4)


def test_the_network_is_compiled_for_steps_alone(counted: CompileCounter) -> None:
    told: list[Any] = []

    class Look(Callback):
        def compiled(self, run: Any, seconds: float) -> None:
            told.append(seconds)

        def step(self, run: Any, record: Any) -> None:
            frames = counted.frame_count
            assert run.model.net._compiled_call_impl is None
            sample(run.model.bind(label=0), (3, *PICTURE), steps=2, seed=0)  # another size: nothing is compiled for it
            sample(run.ema_model().bind(label=0), (2, *PICTURE), steps=2, seed=0)
            assert counted.frame_count == frames

    run = picture_run(compile=True, callbacks=[Look()])
    assert losses(run) == losses(picture_run())  # this compiler runs torch's own kernels
    assert counted.frame_count == 1 and len(told) == 1 and told[0] > 0
    assert run.model.net._compiled_call_impl is None and type(run.model.net) is Picture


def test_pieces_of_several_sizes_are_compiled_twice_at_most(counted: CompileCounter) -> None:
    """Of three processes that share 10 samples in two pieces the last has 4: here rows are chosen by hand."""
    compiled = compiled_module.Compiled(Picture(), {2, 3, 4, 5}, torch.device("cpu"))
    for size in (2, 3, 4, 5, 2):
        with compiled.used():
            compiled._net(torch.ones(size, *PICTURE), torch.zeros(size), torch.zeros(size, dtype=torch.int64))
    assert counted.frame_count == 2


def test_a_classifier_is_compiled_as_well(counted: CompileCounter) -> None:
    def run(**options: Any) -> list[float]:
        return losses(train_classifier(classifier(), points(), **OPTIONS, **options))

    assert run(compile=True) == run() and counted.frame_count >= 1


def test_a_compiled_run_that_fails_or_is_closed_leaves_the_network_plain(counted: CompileCounter) -> None:
    class Fails(Picture):
        def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
            if self.training:
                raise ValueError("not today")
            return super().forward(x, c, label)

    run = picture_run(Fails(), compile=True)
    with pytest.raises(ValueError, match="not today"):
        next(run)
    assert run.model.net._compiled_call_impl is None


def test_what_compile_cannot_do_is_told(counted: CompileCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Picture()
    net.compile(backend="eager")
    with pytest.raises(ValueError, match=r"compiled already.*leave compile=True out"):
        picture_run(net, compile=True)

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such compiler: g++")

    monkeypatch.setattr(compiled_module, "BACKEND", broken)
    compiled_module.check_compiler.cache_clear()
    with pytest.raises(RuntimeError, match=r"(?s)compile=True: torch.compile does not work here on 'cpu'.*C\+\+ comp"):
        picture_run(compile=True)
    monkeypatch.setattr(compiled_module, "check_compiler", lambda device: None)
    run = picture_run(compile=True)
    with pytest.raises(RuntimeError, match=r"(?s)torch.compile failed on Picture.*no such compiler.*Leave compile out"):
        next(run)
    assert run.model.net._compiled_call_impl is None


# -- the order in memory -----------------------------------------------------------------------------------------------


def test_channels_last_is_an_order_in_memory_and_no_more(tmp_path: Path) -> None:
    plain = picture_run()
    expected = losses(plain)
    run = picture_run(channels_last=True, folder=tmp_path, accumulate=2, steps=2)
    found = losses(run)
    assert run.model.net.innermost == [True] * 4 and plain.model.net.innermost == [False] * 4
    assert run.model.net.first.weight.is_contiguous(memory_format=torch.channels_last)
    # resumed: what AdamW keeps lies in the order of the weights, or its fused kernel would mix up its entries
    run = picture_run(channels_last=True, folder=tmp_path, resume=True, accumulate=2)
    state = run.optimizer.state[run.model.net.first.weight]
    assert state["exp_avg"].stride() == run.model.net.first.weight.stride()
    assert found + losses(run) == pytest.approx(expected, rel=1e-4)
    for one, other in ((run.model, plain.model), (run.ema_model(), plain.ema_model())):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert a.shape == b.shape and torch.allclose(a, b, **ROUNDING), name
    loaded = load_model(tmp_path, net=Picture(), ema=False)  # the file knows nothing of it
    assert torch.equal(weights(loaded), weights(run.model)) and loaded.net.first.weight.is_contiguous()


@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.AdamW(p, fused=True)], ids=["ours", "own"])
def test_a_network_that_came_with_its_channels_innermost_is_resumed_exactly(optimizer: Any, tmp_path: Path) -> None:
    """Whatever the option says: fused kernels go by the place in memory."""

    def run(steps: int, **options: Any) -> Run:
        net = Picture().to(memory_format=torch.channels_last)
        return picture_run(net, steps=steps, optimizer=optimizer, lr=1e-3, **options)

    whole = run(4)
    expected = losses(whole)
    first = losses(run(2, folder=tmp_path))
    resumed = run(4, folder=tmp_path, resume=True)
    assert first + losses(resumed) == expected and torch.equal(weights(resumed.model), weights(whole.model))


def test_channels_innermost_where_samples_have_axes_for_it() -> None:
    assert channels_innermost(True, (3, 8, 8), fast=False) is torch.channels_last
    assert channels_innermost(True, (1, 4, 4, 4), fast=False) is torch.channels_last_3d
    assert channels_innermost(None, (3, 8, 8), fast=True) is torch.channels_last
    assert channels_innermost(None, (3, 8, 8), fast=False) is None
    assert channels_innermost(False, (3, 8, 8), fast=True) is None
    assert channels_innermost(None, (3,), fast=True) is None
    with pytest.raises(ValueError, match=r"pictures .* and volumes .*; samples here have shape \(2,\)"):
        train(mlp(), points(), channels_last=True, **OPTIONS)


# -- TF32 --------------------------------------------------------------------------------------------------------------


def test_tf32_is_allowed_inside_and_as_it_was_outside() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.backends.cuda.matmul.allow_tf32, conv.allow_tf32
    try:
        for old in (False, True):  # as a program of old sets them
            matmul.allow_tf32 = conv.allow_tf32 = old
            with pytest.raises(KeyError), tf32_allowed():
                if hasattr(matmul, "fp32_precision"):
                    assert matmul.fp32_precision == conv.conv.fp32_precision == "tf32"
                raise KeyError
            assert matmul.allow_tf32 is conv.allow_tf32 is old
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def test_tf32_does_nothing_on_the_cpu() -> None:
    assert losses(train(mlp(), points(), tf32=True, **OPTIONS)) == losses(train(mlp(), points(), **OPTIONS))


# -- read ahead --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"prefetch": 1}, {"prefetch": 5}, {"num_workers": 1, "prefetch": 1}], ids=str)
def test_batches_read_ahead_are_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    """To the bit, and where the run is interrupted, closed and resumed."""
    whole = train(mlp(), points(), **{**OPTIONS, "dequantize": False})
    expected = losses(whole)
    run = train(mlp(), points(), folder=tmp_path, save_every=1, **OPTIONS, **options)
    found = [next(run).loss]
    run.close()  # what was read ahead is read again
    found.append(next(run).loss)
    run.close()
    resumed = train(mlp(), points(), folder=tmp_path, resume=True, **OPTIONS, **options)
    assert found + losses(resumed) == expected and torch.equal(weights(resumed.model), weights(whole.model))
    assert not [thread for thread in threading.enumerate() if thread.name == "scoresde-ahead"]


def test_a_thread_reads_ahead_and_no_further() -> None:
    read: list[int] = []

    def source() -> Iterator[Any]:
        for i in range(6):
            if i == 5:
                raise KeyError("a page that cannot be read")
            read.append(i)
            yield {"x": torch.tensor([i])}

    ahead = Ahead(Fetched(source()), 2, pin_memory=False)
    until = time.monotonic() + 10
    while len(read) < 3 and time.monotonic() < until:  # two that wait, and one in hand
        time.sleep(0.01)
    time.sleep(0.3)
    assert read == [0, 1, 2]
    assert [ahead()["x"].item() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="a page"):
        ahead()
    with pytest.raises(RuntimeError, match="closed"):
        ahead()


def test_what_must_not_be_read_by_a_thread_is_refused() -> None:
    def stream() -> Iterator[Any]:
        yield {"x": torch.zeros(2)}

    loader = torch.utils.data.DataLoader(Plain(points()), batch_size=4)
    for data, match in (
        (Plain(points()), "data set of your own.*num_workers=1"),
        (stream, "an iterable.*num_workers=1"),
        (loader, r"DataLoader\(\.\.\., num_workers=1, prefetch_factor=\.\.\.\)"),
    ):
        with pytest.raises(ValueError, match=match):
            train(mlp(), data, prefetch=1, **OPTIONS)
    with pytest.raises(ValueError, match="num_workers=1 read ahead, and prefetch=0"):
        train(mlp(), points(), prefetch=0, num_workers=1, **OPTIONS)


# -- what a step waits for --------------------------------------------------------------------------------------------


class ReadsBack(TorchDispatchMode):
    """Counts the numbers that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).split(".")[1] in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero"):
            self.read.append("".join(traceback.format_stack()[-6:-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighting", ["simple", "likelihood", losses_module.edm(0.5), losses_module.min_snr(5.0)])
def test_the_loss_reads_nothing_back_that_lies_on_a_device(weighting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values are not readable without stalling, as on CUDA, no step of the loss and its gradient looks at any."""
    run = picture_run(weighting=weighting)
    batch = pictures()[:6]
    t, weight = torch.linspace(0.1, 0.9, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    monkeypatch.setattr(checks, "readable", lambda x: False)
    monkeypatch.setattr(checks.tensors, "readable", lambda x: False)
    with ReadsBack() as watch:
        dropped = drop_conditions({"label": batch["label"]}, {"label": CLASSES}, torch.arange(6) % 2 == 0)
        loss = run._task(batch["x"], t, torch.randn_like(batch["x"]), weight, dropped)
        loss.backward()
        run._window.look(1, loss, loss)
        run._window.add(loss.detach())
        run.ema.update()
    assert watch.read == []
    run.close()


# -- all of them -------------------------------------------------------------------------------------------------------


def test_the_command_line_tells_that_it_compiles(
    counted: CompileCounter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numpy.save(tmp_path / "x.npy", points().data.numpy())
    flags = {"steps": 2, "batch_size": 8, "width": 8, "depth": 1, "progress": False, "cpu": True}
    train_command(TrainConfig(data=tmp_path / "x.npy", out=tmp_path / "run", compile=True, **flags))
    said = capsys.readouterr().out
    assert "compiling the network: the first step takes a minute" in said and "compiled: the first step took " in said
    assert counted.frame_count >= 1


def test_they_are_flags_of_the_command_line() -> None:
    flags = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for name in ("compile", "channels_last", "tf32", "prefetch"):
        assert name in flags and option_fields()[name].text
