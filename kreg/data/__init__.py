"""Data: pairs of images for `fit`, from arrays, from folders, from MNIST.

All pair data sets are ``keras.utils.PyDataset`` of ``{"moving", "fixed"}``, float32.
"""

from kreg.data.folders import FolderPairs
from kreg.data.mnist import (
    Digits,
    LabelledImages,
    MnistUnavailable,
    load_handwritten_digits,
    load_mnist,
    mnist_pairs,
)
from kreg.data.pairs import ArrayPairs, OrderedPairs, PairDataset, RandomPairs

__all__ = [
    "ArrayPairs",
    "Digits",
    "FolderPairs",
    "LabelledImages",
    "MnistUnavailable",
    "OrderedPairs",
    "PairDataset",
    "RandomPairs",
    "load_handwritten_digits",
    "load_mnist",
    "mnist_pairs",
]
