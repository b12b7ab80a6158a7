"""Handwritten digits: MNIST, and a smaller set that needs no download."""

import contextlib
import os
import socket
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import keras
import numpy as np

from kreg.data.pairs import RandomPairs

_KEYS = "x_train", "y_train", "x_test", "y_test"

#: Seconds without an answer after which the download is given up.
_TIMEOUT = 10.0


class MnistUnavailable(OSError):
    """MNIST is in none of the places searched and could not be downloaded."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images ``(n, *spatial)`` and their labels ``(n,)``."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Digits:
    """Grey images of handwritten digits, ``(n, 28, 28)`` uint8, bright on black.

    Attributes:
        train, test: images and their digits.
        source: where they come from, to tell the user.
    """

    train: LabelledImages
    test: LabelledImages
    source: str


def load_mnist(path: str | os.PathLike | None = None) -> Digits:
    """Return MNIST: 60 000 training and 10 000 test images.

    Without a path, the first of these: ``mnist/mnist.npz`` in the folder that the environment
    variable KREG_DATA names, the copy that Keras has cached, a download by Keras.

    Args:
        path: a file such as ``mnist.npz``, or a folder that holds ``mnist.npz`` or
            ``mnist/mnist.npz``; nothing else is then tried.

    Raises:
        FileNotFoundError: if `path` holds no such file.
        ValueError: if a file is found that is broken or is not MNIST.
        MnistUnavailable: if no path is given, no place has it, and the download fails.
    """
    if path is not None:
        return _read(_find(Path(path)))
    cached = _keras_cache()
    places = [cached]
    if "KREG_DATA" in os.environ:
        places.insert(0, Path(os.environ["KREG_DATA"], "mnist", "mnist.npz"))
    for place in places:
        if place.is_file():
            return _read(place)
    return _download(cached, places)


def _find(path: Path) -> Path:
    places = [path]
    if path.is_dir():
        places = [path / "mnist.npz", path / "mnist" / "mnist.npz"]
    for place in places:
        if place.is_file():
            return place
    searched = " or ".join(map(str, places))
    raise FileNotFoundError(
        f"Expected MNIST at {searched}; leave `path` out to download it. Received: {path}, "
        f"{'a folder without such a file' if path.is_dir() else 'which does not exist'}."
    )


def _keras_cache() -> Path:
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home, "datasets", "mnist.npz")


def _read(path: Path) -> Digits:
    """Read a file in the layout of Keras's; its own loader would insist on one zip archive."""
    try:
        # Opened here: np.load leaves a broken archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = [archive[key] for key in _KEYS]
    except (ValueError, EOFError, KeyError, AttributeError, TypeError, BadZipFile, zlib.error) as e:
        raise ValueError(
            f"Expected a NumPy archive with the arrays {', '.join(_KEYS)}; delete the file and "
            f"fetch it again. Received: {path}, {path.stat().st_size} bytes, which reads as "
            f"{type(e).__name__}: {e}"
        ) from e
    return _digits(*arrays, source=str(path))


def _digits(x_train, y_train, x_test, y_test, *, source: str) -> Digits:
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        fits = x.ndim == 3 and x.shape[1:] == (28, 28) and y.shape == x.shape[:1] and len(x)
        if not fits or x.dtype != np.uint8 or y.dtype != np.uint8 or y.max() > 9:
            raise ValueError(
                f"Expected x_{split} (n, 28, 28) uint8 and y_{split} (n,) uint8, digits 0 to 9. "
                f"Received: {x.shape} {x.dtype} and {y.shape} {y.dtype} from {source}; delete the "
                "file and fetch it again."
            )
    return Digits(LabelledImages(x_train, y_train), LabelledImages(x_test, y_test), source)


def _download(cached: Path, places: list[Path]) -> Digits:
    try:
        with _socket_timeout(_TIMEOUT):
            (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except BaseException as error:
        # Keras keeps what fails its checksum, such as the login page of a network.
        cached.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        searched = "".join(f"\n  {place}" for place in places)
        raise MnistUnavailable(
            f"Expected MNIST in one of these files, or a network to download it:{searched}\n"
            "Put mnist.npz there, name it by `load_mnist(path)`, name a folder that holds "
            "mnist/mnist.npz in the environment variable KREG_DATA, or use "
            f"`load_handwritten_digits()`. Received: {error}"
        ) from None  # the message has it; three tracebacks would hide it
    source = f"{cached}, downloaded by keras.datasets.mnist"
    return _digits(x_train, y_train, x_test, y_test, source=source)


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bound the wait of sockets opened meanwhile: Keras sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_handwritten_digits(seed: int = 0) -> Digits:
    """Return 1797 real digits that come with scikit-learn, in the layout of MNIST; no network.

    They are 8x8, from the Optical Recognition of Handwritten Digits data set, here enlarged to
    20x20 and framed by black as MNIST's are. One seventh of each class is for testing.

    Args:
        seed: of the split.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "Expected scikit-learn, which holds these digits: `pip install scikit-learn`. "
            f"Received: {error}"
        ) from error
    images, labels = load_digits(return_X_y=True)
    images = _as_mnist(images.reshape(-1, 8, 8) / 16)
    labels = labels.astype("uint8")
    train, test = train_test_split(
        np.arange(len(labels)), test_size=1 / 7, stratify=labels, random_state=seed
    )
    return Digits(
        LabelledImages(images[train], labels[train]),
        LabelledImages(images[test], labels[test]),
        f"{len(labels)} 8x8 digits of scikit-learn (not MNIST), enlarged to 28x28",
    )


def _as_mnist(images: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] as uint8, 20x20 in the middle of 28x28."""
    from skimage.transform import resize

    large = resize(images, (len(images), 20, 20), order=3, mode="edge", anti_aliasing=False)
    large = np.pad(np.clip(large, 0, 1), ((0, 0), (4, 4), (4, 4)))
    return np.round(255 * large).astype("uint8")


def mnist_pairs(
    moving: LabelledImages,
    fixed: LabelledImages,
    *,
    digit: int | None = None,
    batch_size: int = 64,
    steps: int = 100,
    seed: int = 0,
    fresh: bool = True,
    **kwargs,
) -> RandomPairs:
    """Return random pairs of equal digit: of one digit, or of all in equal shares.

    ``mnist_pairs(digits.train, digits.test, digit=5)`` draws moving images from the training and
    fixed images from the test split. With the same split twice, no image is paired with itself.

    Args:
        moving, fixed: images and their labels, such as ``load_mnist().train``.
        digit: the only one, or None for all.
        batch_size: pairs a batch.
        steps: batches an epoch.
        seed: of the draw.
        fresh: whether each epoch draws other pairs; False for a fixed validation set.
        **kwargs: to ``keras.utils.PyDataset``, such as `workers`.

    Raises:
        ValueError: if there is no image of the digit on one side; see `RandomPairs`.
    """
    if digit is not None:
        same = moving is fixed
        moving = _of_digit(moving, digit, "moving")
        fixed = moving if same else _of_digit(fixed, digit, "fixed")
    return RandomPairs(
        moving.images,
        fixed.images,
        moving_labels=moving.labels,
        fixed_labels=fixed.labels,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        fresh=fresh,
        **kwargs,
    )


def _of_digit(images: LabelledImages, digit: int, name: str) -> LabelledImages:
    chosen = images.labels == digit
    if not chosen.any():
        raise ValueError(
            f"Expected `digit` to be a label of the {name} images, one of "
            f"{np.unique(images.labels).tolist()}. Received: {digit}."
        )
    return LabelledImages(images.images[chosen], images.labels[chosen])
