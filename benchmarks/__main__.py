"""Warp and local NCC of kreg, side by side with PyTorch, SciPy and OpenCV.

    python -m benchmarks                    # all sizes on one core, about half an hour
    python -m benchmarks --quick            # tiny sizes, seconds: does everything run?
    KERAS_BACKEND=jax python -m benchmarks --kreg-python .venv-jax/bin/python

See benchmarks/README.md for what is measured and what is fair about it.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.cases import BOTH, FLOW, ONLY_2D, PEERS, QUICK_SIZES, SIZES, WARP, write_inputs
from benchmarks.worker import SIDES

#: More than rounding: the sides did not compute the same.
_TOLERANCE = 0.05


class Plan(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float  # of each turn, at least
    calls: int  # in each turn, at least
    #: A peer that needs longer than this for one call gets few rounds of one call each.
    slow: float = 2.0
    slow_rounds: int = 3
    #: Whether processes serve all rows: their peak memory then means nothing.
    shared_workers: bool = False


FULL, QUICK = Plan(rounds=11, seconds=0.3, calls=3), Plan(2, 0.0, 2, shared_workers=True)


class Worker:
    """A process of one side, pinned to the cores that all sides share in turn."""

    def __init__(self, side: str, options):
        python = options.kreg_python if side == "kreg_side" else sys.executable
        command = [python, "-m", "benchmarks.worker", side, "--cores", *map(str, options.cores)]
        self.process = subprocess.Popen(
            command + ["--gpu"] * options.gpu,
            cwd=report.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **request) -> dict:
        """Send one request and wait for the answer."""
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"Expected an answer to {do!r} from {' '.join(self.process.args)}; it ended with "
                f"status {self.process.wait()}. What it printed stands above."
            )
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def _rounds(workers: dict[str, Worker], firsts: dict[str, float], plan: Plan) -> dict:
    """Durations of each contender, a list a round; in a round everybody has one turn."""
    durations: dict[str, list] = {name: [] for name in workers}
    slow = {name for name, first in firsts.items() if name != "kreg" and first > plan.slow}
    for number in range(plan.rounds):
        for name, worker in workers.items():
            if name in slow and number >= plan.slow_rounds:
                continue
            seconds, calls = (0.0, 1) if name in slow else (plan.seconds, plan.calls)
            answer = worker.ask("time", seconds=seconds, calls=calls)
            durations[name].append(answer["durations"])
            time.sleep(0.02)  # threads that spin for work go to sleep before the next turn
    return durations


def _ratio(rounds: list, own: list) -> tuple[float, float, float]:
    """Median and quartiles, over the rounds, of the medians' ratio: load that drifts cancels."""
    pairs = zip(rounds, own, strict=False)
    ratios = [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs]
    return report.median_and_quartiles(ratios)


def _difference(path: Path, own: np.ndarray) -> float:
    theirs = np.load(path)
    return float(np.abs(theirs - own).sum() / np.abs(own).sum())


def _group(size, task: str, workers: dict[str, Worker], folder: Path, plan: Plan) -> dict:
    """Measure one task at one size."""
    firsts = {
        name: worker.ask("prepare", task=task, form=SIDES[name][1], folder=str(folder))["first"]
        for name, worker in workers.items()
    }
    durations = _rounds(workers, firsts, plan)
    rows, own = [], None
    comparable = task in (WARP, FLOW, BOTH)
    for name, worker in workers.items():  # kreg first
        path = folder / f"result of {name}.npy"
        peak = worker.ask("finish", path=str(path) if comparable else None)["peak_bytes"]
        difference = None
        if comparable and name == "kreg":
            own = np.load(path)
        elif comparable:
            difference = _difference(path, own)
            if not difference < _TOLERANCE:
                raise RuntimeError(
                    f"Expected {name} to compute what kreg computes, up to {_TOLERANCE:.0%}: "
                    f"{task}, {size}. Differs by {difference:.1%}."
                )
        rows.append(
            {
                "contender": name,
                "first": firsts[name],
                "peak_bytes": peak,
                "rounds": durations[name],
                "ratio": None if name == "kreg" else _ratio(durations[name], durations["kreg"]),
                "difference": difference,
            }
        )
    return {"task": task, "size": str(size), "rows": rows}


def _contenders(size, task: str, gpu: bool) -> list[str]:
    def fits(name):
        if gpu and name in ("scipy", "opencv"):
            return False
        return len(size.spatial) == 2 or name not in ONLY_2D

    return ["kreg", *filter(fits, PEERS[task])]


def measure(options) -> dict:
    """Run everything; return what report.py writes."""
    plan = QUICK if options.quick else FULL
    about, groups, sides = report.provenance(), [], {}
    with contextlib.ExitStack() as shared:
        pool: dict[str, Worker] = {}

        def start(name: str, stack) -> Worker:
            # One process for each contender: their result and their memory are their own.
            if not plan.shared_workers or name not in pool:
                worker = Worker(SIDES[name][0], options)
                (shared if plan.shared_workers else stack).callback(worker.close)
                pool[name] = worker
            return pool[name]

        for size in QUICK_SIZES if options.quick else SIZES:
            with tempfile.TemporaryDirectory() as folder:
                write_inputs(size, Path(folder))
                for task in PEERS:
                    with contextlib.ExitStack() as stack:
                        names = _contenders(size, task, options.gpu)
                        workers = {name: start(name, stack) for name in names}
                        for name, worker in workers.items():
                            sides.setdefault(name.split()[0], worker.ask("about"))
                        groups.append(_group(size, task, workers, Path(folder), plan))
                    print(f"measured: {task}, {size}", file=sys.stderr, flush=True)
    return {
        "provenance": about,
        "load_after": [round(x, 1) for x in os.getloadavg()],
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "device": "gpu" if options.gpu else "cpu",
        "threads": len(options.cores),
        "sides": sides,
        "groups": groups,
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="kreg side by side with other libraries."
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes no results")
    parser.add_argument("--threads", type=int, default=1, help="cores for either side (default 1)")
    parser.add_argument("--gpu", action="store_true", help="kreg and PyTorch on the first GPU")
    parser.add_argument(
        "--kreg-python", default=sys.executable, help="interpreter for kreg, of another backend"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for .md and .json (default benchmarks/results)"
    )
    options = parser.parse_args(arguments)
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= options.threads <= len(available):
        parser.error(f"Expected --threads of 1 to {len(available)}. Received: {options.threads}.")
    options.cores = available[-options.threads :]
    run = measure(options)
    print(report.markdown(run))
    if not options.quick or options.output:
        path = report.write(run, options.output or report.ROOT / "benchmarks/results")
        print(f"written: {path} and .json", file=sys.stderr)


if __name__ == "__main__":
    main()
