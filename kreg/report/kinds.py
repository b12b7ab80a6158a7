"""The kinds of pictures in a report, what they mean, and the order in which they come."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from kreg.report import pictures
from kreg.report.numbers import extent, volume_of_linear_part
from kreg.report.planes import pixel_size
from kreg.report.views import Layer, Scene, View, agreements, lattice_scale

#: Lengths that differ less, in the unit of the fixed image, are told by one number.
_ALIKE = 1e-6


class Painted:
    """Pictures of all views, on common scales.

    Args:
        scene: what is seen.
        views: of the scene.
    """

    def __init__(self, scene: Scene, views: list[View]):
        self.scene, self.views = scene, views
        # They take as long as all pictures that do without them, which are painted meanwhile.
        executor = ThreadPoolExecutor(max_workers=1)
        self._agreements = executor.submit(agreements, views)
        executor.shutdown(wait=False)
        fixed = pictures.contrast([_inside(view.fixed) for view in views])
        moving = pictures.contrast([_inside(view.after) for view in views])
        self._unit = [
            {
                "fixed": pictures.scaled(view.fixed.values, fixed),
                "before": pictures.scaled(view.before.values, moving),
                "after": pictures.scaled(view.after.values, moving),
            }
            for view in views
        ]

    def layer(self, name: str, number: int) -> np.ndarray:
        """Return the fixed image, or the moving one before or after, as grey or RGB."""
        inside = getattr(self.views[number], name).inside
        return pictures.painted(self._unit[number][name], inside)

    def board(self, name: str, number: int) -> np.ndarray:
        """Return a checkerboard of the fixed image and a layer."""
        return pictures.checkerboard(self.layer("fixed", number), self.layer(name, number))

    def difference(self, name: str, number: int) -> np.ndarray:
        """Return a layer less the fixed image, in colours."""
        view, unit = self.views[number], self._unit[number]
        inside = view.fixed.inside & getattr(view, name).inside
        values = (unit[name].mean(-1) - unit["fixed"].mean(-1) + 1) / 2
        return pictures.where(inside, pictures.coloured(values, pictures.DIFFERENCE))

    def lattice(self, number: int) -> np.ndarray:
        """Return the moving image, pale, with its lattice."""
        view = self.views[number]
        layer, scale = self.layer("after", number), lattice_scale(view.plane)
        return pictures.lattice(layer, view.lattice, scale, view.after.inside)

    def saliency(self, number: int) -> np.ndarray:
        """Return joint saliency in colours, light grey where neither image shows an edge."""
        found = self._agreements.result()[number]
        colours = pictures.coloured(found.saliency, pictures.CAUTION)
        shown = pictures.mixed(colours, pictures.NOTHING, found.structure)
        return pictures.where(self.views[number].after.inside, shown)

    def tinted(self, number: int) -> np.ndarray:
        """Return the fixed image in grey, orange where its edges and the moving one's differ."""
        found = self._agreements.result()[number]
        doubt = np.where(self.views[number].after.inside, found.doubt, 0)
        return pictures.tinted(self.layer("fixed", number).mean(-1, keepdims=True), doubt)

    def masked(self, name: str, layer: str, number: int) -> np.ndarray:
        """Return a layer, dimmed beyond its mask."""
        return pictures.outlined(self.layer(layer, number), getattr(self.views[number], name))


def _inside(layer: Layer) -> np.ndarray:
    return layer.values[layer.inside]


class Bar(NamedTuple):
    """A scale of colours, and what stands below it from its lowest to its highest value."""

    colours: tuple[str, ...]
    marks: list[str]


class Kind(NamedTuple):
    """Pictures of one kind, one a view; or a number where they would be of one colour."""

    title: str
    caption: str
    picture: Callable[[int], np.ndarray] | None
    bar: Bar | None = None
    number: str = ""


def fits(painted: Painted) -> list[Kind]:
    """Return what shows whether the images fit."""
    board = (
        "Squares show the fixed and the moving image in turn. Where the two fit, edges run on "
        "from square to square."
    )
    difference = (
        "Moving less fixed image, each at its own contrast. White: alike. It means little between "
        "different kinds of image, such as MR and CT."
    )
    after = "On the same scale as before: where it is empty, that is white, the images are equal."
    bar = Bar(pictures.DIFFERENCE, ["fixed brighter", "alike", "moving brighter"])
    return [
        Kind("Checkerboard, before", board, lambda i: painted.board("before", i)),
        Kind("Checkerboard, after", "", lambda i: painted.board("after", i)),
        Kind("Difference, before", difference, lambda i: painted.difference("before", i), bar),
        Kind("Difference, after", after, lambda i: painted.difference("after", i), bar),
    ]


