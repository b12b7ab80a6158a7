"""The Dice overlap of structures."""

from collections.abc import Sequence

import keras
from keras import ops

from kreg.metrics.image_metric import ImageMetric
from kreg.ops.coordinates import COORDINATE_DTYPE, check_image, check_same_size
from kreg.ops.intensity import voxel_weights


def _overlap(fixed, warped, weights):
    """Return 2 |A and B| and |A| + |B| of each sample, for sets given as booleans."""
    fixed, warped = ops.cast(fixed, COORDINATE_DTYPE), ops.cast(warped, COORDINATE_DTYPE)
    axes = tuple(range(1, len(fixed.shape)))
    return 2 * ops.sum(weights * fixed * warped, axes), ops.sum(weights * (fixed + warped), axes)


def dice(fixed, warped, threshold=0.5, mask=None):
    """Dice = 2 |A and B| / (|A| + |B|), A and B the voxels brighter than the threshold; 1 is best.

    Voxels of all channels count alike. Two empty sets agree: 1.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        threshold: the value above which a voxel belongs to the structure.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.

    Returns:
        ``(batch,)`` in [0, 1].

    Raises:
        ValueError: if the shapes differ or the images are not floating.
    """
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    weights = 1.0 if mask is None else ops.cast(voxel_weights(mask, fixed), COORDINATE_DTYPE)
    common, total = _overlap(fixed > threshold, warped > threshold, weights)
    return ops.where(total > 0, common / ops.where(total > 0, total, 1.0), 1.0)


def dice_labels(fixed, warped, labels: Sequence[int]):
    """Dice_l = 2 |A_l and B_l| / (|A_l| + |B_l|) for each label l; 1 is best.

    A label that neither map holds has no overlap: NaN, for ``numpy.nanmean`` to leave aside.

    Args:
        fixed, warped: label maps ``(batch, *spatial)`` or ``(batch, *spatial, 1)``, integers or
            whole floating-point numbers; warp them with `kreg.ops.sample_nearest`.
        labels: which ones; 0, the background, usually not among them.

    Returns:
        ``(batch, len(labels))``.

    Raises:
        ValueError: if the shapes differ, or `labels` is empty or holds one twice.
    """
    fixed, warped = ops.convert_to_tensor(fixed), ops.convert_to_tensor(warped)
    check_same_size(fixed, warped)
    labels = [int(label) for label in labels]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(
            "Expected `labels` to list each label once, such as "
            f"`numpy.unique(fixed)[1:]`. Received: {labels}."
        )
    values = []
    for label in labels:
        common, total = _overlap(fixed == label, warped == label, 1.0)
        present = common / ops.where(total > 0, total, 1.0)
        values.append(ops.where(total > 0, present, float("nan")))
    return ops.stack(values, axis=-1)


@keras.saving.register_keras_serializable("kreg.metrics")
class Dice(ImageMetric):
    """2 |A and B| / (|A| + |B|), in [0, 1]; larger is better, 1 where the structures coincide.

    Args:
        threshold: the value above which a voxel belongs to the structure.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.
    """

    def __init__(self, threshold=0.5, name="dice", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.threshold = threshold

    def compare(self, fixed, warped, mask):
        """Return the overlap of each pair, ``(batch,)``."""
        return dice(fixed, warped, self.threshold, mask)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "threshold": self.threshold}
