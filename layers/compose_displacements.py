"""Compose two displacement fields."""

import keras

from kreg import backend
from kreg.ops.coordinates import check_same_size
from kreg.ops.displacement import compose

_compose = backend.compiled(compose)


@keras.saving.register_keras_serializable("kreg")
class ComposeDisplacements(keras.layers.Layer):
    """u(x) = inner(x) + outer(x + inner(x)): warping by u is warping by `outer`, then by `inner`.

    Call arguments:
        outer: ``(batch, *spatial, D)``, voxels: the field found first.
        inner: same shape: the field found between the fixed and the already warped image.

    Raises:
        ValueError: if the shapes differ (`ResizeDisplacement` brings one to the other's grid) or
            are not those of displacements.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32

    def call(self, outer, inner):
        """Return the composed displacement, ``(batch, *spatial, D)`` float32 voxels."""
        check_same_size(outer, inner, ("outer", "inner"))
        return _compose(outer, inner)

    def compute_output_spec(self, outer, inner):
        """Return the inner field's shape, float32 whatever the policy."""
        return keras.KerasTensor(inner.shape, dtype="float32")

    def compute_output_shape(self, outer_shape, inner_shape):
        """Return the inner field's shape."""
        return inner_shape
