"""Register slices of different people's brains: train on 80, see how well it does on 20 others.

    KREG_DATA=FOLDER python examples/brains.py    # about four minutes on one core
    python examples/brains.py --data FILE.npz     # images of your own
    python examples/brains.py --quick             # a few steps, to see that everything runs

The file is ``oasis2d/oasis2d_100.npz`` in the folder that --data or the environment variable
KREG_DATA names, or a file named itself: an array ``images`` (n, height, width), roughly aligned,
here one slice each of 100 brains of OASIS (https://sites.wustl.edu/oasisbrains/). The first four
fifths are trained on, in random pairs; every ordered pair of the rest is registered.

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
from itertools import permutations
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

FLAGS = flags.FLAGS

BATCH = 8


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("data", None, "npz file, or a folder; KREG_DATA if left out")
    flags.DEFINE_integer("steps", 1000, "training steps of 8 pairs", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of weights and pairs")
    flags.DEFINE_string("output", None, "folder to write; a new one in outputs/ if left out")
    flags.DEFINE_bool("overwrite", False, "replace the output folder if it exists")
    flags.DEFINE_bool("quick", False, "10 steps and 12 test pairs: a check, not a result")


# --- data ---


def load(path=None):
    """Return the images ``(n, height, width, 1)`` in [0, 1], or exit and say where to find some."""
    path = path or os.environ.get("KREG_DATA")
    file = Path(path or ".")
    if file.is_dir():
        file = file / "oasis2d" / "oasis2d_100.npz"
    if path is None or not file.is_file():
        sys.exit(
            "Expected oasis2d/oasis2d_100.npz in the folder that --data or the environment "
            "variable KREG_DATA names, or --data FILE.npz with an array `images` (n, height, "
            f"width) of your own. Received: {path and file}."
        )
    with np.load(file) as arrays:
        images = arrays.get("images")
    if images is None or images.ndim != 3:
        sys.exit(f"Expected an array `images` (n, height, width) in {file}.")
    if len(images) < 10:
        sys.exit(f"Expected at least 10 images, to train and to test. Received: {len(images)}.")
    images = images[..., None].astype("float32")
    return (images - images.min()) / max(float(np.ptp(images)), 1e-6)


def split(images):
    """Return the images to train on, four fifths, and those held out."""
    count = len(images) * 4 // 5
    return images[:count], images[count:]


def held_out(images, count=None):
    """Return all ordered pairs of different images, or `count` of them: {"moving", "fixed"}."""
    pairs = np.array(list(permutations(range(len(images)), 2)))
    pairs = np.random.default_rng(0).permutation(pairs)[:count]
    return {"moving": images[pairs[:, 0]], "fixed": images[pairs[:, 1]]}


# --- training ---


def build(image_shape, steps):
    """Return the two-pass model, compiled: identity at start, fold-free by its losses.

    Args:
        image_shape: ``(*spatial, channels)``.
        steps: length of the training, for the learning rate's one cycle.
    """
    with kreg.machine.mixed_precision():
        model = kreg.models.two_pass(image_shape)
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=4e-3, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.Adam(schedule),
        loss={
            "warped": kreg.losses.NCC(),
            "coarse_velocity": kreg.losses.Diffusion(),
            "velocity": kreg.losses.Diffusion(),
            "displacement": kreg.losses.Folding(margin=0.1),
        },
        loss_weights={
            "warped": 1.0,
            "coarse_velocity": 0.01,
            "velocity": 0.01,
            "displacement": 5.0,
        },
    )
    return model


def train(images, *, steps=1000, seed=0, verbose="auto"):
    """Return the model trained on random pairs of the images, and its history."""
    keras.utils.set_random_seed(seed)
    epochs = max(1, steps // 50)
    pairs = kreg.data.RandomPairs(
        images, images, batch_size=BATCH, steps=steps // epochs, seed=seed
    )
    model = build(pairs.image_shape, epochs * len(pairs))
    return model, model.fit(pairs, epochs=epochs, verbose=verbose)


# --- evaluation ---


def score(fixed, warped, displacement=None):
    """Return mean NCC and squared error, and the percentage of folded pixels, over all pairs."""
    folds = 0.0
    if displacement is not None:
        folds = 100 * float(np.mean(kreg.metrics.folding_fraction(displacement)))
    return {
        "NCC": float(np.mean(kreg.metrics.ncc(fixed, warped))),
        "MSE": float(np.mean(np.square(fixed - warped))),
        "folds %": folds,
    }


def register(model, images):
    """Return what the model makes of the pairs, and the milliseconds that each took."""
    model.predict(images, batch_size=50, verbose=0)  # compile
    start = time.perf_counter()
    result = model.predict(images, batch_size=50, verbose=0)
    return result, 1e3 * (time.perf_counter() - start) / len(images["fixed"])


def table(rows):
    """Return the rows as aligned text."""
    lines = [f"{'':8}{'NCC':>8}{'MSE':>10}{'folds %':>10}"]
    for name, row in rows.items():
        lines.append(f"{name:8}{row['NCC']:8.4f}{row['MSE']:10.5f}{row['folds %']:10.5f}")
    return "\n".join(lines)


# --- output ---


def checkerboards(images, warped):
    """Return a figure: boards of fixed and moving image before and after, a pair a column."""
    before, after = (
        [kreg.plots.checkerboard(*pair) for pair in zip(images["fixed"], moved, strict=True)]
        for moved in (images["moving"], warped)
    )
    figure = Figure(figsize=(2.6 * len(before), 5.4), layout="constrained")
    for axes, boards, name in zip(
        figure.subplots(2, len(before), squeeze=False),
        (before, after),
        ("fixed | moving", "fixed | warped"),
        strict=True,
    ):
        for ax, board in zip(axes, boards, strict=True):
            ax.imshow(board, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, fontsize=11)
    return figure


@contextlib.contextmanager
def new_folder(path, overwrite):
    """Yield a folder to write into, which becomes `path` only when all went well."""
    numbers = (n for n in range(1, 10_000) if not Path(f"outputs/brains-{n}").exists())
    path = Path(path or f"outputs/brains-{next(numbers)}")
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
    steps, count = (10, 12) if FLAGS.quick else (FLAGS.steps, None)
    training, test = split(load(FLAGS.data))
    with new_folder(FLAGS.output, FLAGS.overwrite) as folder:
        print(f"Training on pairs of {len(training)} brains: {steps} steps of {BATCH} pairs")
        start = time.perf_counter()
        verbose = 1 if sys.stdout.isatty() else 2
        model, history = train(training, steps=steps, seed=FLAGS.seed, verbose=verbose)
        seconds = time.perf_counter() - start

        images = held_out(test, count)
        result, milliseconds = register(model, images)
        fixed, warped, fields = images["fixed"], result["warped"], result["displacement"]
        rows = {"before": score(fixed, images["moving"]), "after": score(fixed, warped, fields)}
        print(f"\n{len(fixed)} pairs of {len(test)} other brains, trained for {seconds:.0f} s:")
        print(f"{table(rows)}\nOne pass: {milliseconds:.1f} ms a pair in batches of 50\n")

        shown = {name: stack[:5] for name, stack in images.items()}
        kreg.plots.show_pairs(**shown, warped=warped[:5], displacement=fields[:5]).savefig(
            folder / "pairs.png", dpi=110
        )
        checkerboards(shown, warped[:5]).savefig(folder / "checkerboards.png", dpi=110)
        smooth = "coarse_velocity", "velocity", "displacement"
        kreg.plots.show_training(history.history, regularisers=smooth).savefig(
            folder / "training.png", dpi=110
        )
        model.save(folder / "model.keras")
        report = {"steps": steps, "seed": FLAGS.seed, "seconds": seconds,
                  "ms a pair": milliseconds, "scores": rows}  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
