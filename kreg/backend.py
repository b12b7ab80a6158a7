"""The seam: what must differ by Keras backend, one function per need.

Everything else in kreg is written with ``keras.ops`` and knows no backend.
"""

import functools

import keras


def compiled(function):
    """Return `function` compiled as one unit: XLA on TensorFlow and JAX, unchanged on PyTorch.

    Elementwise chains and gathers (warps, box filters, Jacobians) gain 2 to 10 times from
    fusion; convolutions on a CPU lose 5 to 20 times, so a network is left outside and only
    such functions are wrapped. The boundary also keeps chained warps from being fused into
    one another, which XLA would compile for minutes.

    Args:
        function: a pure function of tensors. It is compiled anew for every new set of shapes.

    Returns:
        A callable with the same positional arguments.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # Numbers of dimensions differ between callers: retracing is meant, so it isn't relaxed.
        return functools.wraps(function)(
            tf.function(function, jit_compile=True, reduce_retracing=False)
        )
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def repeat(function, times: int, value):
    """Return function(function(...function(value))), applied `times` times.

    A loop of its own on JAX: unrolled within one jit, XLA fuses each warp into the next and
    computes the first one 2^(D times) times over. Elsewhere `function` should be `compiled`.
    """
    if keras.config.backend() == "jax":
        import jax

        return jax.lax.fori_loop(0, times, lambda _, x: function(x), value)
    for _ in range(times):
        value = function(value)
    return value
