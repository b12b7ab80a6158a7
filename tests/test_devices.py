"""Training on several devices at once, as `tf.distribute` does it."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.fresh_process import ROOT

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="tf.distribute is TensorFlow's; for JAX see tests/examples/test_distributed.py",
)

# In a process of its own: devices are set before TensorFlow starts.
_SCRIPT = """
import contextlib
import sys

import kreg
import keras
import numpy as np
import tensorflow as tf

processor = tf.config.list_physical_devices("CPU")[0]
logical = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(processor, logical)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

rng = np.random.default_rng(0)
images = {}
for name in ("moving", "fixed"):
    noise = rng.random((12, 12, 12, 1), "float32")
    images[name] = keras.ops.convert_to_numpy(kreg.ops.gaussian_filter(noise, 1.5))


def train(scope, make_similarity):
    keras.utils.set_random_seed(0)
    with scope:
        similarity = make_similarity()
        model = kreg.models.voxelmorph(
            (12, 12, 1), encoder=(4,), decoder=(4,), head=kreg.models.DenseHead()
        )
        penalty = kreg.losses.WeightedSum(
            [kreg.losses.Diffusion(), kreg.losses.Folding(margin=2.0)], [1.0, 1.0]
        )
        model.compile(
            keras.optimizers.SGD(0.1), loss={"warped": similarity, "displacement": penalty}
        )
    history = model.fit(images, batch_size=6, epochs=2, shuffle=False, verbose=0).history
    return history, model


found = {"replicas": strategy.num_replicas_in_sync}
for name, scope in (("one", contextlib.nullcontext()), ("two", strategy.scope())):
    history, model = train(scope, kreg.losses.NCC)
    found |= {f"{name}_{key}": values for key, values in history.items()}
    for k, weight in enumerate(model.get_weights()):
        found[f"{name}_weight_{k}"] = weight

# It draws voxels at random, and a device of its own share: no two runs are the same.
with strategy.scope():
    mine = kreg.losses.MINE(samples=64, bias_corrected=True)
history, model = train(strategy.scope(), lambda: mine)
found["mine_loss"] = history["loss"]
for k, variable in enumerate(mine.estimator.trainable_variables):
    copies = [keras.ops.convert_to_numpy(copy) for copy in variable.value.values]
    found[f"mine_{variable.name}"] = np.stack(copies)
np.savez(sys.argv[1], **found)
"""


def test_two_devices_train_as_one(tmp_path):
    path = tmp_path / "found.npz"
    command = [sys.executable, "-c", _SCRIPT, path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with np.load(path) as arrays:
        found = dict(arrays)
    assert found.pop("replicas") == 2
    one = {name.removeprefix("one_"): found.pop(name) for name in list(found) if "one_" in name}
    two = {name.removeprefix("two_"): found.pop(name) for name in list(found) if "two_" in name}
    assert {"loss", "warped_loss", "displacement_loss", "weight_0", "weight_5"} <= one.keys()
    assert one["loss"][1] < 0.95 * one["loss"][0]
    assert one.keys() == two.keys()
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.isfinite(found.pop("mine_loss")).all()
    for name, (first, second) in found.items():  # MINE's network, on either device
        np.testing.assert_array_equal(first, second)
        assert "bias" not in name or np.abs(first).max() > 0, "trained: zero at start"
    assert len(found) == 5
