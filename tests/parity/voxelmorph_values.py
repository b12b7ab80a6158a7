"""Write voxelmorph.npz: what VoxelMorph 0.2, the last one for Keras, makes of small inputs.

`make parity` runs it, in an environment of its own: that version needs Keras 2.
"""

import inspect
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

os.environ["VXM_BACKEND"] = os.environ["NEURITE_BACKEND"] = "tensorflow"
# It asks for what Python 3.11 has no longer.
inspect.getargspec = lambda function: inspect.getfullargspec(function)[:4]  # type: ignore[attr-defined]

import voxelmorph as vxm  # noqa: E402

VERSION = "0.2"
SHAPE = (11, 14)


def inputs() -> dict[str, np.ndarray]:
    """Return images with values up to 1, and what moves them."""
    random = np.random.default_rng(1)
    affine = np.array([[[0.9, -0.3, 1.5], [0.2, 1.1, -2.0]], [[1.1, 0.1, 0.5], [-0.2, 0.8, 2.0]]])
    found = {
        "moving": random.random((2, *SHAPE, 3)),
        "flow": random.uniform(-4, 4, (2, *SHAPE, 2)),
        "velocity": random.uniform(-2, 2, (2, *SHAPE, 2)),
        "affine": affine,
    }
    return {name: value.astype("float32") for name, value in found.items()}


def outputs(moving, flow, velocity, affine) -> dict:
    """Return what the layers and losses make of them."""
    layers = vxm.layers
    return {
        "warped": layers.SpatialTransformer()([moving, flow]),
        "labels": layers.SpatialTransformer(interp_method="nearest")([moving, flow]),
        "zero_fill": layers.SpatialTransformer(fill_value=0.0)([moving, flow]),
        "affine": layers.SpatialTransformer()([moving, affine]),
        "integrated": layers.VecInt(int_steps=5)(velocity),
        "composed": layers.ComposeTransform()([flow, velocity]),
        "rescaled": layers.RescaleTransform(2)(flow),
        "grad": vxm.losses.Grad("l2").loss(None, flow),
    }


if __name__ == "__main__":
    if version("voxelmorph") != VERSION:
        raise SystemExit(f"Expected VoxelMorph {VERSION}. Received: {version('voxelmorph')}.")
    given = inputs()
    import tensorflow as tf

    made = outputs(**{name: tf.constant(value) for name, value in given.items()})
    arrays = given | {f"vxm_{name}": np.asarray(value) for name, value in made.items()}
    path = Path(__file__).with_name("voxelmorph.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, {len(made)} results")
