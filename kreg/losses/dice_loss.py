"""The Dice overlap of probability maps, to train on segmentations."""

import keras
from keras import ops

from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.intensity import voxel_weights

#: A label whose squared probabilities sum to less is absent: nobody's voxel, only rounding.
_ABSENT = 1e-12


@keras.saving.register_keras_serializable("kreg")
def soft_dice(fixed, warped, mask=None):
    """Dice = mean over labels of 2 <f, w> / (<f, f> + <w, w>), <f, w> = sum over voxels; 1 is best.

    With squares in the denominator (Milletari et al., 3DV 2016), so that 1 - Dice, which is
    |f - w|^2 / (|f|^2 + |w|^2), has its minimum where the maps are equal, also where they are
    soft, as warped ones are; for one-hot maps it is the Dice of sets. A label that neither map
    holds is left out of the mean; where no label is left there is nothing to overlap: 1.

    Args:
        fixed, warped: one-hot or probability maps ``(batch, *spatial, labels)``, floating; the
            background, where it should not count, left out.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.

    Returns:
        ``(batch,)`` in [0, 1].

    Raises:
        ValueError: if the shapes differ or the maps are not floating.
    """
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
    weights = 1.0
    if mask is not None:
        weights = voxel_weights(mask, fixed)
        fixed = ops.where(weights > 0, fixed, 0.0)  # what is masked may be NaN
        warped = ops.where(weights > 0, warped, 0.0)
    axes = tuple(range(1, len(fixed.shape) - 1))
    common = 2 * ops.sum(weights * fixed * warped, axis=axes)
    total = ops.sum(weights * (ops.square(fixed) + ops.square(warped)), axis=axes)
    present = total > _ABSENT
    overlap = ops.where(present, common / ops.where(present, total, 1.0), 0.0)
    count = ops.sum(ops.cast(present, "float32"), axis=-1)
    return ops.where(count > 0, ops.sum(overlap, axis=-1) / ops.maximum(count, 1.0), 1.0)


@keras.saving.register_keras_serializable("kreg")
class SoftDice(ImageLoss):
    """loss = 1 - Dice(fixed, warped), in [0, 1]; smaller is better, 0 where the maps are equal.

    The overlap itself is `kreg.losses.soft_dice`. For training with the segmentations of images:
    the maps of the moving image, warped linearly, against those of the fixed one.

    Call arguments:
        y_true: fixed one-hot or probability maps, ``(batch, *spatial, labels)``.
        y_pred: warped maps, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.
    """

    def __init__(self, name="soft_dice", reduction="sum_over_batch_size", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def compare(self, fixed, warped, mask):
        """Return 1 - Dice of each pair, ``(batch,)``."""
        return 1.0 - soft_dice(fixed, warped, mask)
