"""A process that registers the pairs of a folder by one method; see `ONE_THREAD` in __main__.py.

    python -m benchmarks.dense.worker "kreg" "smooth" FOLDER

For each FOLDER/n.npz it writes the displacement to FOLDER/n.npy and a line of JSON to stdout. The
first pair is done twice, and the second time counts: a method that compiles does so once for a
size. Where one that does not takes long, the first time counts.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Seconds.
LONG = 20.0


class Method(NamedTuple):
    """Where a method is found and what it needs."""

    module: str
    function: str
    groups: tuple[str, ...]
    #: import name -> distribution
    needs: dict[str, str] = {}  # noqa: RUF012


ALL = ("smooth", "stereo", "mnist fives", "mnist all", "warped brain", "two brains")
_BRAINS = ("warped brain", "two brains")
_KREG = {"kreg": "kreg", "keras": "keras"}
_ITK, _ANTS = {"itk": "itk-elastix"}, {"ants": "antspyx"}
METHODS = {
    "nothing": Method("peers", "nothing", ALL),
    "kreg": Method("kreg_methods", "tuned", ALL, _KREG),
    "kreg, Dense() alone": Method("kreg_methods", "default", ALL, _KREG),
    "elastix, Mattes": Method("peers", "elastix_mattes", ("smooth", "stereo"), _ITK),
    "elastix, NCC": Method("peers", "elastix_ncc", ("smooth", "stereo"), _ITK),
    "elastix, NCC, 8": Method("peers", "elastix_ncc_fine", ("stereo", *_BRAINS), _ITK),
    "demons": Method("peers", "demons", ("smooth", "stereo", *_BRAINS), {"SimpleITK": "SimpleITK"}),
    "demons, smoother": Method(
        "peers", "smooth_demons", ("smooth", "stereo", *_BRAINS), {"SimpleITK": "SimpleITK"}
    ),
    "ILK": Method("peers", "ilk", ("smooth", "stereo"), {"skimage": "scikit-image"}),
    "DIS": Method("peers", "dis", ("smooth", "stereo"), {"cv2": "opencv-python-headless"}),
    "ANTs, mean squares": Method("peers", "ants_mean_squares", ("mnist fives", "mnist all"), _ANTS),
    "ANTs, CC": Method("peers", "ants_cc", ("smooth", *_BRAINS), _ANTS),
}


def _timed(function: Callable, fixed, moving) -> tuple[np.ndarray, dict]:
    start, wall = time.process_time(), time.perf_counter()
    found = function(fixed, moving)
    seconds = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    field, verdict = found if isinstance(found, tuple) else (found, {})
    return field, seconds | verdict


def _for_batches(function: Callable) -> Callable:
    """A method of one pair, applied to each of a batch."""
    return lambda fixed, moving: np.stack(
        [function(*pair) for pair in zip(fixed, moving, strict=True)]
    )


def main() -> None:
    """Register every pair of the folder; the first line says what is missing, if anything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("group")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()

    # What libraries print must not reach the channel of answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**content) -> None:
        print(json.dumps(content), file=answers, flush=True)

    method = METHODS[options.method]
    versions = {"numpy": np.__version__, "python": sys.version.split()[0]}
    try:
        for name, distribution in method.needs.items():
            importlib.import_module(name)
            versions[distribution] = version(distribution)
        module = importlib.import_module(f"benchmarks.dense.{method.module}")
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(versions=versions)
    if hasattr(module, "configure"):
        module.configure()
    function: Callable = getattr(module, method.function)
    if method.module == "kreg_methods":
        function = lambda fixed, moving, own=function: own(fixed, moving, options.group)  # noqa: E731
    elif options.group.startswith("mnist"):
        function = _for_batches(function)
    first = None
    for path in sorted(options.folder.glob("*.npz"), key=lambda path: int(path.stem)):
        pair = np.load(path)
        if first is None:
            field, facts = _timed(function, pair["fixed"], pair["moving"])
            first = facts["seconds"]
            if first < LONG or "kreg" in method.needs:
                field, facts = _timed(function, pair["fixed"], pair["moving"])
        else:
            field, facts = _timed(function, pair["fixed"], pair["moving"])
        np.save(path.with_suffix(".npy"), np.asarray(field, "float32"))
        answer(pair=path.stem, first=first, **facts)


if __name__ == "__main__":
    main()
