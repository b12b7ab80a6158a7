"""kreg, on the Keras backend that KERAS_BACKEND names."""

import platform
from importlib.metadata import version

import keras
import numpy as np
from keras import ops

import kreg
from benchmarks.cases import BOTH, FLOW, NCC, NCC_GRADIENT, WARP, WINDOW

BACKEND = keras.config.backend()
_device = {"name": "cpu", "threads": 0, "gpu": False}


def configure(threads: int, gpu: bool) -> None:
    """Size the thread pools; say on which device the arrays will lie."""
    _device.update(threads=threads, gpu=gpu)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if gpu:
            found = tf.config.list_physical_devices("GPU")
            if not found:
                raise RuntimeError("Expected TensorFlow to see a GPU; leave out --gpu. Found none.")
            _device["name"] = tf.config.experimental.get_device_details(found[0])["device_name"]
    elif BACKEND == "jax":
        import jax

        if gpu:
            _device["name"] = jax.devices("gpu")[0].device_kind
        else:
            # JAX takes as many threads as the process may use cores.
            jax.config.update("jax_platforms", "cpu")
    else:
        import torch

        torch.set_num_threads(threads)
        if gpu:
            _device["name"] = torch.cuda.get_device_name()


def about() -> dict:
    """Return versions, threads and device."""
    package = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[BACKEND]
    versions = {name: version(name) for name in ("keras", package, "numpy")}
    versions = {"kreg": kreg.__version__, **versions, "python": platform.python_version()}
    return {"versions": versions, "threads": _device["threads"], "device": _device["name"]}


def wait(result) -> None:
    """Return when the result has been computed."""
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(result)
    elif _device["gpu"] and BACKEND == "tensorflow":
        import tensorflow as tf

        tf.test.experimental.sync_devices()
    elif _device["gpu"]:
        import torch

        torch.cuda.synchronize()


def array(result) -> np.ndarray:
    """Return all parts of the result as one vector."""
    parts = keras.tree.flatten(result)
    return np.concatenate([ops.convert_to_numpy(ops.ravel(part)) for part in parts])


def peak_bytes() -> int | None:
    """Return the peak of device memory, or None where that is the process's own."""
    if not _device["gpu"]:
        return None
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    if BACKEND == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def _graph(function):
    """`function` as `model.predict` runs it: traced, with the layer's own compiled parts inside."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.no_grad()(function)


def _value_and_gradients(function, count: int):
    """Compile `function` with its gradients to the first `count` arguments."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def both(*inputs):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(inputs[:count])
                value = function(*inputs)
            return value, tape.gradient(value, inputs[:count])

        return both
    if BACKEND == "jax":
        import jax

        return jax.jit(jax.value_and_grad(function, argnums=tuple(range(count))))

    def both(*inputs):
        leaves = [x.detach().requires_grad_() for x in inputs[:count]]
        value = function(*leaves, *inputs[count:])
        value.backward()
        return value.detach(), tuple(x.grad for x in leaves)

    return both


def prepare(task: str, form: None, folder):
    """Return the task as a function without arguments."""

    def load(*names):
        return [ops.convert_to_tensor(np.load(folder / f"{name}.npy")) for name in names]

    if task == WARP:
        layer = kreg.layers.SpatialTransformer(image_gradient=False)
        function = _graph(lambda moving, displacement: layer(moving, displacement))
        inputs = load("moving", "displacement")
    elif task in (FLOW, BOTH):

        def total(displacement, moving, upstream):
            return ops.sum(kreg.ops.warp(moving, displacement) * upstream)

        function = _value_and_gradients(total, 1 if task == FLOW else 2)
        inputs = load("displacement", "moving", "upstream")
    else:

        def loss(warped, fixed):
            return ops.mean(kreg.losses.local_ncc(fixed, warped, window=WINDOW))

        compile_it = {NCC: _graph, NCC_GRADIENT: lambda f: _value_and_gradients(f, 1)}[task]
        function = compile_it(loss)
        inputs = load("moving", "fixed")
    return lambda: function(*inputs)
