"""OpenCV: `remap`, linear, one call for each image."""

import platform

import cv2
import numpy as np


def configure(threads: int, gpu: bool) -> None:
    """Size the thread pool; refuse a GPU."""
    if gpu:
        raise RuntimeError("This OpenCV runs on the CPU; leave out --gpu.")
    cv2.setNumThreads(threads)


def about() -> dict:
    """Return versions, threads and device."""
    versions = {"opencv": cv2.__version__, "python": platform.python_version()}
    return {"versions": versions, "threads": cv2.getNumThreads(), "device": "cpu"}


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
    rows, columns = np.indices(displacement.shape[1:-1], dtype="float32")
    warped = np.empty_like(moving)

    def warp():
        for image, field, out in zip(moving, displacement, warped, strict=True):
            x, y = columns + field[..., 1], rows + field[..., 0]
            result = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            out[...] = result.reshape(out.shape)
        return warped

    return warp
