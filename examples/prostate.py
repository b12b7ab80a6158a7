"""Register MR to ultrasound of the prostate, in 3-D: trained by the outlines of the gland.

    KREG_DATA=FOLDER python examples/prostate.py    # about eight minutes on one core
    python examples/prostate.py --quick             # a few steps, to see that everything runs

The data are 12 pairs of Hu et al. (Medical Image Analysis 2018) in DeepReg's demonstration file,
``prostate3d/deepreg_mrus_12pairs.npz`` in the folder that --data or the environment variable
KREG_DATA names: arrays ``moving_images_NN`` (MR), ``fixed_images_NN`` (ultrasound),
``moving_labels_NN`` and ``fixed_labels_NN``, whose first channel is the gland and whose further
channels are small landmarks. The file states no spacing; the glands have equal volumes in voxels.

No similarity of grey values serves these two modalities well. As in the paper, the network sees the
two images alone and is trained by what the gland of the MR, warped, overlaps with that of the
ultrasound; landmarks have no part in it, so that they can tell whether the inside was aligned too.

Four networks are trained, each on nine pairs, and tested on the other three, so that every pair is
tested once. Nine pairs are few (the paper has 108): such a network finds where the gland lies and
how large it is, little of its shape. The row "centroids" puts that into proportion: the best shift
for those who have the labels of the test pair.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from keras import ops
from scipy import ndimage

FLAGS = flags.FLAGS

#: Images are laid centre on centre into a grid that holds all of them, and halved for the network.
GRID, SHRINK = (64, 64, 60), 2


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("data", None, "npz file, or a folder; KREG_DATA if left out")
    flags.DEFINE_integer("steps", 200, "training steps of 2 pairs for each network", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of weights and pairs")
    flags.DEFINE_string("output", None, "folder to write; a new one in outputs/ if left out")
    flags.DEFINE_bool("overwrite", False, "replace the output folder if it exists")
    flags.DEFINE_bool("quick", False, "one network, three steps: a check, not a result")


# --- data ---


@dataclass(frozen=True)
class Pairs:
    """Volumes ``(n, *GRID, 1)`` and landmarks ``(n, count, 3)``, NaN where there are fewer."""

    moving: np.ndarray
    fixed: np.ndarray
    moving_labels: np.ndarray
    fixed_labels: np.ndarray
    moving_landmarks: np.ndarray
    fixed_landmarks: np.ndarray

    def __getitem__(self, chosen):
        return Pairs(*(values[chosen] for values in vars(self).values()))


def load(path=None):
    """Return the pairs, or exit and say where they are looked for."""
    path = path or os.environ.get("KREG_DATA")
    file = Path(path or ".")
    if file.is_dir():
        file = file / "prostate3d" / "deepreg_mrus_12pairs.npz"
    if path is None or not file.is_file():
        sys.exit(
            "Expected prostate3d/deepreg_mrus_12pairs.npz in the folder that --data or the "
            f"environment variable KREG_DATA names, or --data FILE. Received: {path and file}."
        )
    with np.load(file) as arrays:
        numbers = sorted(name[-2:] for name in arrays if name.startswith("fixed_images"))
        sides = [[_volumes(arrays, side, n) for n in numbers] for side in ("moving", "fixed")]
    images, labels, landmarks = ([[v[i] for v in side] for side in sides] for i in range(3))
    return Pairs(*(np.stack(side) for part in (images, labels, landmarks) for side in part))


def _volumes(arrays, side, number):
    """Return image and gland on the common grid, and the landmarks' centres, at most two."""
    image = arrays[f"{side}_images_{number}"].astype("float32") / 255
    labels = arrays[f"{side}_labels_{number}"].astype("float32")
    labels = labels[..., None] if labels.ndim == 3 else labels
    landmarks = np.full((2, 3), np.nan, "float32")
    labels = _on_grid(labels)
    for i in range(labels.shape[-1] - 1):
        landmarks[i] = ndimage.center_of_mass(labels[..., i + 1])
    return _on_grid(image[..., None]), labels[..., :1], landmarks


