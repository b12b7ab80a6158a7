"""Gradients by the backend, and by central differences to hold them against."""

from collections.abc import Callable

import keras
import numpy as np


def gradients(function: Callable, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return d function / d array for each array, by the backend; zeros where none flows.

    Args:
        function: of as many tensors as there are arrays; it returns a scalar tensor.
        arrays: where to differentiate, float32.
    """
    by_backend = {"tensorflow": _by_tape, "jax": _by_transform, "torch": _by_graph}
    found = by_backend[keras.config.backend()](function, arrays)
    return [
        np.zeros_like(array) if gradient is None else keras.ops.convert_to_numpy(gradient)
        for gradient, array in zip(found, arrays, strict=True)
    ]


def _by_tape(function, arrays):
    import tensorflow as tf

    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return tape.gradient(value, tensors)


def _by_transform(function, arrays):
    import jax

    tensors = [jax.numpy.asarray(array) for array in arrays]
    return jax.grad(function, argnums=tuple(range(len(tensors))))(*tensors)


def _by_graph(function, arrays):
    import torch

    device = keras.ops.convert_to_tensor(0.0).device
    tensors = [torch.tensor(array, device=device, requires_grad=True) for array in arrays]
    value = function(*tensors)
    if not value.requires_grad:
        return [None] * len(tensors)
    return torch.autograd.grad(value, tensors, allow_unused=True)


def central_differences(
    function: Callable, *arrays: np.ndarray, argument: int = 0, step: float = 1e-2
) -> np.ndarray:
    """Return d function / d arrays[argument], by shifting each of its entries up and down.

    Args:
        function: of as many tensors as there are arrays; it returns one value a sample, so that
            one call with a sample for each shift is enough.
        arrays: each a batch of one, float32.
        argument: which of them is shifted.
        step: by how much; a float32 function of size 1 is known to about 1e-7 / step.
    """
    size = arrays[argument].size
    shifts = step * np.eye(size, dtype="float32").reshape(size, *arrays[argument].shape[1:])
    shifts = np.concatenate([shifts, -shifts])
    batches = [np.repeat(array, 2 * size, axis=0) for array in arrays]
    batches[argument] = batches[argument] + shifts
    values = keras.ops.convert_to_numpy(function(*batches)).astype("float64")
    return ((values[:size] - values[size:]) / (2 * step)).reshape(arrays[argument].shape)
