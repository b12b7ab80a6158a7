"""Register pairs of which one lacks what the other has, and see where the match can be trusted.

    KREG_DATA=FOLDER python examples/missing.py   # brains with lesions and resections, in minutes
    python examples/missing.py --digits           # digits with strokes erased and added
    python examples/missing.py --quick            # a few steps, to see that everything runs

Two models of the same size are trained for the same time, one with joint saliency and one without,
on random pairs whose true displacement is known; it serves for the landmarks of the scores alone,
no loss sees it. Brains need ``oasis2d/oasis2d_100.npz`` in the folder that --data or the
environment variable KREG_DATA names, or a file named itself with an array ``images``
(n, height, width).

It leaves figures, the trained model and a table in a folder (default: a new one in outputs/).
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import contextlib
import json
import os
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from scipy import ndimage, stats

from kreg.data import missing_brain_pairs, missing_digit_pairs
from kreg.losses import BendingEnergy, Charbonnier, LocalNCC
from kreg.models import DRAWINGS, TISSUE, UnrolledRefinement, global_to_local
from kreg.ops import LocallyNormalised, TensorCorrelation

FLAGS = flags.FLAGS

#: Pairs a step and steps an epoch of the global network alone, and its share of the time.
ALONE = (16, 32), 0.3
#: The same of all end to end, where a pair costs far more.
TOGETHER = 4, 16
#: Landmarks this near to what is altered, in voxels, are scored apart too.
NEAR = 10
WITH, WITHOUT = "with saliency", "without saliency"


def define_flags():
    """Define the command line."""
    flags.DEFINE_bool("digits", False, "MNIST digits instead of brains")
    flags.DEFINE_string("data", None, "npz file, or a folder; KREG_DATA if left out")
    flags.DEFINE_float("minutes", 5.0, "of processor time to train each model", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "of weights and pairs")
    flags.DEFINE_string("output", None, "folder to write; a new one in outputs/ if left out")
    flags.DEFINE_bool("overwrite", False, "replace the output folder if it exists")
    flags.DEFINE_bool("quick", False, "two steps and a few pairs: a check, not a result")


# --- data ---


def load_brains(path=None):
    """Return slices ``(n, height, width)`` in [0, 1], or exit and say where to find some."""
    path = path or os.environ.get("KREG_DATA")
    file = Path(path or ".")
    if file.is_dir():
        file = file / "oasis2d" / "oasis2d_100.npz"
    if path is None or not file.is_file():
        sys.exit(
            "Expected oasis2d/oasis2d_100.npz in the folder that --data or the environment "
            "variable KREG_DATA names, --data FILE.npz with an array `images` (n, height, width) "
            f"of your own, or --digits. Received: {path and file}."
        )
    with np.load(file) as arrays:
        images = arrays["images"].astype("float32")
    return (images - images.min()) / max(float(np.ptp(images)), 1e-6)


def load_digits(path=None):
    """Return training and test digits: MNIST or, where it can't be had, scikit-learn's."""
    try:
        digits = kreg.data.load_mnist(path)
    except kreg.data.MnistUnavailable as error:
        print(f"MNIST is not at hand: {error}\nGoing on with scikit-learn's digits instead.")
        digits = kreg.data.load_handwritten_digits()
    return digits.train.images, digits.test.images


def draw(images, count, *, tissue, seed, **options):
    """Return that many pairs of the images with all that is known of them, as arrays."""
    pairs = missing_brain_pairs if tissue else missing_digit_pairs
    (batch,) = pairs(images, batch_size=count, steps=1, seed=seed, **options)[0]
    return batch


class Pool(keras.utils.PyDataset):
    """Random batches of pairs that were drawn beforehand."""

    def __init__(self, pairs, batch, steps, seed):
        super().__init__()
        self.pairs = {name: pairs[name] for name in ("moving", "fixed")}
        self.batch, self.steps = batch, steps
        self.rng = np.random.default_rng(seed)

    def __len__(self):
        return self.steps

    def __getitem__(self, _):
        chosen = self.rng.integers(len(self.pairs["fixed"]), size=self.batch)
        return ({name: images[chosen] for name, images in self.pairs.items()},)


# --- training ---


def processor_seconds():
    """Return user + system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Budget(keras.callbacks.Callback):
    """Ends a training after so many seconds of processor time; the rate falls to 0 until then."""

    def __init__(self, seconds, peak):
        super().__init__()
        self.seconds, self.peak, self.aside = seconds, peak, 0.0

    def on_train_begin(self, logs=None):
        self.start = processor_seconds()

    def share(self):
        """Return how much of the time is used, without what was set aside."""
        used = processor_seconds() - self.start - self.aside
        return min(used / max(self.seconds, 1e-9), 1.0)

    def on_train_batch_begin(self, batch, logs=None):
        share = self.share()
        rate = min(share / 0.05, 1.0) * 0.5 * (1 + np.cos(np.pi * share))
        self.model.optimizer.learning_rate = self.peak * max(rate, 0.01)

    def on_train_batch_end(self, batch, logs=None):
        if self.share() >= 1:
            self.model.stop_training = True


