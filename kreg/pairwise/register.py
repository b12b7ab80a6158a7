"""register(): find the transform that lays one moving image over one fixed image."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kreg.pairwise.descent import descend
from kreg.pairwise.fisher import FisherScoring
from kreg.pairwise.images import Image, as_mask, check_spacing
from kreg.pairwise.pairs import Pairs, Side
from kreg.pairwise.preparation import LocalNormalisation, Preparation
from kreg.pairwise.progress import Progress
from kreg.pairwise.result import Registration
from kreg.pairwise.samplers import Sampler, UniformSampler
from kreg.pairwise.schedule import AllLevels, Schedule
from kreg.pairwise.scoring import Scoring
from kreg.pairwise.search import MultiStart
from kreg.pairwise.similarity import HistogramRatio, LogRatio, as_log_ratio
from kreg.pairwise.start import Start, find_start
from kreg.pairwise.tiles import TILE_STEPS, refine_by_tiles, tile_rounds
from kreg.pairwise.verdict import judge
from kreg.transforms import Linear

# Defaults: frozen, so that all calls may share them.
_AFFINE = Linear()
_HISTOGRAM = HistogramRatio()
_UNIFORM = UniformSampler()
_SCORING = FisherScoring()
_MULTI_START = MultiStart()
_NORMALISED = LocalNormalisation()


def _matrices(start, pairs: Pairs, unit: float) -> np.ndarray:
    """The user's own start, world, as normalised matrices ``(pairs, D + 1, D + 1)``."""
    size = pairs.dimensions + 1
    try:
        given = np.eye(size) if start is None else np.asarray(start, "float64")
    except (TypeError, ValueError):
        given = np.empty(0)
    shapes = (size, size), (pairs.count, size, size)
    fits = given.shape in shapes and np.isfinite(given).all()
    if not fits or not (np.linalg.det(given) * given[..., -1, -1]).all():
        raise ValueError(
            f"Expected `start` to be MultiStart(), None, or invertible matrices of shape "
            f"{shapes[0]} or {shapes[1]} whose last entry is not 0. Received: {start!r}."
        )
    scale = np.diag([unit] * pairs.dimensions + [1.0])
    given = np.linalg.inv(scale) @ np.broadcast_to(given, (pairs.count, size, size)) @ scale
    return given / given[:, -1:, -1:]


def _check_pair(fixed: Image, moving: Image) -> None:
    if len(fixed.shape) != len(moving.shape) or fixed.single != moving.single:
        raise ValueError(
            "Expected `fixed` and `moving` of equal rank, both 2-D or both 3-D. "
            f"Received: spatial sizes {fixed.shape} and {moving.shape}, in batches of "
            f"{fixed.batch} and {moving.batch}."
        )
    if fixed.batch != moving.batch:
        raise ValueError(
            f"Expected as many fixed as moving images. Received: {fixed.batch} and {moving.batch}."
        )


def _check_kinds(**options: tuple[Any, Any]) -> None:
    """Raise ValueError for a value that is none of its kind."""
    for name, (value, kind) in options.items():
        if not isinstance(value, kind):
            expected = getattr(kind, "__name__", kind)
            raise ValueError(
                f"Expected `{name}` to be an object of {expected}. Received: {value!r}."
            )


def _of_pair(history: dict[str, list], pair: int) -> dict[str, list]:
    """Return one pair's share of the history of a batch."""
    return {
        name: [float(value[pair]) if isinstance(value, np.ndarray) else value for value in values]
        for name, values in history.items()
    }


