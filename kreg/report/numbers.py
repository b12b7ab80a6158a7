"""The numbers of an alignment, each with its name, as text."""

import numpy as np
from keras import ops

from kreg.io.align import Alignment
from kreg.io.image import Image
from kreg.io.transform import Transform
from kreg.mapping import carried
from kreg.ops.displacement import jacobian_determinant
from kreg.report.views import Scene

#: Voxels whose determinants are computed at once.
_CHUNK = 2**20


def numbers(scene: Scene) -> dict[str, str]:
    """Return what a report says in numbers, name -> text."""
    alignment = scene.alignment
    found, unit = alignment.registration, alignment.fixed.unit
    told = {
        "Mutual information after": f"{found.similarity_after:.3f} nats",
        "Mutual information, middle on middle": f"{found.similarity_before:.3f} nats",
        "To be trusted, on a coarse level, above": f"{found.chance:.3f} nats",
    }
    if found.runner_up is not None:
        told["Second best place"] = f"{found.runner_up:.0%} of the similarity of the best"
    told["Overlap"] = f"{found.overlap:.1%} of the fixed image lies within the moving one"
    slope, moved = _in_the_middle(scene)
    told["The middle moved by"] = f"{moved:.2f} {unit}"
    if alignment.moving.unit == unit:
        left, stretches, right = np.linalg.svd(slope)
        turn = (np.trace(left @ right) - (len(slope) - 2)) / 2
        told["Turned by"] = f"{np.degrees(np.arccos(np.clip(turn, -1, 1))):.2f}°"
        told["Lengths, moving to fixed"] = " × ".join(f"{1 / one:.4f}" for one in stretches[::-1])
    told[f"{extent(alignment).capitalize()}, moving by fixed"] = (
        f"{volume_of_linear_part(alignment):.4f}"
    )
    if alignment.transform.field is not None:
        told |= _displacement(alignment.transform.field, alignment.fixed)
    told["Steps"] = str(len(found.history.get("stage", [])))
    return told


def extent(alignment: Alignment) -> str:
    """Return what a determinant compares."""
    return {2: "area", 3: "volume"}[alignment.fixed.dimensions]


def volume_of_linear_part(alignment: Alignment) -> float:
    """Return by how much the linear part changes volume in the middle of the fixed image.

    In the units of the two images.
    """
    return float(np.linalg.det(_slope(alignment.transform)[0]))


def _slope(transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """Return the linear part's derivative, and the middle of the fixed image, in the worlds."""
    middle = carried(transform.fixed.affine, (np.asarray(transform.fixed.shape) - 1) / 2)
    matrix = transform.matrix
    weight = matrix[-1, :-1] @ middle + matrix[-1, -1]
    end = carried(matrix, middle)
    return (matrix[:-1, :-1] - np.outer(end, matrix[-1, :-1])) / weight, middle


def _in_the_middle(scene: Scene) -> tuple[np.ndarray, float]:
    slope, middle = _slope(scene.alignment.transform)
    fixed, moving = scene.alignment.fixed, scene.alignment.moving
    voxel = carried(np.linalg.inv(moving.affine), carried(scene.alignment.transform.matrix, middle))
    origin = carried(fixed.affine, carried(np.linalg.inv(scene.before), voxel))
    return slope, float(np.linalg.norm(origin - middle))


def _displacement(field: np.ndarray, fixed: Image) -> dict[str, str]:
    affine, unit = fixed.affine[:-1, :-1], fixed.unit
    rows = max(1, _CHUNK // int(np.prod(field.shape[1:-1])))
    lengths, lowest, highest, folds = [], [], [], 0
    for start in range(0, len(field), rows):
        stop = min(start + rows, len(field))
        length = np.linalg.norm(field[start:stop] @ affine.T, axis=-1)
        lengths.append((float(length.sum(dtype="float64")), float(length.max())))
        # A row more on each side, for the slopes across it.
        low, high = max(start - 1, 0), min(stop + 1, len(field))
        part = np.asarray(field[low:high], "float32")[None]
        volume = ops.convert_to_numpy(jacobian_determinant(part))[0][start - low : stop - low]
        lowest.append(float(volume.min()))
        highest.append(float(volume.max()))
        folds += int((volume <= 0).sum())
    count = int(np.prod(field.shape[:-1]))
    mean = sum(total for total, _ in lengths) / count
    return {
        "Displacement beyond the linear part": (
            f"{mean:.2f} {unit} on average, at most {max(largest for _, largest in lengths):.2f}"
        ),
        "Jacobian determinant of it": f"{min(lowest):.3f} to {max(highest):.3f}",
        "Folds": f"{folds / count:.2%} of the voxels" if folds else "none",
    }
