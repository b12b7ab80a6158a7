"""Figures of registrations and of training; each function returns a matplotlib ``Figure``.

No pyplot and no display: ``figure.savefig("pair.png")`` writes it, a notebook shows it. Volumes
are shown by their middle slices.

The grid in "warped grid" is that of the moving image, painted on it and warped with it: the lines
are the level sets of phi(x) = x + u(x), since ``warped(x) = moving(phi(x))``. Where they spread
the moving image was magnified, where they crowd it was shrunk. The arrows of a displacement start
at x in the fixed image and end at phi(x), where its value comes from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from keras import ops
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from kreg.ops.displacement import jacobian_determinant

#: Grid lines and arrows along the longer side of an image.
_LINES = 14

_GRID_COLOUR = "#c2410c"
_FOLD_COLOUR = "#dc2626"
_TRAINING_COLOUR, _VALIDATION_COLOUR = "#1f4e9c", "#e07b00"
_TRUSTED_COLOUR, _DISTRUSTED_COLOUR = "#15803d", "#dc2626"

#: Where the moving image does not reach: neither dark nor bright.
_OUTSIDE = 0.5


def show_pair(moving, fixed, warped, displacement, *, axis: int = 0) -> Figure:
    """Show one registration: images, differences, warped grid, displacement, volume change.

    Args:
        moving, fixed, warped: ``(*spatial)`` or ``(*spatial, channels)``, grey or RGB.
        displacement: ``(*spatial, D)``, voxels.
        axis: for volumes, the axis across which the middle slice is taken; of the displacement
            the two components within the slice are shown.

    Raises:
        ValueError: if the shapes do not fit one another, or values are NaN or infinite.
    """
    pair = _slice(moving, fixed, warped, displacement, axis=axis)
    figure = Figure(figsize=(11.2, 1.4 + 5.2 * pair.aspect), layout="constrained")
    (a, b, c, d), (e, f, g, h) = figure.subplots(2, 4)
    _show_image(a, pair.moving, pair.range, "moving")
    _show_image(b, pair.fixed, pair.range, "fixed")
    _show_image(c, pair.warped, pair.range, "warped")
    _show_grid(d, pair, "warped grid")

    title = f"moving − fixed\nrms {_rms(pair.before):.3g}"
    _show_difference(e, pair.before, pair.limit, title)
    title = f"warped − fixed\nrms {_rms(pair.after):.3g}"
    shown = _show_difference(f, pair.after, pair.limit, title)
    _show_scale(figure, shown, [e, f], aspect=64)

    shown = _show_displacement(g, pair, "displacement in voxels,\narrows from x to phi(x)")
    _show_scale(figure, shown, g)

    folded = f"{100 * pair.folding:.3g} % folds (red)" if pair.folding else "no folding"
    shown = _show_volume_change(h, pair, f"Jacobian determinant,\n{folded}")
    bar = _show_scale(figure, shown, h)
    limit = shown.get_clim()[1]
    ticks = list(range(-int(limit), int(limit) + 1))
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" for tick in ticks])
    return figure


def show_pairs(
    moving, fixed, warped, displacement, *, rows: int = 8, axis: int = 0, labels=None
) -> Figure:
    """Show the first pairs of a batch, one a row: images, differences, warped grid.

    Args:
        moving, fixed, warped: ``(batch, *spatial)`` or ``(batch, *spatial, channels)``.
        displacement: ``(batch, *spatial, D)``, voxels.
        rows: how many pairs at most.
        axis: for volumes, the axis across which the middle slice is taken.
        labels: None, or what to write beside each row.

    Raises:
        ValueError: see `show_pair`; also if the batches differ, or there are fewer labels than
            rows.
    """
    batch = [
        _array(a, n) for a, n in zip((moving, fixed, warped, displacement), _NAMES, strict=True)
    ]
    sizes = [len(array) if array.ndim else 0 for array in batch]
    if len(set(sizes)) > 1 or not sizes[0] or rows < 1:
        raise ValueError(
            "Expected as many moving, fixed and warped images as displacements, and `rows` >= 1. "
            f"Received: {', '.join(map(str, sizes))}, and rows={rows}."
        )
    rows = min(rows, sizes[0])
    if labels is not None and len(labels) < rows:
        raise ValueError(f"Expected {rows} `labels`, one a row. Received: {len(labels)}.")
    pairs = [_slice(*(array[i] for array in batch), axis=axis) for i in range(rows)]
    size = 10.8, 1.75 * rows * pairs[0].aspect + 0.4
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(rows, 6, squeeze=False)
    titles = ["moving", "warped", "fixed", "moving − fixed", "warped − fixed", "warped grid"]
    for i, (pair, axes) in enumerate(zip(pairs, all_axes, strict=True)):
        row = titles if i == 0 else [""] * 6
        images = pair.moving, pair.warped, pair.fixed
        for ax, image, title in zip(axes, images, row, strict=False):
            _show_image(ax, image, pair.range, title)
        _show_difference(axes[3], pair.before, pair.limit, row[3])
        _show_difference(axes[4], pair.after, pair.limit, row[4])
        _show_grid(axes[5], pair, row[5])
        if labels is not None:
            axes[0].set_ylabel(str(labels[i]), fontsize=11)
    return figure


def checkerboard(fixed, warped, squares: int = 8) -> np.ndarray:
    """Return fixed(x) on the even squares of a board and warped(x) on the odd ones.

    Where the images fit, edges run on across the squares. Each is scaled to its own contrast, so
    they may be of different modalities: the 0.5 % darkest values become 0, the brightest 1.

    Args:
        fixed, warped: ``(*spatial)`` or ``(*spatial, channels)`` of equal spatial sizes; an array
            of rank 3 has channels if its last axis is 4 or shorter, else it is a volume. RGB stays
            RGB, other channels are averaged.
        squares: along the longest axis.

    Returns:
        ``(*spatial, channels)`` in [0, 1], 3 channels if either image has them, else 1.

    Raises:
        ValueError: if the sizes differ, values are NaN or infinite, or `squares` < 1.
    """
    images = []
    for values, name in ((fixed, "fixed"), (warped, "warped")):
        image = _array(values, name)
        rank = image.ndim - (image.ndim == 4 or (image.ndim == 3 and image.shape[-1] <= 4))
        images.append(_contrasted(_channels(image, name, image.shape[:rank])))
    shapes = [image.shape[:-1] for image in images]
    if len(set(shapes)) > 1 or squares < 1:
        raise ValueError(
            "Expected `fixed` and `warped` of equal spatial sizes, and `squares` >= 1; lay the "
            "moving image over the fixed one first, such as by `Registration.warp`. "
            f"Received: {shapes[0]} and {shapes[1]}, and squares={squares}."
        )
    return _interleaved(images[0], images[1], squares)


def show_registration(fixed, moving, result, *, squares: int = 8, axis: int = 0) -> Figure:
    """Show what `kreg.register` found: the pair, checkerboards before and after, the similarity.

    Across the squares of fixed and moving image edges run on where the two fit, and break where
    they do not. Middle grey is where the moving image does not reach. "Before" has the images laid
    centre on centre.

    Args:
        fixed, moving: ``(*spatial)`` or ``(*spatial, channels)``, of the sizes that were
            registered; RGB is shown as RGB, other channels are averaged.
        result: the `kreg.Registration` of this pair.
        squares: of the boards, along the longest axis.
        axis: for volumes, the axis across which the middle slice is taken.

    Raises:
        ValueError: if the images do not have the sizes that were registered, or values are NaN or
            infinite.
    """
    still = _contrasted(_channels(_array(fixed, "fixed"), "fixed", result.fixed_shape))
    moved = _contrasted(_channels(_array(moving, "moving"), "moving", result.moving.shape))
    if not 0 <= axis < len(result.fixed_shape):
        raise ValueError(
            f"Expected `axis` from 0 to {len(result.fixed_shape) - 1}. Received: {axis}."
        )
    identity = replace(result, matrix=np.eye(len(result.matrix)))
    boards = [
        _interleaved(still, _laid_over(moved, transform), squares)
        for transform in (identity, result)
    ]
    if len(result.fixed_shape) == 3:
        still, moved, *boards = (
            np.take(image, image.shape[axis] // 2, axis) for image in (still, moved, *boards)
        )
    aspect = float(np.clip(still.shape[0] / still.shape[1], 0.4, 2.0))
    figure = Figure(figsize=(11.2, 1.6 + 7.6 * aspect), layout="constrained")
    heights = [0.6 + 5.4 * aspect, 1 + 2.2 * aspect]
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    similarities = result.similarity_before, result.similarity_after
    for ax, name, board, value in zip(
        top.subplots(1, 2), ("before", "after"), boards, similarities, strict=True
    ):
        _show_image(ax, board, (0, 1), f"{name}: mutual information {value:.3f} nats")
    left, middle, right = bottom.subplots(1, 3, width_ratios=[1, 1, 2])
    _show_image(left, still, (0, 1), "fixed")
    _show_image(middle, moved, (0, 1), "moving")
    _show_steps(right, result.history)
    verdict = "trusted" if result.trusted else "not trusted"
    colour = _TRUSTED_COLOUR if result.trusted else _DISTRUSTED_COLOUR
    figure.suptitle(f"{verdict}: {result.reason}", color=colour, fontsize=12, wrap=True)
    return figure


def show_training(history: Mapping[str, Any] | Any, *, regularisers: Iterable[str] = ()) -> Figure:
    """Show the curves of a training, a panel each: solid for training, dashed for validation.

    Titles are the names that Keras gives, in words: "loss of warped" for ``warped_loss``, "total
    loss" for ``loss`` where it has parts. Where that falls, and the loss of a regulariser rises,
    its title says that this is the price of motion. A panel has a logarithmic axis, and says so,
    where its values are positive and span more than a factor 20.

    Args:
        history: what ``fit`` returns, or its ``history`` dict: name -> one value an epoch.
        regularisers: names of the outputs whose losses only keep them smooth, or from folding.

    Raises:
        ValueError: if there is no epoch in it, or no loss of a regulariser.
    """
    curves = getattr(history, "history", history)
    if not isinstance(curves, Mapping) or not any(len(values) for values in curves.values()):
        raise ValueError(
            "Expected what `model.fit` returned after at least one epoch, or a dict "
            f"{{name: values}}. Received: {curves!r}."
        )
    names = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    losses = [name.removesuffix("_loss") for name in names if name.endswith("_loss")]
    regularisers = [regularisers] if isinstance(regularisers, str) else list(regularisers)
    if unknown := [name for name in regularisers if name not in losses]:
        raise ValueError(
            f"Expected `regularisers` among the outputs with a loss, {', '.join(losses) or 'none'}"
            f"; leave out the others. Received: {', '.join(map(repr, unknown))}."
        )
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, name in zip(panels, names, strict=False):
        _show_curves(ax, name, curves)
        price = name.removesuffix("_loss") in regularisers and _is_price(name, curves)
        remark = "\nregulariser: rises as the images move" if price else ""
        ax.set_title(_in_words(name, names) + remark, fontsize=11)
    for ax in panels[len(names) :]:
        ax.remove()
    return figure


# --- one pair, as 2-D arrays ---

_NAMES = "moving", "fixed", "warped", "displacement"


@dataclass(frozen=True)
class _Pair:
    """A slice of a pair: images ``(h, w, channels)``, fields ``(h, w[, 2])``.

    `folding` is the share of all voxels that fold, not of the slice.
    """

    moving: np.ndarray
    fixed: np.ndarray
    warped: np.ndarray
    displacement: np.ndarray
    determinant: np.ndarray
    folding: float

    @property
    def aspect(self) -> float:
        """Height by width, within what a figure bears."""
        height, width = self.determinant.shape
        return float(np.clip(height / width, 0.4, 2.0))

    @property
    def range(self) -> tuple[float, float]:
        """Darkest and brightest value of the three images."""
        images = self.moving, self.fixed, self.warped
        return min(i.min() for i in images), max(i.max() for i in images)

    @property
    def before(self) -> np.ndarray:
        return np.mean(self.moving - self.fixed, axis=-1)

    @property
    def after(self) -> np.ndarray:
        return np.mean(self.warped - self.fixed, axis=-1)

    @property
    def limit(self) -> float:
        """One range for both differences, symmetric about 0."""
        return max(np.abs(self.before).max(), np.abs(self.after).max(), 1e-6)


def _slice(moving, fixed, warped, displacement, *, axis: int) -> _Pair:
    field = _array(displacement, "displacement")
    dimensions = field.ndim - 1
    if dimensions not in (2, 3) or field.shape[-1] != dimensions or min(field.shape) < 2:
        raise ValueError(
            "Expected `displacement` of shape (*spatial, D) for one pair, with at least 2 voxels "
            "an axis and as many components as axes; take one of a batch, `displacement[0]`. "
            f"Received: {field.shape}."
        )
    if not 0 <= axis < dimensions:
        raise ValueError(f"Expected `axis` from 0 to {dimensions - 1}. Received: {axis}.")
    images = [
        _image(a, name, field.shape[:-1])
        for a, name in zip((moving, fixed, warped), _NAMES, strict=False)
    ]
    if len({image.shape for image in images}) > 1:
        raise ValueError(
            "Expected moving, fixed and warped images with equally many channels. Received: "
            f"{', '.join(str(image.shape) for image in images)}."
        )
    determinant = ops.convert_to_numpy(jacobian_determinant(field[None]))[0]
    folding = float(np.mean(determinant <= 0))
    moved, still, result = images
    if dimensions == 3:
        middle = field.shape[axis] // 2
        moved, still, result, field, determinant = (
            np.take(values, middle, axis) for values in (moved, still, result, field, determinant)
        )
        field = np.delete(field, axis, axis=-1)
    return _Pair(moved, still, result, field, determinant, folding)


def _array(values, name: str) -> np.ndarray:
    array = np.asarray(ops.convert_to_numpy(values), "float32")
    if not np.isfinite(array).all():
        raise ValueError(
            f"Expected finite values in `{name}`. Received: {(~np.isfinite(array)).sum()} NaN or "
            "infinite ones."
        )
    return array


def _image(values, name: str, spatial: tuple[int, ...]) -> np.ndarray:
    image = _array(values, name)
    if image.shape == spatial:
        image = image[..., None]
    if image.shape[:-1] != spatial or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"Expected `{name}` of shape {spatial} as the displacement, with 1 or 3 channels or "
            f"no channel axis. Received: {image.shape}."
        )
    return image


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# --- a board of two images ---


def _channels(image: np.ndarray, name: str, spatial: tuple[int, ...]) -> np.ndarray:
    """Return ``(*spatial, 1 or 3)``: channels that are no colours are averaged."""
    if image.shape == spatial:
        image = image[..., None]
    if image.shape[:-1] != spatial:
        raise ValueError(
            f"Expected `{name}` of spatial sizes {spatial}, as registered, with or without a "
            f"channel axis. Received: {image.shape}."
        )
    return image if image.shape[-1] == 3 else image.mean(axis=-1, keepdims=True)


def _contrasted(image: np.ndarray) -> np.ndarray:
    """Scale to [0, 1], all channels alike, but for the outermost values."""
    low, high = np.quantile(image, (0.005, 0.995))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def _laid_over(moved: np.ndarray, transform) -> np.ndarray:
    """Warp by a `kreg.Registration`, `_OUTSIDE` where nothing comes from."""
    # As a batch of one: whatever its rank, the last axis holds channels.
    return transform.warp(moved[None] - _OUTSIDE) + _OUTSIDE


def _interleaved(fixed: np.ndarray, warped: np.ndarray, squares: int) -> np.ndarray:
    spatial = fixed.shape[:-1]
    side = max(spatial) / squares
    odd = np.zeros(spatial, bool)
    for axis, size in enumerate(spatial):
        along = np.arange(size) / side
        odd ^= np.expand_dims(along.astype(int) % 2 == 1, [k for k in range(odd.ndim) if k != axis])
    return np.where(odd[..., None], warped, fixed)


# --- panels ---


def _panel(ax: Axes, title: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("#9ca3af")
        spine.set_linewidth(0.6)
    if title:
        ax.set_title(title, fontsize=11)


def _show_image(ax: Axes, image: np.ndarray, limits: tuple[float, float], title: str) -> None:
    low, high = limits
    if image.shape[-1] == 3:
        ax.imshow((image - low) / max(high - low, 1e-6))
    else:
        ax.imshow(image[..., 0], cmap="gray", vmin=low, vmax=high)
    _panel(ax, title)


def _show_difference(ax: Axes, difference: np.ndarray, limit: float, title: str):
    shown = ax.imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
    _panel(ax, title)
    return shown


def _show_grid(ax: Axes, pair: _Pair, title: str) -> None:
    shape = pair.displacement.shape[:2]
    grey = np.mean(pair.warped, axis=-1)
    low, high = pair.range
    # A pale ghost of the image, dark on white whatever its own background.
    ax.imshow(grey, cmap="Greys", vmin=low, vmax=high + 2.5 * (high - low) + 1e-6)
    phi = pair.displacement + np.moveaxis(np.indices(shape), 0, -1)
    step = _step(shape)
    rows, columns = map(np.arange, shape)
    for component, size in enumerate(shape):
        # Lines beyond the moving image are none of its grid's.
        levels = np.arange((size - 1) % step / 2, size, step)
        values = phi[..., component]
        levels = levels[(levels > values.min()) & (levels < values.max())]
        if len(levels):
            ax.contour(columns, rows, values, levels=levels, colors=_GRID_COLOUR, linewidths=0.8)
    _panel(ax, title)


def _show_displacement(ax: Axes, pair: _Pair, title: str):
    field = pair.displacement
    length = np.sqrt(np.sum(np.square(field), axis=-1))
    shown = ax.imshow(length, cmap="viridis", vmin=0, vmax=max(length.max(), 1e-6))
    step = _step(field.shape[:2])
    rows, columns = np.mgrid[step // 2 : field.shape[0] : step, step // 2 : field.shape[1] : step]
    arrows = field[rows, columns]
    ax.quiver(
        columns,
        rows,
        arrows[..., 1],
        arrows[..., 0],
        angles="xy",
        scale_units="xy",
        scale=1,
        color="white",
        width=0.006,
        minlength=0,
    )
    _panel(ax, title)
    return shown


def _show_volume_change(ax: Axes, pair: _Pair, title: str):
    """Show log2 of the determinant, symmetric about 0: halving and doubling look alike."""
    folded = pair.determinant <= 0
    change = np.log2(np.where(folded, 1, np.maximum(pair.determinant, 1e-6)))
    limit = np.clip(np.ceil(np.abs(change).max()), 1, 3)
    colours = colormaps["PuOr"].with_extremes(bad=_FOLD_COLOUR)
    change = np.ma.masked_where(folded, change)
    shown = ax.imshow(change, cmap=colours, vmin=-limit, vmax=limit)
    _panel(ax, title)
    return shown


def _show_scale(figure: Figure, shown, axes, aspect: float = 30) -> Colorbar:
    bar = figure.colorbar(shown, ax=axes, location="bottom", aspect=aspect, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
    return bar


def _show_steps(ax: Axes, history: Mapping[str, Any]) -> None:
    """Draw the similarity at each step, a curve a stage: they are not comparable."""
    values = np.asarray(history.get("similarity", []), "float64")
    stages = history.get("stage", [])
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    for start, stop in pairwise([*starts, len(values)]):
        marker = "o" if stop - start < 3 else None
        steps = np.arange(start + 1, stop + 1)
        ax.plot(steps, values[start:stop], color=_TRAINING_COLOUR, marker=marker)
        if start:
            ax.axvline(start + 0.5, color="#9ca3af", linewidth=0.8)
        ax.annotate(stages[start], (start + 0.5, 1.02), xycoords=("data", "axes fraction"))
    ax.set_xlim(0.5, max(len(values), 1) + 0.5)
    ax.set_xlabel("step")
    ax.set_ylabel("similarity, optimised")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _step(shape: tuple[int, ...]) -> int:
    return max(1, round(max(shape) / _LINES))


def _in_words(name: str, names: list[str]) -> str:
    """Return what a curve shows."""
    if name == "loss" and any(other.endswith("_loss") for other in names):
        return "total loss"
    words = name.removesuffix("_loss").replace("_", " ")
    return f"loss of {words}" if name.endswith("_loss") else words


def _is_price(name: str, curves: Mapping[str, Any]) -> bool:
    """Whether the loss of a regulariser rises while the total falls."""
    part, total = ([*curves.get(key, ())] for key in (name, "loss"))
    return bool(part and total and part[-1] > part[0] and total[-1] < total[0])


def _show_curves(ax: Axes, name: str, curves: Mapping[str, Any]) -> None:
    kinds = (
        (name, "training", "-", _TRAINING_COLOUR),
        (f"val_{name}", "validation", "--", _VALIDATION_COLOUR),
    )
    values = []
    for key, label, style, colour in kinds:
        if key in curves:
            curve = np.asarray(curves[key], "float64")
            marker = "o" if len(curve) < 3 else None
            epochs = np.arange(1, len(curve) + 1)
            ax.plot(epochs, curve, style, color=colour, label=label, marker=marker, linewidth=1.6)
            values.append(curve)
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    if len(finite) and finite.min() > 0 and finite.max() > 20 * finite.min():
        ax.set_yscale("log")
        ax.set_ylabel("logarithmic")
        marked = (1, 2, 5) if finite.max() < 1000 * finite.min() else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=marked))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(0.5, max(map(len, values)) + 0.5)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(values) > 1:
        ax.legend(frameon=False, fontsize=9)
