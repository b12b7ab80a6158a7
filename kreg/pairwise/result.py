"""What a pairwise registration returns."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from keras import ops

from kreg.mapping import Mapping, pieces
from kreg.ops.coordinates import centred_frame
from kreg.ops.interpolation import nearest_border, sample, zero_border
from kreg.pairwise.images import Image

#: Voxels that are warped at once.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Registration:
    """The transform found for one pair, how good it is, and whether to trust it.

    Attributes:
        matrix: homogeneous ``(D + 1, D + 1)``, fixed to moving points in centred world frames
            (`kreg.ops.coordinates`): the linear part H of y = H (x + u(x)).
        field: u, ``(*spatial, D)`` in voxels of the fixed image; None for a linear transform.
        similarity_before, similarity_after: mutual information in nats before and after.
        overlap: share of the fixed image's samples that fall inside the moving image.
        chance: what it must exceed, told from transforms that are wrong on purpose.
        runner_up: similarity of the best other place of the global start as a share of that of
            the first; None without a global start, or where there was no other.
        trusted: the verdict.
        reason: why it is not trusted, or what speaks for it.
        history: name -> one value a step: "similarity", "overlap", "motion" (voxels), "stage".
    """

    matrix: np.ndarray
    similarity_before: float
    similarity_after: float
    overlap: float
    chance: float
    runner_up: float | None
    trusted: bool
    reason: str
    history: dict[str, list] = dataclasses.field(repr=False)
    fixed_shape: tuple[int, ...]
    fixed_spacing: tuple[float, ...]
    moving_spacing: tuple[float, ...]
    moving: Image = dataclasses.field(repr=False)
    pair: int = 0
    field: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def voxel_matrix(self) -> np.ndarray:
        """The linear part between voxel indices of the fixed and the moving image."""
        fixed = centred_frame(self.fixed_shape, self.fixed_spacing).astype("float64")
        moving = centred_frame(self.moving.shape, self.moving_spacing).astype("float64")
        matrix = np.linalg.inv(moving) @ self.matrix @ fixed
        return matrix / matrix[-1, -1]

    @cached_property
    def _mapping(self) -> Mapping:
        return Mapping(self.voxel_matrix, self.field)

    def transform_points(self, points) -> np.ndarray:
        """Return where points of the fixed image lie in the moving image.

        Args:
            points: ``(..., D)``, voxel indices of the fixed image.

        Returns:
            ``(..., D)``, voxel indices of the moving image.
        """
        return self._mapping(np.asarray(points, "float64"))

    def inverse_transform_points(self, points) -> np.ndarray:
        """Return where points ``(..., D)`` of the moving image lie in the fixed image, voxels.

        Through a displacement by fixed-point iteration: where it folds there is no inverse.
        """
        return self._mapping.inverse(np.asarray(points, "float64"))

    def warp(self, image=None, *, sampler=sample, border=zero_border) -> np.ndarray:
        """Return an image that lies like the moving one, laid over the fixed one.

        Args:
            image: ``(*spatial)`` or ``(*spatial, channels)`` of the moving image's sizes; the
                moving image itself where None.
            sampler: `kreg.ops.sample`, or `kreg.ops.sample_nearest` for labels.
            border: what lies outside.

        Returns:
            float32, the spatial sizes of the fixed image and the channels of `image`.

        Raises:
            ValueError: if the sizes differ from the moving image's.
        """
        source = self.moving if image is None else Image(image, "image")
        if source.shape != self.moving.shape:
            raise ValueError(
                f"Expected an image of the moving image's sizes {self.moving.shape}. "
                f"Received: {source.shape}."
            )
        result = np.empty((*self.fixed_shape, source.channels), "float32")
        for rows, voxels in pieces(self.fixed_shape, _CHUNK):
            points = self.transform_points(voxels)
            result[rows] = self._sampled(source, points, sampler, border)
        return result

    def _sampled(self, source: Image, points: np.ndarray, sampler, border) -> np.ndarray:
        """Sample the part of the source that the points touch."""
        axes = tuple(range(points.ndim - 1))
        last = np.asarray(source.shape) - 1
        # Two voxels around: the border's own rule then holds beyond the image alone.
        low = np.clip(np.floor(np.nanmin(points, axes)) - 2, 0, last).astype(int)
        high = np.clip(np.ceil(np.nanmax(points, axes)) + 3, low + 1, last + 1).astype(int)
        reach = 2.0
        if border not in (zero_border, nearest_border) and source.voxels <= 4 * _CHUNK:
            low, high, reach = 0 * last, last + 1, np.inf
        part = source.read(*(slice(a, b) for a, b in zip(low, high, strict=True)))
        pair = self.pair if source.batch > 1 else 0
        # Outside the whole image, not the part: such points are moved just beyond the part.
        local = np.clip(points - low, -reach, high - low - 1 + reach)
        values = sampler(part[pair][None], local[None].astype("float32"), border=border)
        return ops.convert_to_numpy(values)[0]

    @cached_property
    def warped(self) -> np.ndarray:
        """The moving image laid over the fixed one, ``(*fixed spatial, channels)``, float32."""
        return self.warp()

    def displacement(self) -> np.ndarray:
        """Return where each voxel goes, less the voxel: T x - x, ``(*spatial, D)``, voxels.

        For images on one grid: the displacement that `kreg.ops.warp` takes.
        """
        grid = np.moveaxis(np.indices(self.fixed_shape, dtype="float32"), 0, -1)
        return (self.transform_points(grid) - grid).astype("float32")
