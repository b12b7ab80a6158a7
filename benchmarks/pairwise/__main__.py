"""Pairwise registration: kreg beside OpenCV, SimpleITK, elastix and ANTs.

    python -m benchmarks.pairwise                                  # everything; hours
    python -m benchmarks.pairwise --cases synthetic/affine --methods "kreg critic" ECC --seeds 5
    python -m benchmarks.pairwise --cases real --ants-python .venv-ants/bin/python
    python -m benchmarks.pairwise --cases iteration                # seconds of one DRMIME step
    python -m benchmarks.pairwise --cases none                     # only write the report again

What the cases are: synthetic.py, real.py. Each finished pair is a line of the log, and a pair that
the log has is not done again (--redo does it again: after a change of the code). Real pairs need
KREG_DATA. A method whose library is missing is left out. ANTs wants an older SciPy than kreg's
tests, so an environment of its own, with NumPy and what setup.cfg lists as bench-ants. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.pairwise import real, report, synthetic
from benchmarks.pairwise.cases import Case, affine_floor, distances
from benchmarks.pairwise.worker import ITERATIONS, METHODS
from benchmarks.report import ROOT, provenance

ITERATION_GROUP, ITERATION_PAIR = "iteration", "real/fire/affine"


class Missing(Exception):
    """The library of a method is not installed."""


class Worker:
    """A process of one method."""

    def __init__(self, method: str, options, *, iteration: bool = False):
        pythons = {"kreg": options.kreg_python, "ANTs": options.ants_python}
        python = pythons.get(method.split()[0], sys.executable)
        command = [python, "-m", "benchmarks.pairwise.worker", method, "--core", str(options.core)]
        self.process = subprocess.Popen(
            command + ["--iteration"] * iteration,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
        )
        about = self._answer()
        if "missing" in about:
            self.close()
            raise Missing(about["missing"])
        self.versions = about["versions"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"Expected an answer from {' '.join(self.process.args)}; --verbose shows what it "
                f"prints. It ended with status {self.process.wait()}."
            )
        return json.loads(line)

    def ask(self, do: str, **request) -> dict:
        """Send one request and wait for the answer."""
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def score(case: Case, matrix) -> dict:
    """Return the errors of a voxel matrix, or of None."""
    found = distances(matrix, case.truth)
    others = {
        name: {
            "points": len(truth.fixed),
            "mean": _finite(distances(matrix, truth).mean()),
            "median": _finite(np.median(distances(matrix, truth))),
            "floor": affine_floor(truth),
        }
        for name, truth in case.other_truths.items()
    }
    return {
        "error": _finite(found.mean()),
        "median": _finite(np.median(found)),
        "floor": case.floor,
        "limit": case.limit,
        "others": others,
    }


def _wanted(group: str, prefixes: list[str]) -> bool:
    return any(group == p or group.startswith(p.rstrip("/") + "/") for p in prefixes)


def _write_pair(case: Case, path: Path) -> None:
    np.savez(path, fixed=case.fixed, moving=case.moving)


def _append(log: Path, row: dict) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    # A line that an end cut short stays a line of its own.
    cut = log.exists() and log.read_bytes()[-1:] not in (b"", b"\n")
    with log.open("a") as file:
        file.write("\n" * cut + json.dumps(row) + "\n")


def _run_group(group: str, entries: list, done: set, options, commit: str) -> None:
    """Make each pair once; let each method register those that it has not."""
    with tempfile.TemporaryDirectory() as folder:
        made: dict = {}
        for method in options.methods:
            todo = [e for e in entries if options.redo or (e.name, method) not in done]
            worker = None
            for entry in todo:
                if entry.name not in made:
                    case = entry.make()
                    path = Path(folder, f"{len(made)}.npz")
                    _write_pair(case, path)
                    # The worker reads the images; here only the truth is needed.
                    made[entry.name] = path, case
                path, case = made[entry.name]
                if case.model not in METHODS[method].models:
                    break
                if worker is None:
                    try:
                        worker = Worker(method, options)
                    except Missing as reason:
                        print(f"left out: {method}: {reason}", file=sys.stderr, flush=True)
                        break
                answer = worker.ask("register", path=str(path), model=case.model)
                row = {"case": entry.name, "group": group, "method": method}
                row |= answer | score(case, answer["matrix"])
                row |= {"versions": worker.versions, "commit": commit}
                _append(options.log, row)
                print(
                    f"{entry.name}, {method}: {row['error']} px, {row['seconds']:.2f} s"
                    + (f", {row['failure']}" if row["failure"] else ""),
                    file=sys.stderr,
                    flush=True,
                )
            if worker is not None:
                worker.close()


def _run_iterations(entries: list, done: set, options, commit: str) -> None:
    pair = next((entry for entry in entries if entry.group == ITERATION_PAIR), None)
    if pair is None:
        print("left out: iteration: needs KREG_DATA with fire_retina", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pair.npz")
        _write_pair(pair.make(), path)
        for method in ITERATIONS:
            if (ITERATION_GROUP, method) in done and not options.redo:
                continue
            try:
                worker = Worker(method, options, iteration=True)
            except Missing as reason:
                print(f"left out: {method}: {reason}", file=sys.stderr)
                continue
            row = {"case": ITERATION_GROUP, "group": ITERATION_GROUP, "method": method}
            row |= worker.ask("iteration", path=str(path))
            worker.close()
            print(f"iteration, {method}: {row['seconds'] or row['failure']}", file=sys.stderr)
            if row["failure"] is None:
                _append(options.log, row | {"versions": worker.versions, "commit": commit})


def run(options) -> str:
    """Do what the log lacks, write the report and return it."""
    commit = provenance()["commit"]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    entries = [*synthetic.entries(seeds), *real.entries()]
    done = set(report.read(options.log))
    for group in dict.fromkeys(entry.group for entry in entries):
        if _wanted(group, options.cases):
            here = [entry for entry in entries if entry.group == group]
            _run_group(group, here, done, options, commit)
    if _wanted(ITERATION_GROUP, options.cases):
        _run_iterations(entries, done, options, commit)
    rows = list(report.read(options.log).values())
    order = {entry.name: number for number, entry in enumerate(entries)}
    iterations = [row for row in rows if row["group"] == ITERATION_GROUP]
    rows = [row for row in rows if row["group"] != ITERATION_GROUP]
    rows.sort(key=lambda row: order.get(row["case"], len(order)))
    path = report.write(rows, iterations, provenance(), list(METHODS), options.output)
    return path.read_text()


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pairwise", description="Pairwise registration beside its peers."
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["synthetic", "real", ITERATION_GROUP],
        help="beginnings of groups, such as synthetic/affine/mono or real/fire",
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=20, help="how many of each synthetic group")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--redo", action="store_true", help="also what the log has")
    parser.add_argument("--log", type=Path, default=ROOT / "outputs/pairwise.jsonl")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the report"
    )
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--kreg-python", default=sys.executable, help="of another backend")
    parser.add_argument("--ants-python", default=sys.executable, help="of ANTs's environment")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    print(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
