"""Real pairs from the folder that the environment variable KREG_DATA names.

A pair succeeds where its mean error is at most 1.5 times its floor + 1 px; the floor is the mean
distance that a least-squares affine fit to the same points leaves.

* fire: A01 of FIRE (https://projects.ics.forth.gr/cvrl/fire/), 2912^2 RGB, cut to the centred
  1941^2 square, which lies within the disc of the fundus. Truth: points on which SIFT matches
  agree, since the official control points are not at hand: those of ``A01_landmarks.json``
  (inliers, one in each cell of 80 px). Beside it, under the name "consensus", a set made here, see
  `sift_consensus`. The eye is not flat: the looser the threshold of such a consensus, the larger
  the error that the best matrix leaves (about 1.2 px at a threshold of 2, 3.5 px at 8), so an
  error means something only beside the floor of its set.
* histology: landmarks at the centres that people clicked. Coordinates of the lung lesion are those
  of the 50 % image, shown here at 5 %; of the rat kidney the first 69 correspond.
* multimodal: Jiang et al., A review of multimodal image matching, Information Fusion 2021. Hand
  landmarks; for MR_PET and VIS_IR the matrix that made the pair, on a grid over the fixed frame.

Files count (x, y) from 1 (multimodal) or from the corner of the first pixel (histology); here
everything is (row, column) from 0.
"""

import csv
import functools
import json
import os
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from benchmarks.pairwise.cases import (
    AFFINE,
    HOMOGRAPHY,
    Case,
    Entry,
    Points,
    affine_floor,
    grid_truth,
    swap_axes,
)

CROP = 1941
EXACT = ("MR_PET", "VIS_IR")
LANDMARKS = ("Retina", "SAR_Optical", "RGB_NIR", "Infrared_Optical")


def _image(path: Path) -> np.ndarray:
    """``(H, W, C)`` in [0, 1]; one channel where all three are equal."""
    image = imageio.imread(path, plugin="pillow")[..., :3].astype("float32") / 255
    return image[..., :1] if np.ptp(image, axis=-1).max() == 0 else image


def _case(fixed, moving, truth: Points, model: str = AFFINE, **other) -> Case:
    floor = affine_floor(truth)
    return Case(model, fixed, moving, truth, 1.5 * floor + 1, floor, **other)


def sift_consensus(fixed, moving, threshold: float = 3.0, cell: float = 80.0) -> Points:
    """Points where SIFT matches agree with one homography, one in each cell of the fixed image.

    Green channel, contrast threshold .01, ratio test .8, RANSAC with `threshold` px in the moving
    image; the order of the matches decides which of a cell stays.
    """
    import cv2

    from benchmarks.pairwise.peers import sift_matches

    points = sift_matches(fixed, moving)
    cv2.setRNGSeed(0)
    _, inlier = cv2.findHomography(
        points.fixed, points.moving, cv2.RANSAC, threshold, maxIters=5000, confidence=0.9999
    )
    inlier = np.flatnonzero(inlier)
    _, first = np.unique((points.fixed[inlier] // cell).astype(int), axis=0, return_index=True)
    return Points(points.fixed[inlier][first], points.moving[inlier][first])


def _fire(folder: Path, model: str) -> Case:
    fixed, moving = (_image(folder / f"A01_{i}.jpg") for i in (1, 2))
    start = (fixed.shape[0] - CROP) // 2
    inside = slice(start, start + CROP)
    fixed, moving = fixed[inside, inside], moving[inside, inside]
    marks = json.loads((folder / "A01_landmarks.json").read_text())
    points = [np.array(marks[name])[:, ::-1] - start for name in ("fixed", "moving")]
    keep = np.all([(p >= 0) & (p <= CROP - 1) for p in points], axis=(0, 2))
    truth = Points(*(p[keep] for p in points))
    others = {"consensus": sift_consensus(fixed, moving)}
    return _case(fixed, moving, truth, model, other_truths=others)


def _csv(path: Path, scale: float) -> np.ndarray:
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    return np.array([[float(y), float(x)] for _, x, y in rows]) / scale - 0.5


def _histology(folder: Path, fixed: str, moving: str, marks: str, scale: float, count: int) -> Case:
    points = [_csv(folder / f"{name}{marks}.csv", scale)[:count] for name in (fixed, moving)]
    images = [_image(folder / f"{name}.jpg") for name in (fixed, moving)]
    return _case(*images, Points(*points))


def _multimodal(path: Path, exact: bool) -> Case:
    about = json.loads(path.read_text())
    fixed, moving = (_image(path.with_name(about[name])) for name in ("fixed", "moving"))
    if exact:
        # The file has [x_moving y_moving 1] T = [x_fixed y_fixed 1], counted from 1.
        to_moving = swap_axes(np.linalg.inv(np.array(about["T_rowvec_moving_to_fixed"]).T))
        shift = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1.0]])
        truth = grid_truth(np.linalg.inv(shift) @ to_moving @ shift, fixed.shape)
    else:
        names = ("landmarks_fixed_xy", "landmarks_moving_xy")
        truth = Points(*(np.array(about[name])[:, ::-1] - 1.0 for name in names))
    return _case(fixed, moving, truth)


def entries() -> list[Entry]:
    """Return every pair that $KREG_DATA holds; none where it is not set."""
    if "KREG_DATA" not in os.environ:
        return []
    root = Path(os.environ["KREG_DATA"])
    found = []
    fire = root / "fire_retina"
    if fire.exists():
        for model in (AFFINE, HOMOGRAPHY):
            group = f"real/fire/{model}"
            found.append(Entry(group, f"{group}/A01", functools.partial(_fire, fire, model)))
    histology = root / "histology"
    sets = {
        "rat kidney": ("Rat-Kidney_HE", "Rat-Kidney_PanCytokeratin", "", 1.0, 69),
        "lesion 3": (
            "29-041-Izd2-w35-He-les3",
            "29-041-Izd2-w35-CD31-3-les3",
            "_PS_50pc",
            10.0,
            80,
        ),
    }
    if histology.exists():
        for name, facts in sets.items():
            make = functools.partial(_histology, histology, *facts)
            found.append(Entry("real/histology", f"real/histology/{name}", make))
    for name in (*LANDMARKS, *EXACT):
        for path in sorted((root / "multimodal" / name).glob("*.json")):
            make = functools.partial(_multimodal, path, name in EXACT)
            group = f"real/multimodal/{name}"
            found.append(Entry(group, f"{group}/{path.stem}", make))
    return found
