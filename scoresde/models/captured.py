"""CUDA graphs of networks: what a network does is recorded once for each shape, and replayed without launching kernels.

    with captured(model):
        sample(classifier_free(model, {"label": y}, 3.0), (64, 3, 32, 32), steps=25, seed=0)

At small batches a GPU waits for Python to launch the kernels of each layer; a replay launches them as one. Inside the
``with`` every call of the network without gradients is a replay, whoever makes it: solvers, guidance, edits, particles.
The arithmetic is the same, and so are the numbers.

What is captured is the network alone. Times and coefficients are numbers, worked out outside; noise is drawn outside,
too. :class:`Replays` does the work, with a :class:`Recorder` that knows CUDA, or one of another kind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.checks.lasting import without_graph
from scoresde.checks.written import is_as_written
from scoresde.models.modules import modules_of
from scoresde.models.network import NoiseLevelNetwork

_WARM = 3
"""Runs before the recording, in which libraries choose their kernels and take their memory."""


class Recorder(Protocol):
    """What records the work of a function on a device."""

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What repeats the work, and what the work answered: tensors that each repetition overwrites."""


class CUDARecorder:
    """Records into CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """After three runs on a stream of their own, as torch asks for."""
        with torch.cuda.device(self._device):
            return self._recorded(work)

    def _recorded(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        beside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(_WARM):
                work()
        current.wait_stream(beside)
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            answer = work()
        return graph.replay, answer


class _Recorded:
    """One shape: the inputs that are written to, the replay, and what it answers."""

    def __init__(
        self, function: Callable[..., Any], args: Any, kwargs: Any, record: Recorder, around: Callable[[], Any]
    ) -> None:
        def work() -> Any:
            with around():
                return function(*self._args, **self._kwargs)

        with without_graph():
            self._args, self._kwargs = _mapped((args, kwargs), _like)
            self._inputs = _tensors((self._args, self._kwargs))
            self._replay, self._answer = record(work)

    def __call__(self, given: Sequence[Tensor]) -> Any:
        with without_graph():
            for held, new in zip(self._inputs, given, strict=True):
                held.copy_(new)
            self._replay()
            return _mapped(self._answer, torch.clone)  # the next replay writes over it


class Replays:
    """A function of tensors whose work is recorded for each kind of call, and then replayed.

    A kind is the shapes, dtypes, devices and memory formats of all tensors among the arguments, every other argument,
    autocast, and of the network its modules, their modes, and where the parameters lie: what is in their memory may
    change. Other attributes of a module are as they were when it was recorded. A call in which a gradient may be
    wanted, with a tensor that is not on ``device``, or while somebody steps into the network, runs as ever. Answers are
    copies.

    Args:
        function: called with tensors, numbers, texts and None, in tuples, lists and mappings by name.
        device: where its work is done.
        record: what records it.
        network: whose parameters and buffers it reads beside its arguments.
        most: how many kinds are kept; of more the one that was not used for longest is forgotten.

    Attributes:
        recorded: how many recordings were made.
        replayed: how many calls were replays.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        device: torch.device,
        record: Recorder,
        *,
        network: nn.Module | None = None,
        most: int = 8,
    ) -> None:
        self.function, self.device, self.record = function, device, record
        self.network, self.most = network, checks.count(most, name="most")
        self.recorded = self.replayed = 0
        self._kinds: OrderedDict[Any, _Recorded] = OrderedDict()
        self._lock = threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = _tensors((args, kwargs))
        state, held = _read_by(self.network)
        if not self._may(given, held):
            return self.function(*args, **kwargs)
        with self._lock:
            kind = self._autocast(), state, _key((args, kwargs))
            if kind not in self._kinds:
                self._kinds[kind] = _Recorded(self.function, args, kwargs, self.record, self._uncached)
                self.recorded += 1
                while len(self._kinds) > self.most:
                    self._kinds.popitem(last=False)
            self._kinds.move_to_end(kind)
            self.replayed += 1
            return self._kinds[kind](given)

    def _may(self, given: Sequence[Tensor], held: Sequence[Tensor]) -> bool:
        """Whether a recording can answer: no gradient, no transform or edit, and all tensors where the work is."""
        if is_as_written():
            return False
        grad = torch.is_grad_enabled() and any(one.requires_grad for one in (*given, *held))
        return not grad and all(one.device == self.device and not checks.transformed(one) for one in given)

    def _uncached(self) -> AbstractContextManager[Any]:
        """Autocast as it is, without its cache: casts of weights that lie there are freed before the next replay."""
        place = self.device.type
        if not torch.is_autocast_enabled(place):
            return nullcontext()
        return torch.autocast(place, torch.get_autocast_dtype(place), cache_enabled=False)

    def _autocast(self) -> torch.dtype | None:
        place = self.device.type
        return torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else None


