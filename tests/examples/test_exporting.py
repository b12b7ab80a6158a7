"""The functions of the example of exporting, without its training, which takes far longer."""

import importlib.util
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kreg import layers

EXAMPLE = Path(__file__).parents[2] / "examples" / "exporting.py"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="the example is about TensorFlow's formats"
)


@pytest.fixture
def example():
    for name in ("onnxruntime", "tf2onnx"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("exporting_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def small_model():
    """A velocity by one convolution, in mixed precision, and what kreg's layers make of it."""
    pair = {name: keras.Input((16, 20, 1), name=name) for name in ("moving", "fixed")}
    both = keras.layers.Concatenate(dtype="mixed_bfloat16")([pair["moving"], pair["fixed"]])
    convolution = keras.layers.Conv2D(2, 3, padding="same", dtype="mixed_bfloat16")
    displacement = layers.IntegrateVelocity(steps=2, name="displacement")(convolution(both))
    warped = layers.SpatialTransformer(name="warped", dtype="float32")(pair["moving"], displacement)
    return keras.Model(pair, {"warped": warped, "displacement": displacement})


def test_both_files_give_what_the_model_gave(example, tmp_path):
    model = example.in_float32(small_model())
    moved = model.predict(example.random_pair(model, batch=1), verbose=0)["displacement"]
    assert np.abs(moved).max() > 0.5
    report = example.export_and_compare(model, tmp_path)
    assert list(report) == ["saved_model", "model.onnx"]
    for found in report.values():
        assert found["differences"].keys() == {"warped", "displacement"}
        assert max(found["differences"].values()) < 1e-5
        assert found["bytes"] > 1000


def test_existing_output_is_refused(example, tmp_path):
    with pytest.raises(FileExistsError, match="another with --output"):
        example.output_folder(tmp_path)
