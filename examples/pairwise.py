"""Align single pairs of images, without any training: a retina pair and a pair of stains.

    python examples/pairwise.py                          # about a minute on two cores
    python examples/pairwise.py --fixed A --moving B     # two image files of your own
    python examples/pairwise.py --quick                  # small images, to see that everything runs

The pairs come from the folder that the environment variable KREG_DATA names: one of FIRE
(https://projects.ics.forth.gr/cvrl/fire/) and two sections of a rat kidney, HE and
pan-cytokeratin (https://anhir.grand-challenge.org). Where that has none, retina and
immunohistochemistry of scikit-image take their place, moved by a known transform.

Each pair is aligned with the default similarity and with MINE. The script leaves figures with
checkerboards before and after, the matrices and a table in a folder (default: a new one in
outputs/). `align` says what to change for a pair of your own.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import csv
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import app, flags
from scipy import ndimage
from skimage import color, data
from skimage.io import imread, imsave
from skimage.transform import downscale_local_mean

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("fixed", None, "image file to align to; the two demo pairs if left out")
    flags.DEFINE_string("moving", None, "image file to be aligned")
    flags.DEFINE_string("output", None, "new folder to write; one in outputs/ if left out")
    flags.DEFINE_bool("quick", False, "shrink the images to 128 pixels: a check, not a result")


# --- alignment ---


@dataclass(frozen=True)
class Pair:
    """Two images, and points (row, column) known to correspond in them, where there are any.

    A mask is 1 where an image shows anything, and None where that is everywhere.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_points: np.ndarray | None = None
    moving_points: np.ndarray | None = None
    fixed_mask: np.ndarray | None = None
    moving_mask: np.ndarray | None = None


def align(pair, **options):
    """Register one pair.

    What one may change, all of it optional:

    * ``transform=kreg.transforms.Linear(kreg.groups.Homography())``, or ``Rigid()`` and others;
      the default is affine.
    * ``similarity=``: the default, a joint histogram of grey values, also serves two modalities;
      ``kreg.losses.MINE()`` learns which colours go together; ``kreg.losses.NCC()`` is for two
      images of one modality.
    * ``fixed_mask=, moving_mask=``: leave out frames, labels and black surroundings, which would
      pull the images onto one another.
    * ``fixed_spacing=, moving_spacing=``: of images with pixels of unequal size.
    * ``start=``: a matrix, or None for the identity, instead of the search for large offsets.
    """
    return kreg.register(
        pair.fixed,
        pair.moving,
        fixed_mask=pair.fixed_mask,
        moving_mask=pair.moving_mask,
        verbose=sys.stdout.isatty(),
        **options,
    )


SIMILARITIES = {"default": {}, "MINE": {"similarity": kreg.losses.MINE()}}


# --- real pairs ---


def read(path):
    """Return the image in a file, without an alpha channel."""
    image = imread(path)
    return image[..., :-1] if image.ndim == 3 and image.shape[-1] in (2, 4) else image


def fire(root):
    """Return the first pair of FIRE, averaged to half its size."""
    folder = root / "fire_retina"
    fixed, moving = (
        downscale_local_mean(read(folder / f"A01_{i}.jpg"), (2, 2, 1)).astype("float32")
        for i in (1, 2)
    )
    points = {}
    marks = folder / "A01_landmarks.json"  # {"fixed": [[x, y], ...], "moving": ...}, full size
    if marks.exists():
        for name, xy in json.loads(marks.read_text()).items():
            if name in ("fixed", "moving"):
                points[f"{name}_points"] = (np.array(xy)[:, ::-1] + 0.5) / 2 - 0.5
    masks = {"fixed_mask": fundus(fixed), "moving_mask": fundus(moving)}
    return Pair("FIRE A01", fixed, moving, **points, **masks)


def fundus(image):
    """Return 1 on the disc that the camera sees, 0 on the black around it and along its rim."""
    bright = ndimage.gaussian_filter(image.max(axis=-1), 5) > 25
    return ndimage.binary_erosion(bright, iterations=15).astype("float32")


