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
        function: a pure function of tensors that returns one tensor. It is compiled anew for
            every new set of shapes.

    Returns:
        A callable with the same positional arguments.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        forward = tf.function(function, jit_compile=True, autograph=False)

        @tf.function(jit_compile=True, autograph=False)
        def backward(inputs, upstream):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                output = function(*inputs)
            zero = tf.UnconnectedGradients.ZERO
            return tape.gradient(output, inputs, upstream, unconnected_gradients=zero)

        # The backward pass computes the forward again instead of reading its intermediates: as
        # fast, in less memory. Left to TensorFlow, an outer XLA jit (Keras's default on a GPU)
        # takes them for constants and compiles every training step anew.
        @functools.wraps(function)
        @tf.custom_gradient
        def boundary(*inputs):
            return forward(*inputs), lambda *upstream: backward(inputs, upstream[0])

        return boundary
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
