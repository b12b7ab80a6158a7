"""kreg's side of `benchmarks.voxelmorph`: a training step of its VoxelMorph."""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import platform
from importlib.metadata import version

import keras
import numpy as np

from benchmarks.voxelmorph import STEPS, WIDTHS, WINDOW


def about() -> dict:
    """Return versions."""
    versions = {name: version(name) for name in ("keras", keras.config.backend(), "numpy")}
    return {"versions": {"kreg": kreg.__version__, **versions, "python": platform.python_version()}}


def prepare(widths: str, form: str, folder):
    """Return a training step; `form` is the dtype policy."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(form)
    encoder, decoder = WIDTHS[widths][1]
    pair = {name: np.load(folder / f"{name}.npy") for name in ("moving", "fixed")}
    model = kreg.models.voxelmorph(
        pair["fixed"].shape[1:],
        encoder=encoder,
        decoder=decoder,
        head=kreg.models.VelocityHead(STEPS),
    )
    model.compile(
        keras.optimizers.Adam(1e-4),
        loss={"warped": kreg.losses.LocalNCC(WINDOW), "velocity": kreg.losses.Diffusion()},
    )
    pair = {name: keras.ops.convert_to_tensor(image) for name, image in pair.items()}
    return lambda: model.train_on_batch(pair)
