"""Learned registration of MNIST: accuracy against CPU time, over several seeds.

    python -m benchmarks.mnist                        # the whole table, about half an hour
    python -m benchmarks.mnist --run 5-fast --seeds 0 # one row, one seed

Held-out pairs: both images from MNIST's test set, 1000 pairs. CPU seconds are user + system of the
process, from before the model is built to the end of training, compilation included.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from examples import mnist as example
from kreg.data import load_mnist

RUNS = {
    "5-fast": {"digit": 5, "steps": 1200},
    "5-long": {"digit": 5, "steps": 2500},
    "all": {"digit": None, "steps": 2800},
    "5-mse": {"digit": 5, "steps": 1200, "similarity": keras.losses.MeanSquaredError()},
}


def cpu_seconds() -> float:
    """Return user + system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def one(name: str, seed: int, path) -> dict:
    """Train one configuration with one seed and return its scores."""
    options = RUNS[name]
    digits = load_mnist(path)
    before = cpu_seconds()
    model, _ = example.train(digits, seed=seed, verbose=0, **options)
    seconds = cpu_seconds() - before
    images = example.held_out(digits, digit=options["digit"])
    return {
        "run": name,
        "seed": seed,
        "cpu_s": seconds,
        "ms_a_pair": example.milliseconds_a_pair(model, images),
        "scores": example.evaluate(model, images),
    }


def mean_and_spread(values) -> str:
    """Return "mean (min-max)" with four digits."""
    return f"{np.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def report(results: list[dict]) -> str:
    """Return the results as Markdown, one row a configuration."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("keras", keras.config.backend(), "numpy"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        f"Commit {commit or 'unknown'}; {versions}; Python {platform.python_version()}; "
        f"{os.cpu_count()} cores.",
        "",
        "Held-out pairs: 1000, both images from the test set; mean (min-max) over the seeds.",
        "",
        "| run | steps | seeds | NCC before | NCC | Dice | folds % | NCC, moving as 0.5 x + 0.3 "
        "| CPU s of training | ms a pair |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, options in RUNS.items():
        rows = [result for result in results if result["run"] == name]
        if not rows:
            continue
        before, after, remapped = (
            [list(row["scores"].values())[i] for row in rows] for i in range(3)
        )
        cells = [
            name,
            options["steps"],
            len(rows),
            f"{before[0]['NCC']:.3f}",
            *(mean_and_spread([scores[key] for scores in after]) for key in after[0]),
            mean_and_spread([scores["NCC"] for scores in remapped]),
            f"{np.mean([row['cpu_s'] for row in rows]):.0f}",
            f"{np.mean([row['ms_a_pair'] for row in rows]):.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run each configuration and seed in a process of its own, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=RUNS, action="append", help="which rows; all if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mnist", help="mnist.npz or its folder; searched for if left out")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    runs = arguments.run or list(RUNS)
    if arguments.single:
        print("RESULT " + json.dumps(one(runs[0], arguments.seeds[0], arguments.mnist)))
        return
    results = []
    for run in runs:
        for seed in arguments.seeds:
            command = [sys.executable, "-m", "benchmarks.mnist", "--single", "--run", run]
            command += ["--seeds", str(seed)]
            command += ["--mnist", arguments.mnist] if arguments.mnist else []
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            line = next(part for part in output.splitlines() if part.startswith("RESULT "))
            results.append(json.loads(line.removeprefix("RESULT ")))
            after = results[-1]["scores"]["after"]
            print(f"{run} seed {seed}: {after}, {results[-1]['cpu_s']:.0f} CPU s", flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = report(results)
    (arguments.results / "mnist.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.results / "mnist.md").write_text(f"# Learned MNIST registration\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