def build(image_shape, *, tissue, saliency=True, quick=False):
    """Return the lean model for tissue, whose contrast differs, or for drawings.

    If `quick`, with two steps of its first and its last stage: each takes seconds to compile.
    """
    stages = TISSUE if tissue else DRAWINGS
    if quick:
        stages = tuple(replace(stage, steps=2) for stage in (stages[0], stages[-1]))
    if tissue:
        kind = LocallyNormalised(TensorCorrelation(), sigma=6)
        refinement = UnrolledRefinement(stages, normalisation=6)
    else:
        kind, refinement = TensorCorrelation((0.7, 2.0)), UnrolledRefinement(stages)
    return global_to_local(image_shape, saliency=kind if saliency else None, refinement=refinement)


def similarity(tissue):
    """Return a loss and its weight beside the smoothness."""
    return (LocalNCC(), 0.15) if tissue else (Charbonnier(0.05), 1.0)


def fit(model, losses, pairs, *, batch, steps, seconds, seed=0, watch=(), verbose=0):
    """Train a model for some seconds of processor time by Adam; 0 for two steps.

    Args:
        model: a `kreg.RegistrationModel`.
        losses: output -> (loss, weight).
        pairs: arrays ``moving`` and ``fixed``.
        batch: pairs a step.
        steps: an epoch.
        seconds: of processor time, compilation included.
        seed: of the order of the pairs.
        watch: functions called with the budget and the model after each epoch.
        verbose: as `fit`'s.
    """
    budget = Budget(seconds, 2e-3)
    model.compile(
        keras.optimizers.Adam(global_clipnorm=0.5),
        loss={name: loss for name, (loss, _) in losses.items()},
        loss_weights={name: weight for name, (_, weight) in losses.items()},
    )

    def look(epoch, logs):
        for each in watch:
            each(budget, model)

    data = Pool(pairs, batch, steps if seconds else 2, seed)
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=look)]
    callbacks += [budget] if seconds else []
    model.fit(data, epochs=10**6 if seconds else 1, callbacks=callbacks, verbose=verbose)


def train(model, pairs, *, tissue, seconds, seed=0, watch=(), verbose=0):
    """Train the global network alone, then all end to end.

    Args:
        model: what `build` returns.
        pairs: arrays ``moving`` and ``fixed``.
        tissue: whether they show tissue, whose contrast differs.
        seconds: of processor time; 0 for two steps of each part.
        seed: of the order of the pairs.
        watch: functions called with the budget and the model after each epoch end to end.
        verbose: as `fit`'s.
    """
    loss, weight = similarity(tissue)
    smooth, outputs = BendingEnergy(), model.output
    alone = kreg.RegistrationModel(
        model.input,
        {"warped": outputs["warped_coarse"], "displacement": outputs["coarse_displacement"]},
    )
    losses = {"warped": (loss, weight), "displacement": (smooth, 0.1)}
    (batch, steps), share = ALONE
    start = processor_seconds()
    fit(alone, losses, pairs, batch=batch, steps=steps, seconds=share * seconds, seed=seed)
    losses = {
        "warped_trusted" if "saliency" in outputs else "warped": (loss, weight),
        "warped_coarse": (loss, 0.5 * weight),
        "coarse_displacement": (smooth, 0.1),
        "displacement": (smooth, 0.02),
    }
    batch, steps = TOGETHER
    left = seconds and seconds - (processor_seconds() - start)
    fit(
        model, losses, pairs, batch=batch, steps=steps, seconds=left, seed=seed, watch=watch,
        verbose=verbose,
    )  # fmt: skip


class Curve:
    """How alike fixed and warped images of some pairs become, epoch by epoch."""

    def __init__(self, pairs):
        self.pairs, self.points = pairs, []

    def __call__(self, budget, model):
        """Add a point; its time is not counted as training."""
        start = processor_seconds()
        warped = predict(model, self.pairs)["warped"]
        fixed = self.pairs["fixed"]
        self.points.append(
            {
                "share": budget.share() if hasattr(budget, "start") else 1.0,
                "SSIM": float(np.mean(kreg.metrics.ssim(fixed, warped, data_range=1))),
                "mean absolute difference": float(np.mean(np.abs(fixed - warped))),
            }
        )
        budget.aside += processor_seconds() - start


# --- evaluation ---


