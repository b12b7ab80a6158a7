"""Use a trained model: load it, register one new pair in one pass, draw the result.

python examples/mnist_predict.py MODEL.keras PAIR.npz PICTURE.png

PAIR.npz holds `moving` and `fixed`, ``(28, 28, 1)`` floats in [0, 1].
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import sys
from pathlib import Path

import keras
import numpy as np


def main(model_path, pair_path, picture_path):
    """Register the pair and write the picture."""
    model = keras.saving.load_model(model_path)  # safe mode: no code from the file is run
    with np.load(pair_path) as pair:
        moving, fixed = pair["moving"], pair["fixed"]
    result = model.predict({"moving": moving[None], "fixed": fixed[None]}, verbose=0)
    warped, displacement = result["warped"][0], result["displacement"][0]

    before = float(kreg.metrics.ncc(fixed[None], moving[None])[0])
    after = float(kreg.metrics.ncc(fixed[None], warped[None])[0])
    largest = np.linalg.norm(displacement, axis=-1).max()
    print(f"NCC {before:.3f} -> {after:.3f}; largest displacement {largest:.1f} pixels")
    figure = kreg.plots.show_pair(moving, fixed, warped, displacement)
    figure.savefig(picture_path, dpi=120)
    print(f"Picture: {Path(picture_path).name}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
