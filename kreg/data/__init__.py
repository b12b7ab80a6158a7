"""Data: pairs of images for `fit`, from arrays, from folders, from MNIST.

All pair data sets are ``keras.utils.PyDataset`` of ``{"moving", "fixed"}``, float32.
"""

from kreg.data.folders import FolderPairs, RandomFolderPairs
from kreg.data.missing import (
    ContrastChange,
    Lesions,
    MissingPairs,
    SmoothDeformation,
    Strokes,
    missing_brain_pairs,
    missing_digit_pairs,
)
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
    "ContrastChange",
    "Digits",
    "FolderPairs",
    "LabelledImages",
    "Lesions",
    "MissingPairs",
    "MnistUnavailable",
    "OrderedPairs",
    "PairDataset",
    "RandomFolderPairs",
    "RandomPairs",
    "SmoothDeformation",
    "Strokes",
    "load_handwritten_digits",
    "load_mnist",
    "missing_brain_pairs",
    "missing_digit_pairs",
    "mnist_pairs",
]
