import builtins
import socket
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from kreg.data import (
    LabelledImages,
    MnistUnavailable,
    load_handwritten_digits,
    load_mnist,
    mnist_pairs,
)

REAL_LOAD_DATA = keras.datasets.mnist.load_data


def arrays(n=20, seed=0):
    """Arrays in the layout of MNIST."""
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n, 28, 28), "uint8"),
        "y_train": np.arange(n, dtype="uint8") % 10,
        "x_test": rng.integers(0, 256, (n // 2, 28, 28), "uint8"),
        "y_test": np.arange(n // 2, dtype="uint8") % 10,
    }


def write(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{**arrays(), **changes})
    return path


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No MNIST on this machine, and a download that fails; returns the folder of Keras."""
    monkeypatch.delenv("KREG_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    def fail():
        raise OSError("no network here")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    return tmp_path / "keras"


def assert_is(digits, expected):
    np.testing.assert_array_equal(digits.train.images, expected["x_train"])
    np.testing.assert_array_equal(digits.train.labels, expected["y_train"])
    np.testing.assert_array_equal(digits.test.images, expected["x_test"])
    np.testing.assert_array_equal(digits.test.labels, expected["y_test"])


# --- where it is found ---


@pytest.mark.parametrize("given", ["a/mnist.npz", "a", "."])
def test_a_path_is_a_file_or_a_folder(tmp_path, given):
    path = write(tmp_path / ("mnist" if given == "." else "a") / "mnist.npz")
    digits = load_mnist(tmp_path / given)
    assert_is(digits, arrays())
    assert digits.source == str(path)
    assert len(digits.train) == 20


def test_a_wrong_path_is_never_replaced_by_another_place(nowhere, tmp_path, monkeypatch):
    write(nowhere / "datasets" / "mnist.npz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_mnist(tmp_path / "mnits.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="a folder without such a file"):
        load_mnist(tmp_path / "empty")


def test_places_are_searched_in_order(nowhere, tmp_path, monkeypatch):
    cached = write(nowhere / "datasets" / "mnist.npz")
    assert load_mnist().source == str(cached)
    monkeypatch.setenv("KREG_DATA", str(tmp_path / "data"))
    assert load_mnist().source == str(cached)
    ours = write(tmp_path / "data" / "mnist" / "mnist.npz")
    assert load_mnist().source == str(ours)


def test_the_cache_is_in_the_home_folder_by_default(nowhere, tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    cached = write(tmp_path / "home" / ".keras" / "datasets" / "mnist.npz")
    assert load_mnist().source == str(cached)


def test_real_mnist(data_file):
    digits = load_mnist(data_file("mnist/mnist.npz"))
    assert digits.train.images.shape == (60000, 28, 28)
    assert digits.test.images.shape == (10000, 28, 28)
    assert np.bincount(digits.test.labels).tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]


# --- downloading ---


def test_a_download_is_used_and_named(nowhere, monkeypatch):
    expected = arrays()
    splits = [(expected[f"x_{s}"], expected[f"y_{s}"]) for s in ("train", "test")]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: splits)
    digits = load_mnist()
    assert_is(digits, expected)
    assert "downloaded" in digits.source


def test_unavailable_names_every_place_and_the_cause(nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("KREG_DATA", str(tmp_path / "data"))
    with pytest.raises(MnistUnavailable) as caught:
        load_mnist()
    message = str(caught.value)
    assert str(tmp_path / "data" / "mnist" / "mnist.npz") in message
    assert str(nowhere / "datasets" / "mnist.npz") in message
    assert "no network here" in message
    assert "load_handwritten_digits" in message
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("error", [ValueError("checksum"), KeyboardInterrupt()])
def test_a_failed_download_leaves_no_file_behind(nowhere, monkeypatch, error):
    cached = nowhere / "datasets" / "mnist.npz"

    def half():
        cached.parent.mkdir(parents=True)
        cached.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(keras.datasets.mnist, "load_data", half)
    expected = MnistUnavailable if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected):
        load_mnist()
    assert not cached.exists()


def test_a_silent_network_is_given_up(nowhere, monkeypatch):
    """Keras's own download, led to a server that accepts and never answers."""
    monkeypatch.setattr("kreg.data.mnist._TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(keras.datasets.mnist, "load_data", REAL_LOAD_DATA)
        start = time.monotonic()
        with pytest.raises(MnistUnavailable, match="timed out"):
            load_mnist()
        assert time.monotonic() - start < 10
    assert socket.getdefaulttimeout() is None
    assert not (nowhere / "datasets" / "mnist.npz").exists()


# --- broken files ---


def broken(path, kind):
    write(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "not an archive":
        path.write_bytes(b"<html>please log in</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "flipped bytes":
        content = bytearray(path.read_bytes())
        content[3000:3040] = bytes(40)
        path.write_bytes(content)
    elif kind == "without y_test":
        kept = arrays()
        del kept["y_test"]
        np.savez(path, **kept)


@pytest.mark.parametrize(
    "kind",
    ["truncated", "not an archive", "empty", "one array", "flipped bytes", "without y_test"],
)
def test_a_broken_file_is_named_with_the_remedy(nowhere, kind):
    cached = nowhere / "datasets" / "mnist.npz"
    broken(cached, kind)
    with pytest.raises(ValueError, match="delete the file and fetch it again") as caught:
        load_mnist()
    assert str(cached) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.zeros((20, 28, 27), "uint8")},
        {"x_train": np.zeros((20, 784), "uint8")},
        {"x_test": np.zeros((10, 28, 28), "float32")},
        {"y_train": np.zeros(19, "uint8")},
        {"y_test": np.full(10, 10, "uint8")},
        {"x_test": np.zeros((0, 28, 28), "uint8"), "y_test": np.zeros(0, "uint8")},
    ],
)
def test_another_layout_is_refused(tmp_path, changes):
    path = write(tmp_path / "mnist.npz", **changes)
    with pytest.raises(ValueError, match=r"\(n, 28, 28\) uint8"):
        load_mnist(path)


# --- scikit-learn's digits ---


def test_handwritten_digits_have_the_layout_of_mnist():
    digits = load_handwritten_digits()
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.test) == pytest.approx(1797 / 7, abs=1)
    for split in (digits.train, digits.test):
        assert split.images.shape[1:] == (28, 28)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.uint8)
        share = np.bincount(split.labels, minlength=10) / len(split)
        np.testing.assert_allclose(share, 0.1, atol=0.015)
        frame = split.images.copy()
        frame[:, 4:24, 4:24] = 0
        assert not frame.any()
        assert split.images.max() == 255
    assert "not MNIST" in digits.source