def _on_grid(volume):
    """Return the volume in the middle of the common grid, zeros around it."""
    spare = [size - length for size, length in zip(GRID, volume.shape, strict=False)]
    return np.pad(volume, [*((n // 2, n - n // 2) for n in spare), (0, 0)])


def shrunk(volumes):
    """Return the means of 2 x 2 x 2 voxels."""
    n, *sizes, channels = volumes.shape
    blocks = (part for size in sizes for part in (size // SHRINK, SHRINK))
    return volumes.reshape(n, *blocks, channels).mean(axis=(2, 4, 6))


class MovedPairs(keras.utils.PyDataset):
    """The pairs at the network's size, either side moved, turned and stretched at random.

    Nine pairs are learned by heart otherwise: the network has to look for the gland.
    """

    def __init__(self, pairs, *, steps, batch_size=2, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.epoch = 0
        self.sides = {
            "moving": shrunk(np.concatenate([pairs.moving, pairs.moving_labels], -1)),
            "fixed": shrunk(np.concatenate([pairs.fixed, pairs.fixed_labels], -1)),
        }
        self.move = kreg.layers.SpatialTransformer(image_gradient=False)

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        random = np.random.default_rng((self.seed, self.epoch, step))
        chosen = random.permutation(len(self.sides["fixed"]))[: self.batch_size]
        mirrored = random.random(len(chosen)) < 0.5  # left and right, of both
        batch = {}
        for side, stack in self.sides.items():
            matrices = np.tile(np.eye(4), (len(chosen), 1, 1))
            matrices[:, :3, :3] += random.normal(0, 0.07, (len(chosen), 3, 3))
            matrices[:, :3, 3] = random.normal(0, 2.5, (len(chosen), 3))
            matrices[mirrored, :, 1] *= -1
            moved = ops.convert_to_numpy(self.move(stack[chosen], matrices.astype("float32")))
            batch[side], batch[f"{side}_labels"] = moved[..., :1], moved[..., 1:]
        return (batch,)

    def on_epoch_end(self):
        """Go on to other pairs."""
        self.epoch += 1


# --- training ---


def train(pairs, *, steps, seed=0, verbose="auto"):
    """Return the trained model of images alone, and the history."""
    keras.utils.set_random_seed(seed)
    shape = tuple(size // SHRINK for size in GRID)
    options = {
        "encoder": (16, 32, 32, 32),
        "decoder": (32, 32, 32, 16, 16),
        "head": kreg.models.VelocityHead(5, downsize=2),
    }
    model = kreg.models.voxelmorph((*shape, 1), labels=1, **options)
    plain = kreg.models.voxelmorph((*shape, 1), **options)
    epochs = max(1, steps // 25)
    data = MovedPairs(pairs, steps=steps // epochs, seed=seed)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, epochs * len(data))
    model.compile(
        keras.optimizers.Adam(schedule),
        loss={
            "warped_labels": kreg.losses.SoftDice(),
            "velocity": kreg.losses.BendingEnergy(),
        },
        loss_weights={"warped_labels": 1.0, "velocity": 1.0},
    )
    history = model.fit(data, epochs=epochs, verbose=verbose)
    plain.set_weights(model.get_weights())
    return plain, history


# --- evaluation ---


def displacements(model, pairs):
    """Return the displacements on the common grid, voxels."""
    small = {"moving": shrunk(pairs.moving), "fixed": shrunk(pairs.fixed)}
    found = model.predict(small, batch_size=1, verbose=0)["displacement"]
    return ops.convert_to_numpy(kreg.ops.resize(found, GRID))


def centroid_shifts(pairs):
    """Return the displacements that lay the glands' centroids on one another."""
    centres = (
        np.array([ndimage.center_of_mass(gland[..., 0]) for gland in stack])
        for stack in (pairs.moving_labels, pairs.fixed_labels)
    )
    moving, fixed = centres
    shift = (moving - fixed).astype("float32")[:, None, None, None]
    return np.broadcast_to(shift, (*pairs.fixed.shape[:-1], 3)).copy()


def scores(pairs, displacement):
    """Return Dice and HD95 of the gland, the landmarks' error and folds: one value a pair."""
    warped = kreg.ops.warp(pairs.moving_labels, displacement, sampler=kreg.ops.sample_nearest)
    errors = kreg.metrics.landmark_error(
        pairs.fixed_landmarks, pairs.moving_landmarks, displacement
    )
    return {
        "Dice": ops.convert_to_numpy(kreg.metrics.dice(pairs.fixed_labels, warped)),
        "HD95": kreg.metrics.hd95(pairs.fixed_labels, warped, [1])[:, 0],
        "TRE": ops.convert_to_numpy(errors),
        "folds %": 100 * ops.convert_to_numpy(kreg.metrics.folding_fraction(displacement)),
    }


def table(rows):
    """Return means over all pairs (and landmarks) that there are, as aligned text."""
    lines = [f"{'':10}{'Dice':>8}{'HD95':>8}{'TRE':>8}{'folds %':>10}"]
    for name, row in rows.items():
        means = {key: np.nanmean(values) for key, values in row.items()}
        lines.append(
            f"{name:10}{means['Dice']:8.3f}{means['HD95']:8.2f}{means['TRE']:8.2f}"
            f"{means['folds %']:10.4f}"
        )
    return "\n".join(lines)


# --- output ---


def outlined(images, glands):
    """Return grey volumes with the gland's outline in white."""
    inside = np.stack([ndimage.binary_erosion(gland[..., 0] > 0.5) for gland in glands])
    return np.where((glands > 0.5) & ~inside[..., None], 1.0, 0.8 * images)


@contextlib.contextmanager
def new_folder(path, overwrite):
    """Yield a folder to write into, which becomes `path` only when all went well."""
    numbers = (n for n in range(1, 10_000) if not Path(f"outputs/prostate-{n}").exists())
    path = Path(path or f"outputs/prostate-{next(numbers)}")
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
    """Train a network for each fold, test it, draw, save."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    kreg.machine.keep_freed_memory()  # faster training on a CPU
    pairs = load(FLAGS.data)
    # Every fourth pair is held out: the file seems to be in the order of the patients.
    folds = [np.arange(len(pairs.fixed)) % 4 == fold for fold in range(4)]
    steps, folds = (3, folds[:1]) if FLAGS.quick else (FLAGS.steps, folds)
    with new_folder(FLAGS.output, FLAGS.overwrite) as folder:
        start = time.perf_counter()
        tested, fields = [], []
        for number, held_out in enumerate(folds):
            print(f"Network {number + 1} of {len(folds)}: {steps} steps of 2 pairs", flush=True)
            verbose = 1 if sys.stdout.isatty() else 2
            model, history = train(pairs[~held_out], steps=steps, seed=FLAGS.seed, verbose=verbose)
            tested.append(np.flatnonzero(held_out))
            fields.append(displacements(model, pairs[held_out]))
        seconds = time.perf_counter() - start

        test, field = pairs[np.concatenate(tested)], np.concatenate(fields)
        rows = {
            "before": scores(test, np.zeros_like(field)),
            "centroids": scores(test, centroid_shifts(test)),
            "after": scores(test, field),
        }
        print(f"\n{len(field)} held-out pairs, {seconds:.0f} s. In voxels:\n{table(rows)}\n")

        shown = Pairs(*(values[:4] for values in vars(test).values()))
        warped, gland = (
            ops.convert_to_numpy(kreg.ops.warp(volumes, field[:4]))
            for volumes in (shown.moving, shown.moving_labels)
        )
        kreg.plots.show_pairs(
            outlined(shown.moving, shown.moving_labels),
            outlined(shown.fixed, shown.fixed_labels),
            outlined(warped, gland),
            field[:4],
        ).savefig(folder / "pairs.png", dpi=110)
        kreg.plots.show_training(history.history, regularisers=["velocity"]).savefig(
            folder / "training.png", dpi=110
        )
        model.save(folder / "model.keras")
        report = {
            "steps": steps,
            "seed": FLAGS.seed,
            "seconds": seconds,
            "scores": {
                name: {key: float(np.nanmean(values)) for key, values in row.items()}
                for name, row in rows.items()
            },
        }
        (folder / "scores.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
