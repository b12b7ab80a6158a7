"""One side of `benchmarks.voxelmorph`: a process that takes training steps whenever asked.

A request is a line with a number of steps, the answer a line of JSON: the CPU seconds of each. A
side is a module with `about()` and `prepare(widths, form, folder)`, which returns the step.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Prepare, say what this is, then answer requests until stdin ends."""
    module, folder, widths, form = sys.argv[1:]
    # Before the libraries are imported: they size their pools by what they find.
    for name in ("OMP", "MKL", "OPENBLAS", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
        os.environ[f"{name}_THREADS" if name.startswith("TF") else f"{name}_NUM_THREADS"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    # What libraries print must not reach the channel of answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    side = importlib.import_module(f"benchmarks.{module}")
    step = side.prepare(widths, form, Path(folder))

    def seconds() -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    print(json.dumps({"first": seconds(), **side.about()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps([seconds() for _ in range(int(line))]), file=answers, flush=True)


if __name__ == "__main__":
    main()
