"""register(): find the transform that lays one moving image over one fixed image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np

from kreg.groups import Group
from kreg.losses import MINE
from kreg.ops.displacement import compose
from kreg.pairwise.dense import GaussNewton, deform
from kreg.pairwise.descent import descend
from kreg.pairwise.field import Field, mirrored, unfolded
from kreg.pairwise.fisher import FisherScoring
from kreg.pairwise.free_form import descend_field
from kreg.pairwise.images import IN_MEMORY, Image, as_mask, check_spacing
from kreg.pairwise.pairs import Pairs, Side
from kreg.pairwise.preparation import LocalNormalisation, Preparation, Unchanged
from kreg.pairwise.progress import Progress
from kreg.pairwise.result import Registration
from kreg.pairwise.samplers import Sampler, UniformSampler
from kreg.pairwise.schedule import AllLevels, CoarseToFine, Schedule, Stage
from kreg.pairwise.scoring import Scoring
from kreg.pairwise.search import MultiStart
from kreg.pairwise.similarity import GaussianRatio, HistogramRatio, LogRatio, as_log_ratio
from kreg.pairwise.start import Start, find_start
from kreg.pairwise.tiles import TILE_STEPS, refine_by_tiles, tile_rounds
from kreg.pairwise.verdict import Ending, judge, judge_dense
from kreg.transforms import FreeForm, Linear, Transform

# Defaults: frozen, so that all calls may share them.
_AFFINE = Linear()
_HISTOGRAM, _GAUSSIAN = HistogramRatio(), GaussianRatio()
_UNIFORM = UniformSampler()
_SCORING = FisherScoring()
_GAUSS_NEWTON = GaussNewton()
_MULTI_START = MultiStart()
_NORMALISED, _RAW = LocalNormalisation(), Unchanged()
#: Displacements follow finer structure, and what is but noise in flat regions misleads them.
_FINE = LocalNormalisation(width=0.02, floor=0.05)
#: Displacements: the coarsest level is about this many times smaller, but no smaller than this.
_SHRINK, _SMALLEST = 16, 6
#: Voxels of a level that a control point may move in one step of Adam.
_RATE = 0.1
_GAUSS_NEWTON_SCHEDULE = CoarseToFine(steps=(6, 6, 6))
_DESCENT_SCHEDULE = CoarseToFine(steps=(40, 40, 40))


def _matrices(start, images: "_Images") -> np.ndarray:
    """The user's own start, world, as normalised matrices ``(pairs, D + 1, D + 1)``."""
    size = images.dimensions + 1
    try:
        given = np.eye(size) if start is None else np.asarray(start, "float64")
    except (TypeError, ValueError):
        given = np.empty(0)
    shapes = (size, size), (images.count, size, size)
    fits = given.shape in shapes and np.isfinite(given).all()
    if not fits or not (np.linalg.det(given) * given[..., -1, -1]).all():
        raise ValueError(
            f"Expected `start` to be MultiStart(), None, or invertible matrices of shape "
            f"{shapes[0]} or {shapes[1]} whose last entry is not 0. Received: {start!r}."
        )
    given = images.from_world(np.broadcast_to(given, (images.count, size, size)))
    return given / given[:, -1:, -1:]


def _rescaled(matrix: np.ndarray, unit: float) -> np.ndarray:
    """The same map between points in units that are 1 / `unit` as long."""
    scale = np.diag([unit] * (matrix.shape[-1] - 1) + [1.0])
    return scale @ matrix @ np.linalg.inv(scale)


def _displacement(start, pairs: Pairs | None) -> Field | None:
    """The user's own displacement to start from, on the fixed images; None if it is none."""
    if pairs is None:
        return None
    shape = (*pairs.fixed.image.shape, pairs.dimensions)
    if tuple(getattr(start, "shape", ())) not in (shape, (pairs.count, *shape)):
        return None
    values = np.broadcast_to(np.asarray(start, "float32"), (pairs.count, *shape))
    if not np.isfinite(values).all():
        raise ValueError("Expected `start` to be finite. Received: NaN or infinite displacements.")
    return Field(values, pairs.fixed.frame)


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
    """Return one pair's share of the history of a batch: the steps that it took part in."""
    own = [not np.isnan(value[pair]) for value in history.get("motion", [])]
    return {
        name: [
            float(value[pair]) if isinstance(value, np.ndarray) else value
            for value, took_part in zip(values, own, strict=True)
            if took_part
        ]
        for name, values in history.items()
    }


