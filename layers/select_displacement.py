"""Of two displacements, take for each pair the one that explains most with least bending."""

import functools

import keras
from keras import ops

from kreg import backend
from kreg.layers.saliency_refinement import check_pair, described, refined_shape
from kreg.ops.displacement import spatial_gradient, warp
from kreg.ops.interpolation import nearest_border
from kreg.ops.saliency import TensorCorrelation


@keras.saving.register_keras_serializable("kreg")
class SelectDisplacement(keras.layers.Layer):
    """u = the u_i, i = 1, 2, with the lesser mean(1 - J_i^p) + smoothness * mean (d u_i / d x)^2.

    J_i is the joint saliency of the fixed image and of the moving one warped by u_i. What one image
    lacks is unexplained by any displacement, unless it is pressed shut, which bends the field: the
    second term, which has no unit, forbids it. So a match without weights, which never loses a part
    but is pulled off by what is missing, and one weighted by saliency, which is not pulled off but
    may take a displaced part for a missing one, can both be tried.

    Gradients reach the one that is taken, none the choice. Each pair by itself.

    Args:
        saliency: the kind of J, such as `kreg.ops.TensorCorrelation`, within
            `kreg.ops.LocallyNormalised` where contrast differs.
        power: p, positive.
        smoothness: what bending costs beside what stays unexplained, not negative. Its mean is
            over voxels, components and axes.

    Call arguments:
        fixed, moving: ``(batch, *spatial, channels)``, floating, equal sizes that are known.
        first, second: displacements, ``(batch, *spatial, D)``, voxels.

    Raises:
        ValueError: if power or smoothness is out of range, the shapes differ, a spatial size is
            unknown or the images are not floating.
    """

    def __init__(
        self,
        *,
        saliency=TensorCorrelation(),  # noqa: B008, it is frozen
        power=6.0,
        smoothness=4.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        self.saliency = saliency
        self.power = power
        self.smoothness = smoothness
        if not (power > 0 and smoothness >= 0):
            raise ValueError(
                "Expected `power` > 0 and `smoothness` >= 0. "
                f"Received: power {power}, smoothness {smoothness}."
            )

    def call(self, fixed, moving, first, second):
        """Return one of the displacements for each pair, ``(batch, *spatial, D)`` float32."""
        check_pair(fixed, moving, first)
        check_pair(fixed, moving, second)
        fixed, moving, first, second = (
            ops.cast(x, "float32") for x in (fixed, moving, first, second)
        )
        seen = described(self.saliency, fixed)
        cost = _cost(self.saliency, self.power, self.smoothness)
        costs = cost(seen, moving, first), cost(seen, moving, second)  # (batch,) each
        worse = ops.logical_or(costs[1] < costs[0], ops.isnan(costs[0]))
        return ops.where(ops.reshape(worse, (-1, *(1,) * (len(first.shape) - 1))), second, first)

    def compute_output_spec(self, fixed, moving, first, second):
        """Return the shape of the displacement, float32 whatever the policy."""
        shape = self.compute_output_shape(fixed.shape, moving.shape, first.shape, second.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, fixed_shape, moving_shape, first_shape, second_shape):
        """Return the shape of the displacement."""
        return refined_shape(fixed_shape, first_shape)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "saliency": keras.saving.serialize_keras_object(self.saliency),
            "power": self.power,
            "smoothness": self.smoothness,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the saliency, then the layer."""
        saliency = keras.saving.deserialize_keras_object(config["saliency"])
        return cls(**{**config, "saliency": saliency})


@functools.lru_cache
def _cost(saliency, power, smoothness):
    def cost(seen, moving, u):
        seen, moving, u = map(ops.stop_gradient, (seen, moving, u))
        warped = warp(moving, u, border=nearest_border)
        joint = saliency.compare(seen, saliency.describe(warped))
        axes = tuple(range(1, len(joint.shape)))
        unexplained = 1.0 - ops.mean(ops.power(joint, power), axis=axes)
        bending = ops.mean(ops.square(spatial_gradient(u)), axis=(*axes, len(axes) + 1))
        return unexplained + smoothness * bending

    return backend.compiled(cost)
