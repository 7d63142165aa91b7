"""Data in memory in the units of the model, with the way back: tensors, arrays, folders, Parquet::

    dataset = load("my-images")                                  # a folder of images, .npy, .npz, .parquet, .bin
    dataset = from_tensors(x, label, conditions={"size": size})  # what you have in memory
    batch = dataset[[7, 1]]                                      # {"x": (2, C, H, W), "label": (2,), "size": ...}
    print(dataset), dataset.skipped                              # what was understood of the files; what was left out
    pictures = dataset.scaling.to_uint8(samples)                 # what a model generated, as pictures
    held, training = dataset.subset(slice(0, 500)), dataset.subset(slice(500, None))

:class:`Dataset` holds the numbers as they are stored and converts a batch when it is asked for; :class:`Scaling` is the
map between the units of the data and those of the model; :class:`Augmentation` moves pictures about, and says how;
:func:`mix` gives several sets their shares of what training sees.
Another kind of file is a function below :func:`reads`.
"""

from scoresde.data.arrays import load_array
from scoresde.data.augmentation import Augmentation
from scoresde.data.cifar import load_cifar
from scoresde.data.dataset import Dataset, from_tensors, random_flip
from scoresde.data.folders import load_folder
from scoresde.data.huggingface import from_huggingface
from scoresde.data.mixing import mix
from scoresde.data.parquet import load_parquet
from scoresde.data.readers import load, reader_of, reads
from scoresde.data.scaling import Scaling
from scoresde.data.source import Source

__all__ = [
    "Augmentation",
    "Dataset",
    "Scaling",
    "Source",
    "from_huggingface",
    "from_tensors",
    "load",
    "load_array",
    "load_cifar",
    "load_folder",
    "load_parquet",
    "mix",
    "random_flip",
    "reader_of",
    "reads",
]
