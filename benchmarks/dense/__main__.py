"""Displacements of single pairs: kreg beside elastix, demons, SyN and optical flow.

    python -m benchmarks.dense                                  # everything: about half an hour
    python -m benchmarks.dense --groups smooth --methods kreg "elastix, NCC"
    python -m benchmarks.dense --ants-python .venv-ants/bin/python
    python -m benchmarks.dense --groups none                    # only write the report again

What the pairs are: cases.py; the settings: kreg_methods.py, peers.py. Each finished group of a
method is a line of the log, and not done again without --redo. Brains and digits need KREG_DATA; a
method whose library is missing is left out, ANTs has an environment of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.dense.cases import GROUPS
from benchmarks.dense.worker import METHODS
from benchmarks.report import ROOT, provenance

#: For all libraries, which size their pools as they are imported; one core holds all threads.
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "VECLIB", "NUMEXPR")
} | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
#: How many pairs of a group stand behind one time.
PAIRS = {"mnist fives": 200, "mnist all": 200}


def _one(method: str, group: str, folder: Path, cases: list, options) -> dict | None:
    """Return the row of one method on one group; None where its library is missing."""
    python = options.ants_python if method.startswith("ANTs") else sys.executable
    command = [python, "-m", "benchmarks.dense.worker", method, group, str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        preexec_fn=lambda: os.sched_setaffinity(0, [options.core]),
        stdout=subprocess.PIPE,
        stderr=None if options.verbose else subprocess.DEVNULL,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines or len(lines) != len(cases) + 1:
        reason = (lines or [{}])[0].get("missing", "it failed; --verbose shows what it prints")
        print(f"left out: {group}, {method}: {reason}", file=sys.stderr, flush=True)
        return None
    scores = [case.judge(np.load(folder / f"{i}.npy")) for i, case in enumerate(cases)]
    row = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    facts = lines[1:]
    trusted = [fact["trusted"] for fact in facts if "trusted" in fact]
    share = PAIRS.get(group, 1)
    return {
        "group": group,
        "method": method,
        "scores": row,
        "seconds": float(np.median([fact["seconds"] for fact in facts])) / share,
        "spread": [end(fact["seconds"] for fact in facts) / share for end in (min, max)],
        "first": facts[0]["first"],
        "trusted": float(np.mean(trusted)) if trusted else None,
        "versions": lines[0]["versions"],
    }


def _read(log: Path) -> dict[tuple[str, str], dict]:
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {(row["group"], row["method"]): row for row in rows}


def _number(value: float) -> str:
    return f"{value:.3f}" if value else "0"


def report(rows: dict[tuple[str, str], dict]) -> str:
    """Return the results as Markdown, a table a group."""
    about = provenance()
    lines = [
        "# Displacements of single pairs, beside other libraries",
        "",
        f"- Written {about['date']}; {about['cpu']}, {about['system']}; each method on one core, "
        f"one thread; load averages at the end {', '.join(map(str, about['load']))}",
    ]
    for method in METHODS:
        own = [row for (_, name), row in rows.items() if name == method]
        if own:
            versions = ", ".join(f"{n} {v}" for n, v in own[-1]["versions"].items())
            groups: dict[str, list] = {}
            for row in own:
                groups.setdefault(row["commit"], []).append(row["group"])
            commits = "; ".join(f"{', '.join(here)}: {commit}" for commit, here in groups.items())
            lines.append(f"- {method}: {versions}. Commits: {commits}")
    lines += [
        "",
        "CPU s: user + system of one pair, median (least - most), without the first call, which "
        "stands beside and for kreg compiles. What the pairs are: `benchmarks/dense/cases.py`; the "
        "settings: `kreg_methods.py`, `peers.py`.",
    ]
    for group in GROUPS:
        here = [rows[group, method] for method in METHODS if (group, method) in rows]
        if not here:
            continue
        names = list(here[0]["scores"])
        head = ["method", *names, "CPU s", "first call s", "trusted"]
        lines += ["", f"## {group}", "", "| " + " | ".join(head) + " |"]
        lines.append("|:--|" + "--:|" * (len(head) - 1))
        for row in here:
            low, high = row["spread"]
            time = f"{row['seconds']:.3g} ({low:.3g} - {high:.3g})"
            trusted = "" if row["trusted"] is None else f"{row['trusted']:.0%}"
            cells = [row["method"], *(_number(row["scores"][name]) for name in names)]
            lines.append("| " + " | ".join([*cells, time, f"{row['first']:.1f}", trusted]) + " |")
    return "\n".join(lines) + "\n"


def run(options) -> str:
    """Do what the log lacks, write the report and return it."""
    rows = _read(options.log)
    for group, make in GROUPS.items():
        if group not in options.groups:
            continue
        methods = [m for m in options.methods if group in METHODS[m].groups]
        todo = [m for m in methods if options.redo or (group, m) not in rows]
        if not todo:
            continue
        try:
            cases = list(make())
        except FileNotFoundError as reason:
            print(f"left out: {group}: {reason}", file=sys.stderr, flush=True)
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for i, case in enumerate(cases):
                np.savez(folder / f"{i}.npz", fixed=case.fixed, moving=case.moving)
            for method in todo:
                row = _one(method, group, folder, cases, options)
                if row is None:
                    continue
                rows[group, method] = row | {"commit": provenance()["commit"]}
                options.log.parent.mkdir(parents=True, exist_ok=True)
                with options.log.open("a") as file:
                    file.write(json.dumps(rows[group, method]) + "\n")
                print(f"{group}, {method}: {row['scores']}, {row['seconds']:.3g} s",
                      file=sys.stderr, flush=True)  # fmt: skip
    text = report(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "dense.md").write_text(text)
    return text


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense", description="Displacements beside other libraries."
    )
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=[*GROUPS, "none"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--redo", action="store_true", help="also what the log has")
    parser.add_argument("--log", type=Path, default=ROOT / "outputs/dense.jsonl")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the report"
    )
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--ants-python", default=sys.executable, help="of ANTs's environment")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    print(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
