"""A registration network of your own: your layers find the motion, kreg's layers carry it out.

    python examples/own_model.py             # digits, about half a minute
    python examples/own_model.py --quick     # a few steps, to see that everything runs

Any Keras layers may take the place of those in `build`, whose last one is all that matters: as many
channels as the images have axes. The script trains, tells how well held-out pairs meet, saves the
model, loads it again, and leaves it and a figure in a folder (default: a new one in outputs/).
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import itertools
from pathlib import Path

import keras
import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("mnist", None, "mnist.npz, or a folder that holds it; searched for")
    flags.DEFINE_string("output", None, "new folder to write; one in outputs/ if left out")
    flags.DEFINE_bool("quick", False, "10 steps of training: a check, not a result")


def build(image_shape):
    """Return a network of ``{"moving", "fixed"}``, for images ``(height, width, channels)``.

    What belongs to kreg:

    * A *displacement* is a tensor of images whose channels are voxels along each axis: warped(x) =
      moving(x + u(x)). Left to itself a network may fold it. A *velocity* does not fold once it is
      integrated.
    * Its last layer begins at zero: at first nothing moves, and training starts from there.
    * `SpatialTransformer` warps. That the image is data, not to be learned, makes it cheaper.
    * `RegistrationModel` is a `keras.Model` that takes the fixed image for the target of each
      output called "warped", so that `fit` needs no targets. A plain `keras.Model` works as well,
      with the fixed images as `y`.
    """
    moving, fixed = (keras.Input(image_shape, name=name) for name in ("moving", "fixed"))
    x = keras.layers.Concatenate()([moving, fixed])
    skips = []
    for channels in (16, 32):
        x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    for channels, skip in zip((32, 16), reversed(skips), strict=True):
        x = keras.layers.UpSampling2D(interpolation="bilinear")(x)
        x = keras.layers.Concatenate()([x, skip])
        x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")(x)
    velocity = keras.layers.Conv2D(
        2, 3, padding="same", kernel_initializer="zeros", dtype="float32", name="velocity"
    )(x)
    displacement = kreg.layers.IntegrateVelocity(steps=5, name="displacement")(velocity)
    transformer = kreg.layers.SpatialTransformer(image_gradient=False, name="warped")
    warped = transformer(moving, displacement)
    return kreg.RegistrationModel(
        {"moving": moving, "fixed": fixed},
        {"warped": warped, "velocity": velocity, "displacement": displacement},
    )


def train(model, pairs, epochs):
    """Fit the model: what should be alike, and what should be smooth."""
    model.compile(
        keras.optimizers.Adam(2e-3),
        loss={"warped": kreg.losses.NCC(), "velocity": kreg.losses.Diffusion()},
        loss_weights={"warped": 1.0, "velocity": 0.02},
        metrics={"displacement": [kreg.metrics.FoldingFraction()]},
    )
    model.fit(pairs, epochs=epochs, verbose=2)


def score(model, pairs):
    """Return NCC of held-out pairs before and after."""
    (images,) = pairs[0]
    warped = model.predict(images, verbose=0)["warped"]
    return tuple(
        float(np.mean(kreg.metrics.ncc(images["fixed"], image)))
        for image in (images["moving"], warped)
    )


# --- around it ---


def load_digits(path):
    """Return MNIST or, where it can't be had, the real digits that come with scikit-learn."""
    try:
        return kreg.data.load_mnist(path)
    except kreg.data.MnistUnavailable as error:
        print(f"MNIST is not at hand: {error}\nGoing on with scikit-learn's digits instead.")
        return kreg.data.load_handwritten_digits()


def output_folder(path):
    """Return where to write, a folder that does not exist yet."""
    if path is None:
        numbered = (Path(f"outputs/own_model-{n}") for n in itertools.count(1))
        return next(folder for folder in numbered if not folder.exists())
    if Path(path).exists():
        raise FileExistsError(
            "Expected an output folder that does not exist yet; name another with --output. "
            f"Received: {path}."
        )
    return Path(path)


def main(arguments):
    """Train, score, save, load, draw."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    kreg.machine.keep_freed_memory()  # faster training on a CPU
    folder = output_folder(FLAGS.output)
    keras.utils.set_random_seed(0)
    digits = load_digits(FLAGS.mnist)
    epochs, steps = (1, 10) if FLAGS.quick else (4, 100)
    pairs = kreg.data.mnist_pairs(digits.train, digits.train, batch_size=32, steps=steps, seed=0)
    held_out = kreg.data.mnist_pairs(digits.test, digits.test, batch_size=200, steps=1, seed=1)
    model = build(pairs.image_shape)
    train(model, pairs, epochs)
    before, after = score(model, held_out)
    print(f"NCC of 200 held-out pairs: {before:.3f} before, {after:.3f} after")

    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")  # safe mode: no code from the file
    (images,) = held_out[0]
    few = {name: image[:4] for name, image in images.items()}
    result = loaded.predict(few, verbose=0)
    figure = kreg.plots.show_pairs(
        few["moving"], few["fixed"], result["warped"], result["displacement"]
    )
    figure.savefig(folder / "pairs.png", dpi=120)
    print(f"Written to {folder}: model.keras, pairs.png")


if __name__ == "__main__":
    define_flags()
    app.run(main)