def predict(model, pairs):
    """Return the outputs for all pairs; their number is a multiple of the batch size."""
    images = {name: pairs[name] for name in ("moving", "fixed")}
    return model.predict(images, batch_size=TOGETHER[0], verbose=0)


def near_altered(pairs):
    """Return which landmarks are within `NEAR` voxels of what is altered, ``(batch, n)``."""
    near = np.zeros(pairs["fixed_landmarks"].shape[:2], bool)
    for row, points, altered in zip(
        near, pairs["fixed_landmarks"], pairs["altered"][..., 0] > 0.5, strict=True
    ):
        present = ~np.isnan(points[:, 0])
        if altered.any():
            distance = ndimage.distance_transform_edt(~altered)
            row[present] = distance[tuple(points[present].astype(int).T)] <= NEAR
    return near


def errors(pairs, displacement=None):
    """Return the error of each landmark in voxels, ``(batch, n)``, NaN where there is none."""
    points = pairs["fixed_landmarks"], pairs["moving_landmarks"]
    return np.asarray(kreg.metrics.landmark_error(*points, displacement))


def confidence(pairs, saliency):
    """Return the ROC AUC of the saliency, of telling edges of both images from altered ones."""
    strength = [
        ndimage.gaussian_gradient_magnitude(pairs[name][..., 0], (0, 1, 1))
        for name in ("fixed", "warped")
    ]
    edges = np.maximum(*strength) > 0.05
    values, unaltered = saliency[..., 0][edges], pairs["altered"][..., 0][edges] < 0.5
    count = unaltered.sum()
    ranks = stats.rankdata(values)[unaltered].sum() - count * (count + 1) / 2
    return float(ranks / (count * (len(values) - count)))


def score(pairs, displacement):
    """Return mean and deviation of the landmark error, that near what is altered, and folds."""
    error, near = errors(pairs, displacement), near_altered(pairs)
    volume = np.asarray(kreg.ops.jacobian_determinant(displacement))
    return {
        "TRE": float(np.nanmean(error)),
        "std": float(np.nanstd(error)),
        "near": float(np.nanmean(error[near])) if near.any() else None,
        "folds %": 100 * float(np.mean(volume <= 0)),
    }


def table(rows):
    """Return the rows as aligned text."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'TRE':>6}  {'std':>6}  {'near':>6}  {'folds %':>8}"]
    for name, row in rows.items():
        lines.append(
            f"{name:{width}}  {row['TRE']:6.3f}  {row['std']:6.3f}  {row['near'] or np.nan:6.3f}"
            f"  {row['folds %']:8.4f}"
        )
    return "\n".join(lines)


# --- figures ---


def show_pairs(pairs, found, other, rows=4):
    """Return a figure, a pair a row: images, saliency in colour, what is left of the displacement.

    Args:
        pairs: arrays with the truth.
        found: outputs of the model with saliency.
        other: the displacement found without.
        rows: how many pairs.
    """
    titles = [
        "moving", "fixed\n(altered: outlined)", "moving, warped\nto fixed",
        "not to be trusted\n(1 - saliency)", "error in voxels\nwithout saliency",
        "error in voxels\nwith saliency",
    ]  # fmt: skip
    figure = Figure(figsize=(12, 2.05 * rows + 1.0), layout="constrained")
    all_axes = figure.subplots(rows, len(titles), squeeze=False)
    for i, axes in enumerate(all_axes):
        fixed, altered = pairs["fixed"][i, ..., 0], pairs["altered"][i, ..., 0]
        images = pairs["moving"][i, ..., 0], fixed, found["warped"][i, ..., 0]
        for ax, image in zip(axes, images, strict=False):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        distrust = 1 - found["saliency"][i, ..., 0]
        axes[3].imshow(fixed, cmap="gray", vmin=0, vmax=1)
        trust = axes[3].imshow(distrust, cmap="Oranges", vmin=0, vmax=1, alpha=0.9 * distrust)
        # Where the image is flat, nothing tells a displacement from another.
        seen = ndimage.gaussian_filter(ndimage.morphological_gradient(fixed, 3), 1) > 0.02
        for ax, u in zip(axes[4:], (other, found["displacement"]), strict=True):
            length = np.linalg.norm(u[i] - pairs["displacement"][i], axis=-1)
            ax.imshow(fixed, cmap="gray", vmin=0, vmax=1)
            error = ax.imshow(length, cmap="magma", vmin=0, vmax=2, alpha=seen.astype(float))
        for ax in (axes[1], *axes[3:]):
            if altered.any():
                ax.contour(altered, [0.5], colors="#22d3ee", linewidths=1)
        for ax, title in zip(axes, titles, strict=True):
            ax.set(xticks=[], yticks=[])
            if not i:
                ax.set_title(title, fontsize=10)
    for picture, axes, label in (
        (trust, all_axes[-1:, 3], "1 - saliency"), (error, all_axes[-1:, 4:], "voxels")
    ):  # fmt: skip
        figure.colorbar(picture, ax=axes, location="bottom", shrink=0.6, aspect=30, label=label)
    return figure


def show_bars(pairs, fields):
    """Return a figure: mean and deviation of the landmark error, all and near what is altered."""
    near = near_altered(pairs)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for ax, chosen, title in zip(
        figure.subplots(1, 2, sharey=True),
        (np.ones_like(near), near),
        ("all landmarks", f"within {NEAR} voxels of what is altered"),
        strict=True,
    ):
        values = [errors(pairs, field)[chosen] for field in fields.values()]
        means = [np.nanmean(value) for value in values]
        spread = [np.nanstd(value) for value in values]
        low = np.minimum(spread, means)
        colours = ["#94a3b8", "#64748b", "#dc2626", "#15803d"]
        ax.bar(list(fields), means, yerr=[low, spread], capsize=4, color=colours)
        for x, mean in enumerate(means):
            ax.text(x + 0.06, mean, f" {mean:.2f}", va="bottom", fontsize=9)
        ax.set_title(title, fontsize=10)
        ax.tick_params(axis="x", labelsize=8, rotation=15)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("landmark error, voxels\n(mean, standard deviation)")
    return figure


def show_curves(curves):
    """Return a figure: likeness of the images over the training, with and without saliency."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    for ax, name in zip(figure.subplots(1, 2), ("SSIM", "mean absolute difference"), strict=True):
        for (label, curve), colour in zip(curves.items(), ("#15803d", "#dc2626"), strict=True):
            ax.plot([p[name] for p in curve.points], "o-", ms=3, color=colour, label=label)
        ax.set(xlabel="epoch, end to end", ylabel=name)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


