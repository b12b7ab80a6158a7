"""The seam: what must differ by Keras backend, one function per need.

Everything else in kreg is written with ``keras.ops`` and knows no backend.
"""

import contextlib
import contextvars
import functools
import importlib
import math

import keras

_least_for_xla: contextvars.ContextVar[float] = contextvars.ContextVar("least", default=0)


@contextlib.contextmanager
def for_one_call(least: float = 2**22):
    """Within, what `jit` compiles runs on TensorFlow as a graph, without XLA, if inputs are small.

    XLA takes seconds to compile what runs once in less. What is `compiled` is left as it is.

    Args:
        least: how many numbers inputs hold in all, for XLA to be worth its time.
    """
    token = _least_for_xla.set(least)
    try:
        yield
    finally:
        _least_for_xla.reset(token)


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
            # A tape that watched them would have the forward pass compiled a second time, with
            # all intermediates among its outputs.
            unwatched = map(tf.stop_gradient, inputs)
            return forward(*unwatched), lambda *upstream: backward(inputs, upstream[0])

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


def jit(function, least: float = 0, *, any_length: bool = False):
    """Return `function` of tensors and lists of them compiled whole, not to be differentiated.

    XLA on TensorFlow and JAX, unchanged on PyTorch. It is compiled anew for new shapes.

    Args:
        function: what is compiled.
        least: TensorFlow alone: inputs of fewer numbers in all run as a graph without XLA, which
            is some milliseconds slower, and saves the seconds that XLA takes for a new shape.
        any_length: TensorFlow alone: the graph, which Python takes a second to build, is one for
            all lengths of the inputs' first axes; `function` meets None there.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # A tf.function, of a function of its own, for each set of shapes: TensorFlow warns where
        # one function is traced for many.
        variants: dict[tuple, object] = {}

        def spec(tensor):
            shape = tuple(tensor.shape)
            shape = (None, *shape[1:]) if any_length and shape else shape
            return tf.TensorSpec(shape, tensor.dtype)

        @functools.wraps(function)
        def call(*inputs):
            numbers = sum(math.prod(tensor.shape) for tensor in tf.nest.flatten(inputs))
            large = numbers >= max(least, _least_for_xla.get())
            signature = tf.nest.map_structure(spec, inputs)
            key = large, tuple(tf.nest.flatten(signature))
            if key not in variants:
                own = functools.partial(function)
                variants[key] = tf.function(
                    own, input_signature=signature, jit_compile=large, autograph=False
                )
            return variants[key](*inputs)

        return call
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def value_and_gradients(function, variables: list):
    """Return ``(value, aux), gradients`` of ``function(variables) -> (scalar value, aux)``.

    Args:
        function: of a list of tensors; `aux` is a tensor or a tuple of tensors that are only
            passed on.
        variables: where to differentiate; an unconnected one has the gradient zero.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        variables = [tf.convert_to_tensor(variable) for variable in variables]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            value, aux = function(variables)
        zero = tf.UnconnectedGradients.ZERO
        return (value, aux), tape.gradient(value, variables, unconnected_gradients=zero)
    if backend == "jax":
        import jax

        return jax.value_and_grad(function, has_aux=True)(variables)
    import torch

    variables = [variable.detach().requires_grad_(True) for variable in variables]
    with torch.enable_grad():
        value, aux = function(variables)
    gradients = torch.autograd.grad(value, variables, allow_unused=True, materialize_grads=True)
    detached = tuple(a.detach() for a in aux) if isinstance(aux, tuple) else aux.detach()
    return (value.detach(), detached), list(gradients)


def training_step(function, variables: list, optimizer, *, whole: bool = True):
    """Return ``step(*inputs) -> aux``, which lets a Keras optimizer lower a function of variables.

    Compiled as `jit` does. On JAX, state goes in and out of a pure function; elsewhere the
    variables change in place.

    Args:
        function: ``function(values of the variables, *inputs) -> (scalar loss, aux)``.
        variables: `keras.Variable` objects, changed by the step.
        optimizer: a Keras optimizer, built for them.
        whole: TensorFlow alone: whether XLA compiles it in one piece, or only what within it is
            `compiled`.
    """
    if keras.config.backend() == "jax":

        @jit
        def pure(values, state, inputs):
            (_, aux), gradients = value_and_gradients(lambda v: function(v, *inputs), values)
            return aux, *optimizer.stateless_apply(state, gradients, values)

        def step(*inputs):
            values = [variable.value for variable in variables]
            state = [variable.value for variable in optimizer.variables]
            aux, values, state = pure(values, state, inputs)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            for variable, value in zip(optimizer.variables, state, strict=True):
                variable.assign(value)
            return aux

        return step

    def in_place(*inputs):
        values = [variable.value for variable in variables]
        (_, aux), gradients = value_and_gradients(lambda v: function(v, *inputs), values)
        optimizer.apply(gradients, variables)
        return aux

    return jit(in_place, 0 if whole else math.inf)


def has_gpu() -> bool:
    """Whether the backend sees a GPU, or on JAX anything else than a CPU."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import torch

    return torch.cuda.is_available()


def widest_float() -> str:
    """Return "float64", or "float32" where the backend has nothing wider as it is set up."""
    if keras.config.backend() == "jax":
        import jax

        return "float64" if jax.config.jax_enable_x64 else "float32"
    return "float64"


def versions() -> dict[str, str]:
    """Return the versions of Keras and of the backend that runs, name -> version."""
    name = keras.config.backend()
    return {"keras": keras.__version__, name: importlib.import_module(name).__version__}
