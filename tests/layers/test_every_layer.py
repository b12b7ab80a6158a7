"""What holds for every layer of `kreg.layers`, in 2-D and in 3-D."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import backend, ops
from keras.initializers import HeNormal

from kreg import layers
from kreg.groups import Rigid
from kreg.layers import (
    BSplineField,
    ComposeDisplacements,
    ComposeLinear,
    CropLike,
    DepthToSpace,
    DisplacePoints,
    IntegrateVelocity,
    Interpolator,
    JointSaliency,
    MatrixExpAffine,
    MatrixToDisplacement,
    RefinementStage,
    ResizeDisplacement,
    SaliencyRefinement,
    SelectDisplacement,
    SmoothRefinement,
    SpatialTransformer,
    Standardise,
    ThinPlateSpline,
)
from kreg.ops import (
    TensorCorrelation,
    bspline_grid_shape,
    nearest_border,
    reflect_border,
    sample_nearest,
)
from tests.fields import smooth_field
from tests.fresh_process import Saved, in_fresh_process


class Case(NamedTuple):
    """How a layer is made, no argument at its default, and the arrays that it is called with."""

    make: Callable
    inputs: Callable  # (spatial shape, batch) -> arrays
    field: bool = True  # the output is a field: float32 whatever the policy
    any_size: bool = True  # spatial sizes may be unknown
    trained: int | None = 0  # an input that gradients flow to; None: its own tests train it
    compiled: float = 1e-5  # difference of what is compiled otherwise


def field(shape, batch):
    return smooth_field(shape, 1.0, batch=batch)


def image(shape, batch, channels=3):
    rng = np.random.default_rng(1)
    return rng.uniform(size=(batch, *shape, channels)).astype("float32")


def two_images(shape, batch):
    first = image(shape, batch)
    return [first, np.flip(first, axis=-1) ** 2]


def matrix(shape, batch):
    side = len(shape) + 1
    matrix = np.eye(side) + np.random.default_rng(2).normal(0, 0.05, (batch, side, side))
    matrix[:, -1] = np.eye(side)[-1]
    return matrix.astype("float32")


def coefficients(shape, batch):
    size = Rigid().size(len(shape))
    return np.random.default_rng(4).normal(0, 0.3, (batch, size)).astype("float32")


def control_points(shape, batch):
    """Where 8 points lie in the fixed image, and where in the moving one."""
    rng = np.random.default_rng(5)
    source = rng.uniform(0, np.array(shape) - 1, (batch, 8, len(shape)))
    return [x.astype("float32") for x in (source, source + rng.normal(0, 0.5, source.shape))]


def larger(shape):
    return tuple(size + 1 + axis for axis, size in enumerate(shape))


def transformer(**options):
    return SpatialTransformer(border=reflect_border, image_gradient=False, **options)


def nearest_transformer(**options):
    return SpatialTransformer(sampler=sample_nearest, border=nearest_border, **options)


CASES = {
    "BSplineField": Case(
        lambda **options: BSplineField(2.5, **options),
        lambda shape, batch: [field(bspline_grid_shape(shape, 2.5), batch), image(shape, batch)],
        any_size=False,
    ),
    "ComposeLinear": Case(
        lambda **options: ComposeLinear(spacing=None, **options),
        lambda shape, batch: [matrix(shape, batch), field(shape, batch)],
        any_size=False,
        trained=1,
    ),
    "DisplacePoints": Case(
        DisplacePoints,
        lambda shape, batch: [control_points(shape, batch)[0], field(shape, batch)],
        trained=1,
    ),
    "MatrixToDisplacement": Case(
        lambda **options: MatrixToDisplacement(spacing=None, **options),
        # Small: mixed, the matrices are homographies, whose horizon must not cross the image.
        lambda shape, batch: [matrix(shape, batch), image((2, 3, 2)[: len(shape)], batch)],
        any_size=False,
    ),
    "ThinPlateSpline": Case(
        lambda **options: ThinPlateSpline(regularisation=0.5, **options),
        lambda shape, batch: [*control_points(shape, batch), image(shape, batch)],
        trained=1,
    ),
    "ComposeDisplacements": Case(
        ComposeDisplacements, lambda shape, batch: [field(shape, batch), -field(shape, batch)]
    ),
    "CropLike": Case(
        CropLike,
        lambda shape, batch: [image(larger(shape), batch), image(shape, batch, 1)],
        field=False,
    ),
    "DepthToSpace": Case(
        DepthToSpace,
        lambda shape, batch: [image(shape, batch, 3 * 2 ** len(shape))],
        field=False,
    ),
    "MatrixExpAffine": Case(
        lambda **options: MatrixExpAffine(Rigid(), scale=4.5, **options),
        lambda shape, batch: [coefficients(shape, batch)],
    ),
    "IntegrateVelocity": Case(
        lambda **options: IntegrateVelocity(3, **options),
        lambda shape, batch: [field(shape, batch)],
    ),
    "Interpolator": Case(
        lambda **options: Interpolator((4, 3), kernel_initializer=HeNormal(seed=1), **options),
        lambda shape, batch: [image(shape, batch)],
        field=False,
        any_size=False,
        trained=None,
    ),
    "JointSaliency": Case(
        lambda **options: JointSaliency(TensorCorrelation((0.5, 1.0), contrast=0.2), **options),
        two_images,
        any_size=False,
        trained=1,
    ),
    "ResizeDisplacement": Case(
        ResizeDisplacement,
        lambda shape, batch: [field(shape, batch), image(larger(shape), batch)],
    ),
    "SaliencyRefinement": Case(
        lambda **options: SaliencyRefinement(
            [RefinementStage(2, 1, 1, power=2, elastic=1, stiffness=0.1)],
            saliency=TensorCorrelation((1.0,), contrast=0.2),
            normalisation=3,
            **options,
        ),
        lambda shape, batch: [*two_images(shape, batch), field(shape, batch)],
        any_size=False,
        trained=2,
    ),
    "SelectDisplacement": Case(
        lambda **options: SelectDisplacement(
            saliency=TensorCorrelation((1.0,), contrast=0.2),
            power=2,
            smoothness=3,
            **options,
        ),
        lambda shape, batch: [
            *two_images(shape, batch),
            field(shape, batch),
            -5 * field(shape, batch),
        ],
        any_size=False,
        trained=2,
    ),
    "SmoothRefinement": Case(
        lambda **options: SmoothRefinement(
            2, deviation=0.05, linear=0.1, trust=0.5, correlation=0.4, cells=5, **options
        ),
        lambda shape, batch: [*two_images(shape, batch), matrix(shape, batch)],
        any_size=False,
        trained=None,
        compiled=2e-3,  # conjugate gradients that end early tell one rounding from another
    ),
    "SpatialTransformer": Case(
        SpatialTransformer,
        lambda shape, batch: [image(shape, batch), field(shape, batch)],
        field=False,
    ),
    "SpatialTransformer-options": Case(
        transformer,
        lambda shape, batch: [image(shape, batch), field(shape, batch)],
        field=False,
        trained=1,
    ),
    "SpatialTransformer-nearest": Case(
        nearest_transformer,
        lambda shape, batch: [image(larger(shape), batch), field(shape, batch)],
        field=False,
    ),
    "SpatialTransformer-matrix": Case(
        lambda **options: SpatialTransformer(border=nearest_border, **options),
        lambda shape, batch: [image(shape, batch), matrix(shape, batch)],
        field=False,
        any_size=False,
    ),
    "Standardise": Case(Standardise, lambda shape, batch: [image(shape, batch)], field=False),
}

each_layer = pytest.mark.parametrize("name", CASES)
each_shape = pytest.mark.parametrize("shape", [(6, 9), (4, 6, 5)], ids=str)


@pytest.fixture(autouse=True)
def _uncompiled(uncompiled_refinement):
    """See there."""


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def model_of(layer, arrays, *, any_size=False):
    """A functional model of the layer, for any batch and, if asked for, any spatial size."""
    shapes = [(*[None] * (x.ndim - 2), x.shape[-1]) if any_size else x.shape[1:] for x in arrays]
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layer(*inputs))


def test_no_layer_is_left_out():
    # It has several outputs: tests/layers/test_gaussian_pyramid.py makes these checks for it.
    # The second is an option, the third has random weights: tests/layers/test_matcher.py.
    # The last fits one number of axes alone: tests/layers/test_resize_image.py.
    others = {"GaussianPyramid", "RefinementStage", "Matcher", "ResizeImage"}
    assert {name.split("-")[0] for name in CASES} | others == set(layers.__all__)


@each_layer
def test_the_config_rebuilds_the_layer(name):
    case = CASES[name]
    arrays = case.inputs((6, 9), 2)
    layer = case.make(name="mine")
    twin = type(layer).from_config(layer.get_config())
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    for again in (twin, other):
        assert again.name == "mine"
        assert again.get_config() == layer.get_config()
        np.testing.assert_array_equal(numpy(again(*arrays)), numpy(layer(*arrays)))


def test_the_config_holds_the_constructors_arguments():
    layer = SpatialTransformer(
        sampler=sample_nearest, border=reflect_border, image_gradient=False, spacing=(2, 1)
    )
    twin = SpatialTransformer.from_config(layer.get_config())
    assert twin.sampler is sample_nearest
    assert twin.border is reflect_border
    assert twin.image_gradient is False
    assert twin.spacing == (2, 1)
    assert IntegrateVelocity.from_config(IntegrateVelocity(3).get_config()).steps == 3


@each_layer
@each_shape
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_symbolic_output_is_the_real_one(name, shape, policy):
    case = CASES[name]
    arrays = case.inputs(shape, 2)
    layer = case.make(dtype=policy)
    symbolic = layer(*(keras.KerasTensor(x.shape, "float32") for x in arrays))
    real = layer(*arrays)
    assert tuple(symbolic.shape) == tuple(real.shape)
    assert symbolic.dtype == backend.standardize_dtype(real.dtype)
    assert tuple(layer.compute_output_shape(*(x.shape for x in arrays))) == tuple(real.shape)


@each_layer
@each_shape
def test_the_batch_may_be_unknown_and_of_one(name, shape):
    case = CASES[name]
    layer = case.make()
    arrays = case.inputs(shape, 3)
    model = model_of(layer, arrays)
    expected = numpy(layer(*arrays))
    assert model.output_shape == (None, *expected.shape[1:])
    np.testing.assert_allclose(model.predict_on_batch(arrays), expected, atol=case.compiled)
    one = [x[:1] for x in arrays]
    np.testing.assert_allclose(model.predict_on_batch(one), expected[:1], atol=case.compiled)


@each_layer
@each_shape
def test_the_spatial_sizes_may_be_unknown(name, shape):
    case = CASES[name]
    layer = case.make()
    arrays = case.inputs(shape, 2)
    if not case.any_size:
        with pytest.raises(ValueError, match=r"known spatial sizes.*Received"):
            model_of(layer, arrays, any_size=True)
        return
    model = model_of(layer, arrays, any_size=True)
    for size in (shape, larger(shape)):
        arrays = case.inputs(size, 2)
        expected = numpy(layer(*arrays))
        sizes = (None,) * (expected.ndim - 2) if arrays[0].ndim > 2 else expected.shape[1:-1]
        assert model.output_shape == (None, *sizes, expected.shape[-1])
        np.testing.assert_allclose(model.predict_on_batch(arrays), expected, atol=1e-5)


@each_layer
@each_shape
def test_mixed_precision_leaves_fields_in_float32(name, shape):
    case = CASES[name]
    arrays = case.inputs(shape, 2)
    found = case.make(dtype="mixed_bfloat16")(*arrays)
    expected = numpy(case.make()(*arrays))
    if case.field:
        assert backend.standardize_dtype(found.dtype) == "float32"
        np.testing.assert_array_equal(numpy(found), expected)
    else:
        labels = name == "SpatialTransformer-nearest"  # bfloat16 would round them
        expected_dtype = "float32" if labels else "bfloat16"
        assert backend.standardize_dtype(found.dtype) == expected_dtype
        np.testing.assert_allclose(numpy(found), expected, atol=0.03)


@each_layer
@each_shape
def test_trains_weights_before_it_in_a_plain_keras_model(name, shape):
    case = CASES[name]
    if case.trained is None:
        pytest.skip("rectified features: they tell too little about the weights before them")
    arrays = case.inputs(shape, 6)
    channels = arrays[case.trained].shape[-1]
    # What the weights have to find: the input with its channels mixed.
    mix = np.eye(channels) + np.random.default_rng(3).normal(0, 0.2, (channels, channels))
    mixed = list(arrays)
    mixed[case.trained] = (arrays[case.trained] @ mix).astype("float32")
    target = numpy(case.make()(*mixed))

    inputs = [keras.Input(x.shape[1:]) for x in arrays]
    weighted = list(inputs)
    weights = keras.layers.Dense(channels, kernel_initializer="identity")
    weighted[case.trained] = weights(inputs[case.trained])
    model = keras.Model(inputs, case.make()(*weighted))
    model.compile(keras.optimizers.Adam(0.03), loss="mean_squared_error")
    history = model.fit(arrays, target, batch_size=6, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    saved = {}
    for name, case in CASES.items():
        for shape in [(6, 9), (4, 6, 5)]:
            arrays = case.inputs(shape, 2)
            saved[f"{name}-{len(shape)}d"] = Saved(model_of(case.make(), arrays), arrays)
    return saved, in_fresh_process(saved, tmp_path_factory.mktemp("layers"))


@each_layer
@pytest.mark.parametrize("dimensions", [2, 3])
def test_comes_back_with_a_saved_model_in_a_fresh_process(name, dimensions, reloaded):
    saved, found = reloaded
    case = f"{name}-{dimensions}d"
    model, arrays, _ = saved[case]
    expected = model.predict_on_batch(arrays)
    atol = CASES[name].compiled
    np.testing.assert_allclose(found[case]["output"], expected, rtol=1e-5, atol=atol)