def done(painted: Painted) -> list[Kind]:
    """Return what shows how the moving image was moved and bent."""
    views, fixed = painted.views, painted.scene.alignment.fixed
    spacing = pictures.lattice_spacing(views[0].plane.shape) * pixel_size(fixed.grid)
    kinds = [
        Kind(
            "Warped grid",
            f"A lattice of squares, {spacing:.3g} {fixed.unit} wide, painted on the moving image "
            "as it lay before, and carried along with it (the lines are those of the moving image, "
            "seen in the frame of the fixed one). Where they spread, the moving image was "
            "magnified; where they crowd, it was shrunk; where they cross themselves, it folds.",
            painted.lattice,
        ),
        _lengths(
            "Distance moved",
            "How far each point of the moving image was moved. It began "
            f"{painted.scene.before_is}.",
            [view.moved for view in views],
            fixed.unit,
        ),
    ]
    bent = [view.displaced for view in views if view.displaced is not None]
    if bent:
        caption = "How far each point was moved beyond the linear part: how much was bent."
        kinds.append(_lengths("Displacement", caption, bent, fixed.unit))
    return [*kinds, _volume(painted)]


def _lengths(title: str, caption: str, lengths: list[np.ndarray], unit: str) -> Kind:
    largest = max(float(length.max()) for length in lengths)
    if largest - min(float(length.min()) for length in lengths) < _ALIKE:
        return Kind(title, f"{caption} The same everywhere.", None, number=f"{largest:.3g} {unit}")
    return Kind(
        title,
        caption,
        lambda i: pictures.coloured(lengths[i] / (largest or 1.0), pictures.AMOUNT),
        Bar(pictures.AMOUNT, [f"{share * largest:.3g} {unit}" for share in (0, 0.5, 1)]),
    )


def _volume(painted: Painted) -> Kind:
    alignment = painted.scene.alignment
    what, linear = extent(alignment), volume_of_linear_part(alignment)
    title = f"Change of {what}"
    volumes = [view.volume for view in painted.views if view.volume is not None]
    if not volumes:
        text = f"The Jacobian determinant, the same everywhere: so much {what} of the moving image "
        text += "meets 1 of the fixed one, each in its own unit."
        return Kind(title, text, None, number=f"{linear:.4g}")
    largest = max(float(np.abs(np.log2(np.clip(v, 0.05, 20))).max()) for v in volumes)
    doublings = float(np.clip(largest, 0.1, 3))
    return Kind(
        title,
        f"The Jacobian determinant: how much {what} of the moving image meets that of the fixed "
        f"one, as a share of that in the middle of the linear part, {linear:.4g}. Above 1 the "
        "moving image was compressed, below it was stretched; red is where it folds, which "
        "nothing real does.",
        lambda i: pictures.volume_change(volumes[i], doublings),
        Bar(pictures.CHANGE, [f"{2.0**power:.3g}" for power in (-doublings, 0, doublings)]),
    )


def confidence(painted: Painted) -> list[Kind]:
    """Return what shows where to look twice."""
    caption = (
        "Do both images show the same edges around a point? Cream: they do. Dark: one shows what "
        "the other lacks, be it a lesion, another contrast, or a place where they do not fit; "
        "look there before you rely on it. Light grey: neither shows more than noise, or texture "
        "as fine, so that nothing speaks for the fit or against it."
    )
    bar = Bar(pictures.CAUTION, ["0, edges differ", "1, edges agree"])
    over = "The same over the fixed image, in grey: the more orange, the more the edges differ."
    return [
        Kind("Joint saliency", caption, painted.saliency, bar),
        Kind("Joint saliency, laid over", over, painted.tinted),
    ]


def masks(painted: Painted) -> list[Kind]:
    """Return the images with their masks, those that have one."""
    caption = "Dark, beyond the outline, is what the mask left out."
    first = painted.views[0]
    kinds = []
    if first.fixed_mask is not None:
        kinds.append(
            Kind("Fixed mask", caption, lambda i: painted.masked("fixed_mask", "fixed", i))
        )
    if first.moving_mask is not None:
        kinds.append(
            Kind("Moving mask", caption, lambda i: painted.masked("moving_mask", "after", i))
        )
    return kinds
