"""Data: built-in sets, files, and the transforms before a model sees them."""

from pyrodgm.data.files import load_file
from pyrodgm.data.sets import DataSet, data_sets, load, split_rows
from pyrodgm.data.text import Vocabulary, read_lines
from pyrodgm.data.transforms import (
    Standardise,
    binarize,
    bits_per_dim,
    dequantize,
    inverse_logit,
    logit,
    quantize,
    standardise,
    threshold,
)
from pyrodgm.data.words import BagOfWords

__all__ = [
    "BagOfWords",
    "DataSet",
    "Standardise",
    "Vocabulary",
    "binarize",
    "bits_per_dim",
    "data_sets",
    "dequantize",
    "inverse_logit",
    "load",
    "load_file",
    "logit",
    "quantize",
    "read_lines",
    "split_rows",
    "standardise",
    "threshold",
]
