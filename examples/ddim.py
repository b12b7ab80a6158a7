"""Register images that were turned, scaled and shifted far: a cascade trained on itself.

    python examples/ddim.py                                # digits, about four minutes on a core
    KREG_DATA=FOLDER python examples/ddim.py --images brains
    python examples/ddim.py --images faces
    python examples/ddim.py --quick                        # a few steps, to see that it runs

No labels: each training pair is an image and itself under a random transform that is known. First
three stages learn the matrix; a dense step then solves for what a matrix leaves, and learns how far
to trust what it sees. Held-out images show how far, in per cent of the image's width, each stage
leaves the pixels from where they belong.

Digits are MNIST or, where it can't be had, scikit-learn's; brains are ``oasis2d/oasis2d_100.npz``
in the folder that --data or the environment variable KREG_DATA names; faces come with
scikit-image.

It leaves figures, the trained model and a table in a folder (default: a new one in outputs/).
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from kreg.data.known_transforms import KnownTransforms
from kreg.losses.endpoint_error import EndpointError
from kreg.losses.known_transform import GridDistance
from kreg.models.ddim import GradientMagnitudes, GreyValues, MatchingStage, ddim

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Recipe:
    """How one kind of image is trained.

    Args:
        view: what the network sees.
        batch: pairs a step.
        steps: of the stages, and of the dense step.
        stage: the widths of the stages.
        mirrored: whether images go on mirrored beyond their edge.
    """

    view: object
    batch: int
    steps: tuple[int, int]
    stage: MatchingStage
    mirrored: bool = False

    def build(self, image_shape, **options):
        """Return the cascade for images of that shape."""
        with kreg.machine.mixed_precision():
            return ddim(image_shape, view=self.view, stage=self.stage, **options)


RECIPES = {
    "digits": Recipe(GreyValues(), 64, (6000, 100), MatchingStage((16, 16), 16)),
    # Edges, not grey values: an inverted contrast changes nothing.
    "brains": Recipe(GradientMagnitudes(), 20, (4000, 100), MatchingStage()),
    "faces": Recipe(GreyValues(), 32, (1500, 100), MatchingStage(), mirrored=True),
}


def define_flags():
    """Define the command line."""
    flags.DEFINE_enum("images", "digits", list(RECIPES), "what to register")
    flags.DEFINE_string("data", None, "folder of MNIST or OASIS; KREG_DATA if left out")
    flags.DEFINE_integer("seed", 0, "of weights and pairs")
    flags.DEFINE_string("output", None, "folder to write; a new one in outputs/ if left out")
    flags.DEFINE_bool("overwrite", False, "replace the output folder if it exists")
    flags.DEFINE_bool("quick", False, "3 + 3 steps and 20 test pairs: a check, not a result")


# --- data ---


def load(kind, path=None):
    """Return images to train on and others to test, ``(n, height, width, 1)``."""
    if kind == "digits":
        try:
            digits = kreg.data.load_mnist(path)
        except kreg.data.MnistUnavailable as error:
            print(f"MNIST is not at hand: {error}\nGoing on with scikit-learn's digits instead.")
            digits = kreg.data.load_handwritten_digits()
        frame = [(0, 0), (2, 2), (2, 2)]
        return tuple(np.pad(x.images, frame)[..., None] for x in (digits.train, digits.test))
    images = faces() if kind == "faces" else brains(path)
    count = len(images) * 4 // 5
    return images[:count], images[count:]


def faces():
    """Return the faces of scikit-image's subset of Labelled Faces in the Wild, 25 x 25."""
    from skimage.data import lfw_subset

    return lfw_subset()[:100, ..., None].astype("float32")


def brains(path=None):
    """Return slices of 100 brains of OASIS, 128 x 128, or exit and say where to find some."""
    file = Path(path or os.environ.get("KREG_DATA") or ".", "oasis2d", "oasis2d_100.npz")
    if not file.is_file():
        sys.exit(
            "Expected oasis2d/oasis2d_100.npz in the folder that --data or the environment "
            f"variable KREG_DATA names. Received: {file}."
        )
    with np.load(file) as arrays:
        return arrays["images"][..., None].astype("float32")


# --- training ---


def optimizer(steps, rate=6e-3):
    """Return Adam with one cycle of the learning rate and clipped gradients."""
    warmup = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=rate, warmup_steps=warmup
    )
    return keras.optimizers.Adam(schedule, clipnorm=1.0)