def _read_by(network: nn.Module | None) -> tuple[Any, list[Tensor]]:
    """What a recording of a network rests on, and the tensors that it reads, as they are now."""
    held: list[Tensor] = []
    modes: list[Any] = []
    known = {} if network is None else {id(network): network}
    waiting = list(known.values())
    for module in waiting:  # asked at every call: torch's own walk takes four times as long
        own = vars(module)
        # an adapter changes the class of its layer, and says whether it adds to it
        modes += (id(module), module.__class__, own["training"], own.get("adds"))
        held += [one for kind in ("_parameters", "_buffers") for one in own[kind].values() if one is not None]
        for one in own["_modules"].values():
            if one is not None and id(one) not in known:
                known[id(one)] = one
                waiting.append(one)
    return (*modes, *(one.data_ptr() for one in held)), held


@contextmanager
def captured(*scores: object, most: int = 8) -> Iterator[None]:
    """Inside, the networks behind these scores or models are replayed from CUDA graphs, one for each shape.

    The first call of a shape costs four evaluations, and a graph holds the memory of one. Calls that gradients are
    taken of (classifier guidance, posteriors by backward passes, training), and those whose attention maps or nulls are
    recorded or edited, run as ever. A network must not read numbers
    back, nor go other ways by them: torch refuses to capture one that does. Weights may change in place; with
    other weights, modules or modes (``train``, ``eval``) a network is recorded anew. Threads may share
    it on one stream.

    Where the network compiles, ``model.net.compile(mode="reduce-overhead")`` also fuses its kernels, and is faster
    once a minute of compiling is paid; this costs no compiling, and its numbers are those of the network as it is.

    Args:
        scores: each a ScoreModel, a ClassifierModel or a Score made of them, on a CUDA device.
        most: graphs kept for each network.

    Raises:
        TypeError: no network behind a score, or one that is no module.
        ValueError: a network that is not on a CUDA device, or that is compiled.
    """
    most = checks.count(most, name="most")
    networks = [network for score in scores for network in _networks(score)]
    if not networks:
        raise TypeError("captured needs at least one score or model, such as captured(model); got none.")
    for network in networks:
        _check(network)
    with ExitStack() as stack:
        for network in dict.fromkeys(networks):
            device = next(iter((*network.parameters(), *network.buffers()))).device
            stack.enter_context(replaying(network, CUDARecorder(device), most=most))
        yield


@contextmanager
def replaying(network: nn.Module, record: Recorder, *, most: int = 8) -> Iterator[Replays]:
    """Inside, calls of this module are replays by ``record``; for recorders of other devices than CUDA."""
    held = [*network.parameters(), *network.buffers()]
    device = held[0].device if held else torch.device("cpu")
    replays = Replays(network.forward, device, record, network=network, most=most)
    before = vars(network).get("forward")
    vars(network)["forward"] = replays
    try:
        yield replays
    finally:
        vars(network).pop("forward")
        if before is not None:
            vars(network)["forward"] = before


def _networks(score: object) -> list[nn.Module]:
    found = [one.net for one in modules_of(score) if isinstance(one, NoiseLevelNetwork)]
    plain = [one for one in found if not isinstance(one, nn.Module)]
    if plain or not found:
        what = f"the network of one is {checks.got(plain[0])}, no module" if plain else f"got {checks.got(score)}"
        raise TypeError(f"captured needs scores with a network that is an nn.Module behind them; {what}.")
    return [one for one in found if isinstance(one, nn.Module)]


def _check(network: nn.Module) -> None:
    devices = {one.device for one in (*network.parameters(), *network.buffers())}
    name = type(network).__name__
    if {device.type for device in devices} != {"cuda"} or len(devices) != 1:
        where = ", ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(
            f"CUDA graphs are of a network on one CUDA device; {name} is on {where}. Call model.to('cuda') first, or "
            "leave captured out: on a CPU there are no launches to save, and model.net.compile() is what makes it "
            "faster."
        )
    if getattr(network, "_compiled_call_impl", None) is not None:
        raise ValueError(
            f"{name} is compiled, and what is captured is its forward as it is written. Leave captured out and compile "
            'with mode="reduce-overhead", which captures what it compiles.'
        )


# -- arguments and answers ---------------------------------------------------------------------------------------------


def _like(x: Tensor) -> Tensor:
    """Memory of its own, of the same shape and format; of a view that repeats rows, all of them."""
    return x.clone(memory_format=torch.preserve_format)


def _tensors(part: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(part, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def _mapped(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and mappings of changed tensors."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, Mapping):
        return {name: _mapped(value, change) for name, value in part.items()}
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*(_mapped(value, change) for value in part))
    if isinstance(part, (tuple, list)):
        return type(part)(_mapped(value, change) for value in part)
    if part is None or isinstance(part, (bool, int, float, complex, str, torch.dtype, torch.device)):
        return part
    raise TypeError(
        f"a captured network takes and answers tensors, numbers, texts and None, in tuples, lists and mappings; got "
        f"{checks.got(part)}. Leave captured out, or wrap the network in a module that does."
    )


def _key(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.shape, part.stride(), part.dtype, part.device
    if isinstance(part, Mapping):
        return dict, tuple((name, _key(value)) for name, value in part.items())
    if isinstance(part, (tuple, list)):
        return type(part), tuple(map(_key, part))
    return type(part), repr(part)  # a NaN is itself
