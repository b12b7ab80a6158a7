import numpy as np
import pytest
from scipy import ndimage

from kreg.data.missing import (
    ContrastChange,
    Lesions,
    MissingPairs,
    SmoothDeformation,
    Strokes,
    missing_brain_pairs,
    missing_digit_pairs,
)
from tests.fields import grid

SHAPES = [(40, 48), (20, 24, 28)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def phantoms(shape, n=2, channels=1):
    """Bright ellipsoids with a dark, smooth pattern in their middle, black around them."""
    offset = (grid(shape) - (np.array(shape) - 1) / 2) / np.array(shape)
    level = np.linalg.norm(offset, axis=-1) / 0.33
    rng = np.random.default_rng(0)
    pattern = ndimage.gaussian_filter(
        rng.normal(size=(n, *shape, channels)), [0, *[2] * len(shape), 0]
    )
    inside = np.clip((1 - level) * 6, 0, 1)[..., None]
    return (inside * np.clip(0.6 + 0.15 * pattern / pattern.std(), 0.3, 1)).astype("float32")


def make(sizes, /, *, alteration=None, mean=0.05, n=2, **options):
    deformation = SmoothDeformation(mean)
    options = {"batch_size": 2, "steps": 2, "landmarks": 9} | options
    return MissingPairs(
        phantoms(sizes, n), alteration=alteration, deformation=deformation, **options
    )


def carried_back(moving, displacement):
    """moving(x + u(x)), by cubic splines, of images with one channel."""
    points = np.moveaxis(grid(displacement.shape[1:-1]) + displacement, -1, 1)
    pairs = zip(moving[..., 0], points, strict=True)
    return np.stack([ndimage.map_coordinates(m, p, order=3) for m, p in pairs])[..., None]


@each_shape
def test_the_displacement_carries_the_moving_image_back_to_the_fixed_one(shape):
    (pair,) = make(shape)[0]
    before = np.abs(pair["moving"] - pair["fixed"]).mean()
    after = np.abs(carried_back(pair["moving"], pair["displacement"]) - pair["fixed"])
    assert after.mean() < 0.1 * before
    assert not pair["altered"].any()
    lengths = np.linalg.norm(pair["displacement"], axis=-1).mean()
    assert 0.6 * 0.05 * min(shape) <= lengths <= 1.4 * 0.05 * min(shape)


@each_shape
@pytest.mark.parametrize("alteration", [Strokes(), Lesions()], ids=type)
def test_one_side_is_altered_where_the_mask_says_so(shape, alteration):
    (clean,), (pair,) = (make(shape, alteration=a, batch_size=6)[0] for a in (None, alteration))
    np.testing.assert_array_equal(pair["displacement"], clean["displacement"])
    sides = [
        [not np.array_equal(*images) for images in zip(pair[name], clean[name], strict=True)]
        for name in ("moving", "fixed")
    ]
    np.testing.assert_array_equal(np.sum(sides, axis=0), 1)
    assert 0 < np.sum(sides[0]) < 6
    residual = np.abs(carried_back(pair["moving"], pair["displacement"]) - pair["fixed"])
    altered = pair["altered"] == 1
    assert set(np.unique(pair["altered"])) == {0, 1}
    assert altered.any(axis=tuple(range(1, altered.ndim))).all()
    assert residual[altered].mean() > 0.1
    assert residual[~altered].mean() < 0.01
    assert pair["fixed"].min() >= 0
    assert pair["fixed"].max() <= 1


@each_shape
def test_landmarks_lie_on_edges_away_from_what_is_altered(shape):
    (pair,) = make(shape, alteration=Strokes())[0]
    for sample in range(2):
        fixed, moving = (pair[f"{name}_landmarks"][sample] for name in ("fixed", "moving"))
        there = np.isfinite(fixed).all(axis=-1)
        np.testing.assert_array_equal(np.isfinite(moving).all(axis=-1), there)
        assert there.sum() >= 4
        index = tuple(fixed[there].astype(int).T)
        displacement = pair["displacement"][sample][index]
        np.testing.assert_allclose(moving[there] - fixed[there], displacement, atol=1e-4)
        away = ndimage.distance_transform_edt(pair["altered"][sample, ..., 0] == 0)
        assert away[index].min() > 2
        slope = ndimage.gaussian_gradient_magnitude(pair["fixed"][sample, ..., 0], 1.0)
        assert slope[index].min() > np.median(slope)
        apart = np.linalg.norm(fixed[there][:, None] - fixed[there], axis=-1)
        assert apart[~np.eye(len(apart), dtype=bool)].min() >= 4


def test_landmarks_that_are_missing_are_nan_on_both_sides():
    (pair,) = make((40, 48), landmarks=200)[0]
    missing = np.isnan(pair["fixed_landmarks"])
    np.testing.assert_array_equal(np.isnan(pair["moving_landmarks"]), missing)
    assert missing[:, -1].all()
    assert not missing[:, 0].any()


def test_the_draw_depends_on_the_seed_alone():
    def make_one(**options):
        return make((40, 48), alteration=Strokes(), contrast=ContrastChange(), **options)

    pairs, again = make_one(), make_one(batch_size=1, steps=4)
    (first,) = pairs[1]
    for name, values in again[2][0].items():
        np.testing.assert_array_equal(values, first[name][:1])
    others = [make_one(seed=1)[1][0], pairs[0][0]]
    pairs.on_epoch_end()
    others.append(pairs[1][0])
    for other in others:
        assert np.abs(other["fixed"] - first["fixed"]).max() > 0.1
    stale = make_one(fresh=False)
    stale.on_epoch_end()
    np.testing.assert_array_equal(stale[1][0]["fixed"], first["fixed"])


def test_an_epoch_takes_each_image_once_before_any_again():
    flat = np.ones((6, 8, 8), "float32") * np.arange(6)[:, None, None] / 10
    flat[:, 0, 0] += 1e-3  # images that are constant within, each of its own grey value
    pairs = MissingPairs(
        flat, alteration=None, deformation=SmoothDeformation(0), batch_size=2, steps=3
    )
    values = np.concatenate([pairs[i][0]["fixed"][:, 4, 4, 0] for i in range(3)])
    np.testing.assert_allclose(np.sort(values), np.arange(6) / 10, atol=1e-3)


def test_batches_have_the_shape_asked_for_in_float32():
    images = (255 * phantoms((20, 24), channels=3)).astype("uint8")
    pairs = missing_digit_pairs(images, shape=(50, 40), batch_size=3)
    assert pairs.image_shape == (50, 40, 3)
    assert len(pairs) == 100
    (pair,) = pairs[0]
    assert {name: values.shape[1:] for name, values in pair.items()} == {
        "moving": (50, 40, 3),
        "fixed": (50, 40, 3),
        "displacement": (50, 40, 2),
        "altered": (50, 40, 1),
        "fixed_landmarks": (32, 2),
        "moving_landmarks": (32, 2),
    }
    assert all(values.dtype == np.float32 for values in pair.values())
    assert 0.5 < pair["moving"].max() <= 1


def test_contrast_changes_keep_range_and_truth():
    images = phantoms((40, 48))
    plain = missing_brain_pairs(images, contrast=None, batch_size=6)
    (first,), (second,) = plain[0], missing_brain_pairs(images, batch_size=6)[0]
    changed = [
        [not np.array_equal(*x) for x in zip(first[name], second[name], strict=True)]
        for name in ("moving", "fixed")
    ]
    np.testing.assert_array_equal(np.sum(changed, axis=0), 1)
    for name in ("displacement", "altered", "fixed_landmarks"):
        np.testing.assert_array_equal(second[name], first[name])
    assert second["fixed"].max() <= 1
    # The order of grey values nearby stays: gradients point the same way.
    slopes = [np.stack(np.gradient(x["fixed"][..., 0], axis=(1, 2))) for x in (first, second)]
    assert np.sum(slopes[0] * slopes[1], axis=0).min() > -1e-3


@each_shape
def test_deformations_do_not_fold(shape):
    deformation = SmoothDeformation(0.06, spread=0)
    field = deformation.draw(np.random.default_rng(0), shape)(grid(shape))
    axes = tuple(range(len(shape)))
    gradient = np.stack(np.gradient(field, axis=axes), -1) + np.eye(len(shape))
    assert np.linalg.det(gradient).min() > 0.2
    assert np.linalg.norm(field, axis=-1).mean() == pytest.approx(0.06 * min(shape), rel=0.1)
    with pytest.raises(ValueError, match=r"lower `mean`, or widen `spacings`\. Received"):
        SmoothDeformation(0.5).draw(np.random.default_rng(0), (12, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (40, 48, 40)}, r"`shape` to be 2 spatial sizes\. Received"),
        ({"batch_size": 0}, r"`batch_size`, `steps` and `landmarks` >= 1"),
        ({"mean": -0.1}, r"`mean` >= 0.*Received"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make((40, 48), **options)
