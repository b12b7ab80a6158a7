"""DDIM: deep features matched coarse to fine, stage by stage, and a last dense step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from keras import Model, ops
from keras import layers as keras_layers

from kreg.layers import (
    ComposeLinear,
    MatrixToDisplacement,
    ResizeDisplacement,
    ResizeImage,
    SmoothRefinement,
    SpatialTransformer,
    Standardise,
)
from kreg.layers.interpolator import Interpolator
from kreg.layers.matcher import Matcher
from kreg.models.blocks import image_inputs
from kreg.models.two_pass import two_pass
from kreg.ops import nearest_border, spatial_gradient
from kreg.ops.linear import compose_matrices, invert_matrix
from kreg.training import RegistrationModel

#: The longest side of the image that the first stage sees, at most; later ones see it larger, by
#: two but for rounding to whole cells.
_COARSE = 32
#: Features have at most this many cells along the longest side: more are slow, not better.
_CELLS = 8
#: And at least this many along each: fewer do not show what changes along it.
_FEWEST = 2
#: The first convolution takes cells of at most this many voxels: side by side they cost little.
_PATCH = 4
#: Sides are not shrunk to fewer voxels than this by the dense step: a few slices would be none.
_SHORT = 8


@dataclass(frozen=True)
class GreyValues:
    """What the networks see of an image: its grey values, standardised."""

    def __call__(self, image, name: str):
        """Return the view ``(batch, *spatial, channels)`` of a symbolic image."""
        return Standardise(name=name, dtype="float32")(image)


@dataclass(frozen=True)
class GradientMagnitudes:
    """What the networks see of an image: the strength of its edges, ||grad I||, standardised.

    Of the image in the size that they see, per voxel. An inverted contrast changes nothing, nor
    does any other scale of the grey values.
    """

    def __call__(self, image, name: str):
        """Return the view ``(batch, *spatial, channels)`` of a symbolic image."""
        standard = Standardise(name=f"{name}_standard", dtype="float32")(image)
        square = ops.sum(ops.square(spatial_gradient(standard)), axis=-1)
        return Standardise(name=name, dtype="float32")(ops.sqrt(square + 1e-6))


@dataclass(frozen=True)
class MatchingStage:
    """The widths of a stage.

    Args:
        filters: channels of its `Interpolator`.
        width: channels of its `Matcher`.
        upsampling: the `Interpolator`'s factor. Its convolutions then go down to as many fewer
            cells: what the `Matcher` sees is of the same size.
        resampling: whether the `Interpolator` learns a resampling, of the cascade's group.
        radius: of the `Matcher`'s correlation, in cells; None for none.
    """

    filters: Sequence[int] = (16, 32)
    width: int = 32
    upsampling: int = 1
    resampling: bool = False
    radius: int | None = None

    def layers(self, number: int, stride: int, group) -> tuple[Interpolator, Matcher]:
        """Return the layers of stage `number`, whose cells are `stride` voxels of its image."""
        total = stride * self.upsampling
        divisors = [f for f in range(2, total + 1) if total % f == 0] or [1]
        first = max((f for f in divisors if f <= _PATCH), default=divisors[0])
        interpolator = Interpolator(
            self.filters, strides=(first, total // first), factor=self.upsampling,
            resampling=self.resampling, group=group, name=f"interpolator{number}",
        )  # fmt: skip
        matcher = Matcher(self.width, group=group, radius=self.radius, name=f"matcher{number}")
        return interpolator, matcher


@dataclass(frozen=True)
class SmoothStep:
    """u solved for: smooth, and what makes the views most alike (`kreg.layers.SmoothRefinement`).

    For images of the same thing. It has three weights, and works before they are trained.

    Args:
        steps: of Gauss and Newton.
        correlation: over this distance, as a share of the longest side, u is correlated by
            exp(-1/2); None for .15 in 2-D and .3 in 3-D, whose grids have more points.
        cells: the longest side has at most so many.
        deviation: how far u is expected to go, as a share of the longest side; the first value.
        linear: the same of what the matrix is expected to miss.
        trust: in single voxels, the first value.
        size: of larger images it sees the longest side in so many voxels: u is smooth, more would
            take longer and show little.

    Raises:
        ValueError: when called, as `kreg.layers.SmoothRefinement` does, or if `size` < 8.
    """

    steps: int = 3
    correlation: float | None = None
    cells: int = 16
    deviation: float = 0.006
    linear: float = 0.02
    trust: float = 0.2
    size: int = 64

    def __call__(self, images, view, matrix) -> dict:
        """Return ``{"displacement": (batch, *spatial, D)}`` on the fixed image's grid."""
        fixed = images["fixed"]
        if self.size < _SHORT:
            raise ValueError(f"Expected `size` >= {_SHORT} voxels. Received: {self.size}.")
        options = asdict(self)
        sizes = _at_most(options.pop("size"), fixed.shape[1:-1])
        views = _views(images, view, sizes, "_dense")
        if self.correlation is None:
            options["correlation"] = 0.15 * 2 ** (len(sizes) - 2)
        refinement = SmoothRefinement(
            **options, spacing=_spacing(views["fixed"], fixed), dtype="float32",
            name="smooth_refinement",
        )  # fmt: skip
        field = refinement(views["fixed"], views["moving"], matrix)
        return {"displacement": ResizeDisplacement(name="displacement")(field, fixed)}