def rat_kidney(root):
    """Return two neighbouring sections in two stains, with landmarks that people clicked."""
    folder = root / "histology"
    names = "Rat-Kidney_HE", "Rat-Kidney_PanCytokeratin"
    marks = [landmarks(folder / f"{name}.csv") for name in names]
    count = min(map(len, marks))  # those beyond have no partner
    images = [read(folder / f"{name}.jpg") for name in names]
    return Pair("rat kidney", *images, *(points[:count] for points in marks))


def landmarks(path):
    """Return the points (row, column) of a file of number, x, y, counted from the corner."""
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    return np.array([[float(y), float(x)] for _, x, y in rows]) - 0.5


# --- pairs with a known transform ---


def render(scene, size, matrix, shift=(0.0, 0.0)):
    """Return image(y) = scene(A^-1 (y - shift)), both counted from the centre of their image."""
    inverse = np.linalg.inv(matrix)
    middle, centre = (np.array(scene.shape[:2]) - 1) / 2, (size - 1) / 2
    offset = middle - inverse @ (centre + np.array(shift))
    shape = (size, size)
    channels = np.moveaxis(scene, -1, 0)
    return np.stack(
        [ndimage.affine_transform(channel, inverse, offset, shape) for channel in channels], axis=-1
    ).astype("float32")


def moved(name, fixed_scene, moving_scene, size, angle, scale, shift):
    """Return a pair that sees two scenes through one frame, the second turned, scaled, shifted.

    The scenes are larger than the frame: new content comes in where other goes out.
    """
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, 0.03], [0, 1]])
    axes = [np.linspace(0, size - 1, 17)] * 2
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    centre = (size - 1) / 2
    return Pair(
        name,
        render(fixed_scene, size, np.eye(2)),
        render(moving_scene, size, matrix, shift),
        fixed_points=grid,
        moving_points=(grid - centre) @ matrix.T + centre + shift,
    )


def retina():
    """Return a retina in green light and, as if by another camera, inverted with a gamma."""
    green = data.retina()[..., 1:2] / 255
    inverted = (1 - green) ** 1.8
    inverted += 0.01 * np.random.default_rng(0).standard_normal(green.shape)
    return moved("retina", green, inverted, 512, angle=12, scale=0.95, shift=(35, -30))


def stains():
    """Return tissue with one stain, haematoxylin, and with a second one, brown, besides."""
    both = data.immunohistochemistry()
    stain = color.rgb2hed(both)
    stain[..., 1:] = 0
    single = color.hed2rgb(stain)
    return moved("stains", single, both / 255, 384, angle=8, scale=1.0, shift=(25, -18))


# --- what is aligned ---


def demo_pairs() -> Iterator[Pair]:
    """Yield the two real pairs or, where they are not at hand, those with a known transform."""
    root = os.environ.get("KREG_DATA")
    for real, substitute in ((fire, retina), (rat_kidney, stains)):
        try:
            if root is None:
                raise FileNotFoundError("the environment variable KREG_DATA names no folder")
            yield real(Path(root))
        except FileNotFoundError as error:
            pair = substitute()
            print(f"{real.__name__} is not at hand ({error}): scikit-image's {pair.name} instead.")
            yield pair


def own_pair(fixed, moving):
    """Return the pair in two image files."""
    return Pair(f"{Path(moving).stem} to {Path(fixed).stem}", read(fixed), read(moving))


