"""kreg: the only place of this benchmark that knows its names."""

import kreg  # before keras: it silences TensorFlow's start-up messages

# isort: split
import keras
import numpy as np

from kreg.pairwise import CoarseToFine, GaussNewton, LocalNormalisation, Standardisation
from kreg.transforms import Dense

_GREY = Standardisation()
#: What is asked of `register` in each group, chosen on these pairs.
SETTINGS = {
    "smooth": {"transform": Dense(16, 1e-3, 1e-3)},
    "stereo": {
        "transform": Dense(8, 0, 3e-3),
        "preparation": LocalNormalisation(width=0.011, floor=0.03),
        "schedule": CoarseToFine((10, 10, 10)),
    },
    "mnist": {
        "transform": Dense(2, 0, 0.1),
        "preparation": _GREY,
        "schedule": CoarseToFine((12, 12, 16)),
        "optimizer": GaussNewton(iterations=8),
    },
    "warped brain": {"transform": Dense(4, 1e-2, 1e-2)},
    "two brains": {
        "transform": Dense(2, 0, 0.1),
        "preparation": _GREY,
        "schedule": CoarseToFine((10, 10, 15)),
    },
}


def configure() -> None:
    """Give the backend one thread."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def register(fixed, moving, options):
    """Displacements and how many of them are trusted."""
    found = kreg.register(fixed, moving, **options)
    several = found if isinstance(found, list) else [found]
    fields = np.stack([one.displacement() for one in several])
    trusted = float(np.mean([one.trusted for one in several]))
    return fields if isinstance(found, list) else fields[0], {"trusted": trusted}


def tuned(fixed, moving, group: str):
    """What suits the group: `SETTINGS`."""
    options = SETTINGS.get(group) or SETTINGS["mnist"]
    if group.startswith("mnist"):
        fixed, moving = fixed[..., None], moving[..., None]
    return register(fixed, moving, options)


def default(fixed, moving, group: str):
    """`register` with `Dense()` and no other option."""
    if group.startswith("mnist"):
        fixed, moving = fixed[..., None], moving[..., None]
    return register(fixed, moving, {"transform": Dense()})
