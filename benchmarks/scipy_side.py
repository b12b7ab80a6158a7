"""SciPy: `map_coordinates` of order 1, one call for each image and channel."""

import platform

import numpy as np
import scipy
from scipy.ndimage import map_coordinates


def configure(threads: int, gpu: bool) -> None:
    """Refuse a GPU; SciPy's sampler runs on one thread."""
    if gpu:
        raise RuntimeError("SciPy runs on the CPU; leave out --gpu.")


def about() -> dict:
    """Return versions, threads and device."""
    versions = {"scipy": scipy.__version__, "python": platform.python_version()}
    return {"versions": versions, "threads": 1, "device": "cpu"}


def wait(result) -> None:
    """Nothing runs in the background."""


def peak_bytes() -> None:
    """Nothing but the process's own memory."""


def array(result) -> np.ndarray:
    """Return the result as a vector."""
    return result.ravel()


def prepare(task: str, form: None, folder):
    """Return the warp as a function without arguments."""
    moving, displacement = (np.load(folder / f"{name}.npy") for name in ("moving", "displacement"))
    grid = np.indices(displacement.shape[1:-1], dtype="float32")
    warped = np.empty_like(moving)

    def warp():
        for image, field, out in zip(moving, displacement, warped, strict=True):
            points = grid + np.moveaxis(field, -1, 0)
            for channel in range(image.shape[-1]):
                out[..., channel] = map_coordinates(
                    image[..., channel], points, order=1, mode="grid-constant"
                )
        return warped

    return warp