def shrunk(pair, longest=128):
    """Return the pair averaged to fewer pixels."""
    factor = -(-max(*pair.fixed.shape[:2], *pair.moving.shape[:2]) // longest)

    def image(values):
        if values is None:
            return None
        factors = (factor, factor, 1)[: values.ndim]
        return downscale_local_mean(values, factors).astype("float32")

    def points(values):
        return None if values is None else (values + 0.5) / factor - 0.5

    return Pair(
        pair.name,
        *map(image, (pair.fixed, pair.moving)),
        *map(points, (pair.fixed_points, pair.moving_points)),
        *map(image, (pair.fixed_mask, pair.moving_mask)),
    )


# --- how well it went ---


def errors(pair, result):
    """Return mean distances in pixels: before, after, after the best affine fit to the points."""
    if pair.fixed_points is None or pair.moving_points is None:
        return {}
    centres = [(np.array(image.shape[:2]) - 1) / 2 for image in (pair.fixed, pair.moving)]
    homogeneous = np.c_[pair.fixed_points, np.ones(len(pair.fixed_points))]
    fit = np.linalg.lstsq(homogeneous, pair.moving_points, rcond=None)[0]
    found = {
        "before": pair.fixed_points - centres[0] + centres[1],
        "after": result.transform_points(pair.fixed_points),
        "floor": homogeneous @ fit,
    }
    return {
        name: float(np.linalg.norm(points - pair.moving_points, axis=1).mean())
        for name, points in found.items()
    }


def table(rows):
    """Return the rows as aligned text."""
    width = max(len(row["pair"]) for row in rows)
    lines = [f"{'':{width}}  similarity  before px  after px  floor px  seconds  verdict"]
    for row in rows:
        numbers = [
            f"{row['errors'].get(name, np.nan):.2f}" for name in ("before", "after", "floor")
        ]
        before, after, floor = (number.replace("nan", "-") for number in numbers)
        verdict = "trusted" if row["trusted"] else "not trusted"
        lines.append(
            f"{row['pair']:{width}}  {row['similarity']:10}  {before:>9}  {after:>8}  {floor:>8}  "
            f"{row['seconds']:7.1f}  {verdict}: {row['reason']}"
        )
    return "\n".join(lines)


# --- output ---


def output_folder(path):
    """Return where to write, a folder that does not exist yet."""
    if path is None:
        numbered = (Path(f"outputs/pairwise-{n}") for n in itertools.count(1))
        return next(folder for folder in numbered if not folder.exists())
    if Path(path).exists():
        raise FileExistsError(
            "Expected an output folder that does not exist yet; name another with --output. "
            f"Received: {path}."
        )
    return Path(path)


def save_warped(path, result, like):
    """Write the moving image as it lies over the fixed one, values of the same type as before."""
    warped = result.warped
    if np.issubdtype(like.dtype, np.integer):
        limits = np.iinfo(like.dtype)
        warped = np.clip(np.rint(warped), limits.min, limits.max).astype(like.dtype)
    grey = like.ndim == len(result.fixed_shape)
    imsave(path, warped[..., 0] if grey else warped, check_contrast=False)


def main(arguments):
    """Align each pair with each similarity, print a table, write figures and matrices."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    if (FLAGS.fixed is None) != (FLAGS.moving is None):
        raise app.UsageError("Expected both of --fixed and --moving, or neither.")
    folder = output_folder(FLAGS.output)
    own = FLAGS.fixed is not None
    pairs = [own_pair(FLAGS.fixed, FLAGS.moving)] if own else list(demo_pairs())
    if FLAGS.quick:
        pairs = [shrunk(pair) for pair in pairs]
    rows, results = [], []
    for pair, (name, similarity) in itertools.product(pairs, SIMILARITIES.items()):
        start = time.perf_counter()
        result = align(pair, **similarity)
        seconds = time.perf_counter() - start
        results.append((pair, name, result))
        rows.append({"pair": pair.name, "similarity": name, "errors": errors(pair, result),
                     "seconds": seconds, "trusted": result.trusted, "reason": result.reason,
                     "voxel_matrix": result.voxel_matrix.tolist()})  # fmt: skip
    print(f"\n{table(rows)}\n")
    if not own:
        print("floor: what is left by the best affine fit to the points themselves.")
    print("seconds: with compiling, which the next pair of these sizes is spared.")

    folder.mkdir(parents=True)  # only now: a run that fails leaves nothing
    for pair, name, result in results:
        stem = f"{pair.name} {name}".replace(" ", "-")
        figure = kreg.plots.show_registration(pair.fixed, pair.moving, result)
        figure.savefig(folder / f"{stem}.png", dpi=120)
        if own:
            save_warped(folder / f"{stem}.tif", result, pair.moving)
    (folder / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(f"Written to {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