@dataclass(frozen=True)
class NetworkStep:
    """u from a network that registers the fixed image and the moving one, warped by the matrix.

    For images of different things, trained by a loss on images.

    Args:
        network: called with the shape ``(*spatial, channels)`` of a view; returns a model of
            ``{"moving", "fixed"}`` with the output ``displacement``, such as `two_pass`, the
            default, or ``functools.partial(voxelmorph, head=DenseHead())``. What else it gives,
            such as a ``velocity``, the cascade gives too, for losses on it, but for warped images:
            they are of the view.
        view: what it sees, `GreyValues()` or your own; None for what the stages see.
        downsize: a whole number; it sees images so many times smaller.

    Raises:
        ValueError: when called, if `downsize` is not positive, or `network` is not a function or
            its model has no output ``displacement``.
    """

    network: Callable[..., RegistrationModel] = two_pass
    view: Callable | None = None
    downsize: int = 1

    def __call__(self, images, view, matrix) -> dict:
        """Return ``{"displacement": (batch, *spatial, D), ...}`` on the fixed image's grid."""
        built = isinstance(self.network, Model)
        if built or not (isinstance(self.downsize, int) and self.downsize >= 1):
            raise ValueError(
                "Expected `network` to be a function of an image shape that returns a model, such "
                "as `two_pass`, and `downsize` a whole number >= 1. Received: "
                f"{'a model' if built else self.network} and {self.downsize}."
            )
        sizes = [-(-size // self.downsize) for size in images["fixed"].shape[1:-1]]
        views = _views(images, self.view or view, sizes, "_dense")
        seen = {
            "moving": _warp(views["moving"], matrix, "halfway", images["fixed"]),
            "fixed": views["fixed"],
        }
        network = self.network(views["fixed"].shape[1:])
        if not isinstance(network.output, dict) or "displacement" not in network.output:
            raise ValueError(
                "Expected a network with an output `displacement` in a dictionary, such as "
                f"`two_pass` or `voxelmorph` gives. Received: {network.output}."
            )
        wanted = {k: x for k, x in network.output.items() if not k.startswith("warped")}
        outputs = Model(network.input, wanted, name=f"dense_{network.name}")(seen)
        field = outputs.pop("displacement")
        field = ResizeDisplacement(name="residual_displacement")(field, images["fixed"])
        return {"displacement": field, **outputs}


def ddim(
    image_shape: Sequence,
    *,
    depth: int = 3,
    stage=MatchingStage(),
    shared: bool = False,
    group=None,
    view=GreyValues(),
    dense=SmoothStep(),
    detached: bool = True,
    features: bool = False,
    name: str = "ddim",
) -> RegistrationModel:
    """phi = A o (x + u(x)), A = A_1 A_2 ... A_depth: a cascade that interpolates and matches.

    Each stage warps the moving image by what the stages before have found, computes features of
    it and of the fixed image (`kreg.layers.Interpolator`) and matches them
    (`kreg.layers.Matcher`): A_i is the transform that they have left. The first stage sees small
    images, the others larger ones. A dense step finds u, what A has left, so that every
    voxel of the fixed image gets its place in the moving one.
    The original image is warped once, by the composed map. Identity at start. For large motion:
    trained on known transforms (`kreg.data.KnownTransforms`) it needs neither labels nor a
    similarity. First the stages, then, with these frozen, the dense step, which takes little::

        model = ddim((32, 32, 1))
        stages = RegistrationModel(
            model.input, {"stage_matrices": model.output["stage_matrices"]}
        )
        stages.compile(Adam(2e-3, clipnorm=1.0), loss={"stage_matrices": GridDistance((32, 32))})
        stages.fit(KnownTransforms(images))
        stages.trainable = False
        model.compile(Adam(0.03), loss={"displacement": EndpointError()})
        model.fit(KnownTransforms(images))

    A loss on images, such as ``{"warped": NCC()}``, trains the dense step alone: for it to train
    the stages, too, gradients must flow through the matrices (``detached=False``).

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes must be known.
        depth: number of stages.
        stage: `MatchingStage`, their widths.
        shared: whether all stages have the same weights.
        group: of `kreg.groups`, an object; ``Affine()`` where None.
        view: what the networks see: `GreyValues`, `GradientMagnitudes`, or your own.
        dense: `SmoothStep` for images of the same thing, `NetworkStep` for others, your own, called
            with ``{"moving", "fixed"}``, `view` and A; or None for a model of the stages alone.
        detached: whether no gradient flows to the matrix that a stage, or the dense step, starts
            from, so that each is trained by what it has left alone. False for losses on images.
        features: whether there are further outputs ``features1``, ``features2``, ...: for
            `kreg.losses.FeatureResidual`, beside known transforms or a loss on images, the
            features of the fixed image and those of the moving one, brought to it by A_i.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped`` ``(batch, *spatial, channels)``,
        ``matrix`` A ``(batch, D + 1, D + 1)``, fixed to moving points in the centred world frame,
        ``stage_matrices`` A_1, A_1 A_2, ... ``(batch, depth, D + 1, D + 1)`` and ``displacement``
        of phi ``(batch, *spatial, D)``. With a dense step also ``warped_linear``, by A alone,
        ``residual`` u and what else the network of a `NetworkStep` gives, such as its ``velocity``.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image of known size, `depth` is
            not positive, or there is no such group in as many dimensions.
    """
    inputs = image_inputs(image_shape)
    moving, fixed = inputs["moving"], inputs["fixed"]
    sizes = fixed.shape[1:-1]
    if None in sizes or depth < 1:
        raise ValueError(
            "Expected known spatial sizes, as a matrix lies in a frame centred on the image, and "
            f"`depth` >= 1. Received: spatial sizes {tuple(sizes)}, depth {depth}."
        )
    stride, first, later = _resolutions(sizes)
    views = _views(inputs, view, later, "_view")

    def held(matrix):
        return ops.stop_gradient(matrix) if detached else matrix

    outputs: dict = {}
    matrices: list = []
    layers = None
    for number in range(1, depth + 1):
        if layers is None or not shared:
            layers = stage.layers(number, stride, group)
        interpolator, matcher = layers
        small = dict(views)
        if not matrices:
            small = {name: _resized(x, first) for name, x in views.items()}
        else:
            found = held(matrices[-1])
            small["moving"] = _warp(small["moving"], found, f"warped{number}", fixed)
        seen, resampling = interpolator(small["fixed"], fixed, return_matrix=True)
        other = interpolator(small["moving"], fixed)
        matrix = matcher(seen, other, fixed)
        if features:
            name = f"features{number}"
            matched = _warp(other, matrix, f"{name}_matched", fixed, image_gradient=True)
            outputs[name] = keras_layers.Concatenate(name=name, dtype="float32")([seen, matched])
        if interpolator.resampling:  # resampled features match under R^-1 A R
            matrix = compose_matrices(resampling, matrix)
            matrix = compose_matrices(matrix, invert_matrix(resampling))
        matrices.append(compose_matrices(found, matrix) if matrices else matrix)

    matrix = matrices[-1]
    outputs |= {"matrix": matrix, "stage_matrices": ops.stack(matrices, axis=1)}
    linear = MatrixToDisplacement(name="linear_displacement")(matrix, fixed)
    outputs["displacement"] = linear
    if dense is not None:
        fields = dense(inputs, view, held(matrix))
        residual = fields.pop("displacement")
        displacement = ComposeLinear(name="composition")(held(matrix), residual)
        outputs |= {"warped_linear": _plain_warp(moving, linear, "warped_linear")}
        outputs = fields | outputs | {"displacement": displacement, "residual": residual}
    outputs["warped"] = _plain_warp(moving, outputs["displacement"], "warped")
    return RegistrationModel(inputs, outputs, name=name)


def _resolutions(sizes) -> tuple[int, list[int], list[int]]:
    """The stride of the features, and the sizes of the images that the first and later stages see.

    These are multiples of the stride, so that whole cells divide the image.
    """
    longest = max(sizes)
    coarse = 2
    while longest / coarse > _COARSE:
        coarse *= 2
    stride = 1
    while 2 * longest / coarse / stride > _CELLS:
        stride *= 2

    def multiples(shrink):
        return [stride * max(_FEWEST, -(-size // (shrink * stride))) for size in sizes]

    return stride, multiples(coarse), multiples(coarse // 2)


def _resized(image, shape):
    if tuple(shape) == tuple(image.shape[1:-1]):
        return image
    return ResizeImage(shape, dtype="float32")(image)


def _views(images, view, sizes, suffix) -> dict:
    """What is seen of each image, brought to `sizes`; seen before it is enlarged, if it is."""

    def seen(image, name):
        smaller = [min(pair) for pair in zip(sizes, image.shape[1:-1], strict=True)]
        return _resized(view(_resized(image, smaller), name), sizes)

    return {name: seen(image, f"{name}{suffix}") for name, image in images.items()}


def _at_most(longest, sizes) -> list[int]:
    """The sizes of an image, shrunk until no side is longer than that, or short."""
    shrink = max(1.0, max(sizes) / longest)
    return [max(min(size, _SHORT), round(size / shrink)) for size in sizes]


def _spacing(view, image) -> list[float]:
    """The voxels of a view, in those of the image that it shows."""
    return [size / cells for size, cells in zip(image.shape[1:-1], view.shape[1:-1], strict=True)]


def _warp(view, matrix, name, image, image_gradient=False):
    """What is seen of an image, warped; its background isn't 0: its border goes on."""
    return SpatialTransformer(
        border=nearest_border, image_gradient=image_gradient, spacing=_spacing(view, image),
        dtype="float32", name=name,
    )(view, matrix)  # fmt: skip


def _plain_warp(image, displacement, name):
    return SpatialTransformer(image_gradient=False, dtype="float32", name=name)(image, displacement)
