"""Data in memory in the units of the model, with the way back: tensors, arrays, folders, Parquet."""

from scoresde.data.dataset import Dataset, from_tensors, random_flip
from scoresde.data.load import load, load_array, load_folder, load_parquet, reader_of
from scoresde.data.scaling import Scaling

__all__ = [
    "Dataset",
    "Scaling",
    "from_tensors",
    "load",
    "load_array",
    "load_folder",
    "load_parquet",
    "random_flip",
    "reader_of",
]
