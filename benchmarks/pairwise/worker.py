"""A process that registers pairs by one method, on one core with one thread.

Requests and answers are lines of JSON on stdin and stdout.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from benchmarks.pairwise.cases import AFFINE, HOMOGRAPHY

_BOTH = (AFFINE, HOMOGRAPHY)


class Method(NamedTuple):
    """Where a method is found, what it needs and what it can do."""

    module: str
    function: str
    models: tuple[str, ...] = _BOTH
    #: import name -> distribution
    needs: dict[str, str] = {}  # noqa: RUF012
    #: Whether it compiles something for each shape of the images.
    compiles: bool = False


#: Seconds.
LONG = 60.0
_CV2 = {"cv2": "opencv-python-headless"}
_KREG = {"kreg": "kreg", "keras": "keras"}
METHODS = {
    "identity": Method("peers", "identity"),
    "kreg critic": Method("kreg_methods", "critic", needs=_KREG, compiles=True),
    "kreg histogram": Method("kreg_methods", "histogram", needs=_KREG, compiles=True),
    "kreg edges": Method("kreg_methods", "edges", needs=_KREG, compiles=True),
    "kreg critic, channels": Method("kreg_methods", "critic_channels", needs=_KREG, compiles=True),
    "ECC": Method("peers", "ecc", needs=_CV2),
    "ECC gradient": Method("peers", "ecc_gradient", needs=_CV2),
    "SIFT": Method("peers", "sift", needs=_CV2),
    "SimpleITK": Method("peers", "simpleitk", (AFFINE,), {"SimpleITK": "SimpleITK"}),
    "elastix": Method("peers", "elastix", (AFFINE,), {"itk": "itk-elastix"}),
    "ANTs": Method("peers", "ants", (AFFINE,), {"ants": "antspyx"}),
}
#: Timed for one iteration on the pair of FIRE, not scored.
ITERATIONS = {
    "original DRMIME": Method("original_drmime", "seconds_per_iteration", needs={"torch": "torch"}),
    "kreg critic": Method("kreg_methods", "seconds_per_iteration", needs=_KREG),
}


class Session:
    """The requests a worker answers, one method each."""

    def __init__(self, method: Method):
        self.method = method
        self.versions = {"numpy": np.__version__, "python": platform.python_version()}
        for name, distribution in method.needs.items():
            importlib.import_module(name)
            self.versions[distribution] = version(distribution)
        if "cv2" in method.needs:
            import cv2

            cv2.setNumThreads(1)
        module = importlib.import_module(f"benchmarks.pairwise.{method.module}")
        if hasattr(module, "configure"):
            module.configure()
        self.function: Callable = getattr(module, method.function)
        self.seen: set = set()

    def about(self) -> dict:
        """Return the versions of what the method uses."""
        return {"versions": self.versions}

    def register(self, path: str, model: str) -> dict:
        """Register the pair in an .npz file; the first pair is done twice, the second counts.

        A method that compiles does so with the first pair of each shape. Others only load their
        library at first: where a call takes long, that is nothing, and it is not repeated.
        """
        pair = np.load(path)
        fixed, moving = pair["fixed"], pair["moving"]
        kind = (fixed.shape, moving.shape, model) if self.method.compiles else None
        answer: dict = {"first": None}
        if kind not in self.seen:
            self.seen.add(kind)
            first = self._once(fixed, moving, model)
            answer["first"] = first["seconds"]
            if first["wall"] > LONG and not self.method.compiles:
                return answer | first
        return answer | self._once(fixed, moving, model)

    def _once(self, fixed, moving, model: str) -> dict:
        start, wall = time.process_time(), time.perf_counter()
        try:
            found, failure = self.function(fixed, moving, model), None
        except Exception as error:  # a peer that gives up has failed on this pair only
            found, failure = None, f"{type(error).__name__}: {error}".strip()[:200]
        answer = {
            "seconds": time.process_time() - start,
            "wall": time.perf_counter() - wall,
            "failure": failure,
            "matrix": None,
        }
        if isinstance(found, tuple):
            found, verdict = found
            answer |= verdict
        if found is not None and np.all(np.isfinite(found)):
            answer["matrix"] = np.asarray(found, "float64").tolist()
        return answer

    def iteration(self, path: str) -> dict:
        """Return the CPU seconds of one iteration."""
        pair = np.load(path)
        try:
            return {"seconds": self.function(pair["fixed"], pair["moving"]), "failure": None}
        except NotImplementedError as error:
            return {"seconds": None, "failure": str(error)}


def main() -> None:
    """Answer requests until stdin ends; the first answer says what is missing, if anything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("--iteration", action="store_true")
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()

    # Before the libraries are imported: they size their pools by what they find.
    os.sched_setaffinity(0, [options.core])
    for name in ("OMP", "MKL", "OPENBLAS", "VECLIB", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What libraries print must not reach the channel of answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        session = Session((ITERATIONS if options.iteration else METHODS)[options.method])
    except (ImportError, AttributeError) as error:
        answer({"missing": str(error)})
        return
    answer(session.about())
    for line in sys.stdin:
        request = json.loads(line)
        answer(getattr(session, request.pop("do"))(**request))


if __name__ == "__main__":
    main()