def fit(model, pairs, steps, verbose, every=50):
    """Fit for that many steps, in epochs of `every`; return the history."""
    epochs = max(1, steps // every)
    pairs.steps = steps // epochs
    return model.fit(pairs, epochs=epochs, verbose=verbose).history


def stages_of(model):
    """Return the stages of the cascade alone, a model that shares their weights."""
    return kreg.RegistrationModel(
        model.input, {name: model.output[name] for name in ("matrix", "stage_matrices")}
    )


def train(images, recipe, *, seed=0, verbose="auto", done=lambda phase: None):
    """Return a model trained on known transforms of the images, and the history of both phases.

    Args:
        images: ``(n, *spatial, channels)``.
        recipe: a `Recipe`.
        seed: of weights and pairs.
        verbose: as Keras has it.
        done: called with "stages" and "dense" when that is trained.
    """
    keras.utils.set_random_seed(seed)
    steps = recipe.steps
    pairs = KnownTransforms(images, batch_size=recipe.batch, mirrored=recipe.mirrored, seed=seed)
    model = recipe.build(pairs.image_shape)
    stages = stages_of(model)
    loss = {"stage_matrices": GridDistance(pairs.image_shape[:-1])}
    stages.compile(optimizer(steps[0]), loss=loss)
    first = fit(stages, pairs, steps[0], verbose)
    done("stages")
    stages.trainable = False  # what comes next trains the dense step alone
    model.compile(optimizer(steps[1], 0.03), loss={"displacement": EndpointError()})
    second = fit(model, pairs, steps[1], verbose, every=10)
    done("dense")
    stages.trainable = True
    # The optimizer, which knows the dense step alone, stays behind.
    model = kreg.RegistrationModel(model.input, model.output, name=model.name)
    return model, {"stages_loss": first["loss"], "dense_step_loss": second["loss"]}


# --- evaluation ---


def held_out(images, count, recipe):
    """Return `count` pairs of held-out images under known transforms, and their truth."""
    pairs = KnownTransforms(
        images, batch_size=count, steps=1, mirrored=recipe.mirrored, seed=2**20, fresh=False
    )
    return pairs[0][0]


def errors(pairs, result, *, object_alone=False):
    """Return, of each pair, the mean distance of pixels from their places after each step.

    In per cent of the image's width; over the whole grid, empty background included, or over the
    fixed image's pixels of a tenth of its brightness or more.
    """
    truth = pairs["moving_displacement"]
    shape = truth.shape[1:-1]
    fixed = pairs["fixed"].mean(axis=-1)
    weights = np.ones_like(fixed)
    if object_alone:
        weights = 1.0 * (fixed >= 0.1 * fixed.max(axis=(1, 2), keepdims=True))

    def error(displacement):
        distance = np.linalg.norm(displacement - truth, axis=-1)
        return 100 * (weights * distance).sum((1, 2)) / weights.sum((1, 2)) / shape[1]

    found = {"before": error(np.zeros_like(truth))}
    for i in range(result["stage_matrices"].shape[1]):
        field = linear_displacement(result["stage_matrices"][:, i], shape)
        found[f"stage {i + 1}"] = error(field)
    if "residual" in result:
        found["dense"] = error(result["displacement"])
    return found


def linear_displacement(matrices, shape):
    """Return the displacements of matrices between centred world frames."""
    voxels = kreg.ops.voxel_matrix(matrices, shape)
    return np.array(kreg.ops.matrix_to_displacement(voxels, shape))


def table(found, bound):
    """Return medians, 95th percentiles and the share below `bound` per cent as aligned text."""
    lines = [f"{'error, % of the width':24}{'median':>8}{'95th':>8}{f'< {bound} %':>9}"]
    for name, error in found.items():
        lines.append(
            f"{name:24}{np.median(error):8.2f}{np.percentile(error, 95):8.2f}"
            f"{100 * np.mean(error < bound):8.1f}%"
        )
    return "\n".join(lines)


# --- output ---


def stages_figure(pairs, result, found):
    """Return a figure, a pair a row: both images, then one laid over the other after each step.

    The fixed image is drawn in green, the warped one in magenta: where they agree it is grey, and
    so it is where the moving image does not reach.
    """
    count = len(pairs["fixed"])
    shape = pairs["fixed"].shape[1:-1]
    fields = {"before": np.zeros_like(result["displacement"])}
    for i in range(result["stage_matrices"].shape[1]):
        fields[f"stage {i + 1}"] = linear_displacement(result["stage_matrices"][:, i], shape)
    fields["dense"] = result["displacement"]
    # The second channel of ones says where the moving image reaches.
    grey = pairs["moving"][..., :1]
    reached = np.concatenate([grey, np.ones_like(grey)], axis=-1)
    steps = {name: np.array(kreg.ops.warp(reached, field)) for name, field in fields.items()}
    figure = Figure(figsize=(1.7 * (len(steps) + 2), 1.95 * count), layout="constrained")
    panels = figure.subplots(count, len(steps) + 2, squeeze=False)
    for row, axes in enumerate(panels):
        for ax, name in zip(axes, ("moving", "fixed"), strict=False):
            ax.imshow(pairs[name][row, ..., 0], cmap="gray", vmin=0, vmax=1)
            ax.set_title(name if row == 0 else "", fontsize=9)
        for ax, (name, warped) in zip(axes[2:], steps.items(), strict=True):
            other, inside = np.moveaxis(warped[row], -1, 0)
            fixed = pairs["fixed"][row, ..., 0]
            other = np.where(inside > 0.99, other, fixed)
            ax.imshow(np.clip(np.stack([other, fixed, other], axis=-1), 0, 1))
            title = f"{found[name][row]:.1f} %"
            ax.set_title(f"{name}\n{title}" if row == 0 else title, fontsize=9)
    for ax in panels.flat:
        ax.set(xticks=[], yticks=[])
    figure.suptitle(
        "green: fixed image; magenta: warped; grey: they agree, or the moving image does not "
        "reach. %: mean distance of pixels from their places, of the width",
        fontsize=9,
    )
    return figure


@contextlib.contextmanager
def new_folder(path, overwrite):
    """Yield a folder to write into, which becomes `path` only when all went well."""
    numbers = (n for n in range(1, 10_000) if not Path(f"outputs/ddim-{n}").exists())
    path = Path(path or f"outputs/ddim-{next(numbers)}")
    if path.exists() and not (overwrite and (path / "scores.json").exists()):
        sys.exit(
            "Expected an output folder that does not exist yet or, with --overwrite, holds an "
            f"earlier result (scores.json); name another with --output. Received: {path}."
        )
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"Written to {path}: {', '.join(sorted(file.name for file in path.iterdir()))}")


