"""kreg: the only place of this benchmark that knows its names."""

import time

import kreg  # before keras: it silences TensorFlow's start-up messages

# isort: split
import keras
import numpy as np

from benchmarks.pairwise.cases import AFFINE, published_samples

SEED = 0


def configure() -> None:
    """Give the backend one thread."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    elif keras.config.backend() == "torch":
        import torch

        torch.set_num_threads(1)


def _mask(image):
    """The field of view, where it is not the whole image."""
    view = kreg.pairwise.field_of_view(image)
    return view if view.mean() < 0.97 else None


def _register(fixed, moving, model: str, **options) -> tuple[np.ndarray, dict]:
    """Voxel matrix fixed -> moving, and the verdict."""
    group = kreg.groups.Affine() if model == AFFINE else kreg.groups.Homography()
    result = kreg.register(
        fixed,
        moving,
        transform=kreg.transforms.Linear(group),
        fixed_mask=_mask(fixed),
        moving_mask=_mask(moving),
        seed=SEED,
        **options,
    )
    return result.voxel_matrix, {"trusted": bool(result.trusted), "reason": str(result.reason)}


def histogram(fixed, moving, model: str):
    """The default: a Parzen histogram's log-ratio of locally normalised grey values."""
    return _register(fixed, moving, model)


def critic(fixed, moving, model: str):
    """MINE: the log-ratio that a network learns during registration."""
    return _register(fixed, moving, model, similarity=kreg.pairwise.CriticRatio())


def edges(fixed, moving, model: str):
    """The histogram of the edges' strength, for grey values that have little in common."""
    return _register(fixed, moving, model, preparation=kreg.pairwise.EdgeStrength())


def critic_channels(fixed, moving, model: str):
    """MINE on two channels a pixel: the edges' strength and normalised grey values."""
    return _register(
        fixed,
        moving,
        model,
        similarity=kreg.pairwise.CriticRatio(),
        preparation=kreg.pairwise.Channels(),
    )


class _Clock(keras.callbacks.Callback):
    """CPU time at the end of each step."""

    def __init__(self):
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.process_time())


def seconds_per_iteration(fixed, moving) -> float:
    """CPU seconds of one iteration of the critic, all levels at once, at the original's sampling.

    The median of the steps after the first ones, which compile.
    """
    published = published_samples(fixed.shape)
    clock = _Clock()
    kreg.register(
        fixed,
        moving,
        similarity=kreg.pairwise.CriticRatio(),
        schedule=kreg.pairwise.AllLevels(steps=12, samples=sum(published) // len(published)),
        start=None,
        callbacks=[clock],
        seed=SEED,
    )
    return float(np.median(np.diff(clock.times)[2:]))
