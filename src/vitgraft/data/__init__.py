"""From pictures on disk to batches: what a folder holds, how a picture is prepared, in which order it is seen."""

from .batch import Batch, LoadedPictures
from .dataset import DataSet, Split, read
from .loader import OneClass, Pictures, Truth, epoch_batches, even_batches
from .pictures import BadPicture, open_picture, to_rgb
from .preprocess import Preprocess

__all__ = [
    "BadPicture",
    "Batch",
    "DataSet",
    "LoadedPictures",
    "OneClass",
    "Pictures",
    "Preprocess",
    "Split",
    "Truth",
    "epoch_batches",
    "even_batches",
    "open_picture",
    "read",
    "to_rgb",
]
