"""A seeded fuzzer of checkpoints: bytes spoilt at random, and fields and tensors changed with all hashes made right."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from fault_tools import NAMES, restored, same, start, stat_of, tensors
from safetensors.torch import load_file, save
from torch import Tensor

from scoresde.train import CheckpointError, load_model
from scoresde.train.folder import sealed

SECONDS = 30  # for one file, before the process is stopped: none should take a thousandth of that

WHOLE = [0, 1, -1, 2, 3, 255, 2**31, 10**5, 10**9, 2**53 + 1, 2**63, 2**64, 10**30, -(10**18)]
VALUES: list[Any] = [
    *WHOLE, None, True, False, "", "x", "0", "1e999", "nan", "../../../etc/passwd", "\ud800", "a" * 5000, 0.0, -0.0,
    0.5, -1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), [], {}, [[]], [0] * 10, [None],
    ["a"] * 3, [1] * 5000, {"": 0}, {"class": "os.system"}, {"a": {"b": {"c": 1}}},
    [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]],
]  # fmt: skip
TEXTS = [  # instead of a value, as they stand
    "1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1" + "0" * 400, "[" * 50_000, '{"a":' * 50_000,
    "[" * 900 + "]" * 900,
    '"\\ud800"', "tru", "'x'", "0x10", "1.", '{"a": 1, "a": 2}', "\x00",
]  # fmt: skip


# -- bytes -------------------------------------------------------------------------------------------------------------


def bits(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(NAMES)
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 1, 2, 10])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncation(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(NAMES)
    os.truncate(path, draw.choice([0, 1, 7, 8, draw.randrange(path.stat().st_size)]))


def extension(draw: random.Random, folder: Path) -> None:
    with (folder / draw.choice(NAMES)).open("ab") as file:
        file.write(draw.randbytes(draw.choice([1, 8, 4096])))


def zeros(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(NAMES)
    content = bytearray(path.read_bytes())
    begin = draw.randrange(len(content))
    end = min(len(content), begin + draw.choice([1, 16, 512]))
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def exchange(draw: random.Random, folder: Path) -> None:
    a, b = draw.sample(NAMES, 2)
    one, other = (folder / a).read_bytes(), (folder / b).read_bytes()
    (folder / a).write_bytes(other)
    (folder / b).write_bytes(one if draw.random() < 0.5 else other)


def absence(draw: random.Random, folder: Path) -> None:
    (folder / draw.choice(NAMES)).unlink()


def another_kind(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(NAMES)
    path.unlink()
    kinds: list[Callable[[], Any]] = [
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/tty"),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to(folder / "nowhere"),
        lambda: (path.touch(), os.truncate(path, 10 << 30)),  # sparse
    ]
    draw.choice(kinds)()


# -- fields, with all hashes made right --------------------------------------------------------------------------------


def reseal(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in config["files"]:
        if (folder / name).exists():
            content = (folder / name).read_bytes()
            config["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "config.json").write_text(json.dumps(sealed(config)))


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def edited(draw: random.Random, content: Any) -> Any:
    """A copy with one change."""
    content = copy.deepcopy(content)
    place = draw.choice([one for one in places(content) if one[0] != "sha256"])
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    last, old = place[-1], holder[place[-1]]
    what = draw.random()
    if what < 0.6:
        holder[last] = draw.choice(VALUES)
    elif what < 0.7:
        del holder[last]
    elif what < 0.8 and isinstance(old, int | float):
        holder[last] = draw.choice([-old, old + 1, old * 10**6, old / 3, float(old), str(old), [old]])
    elif isinstance(holder, dict):
        holder[draw.choice(["more", "", "depth", "class", "width"])] = draw.choice(VALUES)
    else:
        holder.extend([draw.choice(VALUES)] * draw.choice([1, 100]))
    return content


def field(draw: random.Random, folder: Path) -> None:
    name = draw.choice(["config.json", "config.json", "training.json"])
    content = edited(draw, json.loads((folder / name).read_text()))
    if name == "config.json":
        with suppress(ValueError):  # NaN and infinity have no hash
            content = sealed(content)
        (folder / name).write_text(json.dumps(content))
    else:
        (folder / name).write_text(json.dumps(content))
        reseal(folder)


def text(draw: random.Random, folder: Path) -> None:
    """Something else than JSON can say, or should, in the place of a value."""
    name = draw.choice(["config.json", "training.json"])
    content = json.loads((folder / name).read_text())
    place = draw.choice(list(places(content)))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = "@@here@@"
    if name == "config.json" and place[0] != "sha256":
        content = sealed(content)
    words = json.dumps(content).replace('"@@here@@"', draw.choice(TEXTS))
    if draw.random() < 0.2:  # a name twice
        words = words.replace("{", '{"step": 1, "seconds": 0, "class": "x",', draw.choice([1, 2, 3]))
    (folder / name).write_text(words)
    if name == "training.json":
        reseal(folder)


# -- tensors, with all hashes made right -------------------------------------------------------------------------------


def other_tensor(draw: random.Random, value: Tensor) -> Tensor:
    ways: list[Callable[[], Tensor]] = [
        lambda: value.reshape(-1)[:1].clone(),
        lambda: value.reshape(-1)[:0].clone(),
        lambda: value.reshape(-1).clone(),
        lambda: value.reshape(1, *value.shape).clone(),
        lambda: value.T.contiguous() if value.ndim == 2 else value[None].clone(),
        lambda: torch.cat([value.reshape(-1), value.reshape(-1)]),
        lambda: value.double(),
        lambda: value.half(),
        lambda: value.bfloat16(),
        lambda: value.to(torch.int64),
        lambda: value.to(torch.bool),
        lambda: value.to(torch.complex64),
        lambda: torch.full_like(value, float("nan")),
        lambda: torch.full_like(value, float("inf")),
        lambda: -value - 1,
        lambda: value * 0 + 3e38,
        lambda: value * 0,
        lambda: value + 0.5,
    ]
    return draw.choice(ways)()


def tensor(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(NAMES[1:4])
    held = {name: value.clone() for name, value in load_file(path).items()}
    kinds = sorted({name.partition("/")[0] for name in held}) if path.name == NAMES[3] else [""]
    kind, what = draw.choice(kinds), draw.random()
    names = [name for name in held if name.startswith(kind)]
    if what < 0.3:  # all of a kind
        held.update({name: other_tensor(random.Random(what), held[name]) for name in names})
    elif what < 0.7:
        name = draw.choice(names)
        held[name] = other_tensor(draw, held[name])
    elif what < 0.8:
        del held[draw.choice(names)]
    elif what < 0.9:
        held[draw.choice(["more", "", "step/more", "exp_avg/", "net.head.weight "])] = torch.zeros(2)
    else:
        a, b = draw.sample(names, 2)
        held[a], held[b] = held[b], held[a]
    path.write_bytes(save(held))
    reseal(folder)


def header(draw: random.Random, folder: Path) -> None:
    """The header of a safetensors file, rewritten by hand."""
    path = folder / draw.choice(NAMES[1:4])
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([name for name in head if name != "__metadata__"])
    begin, end = head[name]["data_offsets"]
    changes: list[dict[str, Any]] = [
        {"shape": [2**60]},
        {"shape": [2**63, 2**63]},
        {"shape": [-1]},
        {"shape": [0, 2**62]},
        {"shape": [1] * 1000},
        {"shape": "x"},
        {"data_offsets": [0, 0]},
        {"data_offsets": [end, begin]},
        {"data_offsets": [0, 2**63]},
        {"dtype": draw.choice(["F4", "F8_E5M2", "U64", "C64", "BOOL", "", 3])},
    ]
    head[name].update(draw.choice(changes))
    if draw.random() < 0.2:
        head["__metadata__"] = draw.choice([{"a": 1}, {"a": "b"}, 3, {"x": "y" * 10_000}])
    words = json.dumps(head).encode()
    size = len(words) if draw.random() < 0.8 else draw.choice([0, 1, 2**24, 2**31, 2**63, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", size) + words + body)
    reseal(folder)


UNSEALED: list[Callable[[random.Random, Path], None]] = [
    bits, bits, truncation, extension, zeros, exchange, absence, another_kind,
]  # fmt: skip
SEALED: list[Callable[[random.Random, Path], None]] = [field, field, field, text, tensor, tensor, header]


# -- what becomes of it ------------------------------------------------------------------------------------------------


def judged(folder: Path, saved: dict[str, Tensor], exact: bool, resume: bool) -> str:
    """What is wrong with how a spoilt checkpoint is met, else "refused" or "accepted".

    It is refused by a CheckpointError that names the checkpoint, or, where the hashes are not right, comes back bit for
    bit; where they are right, what comes back is at least finite and of the shape it should have.
    """
    path, verdict = folder / "step-00000002", "accepted"
    for act in ("resume",) if resume else ("averages", "weights"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other settings
                if act == "resume":
                    run = start(folder, steps=3, save_every=None, log_every=100)
                    next(run)
                    run.close()
                    continue
                model = load_model(path, ema=act == "averages")
        except FloatingPointError:
            if exact or act != "resume":  # a weight of 3e38 is a weight, but not one to train on
                return f"{act}: a FloatingPointError"
            verdict = "refused"
            continue
        except CheckpointError as error:
            if path.name not in str(error) and "of its own" not in str(error):
                return f"{act}: the error does not say where: {error}"
            verdict = "refused"
            continue
        except BaseException as error:
            return f"{act}: {type(error).__name__}: {error}"
        loaded = dict(model.named_parameters())
        file = NAMES[2] if act == "averages" else NAMES[1]
        wanted = {name: saved[f"{file}:{name}"] for name in loaded}
        if exact and not same(dict(loaded), wanted):
            return f"{act}: loaded, but not what was saved"
        if not all(value.isfinite().all() and value.shape == wanted[name].shape for name, value in loaded.items()):
            return f"{act}: loaded, but not finite or of another shape"
    return verdict


def fuzz(folder: str, first: int, count: int) -> tuple[list[str], dict[str, int]]:
    """Spoil the checkpoint in a folder in so many ways, one for each seed from the first: what went wrong.

    Also how many were refused, and how many came through, so that neither is all.
    """
    root = Path(folder)
    checkpoint = root / "step-00000002"
    before, saved, wrong = stat_of(root), tensors(checkpoint), []
    counts = {"refused": 0, "accepted": 0}
    for seed in range(first, first + count):
        draw = random.Random(seed)
        exact = draw.random() < 0.4
        spoil = draw.choice(UNSEALED if exact else SEALED)
        spoil(draw, checkpoint)
        signal.alarm(SECONDS)
        found = judged(root, saved, exact, resume=draw.random() < 0.4)
        signal.alarm(0)
        if found in counts:
            counts[found] += 1
        else:
            wrong.append(f"seed {seed}, {spoil.__name__}: {found}")
        restored(root, before)
    return wrong, counts
