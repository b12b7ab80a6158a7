"""What an alignment looks like on planes: values, not yet colours."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops
from scipy import ndimage

from kreg.io.align import Alignment
from kreg.mapping import carried, linear, resampled
from kreg.ops.displacement import spatial_gradient
from kreg.ops.filters import gaussian_filter
from kreg.ops.saliency import LocallyNormalised
from kreg.report.planes import Plane, pixel_size, planes

#: Joint saliency is computed on no more pixels than that.
_SALIENCY_PIXELS = 2**18
#: The width of the Gaussian over which slopes are averaged, pixels, and the shares of their squares
#: that outlast a blur: up to the first they are noise, from the second on edges.
_AROUND, _NOISE = 3.0, (0.15, 0.3)
#: Rows of blocks that are averaged at once hold about so many values.
_CHUNK = 2**24
#: Where both files say where they lie, and this share of the fixed image meets the moving one, that
#: is where the moving image was before.
_MEETS = 0.25


@dataclass(frozen=True, eq=False)
class Layer:
    """An image on a plane.

    Args:
        values: ``(rows, columns, 1 or 3)``; beyond the image as at its border.
        inside: where the image lies, ``(rows, columns)``.
    """

    values: np.ndarray
    inside: np.ndarray

    @property
    def grey(self) -> np.ndarray:
        """The mean of the channels, ``(rows, columns)``."""
        return self.values.mean(axis=-1)


class Averaged:
    """An image to be looked at from afar: averaged over blocks of voxels.

    Args:
        array: ``(*spatial)`` or ``(*spatial, channels)``, anything with slicing.
        steps: voxels from one pixel to the next, along each spatial axis.
    """

    def __init__(self, array: Any, steps: np.ndarray):
        self._shape = np.asarray(array.shape[: len(steps)])
        self._blocks = np.clip(np.floor(steps + 1e-6), 1, self._shape).astype(int)
        self._array = _block_means(array, self._blocks) if self._blocks.max() > 1 else array

    def at(self, points: np.ndarray) -> Layer:
        """Return the image at voxels ``(rows, columns, D)``, linear between them."""
        inside = ((points >= -0.5) & (points <= self._shape - 0.5)).all(-1)
        last = np.asarray(self._array.shape[: len(self._shape)]) - 1
        local = np.clip((points - (self._blocks - 1) / 2) / self._blocks, 0, last)
        values = resampled(self._array, local, len(last), linear)
        if values.shape[-1] != 3:
            values = values.mean(axis=-1, keepdims=True)
        finite = np.isfinite(values).all(-1)
        return Layer(np.where(finite[..., None], values, 0), inside & finite)


def _block_means(array: Any, blocks: np.ndarray) -> np.ndarray:
    """Return the means over blocks; what is left over at the far ends is dropped."""
    counts = np.asarray(array.shape[: len(blocks)]) // blocks
    channels = tuple(array.shape[len(blocks) :])
    split = [size for pair in zip(counts, blocks, strict=True) for size in pair][1:]
    ends = tuple(slice(0, int(end)) for end in (counts * blocks)[1:])
    within = tuple(range(1, 2 * len(blocks), 2))
    result = np.empty((*counts, *channels), "float32")
    row = int(blocks[0] * np.prod(array.shape[1:]))
    for start in range(0, counts[0], max(1, _CHUNK // row)):
        stop = min(start + max(1, _CHUNK // row), counts[0])
        part = np.asarray(array[(slice(int(start * blocks[0]), int(stop * blocks[0])), *ends)])
        part = part.reshape(stop - start, *split, *channels)
        result[start:stop] = part.mean(axis=within, dtype="float32")
    return result


@dataclass(frozen=True, eq=False)
class View:
    """What there is to see on one plane.

    Args:
        plane: where.
        fixed, before, after: the fixed image, and the moving one over it.
        fixed_mask, moving_mask: where they were looked at, ``(rows, columns)``; None without one.
        lattice: where each point was before, rows and columns of pixels, ``(rows, columns, 2)``,
            of a picture with some times the pixels.
        moved: by how much, in the unit of the fixed image.
        displaced: by how much beyond the linear part; None without a displacement.
        volume: how much volume of the moving image meets that of the fixed one, 1 in the middle
            of the linear part; None where it is 1 everywhere.
    """

    plane: Plane
    fixed: Layer
    before: Layer
    after: Layer
    fixed_mask: np.ndarray | None
    moving_mask: np.ndarray | None
    lattice: np.ndarray
    moved: np.ndarray
    displaced: np.ndarray | None
    volume: np.ndarray | None


class Scene:
    """An alignment, seen on planes.

    Args:
        alignment: what to show.
        fixed_mask, moving_mask: arrays of the spatial sizes of the two images, or None.

    Attributes:
        before: from voxels of the fixed image to those of the moving one, as they lay before.
        before_is: where that is, in words.
    """

    def __init__(self, alignment: Alignment, fixed_mask: Any = None, moving_mask: Any = None):
        self.alignment = alignment
        self.before, self.before_is = _before(alignment)
        fixed, moving = alignment.fixed, alignment.moving
        mapping = alignment.transform.mapping
        steps = pixel_size(fixed.grid) / np.asarray(fixed.spacing)
        # From the middle, by a pixel along each axis: how many voxels of the moving image?
        middle = (np.asarray(fixed.shape) - 1) / 2
        ends = carried(mapping.matrix, np.stack([middle, *(middle + np.diag(steps))]))
        moving_steps = np.abs(ends[1:] - ends[0]).max(axis=0)
        self._middle = middle
        self._fixed = Averaged(fixed.array, steps)
        self._moving = Averaged(moving.array, moving_steps)
        self._fixed_mask = None if fixed_mask is None else Averaged(fixed_mask, steps)
        self._moving_mask = None if moving_mask is None else Averaged(moving_mask, moving_steps)

    def views(self) -> list[View]:
        """Return what there is to see on each plane of the fixed image."""
        return [self._view(plane) for plane in planes(self.alignment.fixed.grid)]

    def _view(self, plane: Plane) -> View:
        points = plane.points()
        mapping = self.alignment.transform.mapping
        displaced = mapping.displaced(points)
        ends = carried(mapping.matrix, displaced)
        fixed, after = self._fixed.at(points), self._moving.at(ends)
        field = mapping.field is not None
        return View(
            plane,
            fixed,
            self._moving.at(carried(self.before, points)),
            after,
            None if self._fixed_mask is None else self._fixed_mask.at(points).grey > 0.5,
            None if self._moving_mask is None else self._moving_mask.at(ends).grey > 0.5,
            self._lattice(plane.finer(lattice_scale(plane))),
            self._length(carried(np.linalg.inv(self.before), ends) - points),
            self._length(displaced - points) if field else None,
            self._volume(plane) if field or mapping.matrix[-1, :-1].any() else None,
        )

    def _length(self, voxels: np.ndarray) -> np.ndarray:
        """Return the lengths of differences of voxels of the fixed image, in its unit."""
        return np.linalg.norm(voxels @ self.alignment.fixed.affine[:-1, :-1].T, axis=-1)

    def _lattice(self, plane: Plane) -> np.ndarray:
        ends = self.alignment.transform.mapping(plane.points())
        origin = carried(np.linalg.inv(self.before), ends)
        axes = plane.rows, plane.columns
        return np.stack([(origin[..., axis.index] + 0.5) / axis.step for axis in axes], axis=-1)

    def _volume(self, plane: Plane) -> np.ndarray:
        mapping = self.alignment.transform.mapping
        displaced = mapping.displaced(plane.points())
        slopes = np.empty((*displaced.shape, displaced.shape[-1]))
        for number, along in enumerate((plane.rows, plane.columns)):
            slopes[..., along.index] = np.gradient(displaced, along.places, axis=number)
        for axis, voxel in plane.cut.items():
            sides = max(voxel - 1, 0), min(voxel + 1, self.alignment.fixed.shape[axis] - 1)
            low, high = (
                mapping.displaced(
                    dataclasses.replace(plane, cut={**plane.cut, axis: side}).points()
                )
                for side in sides
            )
            slopes[..., axis] = (high - low) / (sides[1] - sides[0])
        # A homography has the determinant det H / w^(D + 1).
        row = mapping.matrix[-1]
        weight = displaced @ row[:-1] + row[-1]
        ratio = (self._middle @ row[:-1] + row[-1]) / weight
        return np.linalg.det(slopes) * ratio ** len(row)


def lattice_scale(plane: Plane) -> int:
    """Return how many times the pixels of a plane its lattice is drawn with: lines are thin."""
    return max(1, round(400 / max(plane.shape)))


def _before(alignment: Alignment) -> tuple[np.ndarray, str]:
    """Return from where the moving image came, voxels of the fixed image to its own."""
    fixed, moving = alignment.fixed, alignment.moving
    if fixed.unit == moving.unit == "mm":
        matrix = np.linalg.inv(moving.affine) @ fixed.affine
        axes = (np.linspace(0, size - 1, 9) for size in fixed.shape)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        ends = carried(matrix, points)
        if ((ends >= 0) & (ends <= np.asarray(moving.shape) - 1)).all(-1).mean() > _MEETS:
            return matrix, "where the files say that it lies"
    # The arrays that were compared may be turned: what was found leads from one to the other.
    found = alignment.registration
    identity = dataclasses.replace(found, matrix=np.eye(len(found.matrix)))
    turn = alignment.transform.mapping.matrix @ np.linalg.inv(found.voxel_matrix)
    matrix = turn @ identity.voxel_matrix
    return matrix / matrix[-1, -1], "with its middle on that of the fixed image"


class Agreement(NamedTuple):
    """Whether two images show the same edges, ``(rows, columns)`` each.

    Args:
        saliency: joint saliency, 1 where edges agree, 0 where they differ.
        structure: 0 where neither image shows more than noise, 1 where one shows edges.
    """

    saliency: np.ndarray
    structure: np.ndarray

    @property
    def doubt(self) -> np.ndarray:
        """How much speaks against the fit: where there is noise alone, nothing does."""
        return (1 - self.saliency) * self.structure


def agreements(views: list[View]) -> list[Agreement]:
    """Return for each view where the fixed image and the moving one, after, have the same edges."""
    found: list[Agreement] = []
    for (rows, columns), group in itertools.groupby(views, key=lambda view: view.plane.shape):
        layers = [_where_they_meet(view) for view in group]
        every = int(np.ceil(np.sqrt(rows * columns / _SALIENCY_PIXELS)))
        # Some pixels around: slopes want two along each axis.
        around = ((0, 0), (2, 2), (2, 2))
        images = [
            np.pad(np.stack(one)[:, ::every, ::every], around, mode="edge")[..., None]
            for one in zip(*layers, strict=True)
        ]
        fixed, after = (image.astype("float32") for image in images)
        maps = LocallyNormalised()(fixed, after), np.maximum(structure(fixed), structure(after))
        whole = (
            ops.convert_to_numpy(one)[:, 2:-2, 2:-2, 0].repeat(every, 1).repeat(every, 2)
            for one in maps
        )
        found += [
            Agreement(*(one[:rows, :columns] for one in pair)) for pair in zip(*whole, strict=True)
        ]
    return found


def _where_they_meet(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Return both images in grey; where one does not reach, both as at the nearest place it does.

    Else what lies beyond the border of the moving image would speak against the fit within.
    """
    images = view.fixed.grey, view.after.grey
    meet = view.fixed.inside & view.after.inside
    if meet.all() or not meet.any():
        return images
    nearest = ndimage.distance_transform_edt(~meet, return_distances=False, return_indices=True)
    return images[0][tuple(nearest)], images[1][tuple(nearest)]


def structure(images: np.ndarray) -> np.ndarray:
    """Return where images show more than noise, from 0 to 1, ``(batch, *spatial, 1)``.

    Where a blur grows from 1 to 2 pixels, white noise keeps 1/16 of its squared slopes, a step
    from dark to bright half of them: how strong the noise is need not be known.

    Args:
        images: ``(batch, *spatial, 1)``, float32.
    """
    images = images - images.mean()  # slopes of large numbers are rounding
    fine, coarse = (_squared_slopes(gaussian_filter(images, blur)) for blur in (1.0, 2.0))
    kept = coarse / (fine + 1e-6 * np.ptp(images) ** 2 + 1e-30)
    low, high = _NOISE
    return np.clip((kept - low) / (high - low), 0, 1)


def _squared_slopes(images) -> np.ndarray:
    """Return the traces of the structure tensors ``(batch, *spatial, 1)``."""
    squares = ops.sum(ops.square(spatial_gradient(images)), axis=-1)
    return ops.convert_to_numpy(gaussian_filter(squares, _AROUND))