def register(
    fixed: Any,
    moving: Any,
    *,
    transform: Linear = _AFFINE,
    similarity: LogRatio | keras.losses.Loss = _HISTOGRAM,
    schedule: Schedule | None = None,
    sampler: Sampler = _UNIFORM,
    optimizer: FisherScoring | keras.optimizers.Optimizer = _SCORING,
    start: MultiStart | np.ndarray | None = _MULTI_START,
    preparation: Preparation = _NORMALISED,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_spacing: Sequence[float] | None = None,
    moving_spacing: Sequence[float] | None = None,
    seed: int = 0,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    verbose: bool = False,
) -> Any:
    """Find T that maximises the similarity of fixed(x) and moving(T x), for one pair of images.

    Nothing is learned beforehand. A global search at a coarse level makes large offsets harmless
    (translations of 30 %, rotations of 45 degrees, scales of 0.7 to 1.4); then steps on random
    samples, coarse to fine, climb the similarity. Time and memory depend on the samples, not on
    the pixels; images beyond 8 million voxels are read in pieces (memory-mapped, zarr).

    Args:
        fixed, moving: ``(*spatial)``, or ``(*spatial, channels)`` in 2-D, or batches of pairs
            ``(batch, *spatial, channels)``, which a volume with channels needs as well; an array
            of rank 3 has channels if its last axis is 4 or shorter, else it is a volume. Sizes,
            channels and grey values may differ.
        transform: what is looked for: `kreg.transforms.Linear` of a group.
        similarity: `kreg.pairwise.HistogramRatio` (the default), `CriticRatio` or
            `GaussianRatio`; or the loss that goes with it: `kreg.losses.MutualInformation`,
            `MINE`, `NCC`.
        schedule: `kreg.pairwise.CoarseToFine` or `AllLevels`; what suits the similarity if None.
        sampler: `kreg.pairwise.UniformSampler` or `EdgeSampler`.
        optimizer: `kreg.pairwise.FisherScoring`, or any Keras optimizer.
        start: `kreg.pairwise.MultiStart`, a matrix to start from (as in the result), or None for
            the identity.
        preparation: `kreg.pairwise.LocalNormalisation` or `Standardisation`.
        fixed_mask, moving_mask: weights of the voxels, of the spatial shape of their image.
        fixed_spacing, moving_spacing: distance of voxel centres along each axis; 1 where None.
        seed: of everything random.
        callbacks: Keras callbacks; each step is an epoch with logs "similarity", "overlap" and
            "motion" (voxels). Setting ``self.model.stop_training`` ends the registration.
        verbose: whether to show a progress bar.

    Returns:
        A `Registration`, or a list of them for batches. Its `trusted` and `reason` say whether to
        believe it: images without texture, or that hardly meet, or that fit no better than at
        wrong places, are not trusted. An interrupt (Ctrl-C) returns the best transform so far.

    Raises:
        ValueError: if ranks, sizes, masks or spacings do not fit, values are NaN or infinite, a
            mask is empty, or the group does not exist in 3-D.
    """
    similarity = as_log_ratio(similarity)
    _check_kinds(
        transform=(transform, Linear),
        schedule=(schedule, Schedule | None),
        sampler=(sampler, Sampler),
        optimizer=(optimizer, FisherScoring | keras.optimizers.Optimizer),
        preparation=(preparation, Preparation),
    )
    callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks)
    for callback in callbacks:
        _check_kinds(callbacks=(callback, keras.callbacks.Callback))
    images = [Image(fixed, "fixed"), Image(moving, "moving")]
    _check_pair(*images)
    dimensions = len(images[0].shape)
    transform.group.generators(dimensions)  # raises where there is no such group
    masks = [
        as_mask(fixed_mask, images[0], "fixed_mask"),
        as_mask(moving_mask, images[1], "moving_mask"),
    ]
    spacings = [
        check_spacing(fixed_spacing, dimensions, "fixed_spacing"),
        check_spacing(moving_spacing, dimensions, "moving_spacing"),
    ]
    # The unit of the normalised world: half the longest side of the two images.
    unit = max(max(s * im.shape) for s, im in zip(spacings, images, strict=True)) / 2

    def made(grey: bool) -> Pairs:
        fixed_side, moving_side = (
            Side(image, mask, spacing / unit, grey=grey, preparation=preparation)
            for image, mask, spacing in zip(images, masks, spacings, strict=True)
        )
        return Pairs(fixed_side, moving_side, sampler)

    pairs = made(grey=True)
    colour = pairs
    if not similarity.grey and max(image.channels for image in images) > 1:
        colour = made(grey=False)
    if schedule is None:
        second_order = isinstance(optimizer, FisherScoring)
        schedule = similarity.schedule if second_order else AllLevels(steps=300, samples=4096)
    stages = schedule.stages(pairs.levels - 1)
    rounds = tile_rounds(pairs)
    total = sum(stage.steps + stage.pretraining for stage in stages) + len(rounds) * TILE_STEPS
    progress = Progress(total, callbacks, verbose)
    start_given = not isinstance(start, MultiStart)
    begin = Start(_matrices(start if start_given else None, pairs, unit), [None] * pairs.count)
    matrices, interrupted = begin.matrices, False
    try:
        if isinstance(start, MultiStart):
            begin = find_start(pairs, start, transform.group, seed)
            matrices = begin.matrices
        if isinstance(optimizer, FisherScoring):
            scoring = Scoring(colour, similarity, np.arange(pairs.count), seed, progress)
            steps = scoring.climb(matrices, transform.group, stages, optimizer)
        else:
            steps = descend(
                colour, similarity, transform.group, optimizer, stages, matrices, seed, progress
            )
        for current in steps:
            matrices = current  # step by step, so that an interrupt keeps the last one
        for factor in rounds:
            if not progress.stopped:
                matrices = refine_by_tiles(
                    pairs, transform.group, matrices, factor, preparation, seed, progress
                )
    except KeyboardInterrupt:
        interrupted = True
    progress.close()
    verdicts = judge(pairs, begin, matrices, interrupted, seed)
    scale = np.diag([unit] * dimensions + [1.0])
    results = [
        Registration(
            matrix=scale @ matrix @ np.linalg.inv(scale),
            history=_of_pair(progress.history, pair),
            fixed_shape=images[0].shape,
            fixed_spacing=tuple(spacings[0]),
            moving_spacing=tuple(spacings[1]),
            moving=images[1],
            pair=pair,
            **verdict,
        )
        for pair, (matrix, verdict) in enumerate(zip(matrices, verdicts, strict=True))
    ]
    return results[0] if images[0].single and images[1].single else results