def test_handwritten_digits_are_the_originals_enlarged():
    """Averaged back to 8x8, each is most like an 8x8 original of its own label."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    digits = load_handwritten_digits().test
    inner = digits.images[:, 4:24, 4:24].astype("float64")
    back = np.repeat(np.repeat(inner, 2, 1), 2, 2).reshape(-1, 8, 5, 8, 5).mean((2, 4))
    back = back.reshape(len(back), -1)

    def standard(x):
        x = x - x.mean(1, keepdims=True)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    correlation = standard(back) @ standard(small).T
    assert (labels[correlation.argmax(1)] == digits.labels).mean() > 0.99
    assert correlation.max(1).min() > 0.97


def test_handwritten_digits_split_by_seed():
    first, again, other = (load_handwritten_digits(seed).test.images for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load_handwritten_digits()


# --- pairs ---


def split(n=40):
    """Image i is i everywhere, its label i modulo 10."""
    images = np.broadcast_to(np.arange(n, dtype="uint8")[:, None, None], (n, 28, 28))
    return LabelledImages(images, np.arange(n, dtype="uint8") % 10)


def drawn(pairs):
    (batch,) = pairs[0]
    return [np.round(batch[side][:, 0, 0, 0] * 255).astype(int) for side in ("moving", "fixed")]


def test_pairs_are_of_equal_digit():
    moving, fixed = drawn(mnist_pairs(split(), split(20), batch_size=400))
    assert (moving % 10 == fixed % 10).all()
    assert set(moving % 10) == set(range(10))
    assert (set(moving), set(fixed)) == (set(range(40)), set(range(20)))


def test_pairs_of_one_digit_from_two_splits():
    pairs = mnist_pairs(split(), split(20), digit=5, batch_size=100, steps=7)
    assert len(pairs) == 7
    assert pairs.image_shape == (28, 28, 1)
    moving, fixed = drawn(pairs)
    assert (set(moving), set(fixed)) == ({5, 15, 25, 35}, {5, 15})


@pytest.mark.parametrize("digit", [None, 5])
def test_pairs_within_one_split_have_two_images(digit):
    images = split()
    moving, fixed = drawn(mnist_pairs(images, images, digit=digit, batch_size=300))
    assert (moving != fixed).all()
    assert (moving % 10 == fixed % 10).all()


def test_pairs_can_be_kept_for_validation():
    pairs = mnist_pairs(split(), split(), fresh=False, seed=4)
    before = drawn(pairs)
    pairs.on_epoch_end()
    np.testing.assert_array_equal(drawn(pairs), before)


def test_a_digit_without_images_is_refused():
    with pytest.raises(ValueError, match=r"label of the fixed images.*\[0, 1, 2\]. Received: 5"):
        mnist_pairs(split(), split(3), digit=5)
    with pytest.raises(ValueError, match=r"label of the moving images.*Received: 11"):
        mnist_pairs(split(), split(), digit=11)