# --- output ---


@contextlib.contextmanager
def new_folder(path, overwrite):
    """Yield a folder to write into, which becomes `path` only when all went well."""
    numbers = (n for n in range(1, 10_000) if not Path(f"outputs/missing-{n}").exists())
    path = Path(path or f"outputs/missing-{next(numbers)}")
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
    """Train both models, evaluate, draw, save."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    kreg.machine.keep_freed_memory()  # faster training on a CPU
    tissue, seed = not FLAGS.digits, FLAGS.seed
    if tissue:
        images = load_brains(FLAGS.data)
        count = len(images) * 4 // 5
        training, testing = images[:count], images[count:]
    else:
        training, testing = load_digits(FLAGS.data)
    seconds, pool, tests = (0, 16, 4) if FLAGS.quick else (60 * FLAGS.minutes, 800, 60)
    with new_folder(FLAGS.output, FLAGS.overwrite) as folder:
        print(f"{'Brains' if tissue else 'Digits'}: drawing {pool} pairs to train on")
        pairs = draw(training, pool, tissue=tissue, seed=seed)
        test = draw(testing, tests, tissue=tissue, seed=seed + 1)
        found, curves, trained = {}, {}, {}
        for name in (WITH, WITHOUT):
            keras.utils.set_random_seed(seed)
            print(f"Training {name}: {seconds / 60:.3g} minutes of processor time", flush=True)
            model = build(
                pairs["fixed"].shape[1:], tissue=tissue, saliency=name == WITH, quick=FLAGS.quick
            )
            curves[name] = Curve({key: stack[:8] for key, stack in test.items()})
            train(model, pairs, tissue=tissue, seconds=seconds, seed=seed, watch=[curves[name]])
            found[name], trained[name] = predict(model, test), model
        fields = {
            "before": np.zeros_like(test["displacement"]),
            "global network": found[WITH]["coarse_displacement"],
            WITHOUT: found[WITHOUT]["displacement"],
            WITH: found[WITH]["displacement"],
        }
        rows = {name: score(test, field) for name, field in fields.items()}
        joint = found[WITH]["saliency"]
        area = confidence({**test, "warped": found[WITH]["warped"]}, joint)
        print(f"\n{tests} test pairs, landmark error in voxels:\n{table(rows)}")
        print(f"Saliency tells altered edges from others with ROC AUC {area:.3f}\n")

        other = found[WITHOUT]["displacement"]
        show_pairs(test, found[WITH], other).savefig(folder / "pairs.png", dpi=110)
        show_bars(test, fields).savefig(folder / "landmarks.png", dpi=120)
        show_curves(curves).savefig(folder / "training.png", dpi=120)
        trained[WITH].save(folder / "model.keras")
        report = {"minutes": seconds / 60, "seed": seed, "scores": rows, "ROC AUC": area,
                  "curves": {name: curve.points for name, curve in curves.items()}}  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
