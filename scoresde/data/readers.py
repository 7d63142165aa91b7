"""From a path to a data set: which reader it is, and how more are added::

    load("digits.npz")                              # by load_array, as the ending says
    load("my-images", mode="RGB")                   # a folder, by load_folder; options are those of the reader

    @reads(".csv")
    def load_csv(path: PathName, *, delimiter: str = ",") -> Dataset:
        return from_tensors(torch.from_numpy(np.loadtxt(existing(path), delimiter=delimiter)))

    load("points.csv", delimiter=";")

:func:`reader_of` says which function :func:`load` would call, and :func:`reads` enters one under its endings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from scoresde import checks
from scoresde.data.condition_files import read_conditions
from scoresde.data.dataset import Dataset
from scoresde.data.scaling import Scaling
from scoresde.files import PathName, irregular

Reader = TypeVar("Reader", bound=Callable[..., Dataset])

FOLDER = "/"
"""What stands for a folder among endings."""
FOLDERS: dict[Callable[..., Dataset], Callable[[Path], bool]] = {}
"""The readers of folders that are known by what is in them, with the test that knows them."""
LABELS = ("label", "labels", "y")
"""What labels may be called in a file."""
READERS: dict[str, Callable[..., Dataset]] = {}
"""The readers by the ending of the files they read, in small letters."""


def reads(*endings: str, folders: Callable[[Path], bool] | None = None) -> Callable[[Reader], Reader]:
    """Make a function (path, **options) -> Dataset the one that reads files with these endings, such as ".npy".

    Args:
        endings: of files.
        folders: whether a folder is one that it reads, too; called with the path of any folder that is to be loaded.
    """

    for ending in endings:
        checks.instance(ending, str, name="each of endings", hint='Write them as ".csv".')
    if folders is not None and not callable(folders):
        raise TypeError(f"folders must be a function of a path that says True or False, got {checks.got(folders)}.")

    def enter(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(endings, reader))
        if folders is not None:
            FOLDERS[reader] = folders
        return reader

    return enter


def load(
    path: PathName,
    *,
    conditions: Mapping[str, PathName] | None = None,
    condition_scalings: Mapping[str, Scaling | None] | None = None,
    **options: Any,
) -> Dataset:
    """A data set from a file or folder; what is there decides how it is read.

    ``str(dataset)`` says what was understood, and ``dataset.skipped`` what was left out. No file can make this open
    another file or start a program.

    Args:
        path: of a folder of images, or of a file with one of the endings in ``READERS``.
        conditions: what else belongs to each sample, by the name of the network's keyword: the path of an ``.npy``
            file with a row for each sample, or of an ``.npz`` archive with an array of that name. Rows are in the order
            of the data: of images in a folder, in that of their paths. Floating vectors (N, d) and numbers (N,) are
            standardised column by column, by the rules of ``from_tensors`` where these know better.
        condition_scalings: as in ``from_tensors``: by name, a Scaling, or None to hand a condition on as it is.
        options: of its reader, see :func:`reader_of`.

    Raises:
        FileNotFoundError: nothing at ``path``.
        TypeError: an option that this kind of file does not have.
        ValueError: a kind of file that is not read here, or one of the errors of its reader; conditions of another
            number of rows, or that hold NaN or infinity.
    """
    reader = reader_of(path)
    parameters = inspect.signature(reader).parameters
    if conditions is not None and not isinstance(conditions, Mapping):
        raise TypeError(f'conditions must map names to files, {{"obs": "obs.npy"}}, got {checks.got(conditions)}.')
    if condition_scalings is not None and not conditions:
        raise ValueError("condition_scalings are given but there are no conditions; give both, or leave them out.")
    files = {name: existing(place, name=f"conditions[{name!r}]") for name, place in (conditions or {}).items()}
    wrong = [name for name in options if name not in parameters]
    if wrong and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        raise TypeError(
            f"{path} is read by {getattr(reader, '__name__', reader)}, which has no option {wrong[0]!r}; it has "
            f"{', '.join(known) or 'none'}."
        )
    dataset = reader(path, **options)
    if not files:
        return dataset
    if dataset.skipped:
        raise ValueError(
            f"{len(dataset.skipped)} of the samples in {path} were left out, so that it is not known which rows of the "
            "conditions belong to the others: remove those files, and their rows."
        )
    return dataset.with_conditions(read_conditions(files), condition_scalings, from_files=True)


def reader_of(path: PathName) -> Callable[..., Dataset]:
    """The function by which ``load`` reads ``path``, such as ``load_array``.

    Raises:
        FileNotFoundError: nothing at ``path``.
        ValueError: a kind of file that is not read here.
    """
    path = existing(path)
    ending = FOLDER if path.is_dir() else path.suffix.lower()
    if ending == FOLDER:
        known = next((reader for reader, knows in FOLDERS.items() if knows(path)), None)
        if known is not None:
            return known
    if ending in READERS:
        return READERS[ending]
    pickles = " Files of torch.save are pickles, which can run code: save the tensor with numpy.save instead."
    raise ValueError(
        f"cannot read {path}: expected a folder of images, or a file ending in one of "
        f"{', '.join(sorted(set(READERS) - {FOLDER}))}, got {ending or 'no ending'!r}."
        f"{pickles if ending in ('.pt', '.pth', '.pkl', '.ckpt') else ''}"
    )


def existing(path: PathName, *, name: str = "path") -> Path:
    """The path, "~" spelt out: of a folder or a regular file.

    Raises:
        FileNotFoundError: nothing is there.
        TypeError: no path.
        ValueError: something that is no file or folder, such as a FIFO or device, or what may not be looked at.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"{name} must be the path of a file or folder, a text or pathlib.Path; got {checks.got(path)}.")
    if path == "":
        raise ValueError(f"{name} must be the path of a file or folder, got ''; the present folder is '.'.")
    try:
        path = Path(path).expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"no data at {path} (looked in {Path.cwd()} for relative paths).") from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} {str(path)!r} cannot be looked at: {error}.") from error
    kind = irregular(mode)
    if kind is not None and not path.is_dir():
        raise ValueError(f"{name} {path} is {kind}; only folders and regular files are read.")
    return path
