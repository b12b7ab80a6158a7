"""Lay a stained section over its neighbour in another stain: affine, then a displacement.

    python examples/histology.py                          # about a minute
    python examples/histology.py --fixed A --moving B     # two image files of your own
    python examples/histology.py --quick                  # small images

The sections are of a lung lesion, CD31 and HE (https://anhir.grand-challenge.org), from
``histology/`` in the folder that the environment variable KREG_DATA names, with 80 landmarks.
Where that has none, tissue of scikit-image is shown in another stain and bent by a known
displacement.

Sections tear, shrink and bend as they are cut: what an affine transform leaves, `Dense` finds. It
prints how far landmarks are apart, and their distance as a share of the image's diagonal, as in the
ANHIR challenge (rTRE), and leaves a figure and the transform in a folder (default: a new one in
outputs/).
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import csv
import itertools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from scipy import ndimage
from skimage import color, data
from skimage.io import imread
from skimage.transform import downscale_local_mean

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("fixed", None, "image file to align to; the demo pair if left out")
    flags.DEFINE_string("moving", None, "image file to be aligned")
    flags.DEFINE_integer("size", 512, "pixels along the longest side, averaged", 32)
    flags.DEFINE_string("output", None, "new folder to write; one in outputs/ if left out")
    flags.DEFINE_bool("quick", False, "128 pixels: a check, not a result")


class Pair(NamedTuple):
    """Two images in colour, and points (row, column) that correspond, where there are any."""

    fixed: np.ndarray
    moving: np.ndarray
    fixed_points: np.ndarray | None = None
    moving_points: np.ndarray | None = None


def align(pair):
    """Return the affine transform, and that followed by a displacement.

    Colours of stains go together somehow: the linear part is found by a joint histogram. For the
    displacement both are turned into one channel, how much light the tissue takes.
    """
    density = [absorbed(image) for image in (pair.fixed, pair.moving)]
    affine = kreg.register(*density, verbose=sys.stdout.isatty())
    both = kreg.register(
        *density,
        transform=kreg.transforms.Dense(spacing=16, elastic=1e-3),
        start=affine.matrix,
        verbose=sys.stdout.isatty(),
    )
    return affine, both


def absorbed(image):
    """Return minus the logarithm of the light that comes through, one channel, float32."""
    light = (image.astype("float32") + 1).mean(axis=-1) / 256
    return -np.log(light)


# --- pairs ---


def lesion(root):
    """Return the two sections of a lung lesion, with their landmarks."""
    images, points = [], []
    for stain in ("CD31-3-les3", "He-les3"):
        stem = Path(root) / "histology" / f"29-041-Izd2-w35-{stain}"
        images.append(imread(stem.with_suffix(".jpg")))
        with open(f"{stem}_PS_50pc.csv", newline="") as file:
            xy = np.array([row[1:] for row in list(csv.reader(file))[1:]], float)
        points.append(xy[:, ::-1] / 10 - 0.5)  # clicked at ten times the size, from the corner
    return Pair(*images, *points)


def bent_tissue():
    """Return tissue, and the same with eosin for DAB, bent, with points that correspond."""
    brown = data.immunohistochemistry()
    red = 255 * color.hed2rgb(color.rgb2hed(brown)[..., [0, 2, 1]])
    random = np.random.default_rng(0)
    field = random.normal(size=(2, 512, 512))
    field = ndimage.gaussian_filter(field, (0, 40, 40), mode="wrap")
    field *= 12 / np.abs(field).max()
    grid = np.indices((512, 512))
    moving = np.stack(
        [ndimage.map_coordinates(channel, grid + field, order=1, mode="reflect")
         for channel in np.moveaxis(red, -1, 0)], axis=-1,
    )  # fmt: skip
    # What moving shows at y is at y + field(y) in the scene.
    points = random.uniform(40, 472, (100, 2))
    there = [ndimage.map_coordinates(part, points.T, order=1) for part in field]
    return Pair(brown, moving, points + np.stack(there, axis=-1), points)


def demo_pair():
    """Return the real pair or, where it is not at hand, the bent tissue."""
    root = os.environ.get("KREG_DATA")
    try:
        if root is None:
            raise FileNotFoundError("the environment variable KREG_DATA names no folder")
        return lesion(root)
    except FileNotFoundError as error:
        print(f"The sections are not at hand ({error}): scikit-image's tissue instead.")
        return bent_tissue()


def shrunk(pair, longest):
    """Return the pair averaged to at most so many pixels along the longest side."""
    factor = -(-max(*pair.fixed.shape[:2], *pair.moving.shape[:2]) // longest)
    images = [downscale_local_mean(image, (factor, factor, 1)) for image in pair[:2]]
    points = [None if p is None else (p + 0.5) / factor - 0.5 for p in pair[2:]]
    return Pair(*images, *points)


# --- all of it ---


def errors(pair, *results):
    """Return the median distance of landmarks in pixels, before and after each result."""
    middles = [(np.array(image.shape[:2]) - 1) / 2 for image in pair[:2]]
    found = [pair.fixed_points - middles[0] + middles[1]]
    found += [result.transform_points(pair.fixed_points) for result in results]
    distances = [np.linalg.norm(points - pair.moving_points, axis=-1) for points in found]
    return [float(np.median(distance)) for distance in distances]


def output_folder(path):
    """Return where to write, a folder that does not exist yet."""
    if path is None:
        numbered = (Path(f"outputs/histology-{n}") for n in itertools.count(1))
        return next(folder for folder in numbered if not folder.exists())
    if Path(path).exists():
        raise FileExistsError(
            "Expected an output folder that does not exist yet; name another with --output. "
            f"Received: {path}."
        )
    return Path(path)


def main(arguments):
    """Align the pair, tell how well, draw."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    if (FLAGS.fixed is None) != (FLAGS.moving is None):
        raise app.UsageError("Expected both of --fixed and --moving, or neither.")
    folder = output_folder(FLAGS.output)
    own = FLAGS.fixed is not None
    pair = Pair(*(imread(path)[..., :3] for path in (FLAGS.fixed, FLAGS.moving))) if own else (
        demo_pair()
    )  # fmt: skip
    pair = shrunk(pair, 128 if FLAGS.quick else FLAGS.size)
    affine, both = align(pair)
    volume = np.array(kreg.ops.jacobian_determinant(both.field[None]))
    print(f"Affine: trusted {affine.trusted} ({affine.reason})")
    print(f"and displacement: trusted {both.trusted} ({both.reason})")
    print(f"It folds at {100 * np.mean(volume <= 0):.3f} % of the pixels")
    if pair.fixed_points is not None:
        diagonal = np.hypot(*pair.moving.shape[:2])
        for name, error in zip(
            ("before", "affine", "and displacement"), errors(pair, affine, both), strict=True
        ):
            print(f"{name:17} median {error:6.2f} pixels, rTRE {error / diagonal:.4f}")

    folder.mkdir(parents=True)
    figure = kreg.plots.show_registration(pair.fixed / 255, pair.moving / 255, both)
    figure.savefig(folder / "histology.png", dpi=120)
    kreg.io.save_transform(folder / "transform.npz", kreg.io.Transform.from_registration(both))
    print(f"Written to {folder}: histology.png, transform.npz")


if __name__ == "__main__":
    define_flags()
    app.run(main)
