"""kreg: the only place of this benchmark that knows its names."""

import numpy as np

import kreg
from benchmarks.pairwise.cases import AFFINE, published_samples
from kreg.ops import voxel_matrix

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


def _register(fixed, moving, model: str, similarity) -> tuple[np.ndarray, dict]:
    """Voxel matrix fixed -> moving, and the verdict."""
    group = kreg.groups.Affine() if model == AFFINE else kreg.groups.Homography()
    result = kreg.register(
        fixed,
        moving,
        transform=kreg.transforms.Linear(group),
        similarity=similarity,
        seed=SEED,
    )
    world = np.reshape(np.asarray(result.matrix, "float32"), (1, 3, 3))
    matrix = np.asarray(voxel_matrix(world, fixed.shape[:2], moving.shape[:2]))[0]
    return matrix, {"trusted": bool(result.trusted), "reason": str(result.reason)}


def histogram(fixed, moving, model: str):
    """The Parzen histogram's log-ratio."""
    return _register(fixed, moving, model, kreg.similarities.HistogramRatio())


def critic(fixed, moving, model: str):
    """MINE: the log-ratio that a network learns during registration."""
    return _register(fixed, moving, model, kreg.similarities.CriticRatio())


def seconds_per_iteration(fixed, moving) -> float:
    """CPU seconds of one iteration of the critic, all levels at once, at the original's sampling.

    Raises:
        NotImplementedError: until it calls `kreg.register` with the original's schedule.
    """
    raise NotImplementedError(
        "Expected kreg's step with as many samples at each level as the original takes, "
        f"{published_samples(fixed.shape)}. Received: nothing that does it yet."
    )
