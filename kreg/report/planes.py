"""Flat cuts through the fixed image: where the pixels of a report's pictures lie.

Rows and columns of a picture run along x, y or z of the world, whichever axes of the array those
are; its pixels are square in the unit of the image, whatever the spacing of the voxels.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from kreg.io.image import Grid, closest_axes

#: Pixels of all pictures of one kind together, and places at which a volume is cut.
_PIXELS, _PLACES = 10**6, 5
#: How scanners name the cuts, and the low and high ends of x, y and z.
_NAMES = {(0, 1): "axial", (0, 2): "coronal", (1, 2): "sagittal"}
_ENDS = ("RL", "AP", "IS")


@dataclass(frozen=True)
class Axis:
    """An axis of the array, along which a picture has so many pixels."""

    index: int
    voxels: int
    pixels: int
    backward: bool

    @property
    def step(self) -> float:
        """Voxels from one pixel to the next."""
        return self.voxels / self.pixels

    @property
    def places(self) -> np.ndarray:
        """The voxel coordinate of each pixel: the array's edges are those of the picture."""
        along = (np.arange(self.pixels) + 0.5) * self.step - 0.5
        return along[::-1] if self.backward else along

    def finer(self, times: int) -> "Axis":
        """Return it with so many times the pixels."""
        return dataclasses.replace(self, pixels=self.pixels * times)


@dataclass(frozen=True)
class Plane:
    """A cut through the fixed image.

    Args:
        name: what to call it.
        place: which of the places at which the image is cut.
        rows, columns: along which the picture runs.
        cut: voxel coordinates of the axes across which it is cut, none in 2-D.
        ends: what lies left, right, above and below; "" where unknown.
    """

    name: str
    place: int
    rows: Axis
    columns: Axis
    cut: dict[int, int]
    ends: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        return self.rows.pixels, self.columns.pixels

    def points(self) -> np.ndarray:
        """Return the voxel coordinates of the pixels, ``(rows, columns, D)``."""
        points = np.empty((*self.shape, 2 + len(self.cut)))
        points[..., self.rows.index] = self.rows.places[:, None]
        points[..., self.columns.index] = self.columns.places
        for axis, voxel in self.cut.items():
            points[..., axis] = voxel
        return points

    def finer(self, times: int) -> "Plane":
        """Return it with so many times the pixels along both axes."""
        return dataclasses.replace(
            self, rows=self.rows.finer(times), columns=self.columns.finer(times)
        )


def pixel_size(grid: Grid) -> float:
    """Return the side of a pixel: the smallest spacing, but larger where an image is large."""
    cuts = len(list(itertools.combinations(range(grid.dimensions), 2)))
    longest = max(np.multiply(grid.shape, grid.spacing))
    count = cuts * (_PLACES if cuts > 1 else 1)
    return float(max(min(grid.spacing), longest / np.sqrt(_PIXELS / count)))


def planes(grid: Grid) -> list[Plane]:
    """Return the cuts: the image itself, or across each axis of a volume at some places."""
    dimensions, size = grid.dimensions, pixel_size(grid)
    order, flips = closest_axes(np.eye(dimensions), grid.directions)
    scanned = dimensions > 2 and grid.unit == "mm"
    if scanned:
        flips[2] = not flips[2]  # the head is up
    axes = []
    for index, flip in zip(order, flips, strict=True):
        voxels = grid.shape[index]
        pixels = max(2, round(voxels * grid.spacing[index] / size))
        axes.append(Axis(index, voxels, pixels, flip))
    found = []
    for first, second in itertools.combinations(range(dimensions), 2):
        across = [axis for number, axis in enumerate(axes) if number not in (first, second)]
        fractions = np.linspace(0.2, 0.8, _PLACES) if across else [0.5]
        for place, fraction in enumerate(fractions):
            cut = {axis.index: round(fraction * (axis.voxels - 1)) for axis in across}
            name = _NAMES[first, second] if scanned else f"{'xyz'[first]}{'xyz'[second]}"
            for axis in across:
                name += f", slice {cut[axis.index] + 1} of {axis.voxels}"
            # From left to right and from above to below; the head is up.
            ends = _ENDS[first] + _ENDS[second][:: -1 if second == 2 else 1] if scanned else ""
            found.append(Plane(name, place, axes[second], axes[first], cut, ends))
    return found
