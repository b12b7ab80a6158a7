"""The metric objects inside compile, fit, evaluate and a saved file."""

import keras
import numpy as np
import pytest

import kreg
from kreg.metrics import NCC, Dice, FoldingFraction, dice, folding_fraction, ncc


def small_model():
    """One convolution that predicts a field, and the warp."""
    image = (12, 10, 1)
    moving, fixed = keras.Input(image, name="moving"), keras.Input(image, name="fixed")
    both = keras.layers.Concatenate()([moving, fixed])
    field = keras.layers.Conv2D(2, 3, padding="same", name="displacement")(both)
    warped = kreg.layers.SpatialTransformer(name="warped")(moving, field)
    return kreg.RegistrationModel(
        {"moving": moving, "fixed": fixed}, {"warped": warped, "displacement": field}
    )


@pytest.fixture(scope="module")
def pairs():
    moving, fixed = np.random.default_rng(0).random((2, 6, 12, 10, 1), "float32")
    return {"moving": moving, "fixed": fixed}


def compiled(**options):
    model = small_model()
    losses = {"warped": kreg.losses.NCC(), "displacement": kreg.losses.Diffusion()}
    model.compile("adam", loss=losses, **options)
    return model


def test_metrics_are_reported_and_survive_a_saved_file(pairs, tmp_path):
    model = compiled(
        metrics={"warped": [NCC(), Dice(threshold=0.4)], "displacement": [FoldingFraction()]}
    )
    history = model.fit(pairs, batch_size=4, epochs=1, verbose=0).history
    assert {"warped_ncc", "warped_dice", "displacement_folding_fraction"} <= set(history)

    found = model.evaluate(pairs, batch_size=4, verbose=0, return_dict=True)
    out = model.predict(pairs, verbose=0)
    expected = {
        "warped_ncc": ncc(pairs["fixed"], out["warped"]),
        "warped_dice": dice(pairs["fixed"], out["warped"], 0.4),
        "displacement_folding_fraction": folding_fraction(out["displacement"]),
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(keras.ops.convert_to_numpy(values).mean(), abs=1e-5)

    model.save(tmp_path / "model.keras")
    back = keras.saving.load_model(tmp_path / "model.keras")
    again = back.evaluate(pairs, batch_size=4, verbose=0, return_dict=True)
    assert again.keys() == found.keys()
    for name in found:
        assert again[name] == pytest.approx(found[name], abs=1e-5)


def test_weighted_metrics_see_the_mask(pairs):
    model = compiled(metrics={"warped": [NCC()]}, weighted_metrics={"warped": [NCC(name="inside")]})
    mask = np.zeros((6, 12, 10), "float32")
    mask[:, 3:9, 2:8] = 1
    found = model.evaluate({**pairs, "mask": mask}, batch_size=6, verbose=0, return_dict=True)
    warped = model.predict(pairs, verbose=0)["warped"]
    fixed = pairs["fixed"]
    inside, outside = (
        keras.ops.convert_to_numpy(ncc(fixed, warped, m)).mean() for m in (mask, None)
    )
    assert found["warped_inside"] == pytest.approx(inside, abs=1e-5)
    assert found["warped_ncc"] == pytest.approx(outside, abs=1e-5)
    assert abs(found["warped_inside"] - found["warped_ncc"]) > 1e-3
