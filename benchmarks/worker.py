"""One side of a comparison: a process that prepares a task once and times it whenever asked.

Requests and answers are lines of JSON on stdin and stdout. A side is a module with `prepare(task,
form, inputs)`, which returns a function without arguments, and with `about()`, `wait(result)`,
`array(result)` and `peak_bytes()`.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

#: Contender -> module of this package, and which of its forms.
SIDES = {
    "kreg": ("kreg_side", None),
    "torch": ("torch_side", None),
    "torch conv": ("torch_side", "conv"),
    "torch pool": ("torch_side", "pool"),
    "torch separable pool": ("torch_side", "separable"),
    "scipy": ("scipy_side", None),
    "opencv": ("opencv_side", None),
}


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(f"Expected a line {field} in /proc/self/status: benchmarks need Linux.")


class Session:
    """The requests a worker answers, one method each."""

    def __init__(self, side):
        self.side = side
        self.run = self.before = None

    def about(self) -> dict:
        """Return versions, threads and device of this side."""
        return self.side.about()

    def prepare(self, task: str, form: str | None, folder: str) -> dict:
        """Load the inputs, call the task once, keep its result and say how long that took."""
        # 5 resets the high-water mark of resident memory.
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status_bytes("VmRSS:")
        self.run = self.side.prepare(task, form, Path(folder))
        start = time.perf_counter()
        self.side.wait(self.run())
        return {"first": time.perf_counter() - start}

    def time(self, seconds: float, calls: int) -> dict:
        """Return the durations of `calls` calls, and of more until `seconds` have passed."""
        durations: list[float] = []
        begin = time.perf_counter()
        while len(durations) < calls or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            self.side.wait(self.run())
            durations.append(time.perf_counter() - start)
        return {"durations": durations}

    def finish(self, path: str | None) -> dict:
        """Return the peak memory and write the result to `path`, unless None."""
        peak = self.side.peak_bytes()
        if peak is None:
            peak = _status_bytes("VmHWM:") - self.before
        if path is not None:
            import numpy as np

            np.save(path, self.side.array(self.run()))
        self.run = None
        return {"peak_bytes": peak}


def main() -> None:
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side")
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()

    # Before the libraries are imported: they size their pools by what they find.
    os.sched_setaffinity(0, options.cores)
    threads = len(options.cores)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    # What libraries print must not reach the channel of answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    side = importlib.import_module(f"benchmarks.{options.side}")
    side.configure(threads, options.gpu)
    session = Session(side)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(session, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
