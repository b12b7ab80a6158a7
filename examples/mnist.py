"""Register handwritten digits: train on pairs of MNIST, see how well it went, use the model.

    python examples/mnist.py                  # all ten digits, about a minute on two cores
    python examples/mnist.py --digit 5        # one digit, as in the tutorial
    python examples/mnist.py --quick          # a few steps, to see that everything runs

It leaves figures, the trained model and a table in a folder (default: a new one in outputs/).
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_string(
        "mnist", None, "mnist.npz, or a folder that holds it; searched for if left out"
    )
    flags.DEFINE_integer("digit", None, "train on this digit only; all ten if left out", 0, 9)
    flags.DEFINE_integer("steps", 700, "training steps of 32 pairs", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of weights and pairs")
    flags.DEFINE_string("output", None, "folder to write; a new one in outputs/ if left out")
    flags.DEFINE_bool("overwrite", False, "replace the output folder if it exists")
    flags.DEFINE_bool("quick", False, "20 steps and 50 test pairs: a check, not a result")


# --- data ---


def load_digits(path):
    """Return MNIST or, where it can't be had, the real digits that come with scikit-learn."""
    try:
        return kreg.data.load_mnist(path)
    except kreg.data.MnistUnavailable as error:
        print(f"MNIST is not at hand: {error}\nGoing on with scikit-learn's digits instead.")
        return kreg.data.load_handwritten_digits()


# --- training ---