def main(arguments):
    """Train, evaluate, draw, save."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    kreg.machine.keep_freed_memory()  # faster training on a CPU
    recipe = RECIPES[FLAGS.images]
    count = 500
    if FLAGS.quick:
        recipe, count = replace(recipe, batch=20, steps=(3, 3)), 20
    training, test = load(FLAGS.images, FLAGS.data)
    with new_folder(FLAGS.output, FLAGS.overwrite) as folder:
        print(
            f"Training on {len(training)} {FLAGS.images}: {recipe.steps[0]} + "
            f"{recipe.steps[1]} steps of {recipe.batch} pairs"
        )
        start = time.perf_counter()
        verbose = 1 if sys.stdout.isatty() else 2
        model, history = train(
            training, recipe, seed=FLAGS.seed, verbose=verbose,
            done=lambda phase: print(f"Trained: {phase}"),
        )  # fmt: skip
        seconds = time.perf_counter() - start

        pairs = held_out(test, count, recipe)
        images = {name: pairs[name] for name in ("moving", "fixed")}
        result = model.predict(images, batch_size=min(100, count), verbose=0)
        found = errors(pairs, result)
        bound = 5 if FLAGS.images == "digits" else 3
        print(f"\n{count} pairs of held-out {FLAGS.images}, trained for {seconds:.0f} s:")
        print(table(found, bound))
        print(f"\nThe same over the {FLAGS.images} alone, without empty background:")
        print(f"{table(errors(pairs, result, object_alone=True), bound)}\n")

        shown = {name: stack[:5] for name, stack in pairs.items()}
        few = {name: stack[:5] for name, stack in result.items()}
        stages_figure(shown, few, found).savefig(folder / "stages.png", dpi=110)
        kreg.plots.show_training(history).savefig(folder / "training.png", dpi=110)
        model.save(folder / "model.keras")
        medians = {name: float(np.median(error)) for name, error in found.items()}
        report = {"images": FLAGS.images, "steps": recipe.steps, "seed": FLAGS.seed,
                  "seconds": seconds, "median error, % of the width": medians}  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
