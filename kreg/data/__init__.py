"""Data: pairs of images for `fit`, from arrays, from folders, from MNIST, from
cine sequences.

All pair data sets are ``keras.utils.PyDataset`` of ``{"moving", "fixed"}``, float32.
"""

from kreg.data.cine import CinePairs, load_cine_folder, load_lvquan, split_subjects
from kreg.data.folders import FolderPairs, RandomFolderPairs
from kreg.data.known_transforms import KnownTransforms, RandomAffine, SmoothNoise
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
    "CinePairs",
    "ContrastChange",
    "Digits",
    "FolderPairs",
    "KnownTransforms",
    "LabelledImages",
    "Lesions",
    "MissingPairs",
    "MnistUnavailable",
    "OrderedPairs",
    "PairDataset",
    "RandomAffine",
    "RandomFolderPairs",
    "RandomPairs",
    "SmoothDeformation",
    "SmoothNoise",
    "Strokes",
    "load_cine_folder",
    "load_handwritten_digits",
    "load_lvquan",
    "load_mnist",
    "missing_brain_pairs",
    "missing_digit_pairs",
    "mnist_pairs",
    "split_subjects",
]
