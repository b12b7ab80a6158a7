"""register(): two images with their grids, in a common frame or not."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kreg import pairwise
from kreg.io.image import Grid, Image, closest_axes, reordered, reordering
from kreg.io.transform import Transform
from kreg.pairwise.search import Candidate

_MULTI_START = pairwise.MultiStart()


@dataclass(frozen=True, eq=False)
class Alignment:
    """Two images, and the transform that lays the moving one over the fixed one.

    Attributes:
        fixed, moving: the images.
        transform: between their worlds: what to apply and to save.
        registration: how good it is, and whether to trust it. Its matrix and its points are those
            of the arrays that were compared, where the moving one may be turned to the axes of
            the fixed one.
    """

    fixed: Image = dataclasses.field(repr=False)
    moving: Image = dataclasses.field(repr=False)
    transform: Transform
    registration: pairwise.Registration

    @cached_property
    def warped(self) -> Image:
        """The moving image laid over the fixed one."""
        return self.transform.apply(self.moving)


def register(
    fixed: Image,
    moving: Image,
    *,
    start: Any = _MULTI_START,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    **options: Any,
) -> Alignment:
    """Register two images of unequal sizes, spacings and orientations: `kreg.register` for files.

    Images in one unit are taken to share a world, as those of one scanner do: the moving image is
    turned to the axes of the fixed one, and that both lie where their affines say is one of the
    places that the global start compares. Where only one has a unit, nothing is known of their
    sizes: they are taken to be equally large.

    Args:
        fixed, moving: images, both 2-D or both 3-D.
        start: `kreg.pairwise.MultiStart`; a matrix from world points of the fixed image to world
            points of the moving one; or None for the identity. Without a common unit that lays
            one middle over the other. A displacement alone starts from it, too.
        fixed_mask, moving_mask: an `Image` or array of weights of the sizes of its image; an
            `Image` lies on its image's grid.
        **options: of `kreg.register`, but for the spacings, which the images tell.

    Raises:
        ValueError: as `kreg.register`; or if a mask has another frame than its image.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> rows, columns = np.indices((32, 32))
        >>> values = np.sin(rows * columns / 40)
        >>> fixed, moving = kreg.io.Image(values), kreg.io.Image(values[1:, 2:])
        >>> alignment = kreg.io.register(
        ...     fixed,
        ...     moving,
        ...     transform=kreg.transforms.Linear(kreg.groups.Translation()),
        ...     start=None,  # begin where the files say that the images lie
        ...     schedule=kreg.pairwise.CoarseToFine((0, 0, 10)),
        ... )
        >>> np.round(alignment.transform.transform_world_points([[20, 10]]))  # x, y
        array([[18.,  9.]])
    """
    if fixed.dimensions != moving.dimensions:
        raise ValueError(
            "Expected two images, both 2-D or both 3-D. Received: "
            f"{fixed.dimensions}-D and {moving.dimensions}-D."
        )
    for mask, image, name in ((fixed_mask, fixed, "fixed"), (moving_mask, moving, "moving")):
        same = isinstance(mask, Image) and mask.shape == image.shape
        if same and not mask.grid.agrees_with(image.grid):
            raise ValueError(
                f"Expected {name}_mask to lie on the grid of the {name} image. Received: affines "
                f"{mask.affine.tolist()} and {image.affine.tolist()}."
            )
    shared = fixed.unit == moving.unit
    dimensions = fixed.dimensions
    order, flips = list(range(dimensions)), [False] * dimensions
    if shared:
        order, flips = closest_axes(fixed.grid.directions, moving.grid.directions)
    turn = reordering(moving.shape, order, flips)
    turned = Grid(tuple(moving.shape[i] for i in order), moving.affine @ turn, moving.unit)
    arrays = fixed.array, reordered(moving.array, order, flips)
    masks = [_array(fixed_mask), _array(moving_mask)]
    if masks[1] is not None and masks[1].shape == moving.shape:
        masks[1] = reordered(masks[1], order, flips)
    spacings = np.asarray(fixed.spacing), np.asarray(turned.spacing)
    extents = [s * g for s, g in zip(spacings, (fixed.shape, turned.shape), strict=True)]
    if not shared:
        # The pixels become as large as makes both images equally large.
        sizes = [np.linalg.norm(extent) for extent in extents]
        pixels = int(moving.unit == "px")
        spacings[pixels][:] *= sizes[1 - pixels] / sizes[pixels]
        extents[pixels] = extents[pixels] * sizes[1 - pixels] / sizes[pixels]
    # From the worlds of the files to the centred worlds of the search.
    inward = [
        _centred(shape, spacing) @ np.linalg.inv(affine)
        for shape, spacing, affine in zip(
            (fixed.shape, turned.shape), spacings, (fixed.affine, turned.affine), strict=True
        )
    ]
    centred = np.eye(dimensions + 1)
    identity = inward[1] @ np.linalg.inv(inward[0]) if shared else centred
    transform = options.get("transform")
    searches = transform is None or getattr(transform, "linear", None) is not None
    if isinstance(start, pairwise.MultiStart):
        unit = max(extent.max() for extent in extents) / 2
        start = _FrameStart.of(start, identity, unit) if searches else identity
    elif start is None:
        start = identity
    elif np.shape(start) == centred.shape:
        start = inward[1] @ np.asarray(start, "float64") @ np.linalg.inv(inward[0])
    found = pairwise.register(
        *_as_pairwise(arrays, dimensions),
        start=start,
        fixed_mask=_with_batch(masks[0], arrays, dimensions),
        moving_mask=_with_batch(masks[1], arrays, dimensions),
        fixed_spacing=spacings[0].tolist(),
        moving_spacing=spacings[1].tolist(),
        **options,
    )
    registration = found[0] if isinstance(found, list) else found
    matrix = turned.affine @ registration.voxel_matrix @ np.linalg.inv(fixed.affine)
    world = Transform(matrix, fixed.grid, moving.grid, registration.field)
    return Alignment(fixed, moving, world, registration)


@dataclass(frozen=True, eq=False)
class _FrameStart(pairwise.MultiStart):
    """A global start that compares one more place: where both images lie in a common frame."""

    matrix: np.ndarray | None = None  # fixed to moving, in the normalised world

    @classmethod
    def of(cls, start: pairwise.MultiStart, matrix: np.ndarray, unit: float) -> "_FrameStart":
        values = {
            one.name: getattr(start, one.name) for one in dataclasses.fields(pairwise.MultiStart)
        }
        matrix = matrix.copy()
        matrix[:-1, -1] /= unit
        return cls(**values, matrix=matrix)

    def search(self, fixed, moving, group) -> list[Candidate]:
        """Return the candidates, that of the frame first."""
        own = Candidate(np.asarray(self.matrix), np.inf)
        return [own, *super().search(fixed, moving, group)][: self.keep]


def _centred(shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    frame = np.diag([*spacing, 1.0])
    frame[:-1, -1] = -spacing * (np.asarray(shape) - 1) / 2
    return frame


def _array(mask: Any) -> Any:
    if isinstance(mask, Image):
        return mask.array
    return mask if mask is None or hasattr(mask, "shape") else np.asarray(mask)


def _is_plain(array: Any, dimensions: int) -> bool:
    """Whether `kreg.register` takes an array without a batch axis for what it is."""
    rank = len(array.shape)
    if rank == 3:
        return (array.shape[-1] <= 4) == (dimensions == 2)
    return rank == dimensions


def _as_pairwise(arrays: tuple[Any, Any], dimensions: int) -> list:
    """Return the arrays, as batches of one ``(1, *spatial, channels)`` where they must be."""
    if all(_is_plain(array, dimensions) for array in arrays):
        return list(arrays)
    wholes = [np.asarray(array) for array in arrays]
    return [array[None] if array.ndim > dimensions else array[None, ..., None] for array in wholes]


def _with_batch(mask: Any, arrays: tuple[Any, Any], dimensions: int) -> Any:
    plain = all(_is_plain(array, dimensions) for array in arrays)
    return mask if mask is None or plain else np.asarray(mask)[None]