class _Images:
    """Both images of a batch of pairs, checked, and what makes `Pairs` of them."""

    def __init__(self, images, masks, spacings, sampler):
        self.fixed, self.moving = images
        _check_pair(*images)
        self.dimensions = len(self.fixed.shape)
        self.count = max(self.fixed.batch, self.moving.batch)
        self.single = self.fixed.single and self.moving.single
        names = ("fixed", "moving")
        self.masks = [
            as_mask(mask, image, f"{name}_mask")
            for mask, image, name in zip(masks, images, names, strict=True)
        ]
        self.spacings = [
            check_spacing(spacing, self.dimensions, f"{name}_spacing")
            for spacing, name in zip(spacings, names, strict=True)
        ]
        # The unit of the normalised world: half the longest side of the two images.
        extents = [max(s * im.shape) for s, im in zip(self.spacings, images, strict=True)]
        self.unit = max(extents) / 2
        self._sampler = sampler
        self._one_channel = max(image.channels for image in images) == 1

    def pairs(self, preparation, similarity, coarsest: int | None = None) -> tuple[Pairs, Pairs]:
        """Return pairs of grey images, and those that the similarity compares."""
        usual = preparation or (_NORMALISED if coarsest is None else _FINE)
        grey = self._made(True, usual, coarsest)
        if not isinstance(similarity, LogRatio):
            return grey, self._made(False, preparation or _RAW, coarsest)
        if similarity.grey or self._one_channel:
            return grey, grey
        return grey, self._made(False, usual, coarsest)

    def _made(self, grey: bool, preparation: Preparation, coarsest: int | None) -> Pairs:
        options: dict[str, Any] = {"grey": grey, "preparation": preparation, "coarsest": coarsest}
        fixed, moving = (
            Side(image, mask, spacing / self.unit, **options)
            for image, mask, spacing in zip(
                (self.fixed, self.moving), self.masks, self.spacings, strict=True
            )
        )
        return Pairs(fixed, moving, self._sampler)

    def to_world(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix of the normalised world in the units of the spacings."""
        return _rescaled(matrix, self.unit)

    def from_world(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix in the units of the spacings as one of the normalised world."""
        return _rescaled(matrix, 1 / self.unit)


class _Part(NamedTuple):
    """One part of a transform, the linear or the dense one: what it climbs, and how."""

    similarity: Any
    optimizer: Any
    pairs: Any = None
    colour: Any = None
    #: None where the transform has no such part.
    stages: Sequence[Stage] = ()


def _parts(transform: Transform, similarity, optimizer) -> tuple[_Part, _Part]:
    """Return similarity and optimizer of the linear and of the dense part, or raise ValueError."""
    free = isinstance(transform.dense, FreeForm)
    kinds: list[type] = []
    if transform.linear is not None:
        kinds += [FisherScoring, keras.optimizers.Optimizer]
    if transform.dense is not None:
        kinds.append(keras.optimizers.Optimizer if free else GaussNewton)
    if optimizer is not None and not isinstance(optimizer, tuple(kinds)):
        names = " or ".join(
            f"{kind.__module__.split('.')[0]}'s {kind.__name__}" for kind in dict.fromkeys(kinds)
        )
        raise ValueError(
            f"Expected `optimizer` to be an object of {names} for {transform}. "
            f"Received: {optimizer!r}."
        )
    # A Keras optimizer has variables: not one for all that waits from the import on.
    optimizers = [_SCORING, keras.optimizers.Adam(_RATE) if free else _GAUSS_NEWTON]
    if optimizer is not None:
        of_dense = free and isinstance(optimizer, keras.optimizers.Optimizer)
        optimizers[of_dense or isinstance(optimizer, GaussNewton)] = optimizer
    similarities = [_HISTOGRAM, _GAUSSIAN]
    if free and isinstance(similarity, keras.losses.Loss) and not isinstance(similarity, MINE):
        similarities[1] = similarity
    elif similarity is not None:
        similarities = [as_log_ratio(similarity)] * 2
    linear, dense = (_Part(*one) for one in zip(similarities, optimizers, strict=True))
    return linear, dense


def _planned(linear: _Part, dense: _Part, transform: Transform, schedule, preparation, images):
    """Return both parts with their images and stages."""
    if transform.linear is not None:
        pairs, colour = images.pairs(preparation, linear.similarity)
        own = schedule
        if own is None or transform.dense is not None:
            second_order = isinstance(linear.optimizer, FisherScoring)
            own = linear.similarity.schedule if second_order else AllLevels(steps=300, samples=4096)
        linear = linear._replace(pairs=pairs, colour=colour, stages=own.stages(pairs.levels - 1))
    if transform.dense is not None:
        large = [image for image in (images.fixed, images.moving) if image.voxels > IN_MEMORY]
        if large:
            raise ValueError(
                f"Expected images of at most {IN_MEMORY} voxels for a displacement; average "
                "blocks of voxels first (`skimage.transform.downscale_local_mean`) and resize the "
                f"result (`kreg.ops.resize`). Received: sizes {[image.shape for image in large]}."
            )
        longest = max(*images.fixed.shape, *images.moving.shape)
        coarsest = max(longest // _SHRINK, _SMALLEST)
        pairs, colour = images.pairs(preparation, dense.similarity, coarsest)
        second_order = isinstance(dense.optimizer, GaussNewton)
        usual = _GAUSS_NEWTON_SCHEDULE if second_order else _DESCENT_SCHEDULE
        if getattr(dense.similarity, "trained", False):
            usual = dense.similarity.schedule
        stages = (schedule or usual).stages(pairs.levels - 1)
        if any(len(stage.levels) != 1 for stage in stages):
            raise ValueError(
                "Expected a schedule of one level after another for a displacement, such as "
                f"CoarseToFine(). Received: {schedule}."
            )
        dense = dense._replace(pairs=pairs, colour=colour, stages=stages)
    return linear, dense


def _find(dense: _Part, pairs: Pairs, transform, stages, matrices, start, seed, progress):
    """Yield the displacement at each step of the dense part, which comes before the start's."""
    find = deform if isinstance(dense.optimizer, GaussNewton) else descend_field
    options = dense.similarity, transform.dense, dense.optimizer
    return find(pairs, *options, stages, matrices, start, seed, progress)


def _whole(pairs: Pairs, start: Field | None, found: Field | None) -> Field:
    """Return a displacement on the fixed images, then that of the start, free of folds."""
    whole = (found or Field.still(pairs)).whole(pairs)
    values = whole.values
    if start is not None:
        values = keras.ops.convert_to_numpy(compose(start.values, values))
    return Field(unfolded(values), whole.frame)


def _null_stages(stages: Sequence[Stage], coarse: int) -> list[Stage]:
    """Return the stages up to the coarse level, on it where there are no others."""
    own = [stage for stage in stages if stage.levels[0] >= coarse and stage.steps]
    return own or [replace(stage, levels=(coarse,)) for stage in stages if stage.steps]


def _climb(linear: _Part, group: Group, matrices, seed, progress):
    """Yield the matrices after each step of the linear part."""
    similarity, optimizer, stages = linear.similarity, linear.optimizer, linear.stages
    if isinstance(optimizer, FisherScoring):
        scoring = Scoring(linear.colour, similarity, np.arange(len(matrices)), seed, progress)
        return scoring.climb(matrices, group, stages, optimizer)
    return descend(linear.colour, similarity, group, optimizer, stages, matrices, seed, progress)


def register(
    fixed: Any,
    moving: Any,
    *,
    transform: Transform = _AFFINE,
    similarity: LogRatio | keras.losses.Loss | None = None,
    schedule: Schedule | None = None,
    sampler: Sampler = _UNIFORM,
    optimizer: FisherScoring | GaussNewton | keras.optimizers.Optimizer | None = None,
    start: MultiStart | np.ndarray | None = _MULTI_START,
    preparation: Preparation | None = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_spacing: Sequence[float] | None = None,
    moving_spacing: Sequence[float] | None = None,
    seed: int = 0,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    verbose: bool = False,
) -> Any:
    """Find T that maximises the similarity of fixed(x) and moving(T x), for one pair of images.

    Nothing is learned beforehand. For linear transforms a global search at a coarse level makes
    large offsets harmless (translations of 30 %, rotations of 45 degrees, scales of 0.7 to 1.4);
    then steps on random samples, coarse to fine, climb the similarity: a step's time depends on the
    samples, not on the pixels. Images beyond 8 million voxels are read in pieces (memory-mapped,
    zarr), the last steps on tiles at full resolution, always by the histogram of grey values and
    Fisher scoring. Displacements take all voxels, level after level.

    Args:
        fixed, moving: ``(*spatial)``, or ``(*spatial, channels)`` in 2-D, or batches of pairs
            ``(batch, *spatial, channels)``, which a volume with channels needs as well; an array
            of rank 3 has channels if its last axis is 4 or shorter, else it is a volume. Sizes,
            channels and grey values may differ.
        transform: what is looked for: `kreg.transforms.Linear` of a group; the displacements
            `Dense` (by Gauss-Newton, fast), `FreeForm` and `Velocity` (by any loss); or
            `Composed` of both.
        similarity: `kreg.pairwise.HistogramRatio`, `CriticRatio` or `GaussianRatio`; or the loss
            that goes with it: `kreg.losses.MutualInformation`, `MINE` (of which the network's
            widths and activation count), `NCC`. For `FreeForm` and `Velocity` any loss on
            images, which sees them as they are. Where None, the histogram for the linear part
            and, more exact where grey values go together, the Gaussian for a displacement.
        schedule: `kreg.pairwise.CoarseToFine` or `AllLevels` (linear transforms alone); what
            suits the similarity if None.
        sampler: `kreg.pairwise.UniformSampler` or `EdgeSampler`, for linear transforms.
        optimizer: `kreg.pairwise.FisherScoring` or any Keras optimizer for linear transforms,
            `GaussNewton` for `Dense`, any Keras optimizer for `FreeForm` and `Velocity`, in
            voxels of each level (then the linear part has its own); what suits them if None.
        start: `kreg.pairwise.MultiStart`, a matrix to start from (as in the result), or None for
            the identity. A displacement alone keeps the matrix, and does not search; it also
            starts from a displacement ``([batch,] *spatial, D)``, such as a network's prediction.
        preparation: `kreg.pairwise.LocalNormalisation`, `Standardisation` or another; where None,
            local normalisation, finer for a displacement, and nothing for a loss on images.
        fixed_mask, moving_mask: weights of the voxels, of the spatial shape of their image.
        fixed_spacing, moving_spacing: distance of voxel centres along each axis; 1 where None.
        seed: of everything random.
        callbacks: Keras callbacks; each step is an epoch, with logs "similarity", "overlap" and
            "motion" (voxels); ``self.params["epochs"]`` are planned. Setting
            ``self.model.stop_training`` ends the registration.
        verbose: whether to show a progress bar.

    Returns:
        A `Registration`, or a list of them for batches. Its `trusted` and `reason` say whether to
        believe it: images without texture, or that hardly meet, or that fit no better than at
        wrong places, are not trusted. An interrupt (Ctrl-C) returns the last transform.

    Raises:
        ValueError: if ranks, sizes, masks or spacings do not fit, values are NaN or infinite, a
            mask is empty, the group does not exist in 3-D, the optimizer is not one for the
            transform, or a displacement is asked for of images beyond 8 million voxels.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> rows, columns = np.indices((32, 32))
        >>> fixed = np.sin(rows * columns / 40)
        >>> moving = 1 - fixed[3:, 2:]  # begins three rows and two columns later, inverted
        >>> result = kreg.register(
        ...     fixed,
        ...     moving,
        ...     transform=kreg.transforms.Linear(kreg.groups.Translation()),
        ...     start=None,  # a small offset: no search
        ...     schedule=kreg.pairwise.CoarseToFine((0, 0, 10)),
        ... )
        >>> np.round(result.transform_points([[10, 20]]))
        array([[ 7., 18.]])
        >>> result.warped.shape, result.trusted
        ((32, 32, 1), True)
    """
    _check_kinds(
        transform=(transform, Transform),
        schedule=(schedule, Schedule | None),
        sampler=(sampler, Sampler),
        preparation=(preparation, Preparation | None),
    )
    linear, dense = _parts(transform, similarity, optimizer)
    callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks)
    for callback in callbacks:
        _check_kinds(callbacks=(callback, keras.callbacks.Callback))
    images = _Images(
        (Image(fixed, "fixed"), Image(moving, "moving")),
        (fixed_mask, moving_mask),
        (fixed_spacing, moving_spacing),
        sampler,
    )
    group = None if transform.linear is None else transform.linear.group
    if group is not None:
        group.generators(images.dimensions)  # raises where there is no such group
    linear, dense = _planned(linear, dense, transform, schedule, preparation, images)
    rounds = tile_rounds(linear.pairs) if linear.stages else []
    total = sum(stage.steps for stage in linear.stages)
    total += len(rounds) * TILE_STEPS + sum(stage.steps for stage in dense.stages)
    progress = Progress(total, callbacks, verbose)
    given = None if isinstance(start, MultiStart) else start
    refined = _displacement(given, dense.pairs)
    if refined is not None and group is not None:
        raise ValueError(
            f"Expected `start` to be a matrix or a search for {transform}, whose linear part comes "
            "first; refine a displacement by Dense, FreeForm or Velocity alone. Received: a "
            "displacement."
        )
    begin = Start(_matrices(None if refined is not None else given, images), [None] * images.count)
    matrices, field, interrupted = begin.matrices, None, False
    try:
        if group is not None:
            if isinstance(start, MultiStart):
                begin = find_start(linear.pairs, start, group, seed)
                matrices = begin.matrices
            for current in _climb(linear, group, matrices, seed, progress):
                matrices = current  # step by step, so that an interrupt keeps the last one
        for factor in rounds:
            if group is not None and not progress.stopped:
                matrices = refine_by_tiles(
                    linear.pairs,
                    group,
                    matrices,
                    factor,
                    preparation or _NORMALISED,
                    seed,
                    progress,
                )
        if transform.dense is not None and not progress.stopped:
            for field in _find(  # noqa: B007 - the last one is the result
                dense, dense.colour, transform, dense.stages, matrices, refined, seed, progress
            ):
                pass
    except KeyboardInterrupt:
        interrupted = True
    progress.close()
    histories = [_of_pair(progress.history, pair) for pair in range(images.count)]
    motion = [(history.get("motion") or [0.0])[-1] for history in histories]
    ending = Ending(interrupted, motion)
    if transform.dense is not None:
        field = _whole(dense.pairs, refined, field)
        null = None
        for null in _find(  # noqa: B007
            dense,
            mirrored(dense.colour),
            transform,
            _null_stages(dense.stages, dense.pairs.coarse),
            matrices,
            None,
            seed,
            Progress(0, (), verbose=False),
        ):
            pass
        null = _whole(dense.pairs, None, null)
        verdicts = judge_dense(dense.pairs, begin, matrices, field, null, ending, seed)
    else:
        verdicts = judge(linear.pairs, begin, matrices, ending, seed)
    results = [
        Registration(
            matrix=images.to_world(matrix),
            field=None if field is None else field.values[pair],
            history=histories[pair],
            fixed_shape=images.fixed.shape,
            fixed_spacing=tuple(images.spacings[0]),
            moving_spacing=tuple(images.spacings[1]),
            moving=images.moving,
            pair=pair,
            **verdict,
        )
        for pair, (matrix, verdict) in enumerate(zip(matrices, verdicts, strict=True))
    ]
    return results[0] if images.single else results
