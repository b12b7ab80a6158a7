"""What is measured: sizes, tasks, who takes part in each, and the arrays they all get."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

#: Standard deviation of the displacements, and the scale they vary on, in voxels.
DISPLACEMENT, SMOOTHNESS = 3.0, 4.0


class Size(NamedTuple):
    """Shape of the images: batch, sizes along the axes, channels."""

    batch: int
    spatial: tuple[int, ...]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(batch, *spatial, channels)``."""
        return (self.batch, *self.spatial, self.channels)

    def __str__(self):
        """Batch x spatial x channels, equal axes as a power."""
        first, dimensions = self.spatial[0], len(self.spatial)
        cube = self.spatial == (first,) * dimensions
        spatial = f"{first}^{dimensions}" if cube else " x ".join(map(str, self.spatial))
        return f"{self.batch} x {spatial} x {self.channels}"


SIZES = (
    Size(64, (28, 28), 1),
    Size(8, (256, 256), 1),
    Size(1, (1024, 1024), 3),
    Size(1, (96, 96, 96), 1),
    Size(1, (160, 192, 224), 1),
)
QUICK_SIZES = (Size(2, (16, 20), 3), Size(1, (12, 14, 16), 1))

#: Task -> what it is compared with, by the names of worker.py, the first being the reference of
#: the accuracy check; None where the peers compute something slightly different.
WARP, FLOW, BOTH = "warp", "warp, gradient to flow", "warp, gradient to flow and image"
NCC, NCC_GRADIENT = "local NCC", "local NCC with gradient"
NCC_FORMS = ("torch conv", "torch pool", "torch separable pool")
PEERS = {
    WARP: ("torch", "scipy", "opencv"),
    FLOW: ("torch",),
    BOTH: ("torch",),
    NCC: NCC_FORMS,
    NCC_GRADIENT: NCC_FORMS,
}
#: OpenCV has no 3-D warp.
ONLY_2D = ("opencv",)
#: Voxels along each axis of the window of local NCC.
WINDOW = 9


def write_inputs(size: Size, folder: Path) -> None:
    """Write moving, fixed, displacement and upstream gradient as .npy files."""
    random = np.random.default_rng(0)

    def smooth(channels: int, sigma: float):
        noise = random.standard_normal((*size.shape[:-1], channels), dtype="float32")
        sigmas = (0, *[sigma] * len(size.spatial), 0)
        noise = gaussian_filter(noise, sigmas)
        return noise / noise.std()

    moving = smooth(size.channels, 1.0)
    arrays = {
        "moving": moving,
        # Related, not equal: the windows' correlations cover the range between 0 and 1.
        "fixed": moving + smooth(size.channels, 1.0),
        "displacement": DISPLACEMENT * smooth(len(size.spatial), SMOOTHNESS),
        "upstream": smooth(size.channels, 1.0),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.astype("float32"))