def build(image_shape, steps, similarity=None):
    """Return the two-pass model, compiled: identity at start, fold-free by its losses.

    Args:
        image_shape: ``(*spatial, channels)``.
        steps: length of the training, for the learning rate's one cycle.
        similarity: loss between fixed and warped image; NCC if None.
    """
    with kreg.machine.mixed_precision():
        model = kreg.models.two_pass(image_shape)
    warmup = max(1, int(0.15 * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=4e-3, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.Adam(schedule),
        loss={
            "warped": similarity or kreg.losses.NCC(),
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


def train(digits, *, digit=None, steps=700, seed=0, similarity=None, verbose="auto"):
    """Return the model trained on same-digit pairs of the training split, and its history."""
    keras.utils.set_random_seed(seed)
    epochs = max(1, steps // 100)
    pairs = kreg.data.mnist_pairs(
        digits.train, digits.train, digit=digit, batch_size=32, steps=steps // epochs, seed=seed
    )
    model = build(pairs.image_shape, epochs * len(pairs), similarity)
    history = model.fit(pairs, epochs=epochs, verbose=verbose)
    return model, history


# --- evaluation ---


def held_out(digits, *, digit=None, pairs=1000, seed=1):
    """Return pairs whose images both come from the test split: ``{"moving", "fixed"}``."""
    drawn = kreg.data.mnist_pairs(
        digits.test, digits.test, digit=digit, batch_size=pairs, steps=1, seed=seed
    )
    (images,) = drawn[0]
    return images


def score(fixed, warped, displacement=None):
    """Return mean NCC, Dice and the percentage of folded pixels over all pairs."""
    folds = 0.0
    if displacement is not None:
        folds = 100 * float(np.mean(kreg.metrics.folding_fraction(displacement)))
    return {
        "NCC": float(np.mean(kreg.metrics.ncc(fixed, warped))),
        "Dice": float(np.mean(kreg.metrics.dice(fixed, warped))),
        "folds %": folds,
    }


def evaluate(model, images):
    """Return the table: before, after, and after with the grey values of `moving` remapped."""
    moving, fixed = images["moving"], images["fixed"]
    after = model.predict(images, batch_size=250, verbose=0)
    remapped = model.predict(
        {"moving": 0.5 * moving + 0.3, "fixed": fixed}, batch_size=250, verbose=0
    )
    # The same transform, judged on the original grey values.
    transformer = kreg.layers.SpatialTransformer()
    rewarped = transformer(moving, remapped["displacement"])
    return {
        "before": score(fixed, moving),
        "after": score(fixed, after["warped"], after["displacement"]),
        "after, moving image as 0.5 x + 0.3": score(fixed, rewarped, remapped["displacement"]),
    }


def milliseconds_a_pair(model, images):
    """Return the median time of one pass, in batches of 250."""
    batch = {name: stack[:250] for name, stack in images.items()}
    model.predict(batch, batch_size=250, verbose=0)  # compile
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model.predict(batch, batch_size=250, verbose=0)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times)) / len(batch["fixed"])


def table(rows):
    """Return the rows as aligned text."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'NCC':>6}  {'Dice':>6}  {'folds %':>8}"]
    for name, row in rows.items():
        lines.append(
            f"{name:{width}}  {row['NCC']:6.4f}  {row['Dice']:6.4f}  {row['folds %']:8.4f}"
        )
    return "\n".join(lines)


# --- output ---


def may_write(path, overwrite):
    """Raise FileExistsError unless `path` is free, or an earlier result that may be replaced."""
    if not path.exists() or (overwrite and (path / "scores.json").exists()):
        return
    raise FileExistsError(
        "Expected an output folder that does not exist yet or, with --overwrite, holds an earlier "
        f"result (scores.json); name another with --output. Received: {path}."
    )


@contextlib.contextmanager
def new_folder(path, overwrite):
    """Yield a folder to write into, which becomes `path` only when all went well."""
    if path is None:
        numbers = (n for n in range(1, 10_000) if not Path(f"outputs/mnist-{n}").exists())
        path = Path(f"outputs/mnist-{next(numbers)}")
    path = Path(path)
    may_write(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.unfinished-", dir=path.parent))
    try:
        yield unfinished
        may_write(path, overwrite)  # another run may have been faster
        if path.exists():
            shutil.rmtree(path)
        unfinished.chmod(0o755)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"Written to {path}: {', '.join(sorted(file.name for file in path.iterdir()))}")


def save(figure: Figure, path):
    """Write one figure."""
    figure.savefig(path, dpi=120)


def main(arguments):
    """Train, evaluate, draw, save, and use the saved model from a fresh process."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    kreg.machine.keep_freed_memory()  # faster training on a CPU
    steps, test_pairs = (20, 50) if FLAGS.quick else (FLAGS.steps, 1000)
    with new_folder(FLAGS.output, FLAGS.overwrite) as folder:
        digits = load_digits(FLAGS.mnist)
        which = "all digits" if FLAGS.digit is None else f"digit {FLAGS.digit}"
        print(f"Data: {digits.source}\nTraining on pairs of {which}: {steps} steps of 32 pairs")
        start = time.perf_counter()
        model, history = train(
            digits,
            digit=FLAGS.digit,
            steps=steps,
            seed=FLAGS.seed,
            verbose=1 if sys.stdout.isatty() else 2,
        )
        seconds = time.perf_counter() - start

        images = held_out(digits, digit=FLAGS.digit, pairs=test_pairs)
        rows = evaluate(model, images)
        one_pass = milliseconds_a_pair(model, images)
        print(f"\n{test_pairs} held-out pairs, trained for {seconds:.0f} s:\n{table(rows)}")
        print(f"One pass: {one_pass:.2f} ms a pair in batches of {min(250, test_pairs)}\n")

        shown = {name: stack[:6] for name, stack in images.items()}
        result = model.predict(shown, verbose=0)
        fields = result["displacement"]
        draw = kreg.plots
        save(draw.show_pairs(**shown, warped=result["warped"], displacement=fields),
             folder / "pairs.png")  # fmt: skip
        save(draw.show_pair(*(x[0] for x in (*shown.values(), result["warped"], fields))),
             folder / "pair.png")  # fmt: skip
        smooth = "coarse_velocity", "velocity", "displacement"
        save(draw.show_training(history.history, regularisers=smooth), folder / "training.png")
        model.save(folder / "model.keras")
        report = {"data": digits.source, "digits": which, "steps": steps, "seed": FLAGS.seed,
                  "seconds": seconds, "ms a pair": one_pass, "scores": rows}  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(report, indent=2) + "\n")

        np.savez(folder / "new_pair.npz", **{name: stack[-1] for name, stack in images.items()})
        print("A fresh process now loads the model and registers one new pair:", flush=True)
        predict = Path(__file__).with_name("mnist_predict.py")
        subprocess.run(
            [sys.executable, predict, folder / "model.keras", folder / "new_pair.npz",
             folder / "new_pair.png"], check=True,
        )  # fmt: skip


if __name__ == "__main__":
    define_flags()
    app.run(main)
