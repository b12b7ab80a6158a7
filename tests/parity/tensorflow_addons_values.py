"""Write tensorflow_addons.npz: what tensorflow-addons 0.23 makes of small inputs.

`make parity` runs it, in an environment of its own: that package cannot be imported beside Keras 3.
In float64 wherever it allows that.
"""

import warnings
from pathlib import Path

import numpy as np

with warnings.catch_warnings():  # that its development has ended
    warnings.simplefilter("ignore")
    import tensorflow_addons as tfa

VERSION = "0.23.0"
BATCH, HEIGHT, WIDTH, CHANNELS = 2, 11, 14, 3


def inputs() -> dict[str, np.ndarray]:
    """Return images with values up to 1, and what moves them, rounded to float32."""
    random = np.random.default_rng(0)
    size = np.array([HEIGHT, WIDTH])
    source = random.uniform(1, size - 2, (BATCH, 6, 2))
    # Where the images are seen from: turned, sheared and in perspective, as (x, y) -> (x, y).
    transforms = np.array(
        [[0.9, -0.3, 2.5, 0.25, 1.1, -1.0, 0.0, 0.0], [1.1, 0.1, -2.0, -0.2, 0.8, 2.0, 0.01, -0.02]]
    )
    found = {
        "image": random.random((BATCH, HEIGHT, WIDTH, CHANNELS)),
        "flow": random.uniform(-4, 4, (BATCH, HEIGHT, WIDTH, 2)),
        "points": random.uniform(-2, size + 1, (BATCH, 20, 2)),
        "source": source,
        "target": source + random.uniform(-1.5, 1.5, source.shape),
        "values": random.uniform(-1, 1, (BATCH, 6, 1)),
        "volume_points": random.uniform(0, 9, (BATCH, 8, 3)),
        "volume_values": random.uniform(-1, 1, (BATCH, 8, 3)),
        "volume_query": random.uniform(0, 9, (BATCH, 20, 3)),
        "transforms": transforms,
    }
    return {name: value.astype("float32") for name, value in found.items()}


def outputs(image, flow, points, source, target, values, volume_points, volume_values,
            volume_query, transforms) -> dict:  # fmt: skip
    """Return what the functions make of them, by the name that the migration page gives it."""
    single = image.astype("float32"), transforms.astype("float32")  # `transform` knows no float64
    spline = tfa.image.interpolate_spline
    regularised = {"regularization_weight": 0.5, "num_boundary_points": 2}
    return {
        "dense_image_warp": tfa.image.dense_image_warp(image, flow),
        "interpolate_bilinear": tfa.image.interpolate_bilinear(image, points),
        "interpolate_bilinear_xy": tfa.image.interpolate_bilinear(image, points, indexing="xy"),
        "sparse_image_warp": tfa.image.sparse_image_warp(image, source, target)[0],
        "sparse_image_warp_flow": tfa.image.sparse_image_warp(image, source, target)[1],
        "sparse_image_warp_boundary": tfa.image.sparse_image_warp(
            image, source, target, **regularised
        )[0],
        "interpolate_spline": spline(source, values, points, order=2, regularization_weight=0.1),
        "interpolate_spline_volume": spline(volume_points, volume_values, volume_query, order=1),
        "interpolate_spline_cubic": spline(source, values, points, order=3),
        "gaussian_filter2d": tfa.image.gaussian_filter2d(image, 5, 1.2, "SYMMETRIC"),
        "gaussian_filter2d_reflect": tfa.image.gaussian_filter2d(image, (7, 3), (1.5, 0.8)),
        "gaussian_filter2d_constant": tfa.image.gaussian_filter2d(image, 5, 1.2, "CONSTANT"),
        "transform": tfa.image.transform(*single, "bilinear"),
        "transform_nearest": tfa.image.transform(*single, "nearest", "nearest"),
        "transform_reflect": tfa.image.transform(*single, "bilinear", "reflect"),
        "transform_wrap": tfa.image.transform(*single, "bilinear", "wrap"),
        "transform_shape": tfa.image.transform(
            *single, "bilinear", output_shape=[9, 16], fill_value=0.5
        ),
    }


if __name__ == "__main__":
    if tfa.__version__ != VERSION:
        raise SystemExit(f"Expected tensorflow-addons {VERSION}. Received: {tfa.__version__}.")
    given = inputs()
    made = outputs(**{name: value.astype("float64") for name, value in given.items()})
    arrays = given | {f"tfa_{name}": np.asarray(value) for name, value in made.items()}
    path = Path(__file__).with_name("tensorflow_addons.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, {len(made)} results")
