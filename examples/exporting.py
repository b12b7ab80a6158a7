"""Take a trained model to where there is no kreg: as a TensorFlow SavedModel, and as ONNX.

    python examples/exporting.py                        # trains a small model first, a minute
    python examples/exporting.py --model MODEL.keras    # yours, or that of examples/mnist.py
    python examples/exporting.py --quick                # ten steps of training

Needs tf2onnx and onnxruntime: pip install "kreg[onnx]". Both files are run again, without kreg
having a part in it, and must give what the model gave. The script leaves them and a table in a
folder (default: a new one in outputs/).

Of kreg's models as they are, `encoder_decoder`, `two_pass`, `voxelmorph` (2-D and 3-D),
`affine_net` and `affine_dense` become ONNX. Not so:

* `ddim`, and the layers `Matcher` and `ThinPlateSpline`: they solve linear equations, for which
  ONNX has no operator.
* `dirnet`: tf2onnx folds its padding into a pooling, which onnxruntime then refuses.
* `global_to_local`: its refinement becomes a graph too large for tf2onnx to finish in minutes.

SavedModels can be had of all of them.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import contextlib
import itertools
import json
import warnings
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import tensorflow as tf
from absl import app, flags, logging

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("model", None, "a .keras file; a small model is trained if left out")
    flags.DEFINE_string("mnist", None, "mnist.npz, or a folder that holds it; searched for")
    flags.DEFINE_string("output", None, "new folder to write; one in outputs/ if left out")
    flags.DEFINE_bool("quick", False, "10 steps of training: a check, not a result")


# --- the model ---


def trained(mnist, steps):
    """Return a small model of one pass, trained on digits."""
    try:
        digits = kreg.data.load_mnist(mnist)
    except kreg.data.MnistUnavailable as error:
        print(f"MNIST is not at hand: {error}\nGoing on with scikit-learn's digits instead.")
        digits = kreg.data.load_handwritten_digits()
    pairs = kreg.data.mnist_pairs(digits.train, digits.test, batch_size=16, steps=steps, seed=0)
    model = kreg.models.encoder_decoder(pairs.image_shape)
    model.compile(
        keras.optimizers.Adam(2e-3),
        loss={"warped": kreg.losses.NCC(), "displacement": kreg.losses.Diffusion()},
        loss_weights={"warped": 1.0, "displacement": 0.05},
    )
    model.fit(pairs, verbose=2)
    return model


def in_float32(model):
    """Return the model with all of its layers in float32, as ONNX wants it.

    One trained in mixed precision has its weights in float32 already.
    """
    config = model.get_config()
    for layer in config["layers"]:
        layer["config"]["dtype"] = "float32"
    plain = type(model).from_config(config)
    plain.set_weights(model.get_weights())
    return plain


# --- export ---


def export_saved_model(model, folder):
    """Write a SavedModel: kreg's compiled pieces stay compiled, by XLA."""
    tf.get_logger().setLevel("ERROR")
    model.export(folder, verbose=False)


def export_onnx(model, path):
    """Write an ONNX file.

    kreg compiles warps by XLA, as functions within the graph that ONNX knows nothing of. With
    `run_functions_eagerly` such functions dissolve in the graph that is traced.
    """
    with dissolved_functions(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of NumPy, for tf2onnx
        model.export(path, format="onnx", verbose=False)


@contextlib.contextmanager
def dissolved_functions():
    """Let TensorFlow run through functions step by step, as long as this lasts."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


# --- use: neither needs kreg or Keras ---


def run_saved_model(folder, pair):
    """Return the outputs of a SavedModel by their names."""
    model = tf.saved_model.load(folder)
    outputs = model.serve({name: tf.constant(image) for name, image in pair.items()})
    return {name: output.numpy() for name, output in outputs.items()}


def run_onnx(path, pair):
    """Return the outputs of an ONNX file by their names; any batch size will do."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, pair), strict=True))


# --- all of it ---


def random_pair(model, batch):
    """Return smooth noise of the sizes that the model takes, 64 where any will do."""
    random = np.random.default_rng(0)
    pair = {}
    for name, tensor in model.input.items():
        shape = [batch, *(size or 64 for size in tensor.shape[1:])]
        image = kreg.ops.gaussian_filter(random.random(shape, dtype="float32"), 2)
        pair[name] = np.array(kreg.ops.standardise(image))
    return pair


def output_folder(path):
    """Return where to write, a folder that does not exist yet."""
    if path is None:
        numbered = (Path(f"outputs/exporting-{n}") for n in itertools.count(1))
        return next(folder for folder in numbered if not folder.exists())
    if Path(path).exists():
        raise FileExistsError(
            "Expected an output folder that does not exist yet; name another with --output. "
            f"Received: {path}."
        )
    return Path(path)


def size_of(path):
    """Return the bytes of a file, or of all within a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def main(arguments):
    """Train or load, export, tell how it went."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    logging.set_verbosity(logging.ERROR)
    folder = output_folder(FLAGS.output)
    if FLAGS.model is None:
        model = trained(FLAGS.mnist, steps=10 if FLAGS.quick else 200)
    else:
        model = keras.saving.load_model(FLAGS.model)
    folder.mkdir(parents=True)
    report = export_and_compare(in_float32(model), folder)
    for name, found in report.items():
        differences = ", ".join(f"{key} {n:.1e}" for key, n in found["differences"].items())
        print(f"{name}: {found['bytes'] / 1e6:.2f} MB, differs by at most: {differences}")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {folder}: model.onnx, report.json, saved_model")


def export_and_compare(model, folder):
    """Export twice, run both, and return how large they are and how much their outputs differ."""
    pair = random_pair(model, batch=3)
    expected = model.predict(pair, verbose=0)
    report = {}
    for name, export, run in (
        ("saved_model", export_saved_model, run_saved_model),
        ("model.onnx", export_onnx, run_onnx),
    ):
        export(model, folder / name)
        found = run(folder / name, pair)
        differences = {
            output: float(np.abs(found[output] - value).max()) for output, value in expected.items()
        }
        report[name] = {"bytes": size_of(folder / name), "differences": differences}
    return report


if __name__ == "__main__":
    define_flags()
    app.run(main)
