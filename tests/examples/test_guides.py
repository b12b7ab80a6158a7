"""The guides: their functions on small images, without compiling, which takes most of a run."""

import importlib.util
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import kreg

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.usefixtures("uncompiled"),
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow", reason="one backend is enough for the guides"
    ),
]


@pytest.fixture
def guide(request):
    """The script of that name as a module: its functions, without a run."""
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("guide", ["own_model"], indirect=True)
def test_own_model_learns(guide):
    noise = np.random.default_rng(0).random((16, 16, 16, 1), dtype="float32")
    images = np.array(kreg.ops.gaussian_filter(noise, 1.5))
    pairs = kreg.data.ArrayPairs(images[1:], images[:-1], batch_size=15)
    model = guide.build((16, 16, 1))
    (first,) = pairs[0]
    np.testing.assert_allclose(
        model.predict(first, verbose=0)["warped"], first["moving"], atol=1e-6
    )
    before = guide.score(model, pairs)
    assert before[1] == pytest.approx(before[0], abs=1e-5)
    guide.train(model, pairs, epochs=5)
    assert guide.score(model, pairs)[1] > before[0] + 0.01


@pytest.mark.parametrize("guide", ["own_parts"], indirect=True)
def test_own_parts_find_what_was_applied(guide):
    image = guide.micrograph(8)
    before, after = guide.with_own_loss(image, (0, 0, 10))
    assert after < 0.7 * before
    truth, found = guide.with_own_group(image, (8, 4, 2))
    np.testing.assert_allclose(found, truth, atol=0.3)
    assert found[0, 1] == found[1, 0] == 0
    truth, found = guide.with_own_transform(image, 30)
    assert found == pytest.approx(truth, rel=0.2)


@pytest.mark.parametrize("guide", ["own_parts"], indirect=True)
def test_own_loss_is_saved_and_blind_to_contrast(guide):
    loss = guide.EdgeCorrelation(sigma=2.0)
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert (type(copy), copy.sigma) == (guide.EdgeCorrelation, 2.0)
    image = guide.micrograph(16)[None, ..., None]
    assert float(loss(image, 3 - 2 * image)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("guide", ["histology"], indirect=True)
def test_histology_landmarks_show_the_same_tissue(guide, monkeypatch):
    monkeypatch.delenv("KREG_DATA", raising=False)
    pair = guide.shrunk(guide.demo_pair(), 256)
    assert pair.fixed.shape == pair.moving.shape == (256, 256, 3)
    sides = (pair.fixed, pair.fixed_points), (pair.moving, pair.moving_points)
    shown = [map_coordinates(guide.absorbed(image), points.T, order=1) for image, points in sides]
    elsewhere = map_coordinates(guide.absorbed(pair.moving), pair.fixed_points.T, order=1)
    assert np.corrcoef(*shown)[0, 1] > 0.9 > np.corrcoef(shown[0], elsewhere)[0, 1] + 0.05
    identity = np.linalg.norm(pair.fixed_points - pair.moving_points, axis=-1)
    assert guide.errors(pair) == [pytest.approx(np.median(identity))]


@pytest.mark.parametrize("guide", ["histology"], indirect=True)
def test_histology_reads_the_sections(guide, data_file):
    root = data_file("histology/29-041-Izd2-w35-He-les3.jpg").parents[1]
    pair = guide.lesion(root)
    assert pair.fixed_points.shape == pair.moving_points.shape == (80, 2)
    for image, points in ((pair.fixed, pair.fixed_points), (pair.moving, pair.moving_points)):
        assert (points > 0).all()
        assert (points < image.shape[:2]).all()
