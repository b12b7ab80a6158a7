"""Write what kreg has not: a loss, a group of matrices, a transform with a meaning of its own.

    python examples/own_parts.py             # about a minute
    python examples/own_parts.py --quick     # few steps, to see that everything runs

Three parts, each used at once, on a micrograph that comes with scikit-image:

* `EdgeCorrelation`, a loss between images: in `kreg.register`, or in `compile` of any model.
* `ShiftAndStretch`, matrices that shift and stretch along each axis, but never turn: in
  `kreg.register`, or in the layer `MatrixExpAffine`.
* `Lens`, a layer: the radial distortion of a camera, with a single number to be found by `fit`.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import keras
import numpy as np
from absl import app, flags
from skimage import data
from skimage.transform import downscale_local_mean

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_bool("quick", False, "small images, few steps: a check, not a result")


# --- a loss ---


def edge_strength(image, sigma):
    """Return the length of the blurred image's gradient, ``(batch, *spatial, channels)``."""
    gradient = kreg.ops.spatial_gradient(kreg.ops.gaussian_filter(image, sigma))
    return keras.ops.sqrt(keras.ops.sum(keras.ops.square(gradient), axis=-1) + 1e-6)


@keras.saving.register_keras_serializable("own_parts")
class EdgeCorrelation(kreg.losses.ImageLoss):
    """loss = 1 - NCC of edge strengths: where grey values differ, but edges lie alike.

    `compare` is all that a loss needs: one value a pair, ``(batch,)``. `mask` is None, or weights
    of the voxels. With `get_config` it is saved with a model, and loaded.
    """

    def __init__(self, sigma=1.0, **options):
        super().__init__(**options)
        self.sigma = sigma

    def compare(self, fixed, warped, mask):
        """Return the loss of each pair."""
        edges = (edge_strength(image, self.sigma) for image in (fixed, warped))
        return 1.0 - kreg.losses.ncc(*edges, mask)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "sigma": self.sigma}


def with_own_loss(image, steps):
    """Return the errors in pixels, before and after, of a displacement found by the loss."""
    axes = [2 * np.pi * np.arange(size) / size for size in image.shape]
    rows, columns = np.meshgrid(*axes, indexing="ij")
    truth = 2 * np.stack([np.sin(rows) * np.cos(columns), np.sin(columns)], axis=-1)
    # Seen elsewhere, and with its grey values inverted.
    moving = 1 - np.sqrt(pulled_back(image, truth))
    result = kreg.register(
        image,
        moving,
        transform=kreg.transforms.FreeForm(),
        similarity=EdgeCorrelation(),
        schedule=kreg.pairwise.CoarseToFine(steps),
        start=None,
    )
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    # The moving image at y is the scene at y + truth(y): both maps in a row lead back.
    found = result.transform_points(grid)
    there = np.stack(
        [pulled_back(component, found - grid) for component in np.moveaxis(truth, -1, 0)], axis=-1
    )
    inside = (slice(8, -8),) * 2
    errors = truth[inside], (found - grid + there)[inside]
    return tuple(float(np.linalg.norm(error, axis=-1).mean()) for error in errors)


# --- a group of matrices ---


def _axis_scales(dimensions):
    for axis in range(dimensions):
        yield np.diag(np.eye(dimensions + 1)[axis])


@keras.saving.register_keras_serializable("own_parts")
class ShiftAndStretch(kreg.groups.Group):
    """A = [[diag(s), t], [0, 1]], s > 0: 4 coefficients in 2-D, 6 in 3-D.

    A group is its generators: matrices whose sums the exponential turns into members. Families of
    them, for any number of axes, are taken over from others or added.
    """

    families = (*kreg.groups.Translation.families, _axis_scales)


def with_own_group(image, steps):
    """Return the matrix that was applied, and the one that was found, between voxels."""
    truth = np.array([[1.1, 0, -6], [0, 0.9, 5], [0, 0, 1]])
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    back = np.linalg.inv(truth)
    moving = pulled_back(image, grid @ (back[:2, :2].T - np.eye(2)) + back[:2, 2])
    result = kreg.register(
        image,
        moving,
        transform=kreg.transforms.Linear(ShiftAndStretch()),
        schedule=kreg.pairwise.CoarseToFine(steps),
    )
    return truth, result.voxel_matrix


# --- a transform ---


@keras.saving.register_keras_serializable("own_parts")
class Lens(keras.layers.Layer):
    """u(x) = k abs(c)^2 c, c = x - middle in units of half the longest side: radial distortion.

    A transform is a layer that returns a displacement, ``(batch, *spatial, D)`` in voxels of the
    fixed image; here of an image's size, and with a weight of its own, the same for all images.
    """

    def build(self, image_shape):
        """Create the one weight."""
        self.k = self.add_weight(name="k", shape=(), initializer="zeros")

    def call(self, image):
        """Return the displacement on the grid of the image."""
        shape = image.shape[1:-1]
        half = max(shape) / 2
        middle = np.float32([(size - 1) / 2 for size in shape])
        centred = (kreg.ops.identity_grid(shape) - middle) / half
        squared = keras.ops.sum(keras.ops.square(centred), axis=-1, keepdims=True)
        displacement = half * self.k * squared * centred
        return keras.ops.broadcast_to(
            displacement[None], (keras.ops.shape(image)[0], *shape, len(shape))
        )


def with_own_transform(image, epochs):
    """Return the distortion that was applied, and the one that was found."""
    image = image[None, ..., None].astype("float32")
    lens = Lens()
    lens.build(image.shape)
    lens.k.assign(0.08)
    transformer = kreg.layers.SpatialTransformer(image_gradient=False)
    fixed = np.array(transformer(image, lens(image)))  # as the camera shows it

    inputs = keras.Input(image.shape[1:])
    found = Lens()
    model = keras.Model(inputs, transformer(inputs, found(inputs)))
    model.compile(keras.optimizers.Adam(0.01), loss=EdgeCorrelation(sigma=2.0))
    model.fit(image, fixed, epochs=epochs, verbose=0)
    return 0.08, float(found.k)


# --- all of it ---


def pulled_back(image, displacement):
    """Return image(x + u(x)) of one grey image."""
    warped = kreg.ops.warp(
        image[None, ..., None].astype("float32"),
        displacement[None].astype("float32"),
        border=kreg.ops.nearest_border,
    )
    return np.array(warped)[0, ..., 0]


def micrograph(factor):
    """Return stained tissue in green light, values up to 1, averaged over squares of pixels."""
    green = data.immunohistochemistry()[..., 1]
    return (downscale_local_mean(green, (factor, factor)) / 255).astype("float32")


def main(arguments):
    """Use each part."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    image = micrograph(8 if FLAGS.quick else 4)
    few = FLAGS.quick
    before, after = with_own_loss(image, (0, 0, 20) if few else (60, 40, 40))
    print(f"EdgeCorrelation: {before:.2f} pixels apart before, {after:.2f} after")
    truth, found = with_own_group(image, (10, 5, 5) if few else (50, 20, 20))
    print(f"ShiftAndStretch: applied\n{truth}\nfound\n{np.round(found, 3)}")
    truth, found = with_own_transform(image, 10 if few else 60)
    print(f"Lens: applied {truth}, found {found:.4f}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
