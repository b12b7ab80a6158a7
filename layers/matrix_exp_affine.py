"""Linear transforms from the coefficients of a matrix exponential."""

import keras
import numpy as np
from keras import ops

from kreg.groups import Affine
from kreg.ops.matrix_exponential import matrix_exponential


@keras.saving.register_keras_serializable("kreg")
class MatrixExpAffine(keras.layers.Layer):
    """A = L exp(sum_k c_k B_k) L^-1, L = diag(scale, ..., scale, 1), B_k the group's generators.

    Coefficients 0 are the identity, -c the inverse of c, and every c is a member of the group: a
    rigid transform stays rigid, an affine one never folds (Nan et al., DRMIME, MIDL 2020; Arsigny
    et al., JMIV 2009). The coefficients should stay below about 10.

    Args:
        group: `kreg.groups.Translation`, `Rigid`, `Similarity`, `Affine` or `Homography`, an
            object; ``Affine()`` where None.
        scale: the length of one unit of the coefficients in world units (voxels where the spacing
            is 1). Half the longest side of the image makes a shift, an angle and a stretch of
            like size move it alike; a translation coefficient of 1 is then half the image.

    Call arguments:
        coefficients: ``(batch, K)``, K as the group has them in 2-D or in 3-D.

    Raises:
        ValueError: if `scale` is not positive, or the group has another number of coefficients.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> rigid = kreg.layers.MatrixExpAffine(kreg.groups.Rigid())
        >>> matrix = rigid(np.float32([[0, 0, np.pi / 6]]))  # shifts along both axes, an angle
        >>> np.round(np.asarray(matrix)[0], 3) + 0
        array([[ 0.866, -0.5  ,  0.   ],
               [ 0.5  ,  0.866,  0.   ],
               [ 0.   ,  0.   ,  1.   ]], dtype=float32)
    """

    def __init__(self, group=None, *, scale=1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # matrices stay float32
        if not scale > 0:
            raise ValueError(f"Expected `scale` > 0, a length in world units. Received: {scale}.")
        self.group = Affine() if group is None else group
        self.scale = scale

    def call(self, coefficients):
        """Return homogeneous matrices ``(batch, D + 1, D + 1)``, fixed to moving, in the world."""
        _, side, _ = self.compute_output_shape(coefficients.shape)
        generators = self.group.generators(side - 1)
        # A sum of products: `ops.matmul` may round the coefficients to 10 bits on a GPU.
        coefficients = ops.reshape(ops.cast(coefficients, "float32"), (-1, len(generators), 1, 1))
        matrix = matrix_exponential(ops.sum(ops.multiply(coefficients, generators), axis=1))
        lengths = np.array([self.scale] * (side - 1) + [1.0])
        return ops.multiply(matrix, (lengths[:, None] / lengths).astype("float32"))

    def compute_output_spec(self, coefficients):
        """Return the shape of the matrices, float32 whatever the policy."""
        shape = self.compute_output_shape(coefficients.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, coefficients_shape):
        """Return ``(batch, D + 1, D + 1)``."""
        if len(coefficients_shape) != 2:
            raise ValueError(
                "Expected coefficients of shape (batch, K); `coefficients[None]` makes a batch of "
                f"one. Received: shape {tuple(coefficients_shape)}."
            )
        side = self.group.dimensions(coefficients_shape[1]) + 1
        return (coefficients_shape[0], side, side)

    def get_config(self):
        """Return the constructor arguments."""
        group = keras.saving.serialize_keras_object(self.group)
        return {**super().get_config(), "group": group, "scale": self.scale}

    @classmethod
    def from_config(cls, config):
        """Rebuild the group, then the layer."""
        group = keras.saving.deserialize_keras_object(config["group"])
        return cls(**{**config, "group": group})
