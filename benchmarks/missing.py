"""Missing correspondence: joint saliency beside what goes without, on pairs with true landmarks.

    KREG_DATA=FOLDER python -m benchmarks.missing --ants-python .venv-ants/bin/python
    KREG_DATA=FOLDER python -m benchmarks.missing --sets brains --methods "with saliency"

Digits (MNIST, 64^2) and brains (oasis2d, 128^2) are pairs of `kreg.data.MissingPairs`: one image,
smoothly deformed by a known field, parts of one side erased, inserted or darkened, on brains also
the contrast of one side changed. Ten sets of landmarks, on edges outside what was altered, come
from ten seeds, and the same pairs, unaltered, are the clean ones. Training, validation (on which
settings were chosen) and test images are different ones. The error is the distance of landmarks,
mean and deviation over all of them; near: within 10 voxels of what was altered.

Every learned method gets the same budget of processor time, pairs, similarity and smoothness loss
(`examples/missing.py`). The peers' settings are those of `benchmarks/dense/peers.py`. Each finished
result is a line of the log, and not done again.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from benchmarks import report
from benchmarks.dense.__main__ import ONE_THREAD
from examples import missing
from kreg.losses import BendingEnergy
from kreg.models import ConvolutionalRefinement, dirnet, global_to_local, voxelmorph
from kreg.ops import OriginalSaliency

#: Processor seconds that each learned method is trained for.
SECONDS = {"digits": 150.0, "brains": 400.0}
#: Pairs that they are trained on, and pairs of each of the test sets.
POOL, SETS, EACH = 800, 10, 10
#: Images of the whole set for training; then those that settings were chosen on; then for tests.
SPLIT = {"digits": (50_000, 60_000), "brains": (70, 80)}
#: Drawn pairs are kept there: delete it when `kreg.data.MissingPairs` has changed.
CACHE = report.ROOT / "outputs/missing-pairs"
KINDS = {"missing": {}, "clean": {"alteration": None}}
WITH, WITHOUT = missing.WITH, missing.WITHOUT
ORIGINAL = "as the original: saliency as a channel"
#: Those of several seeds, and the learned ones of one.
SEEDED = (WITH, WITHOUT)
LEARNED = (*SEEDED, ORIGINAL, "DIRNet", "VoxelMorph")
#: Names in `benchmarks.dense.worker`.
PEERS = ("ANTs, CC", "ANTs, mean squares", "demons", "demons, smoother", "elastix, NCC, 8",
         "kreg, Dense() alone")  # fmt: skip


def _kept(name: str, make) -> dict:
    """Return arrays from a file, which is made at the first time: drawing takes a minute."""
    path = CACHE / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, **make())
        unfinished.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def training_pairs(which: str, path) -> dict:
    """Return the pairs that the learned methods are trained on."""

    def make():
        images = _images(which, path)[: SPLIT[which][0]]
        return missing.draw(images, POOL, tissue=which == "brains", seed=1)

    return _kept(f"{which}-training", make)


def test_pairs(which: str, path) -> dict:
    """Return the test pairs of both kinds, ``{kind: arrays}``, set after set."""

    def make(options):
        images = _images(which, path)[SPLIT[which][1] :]
        drawn = [
            missing.draw(images, EACH, tissue=which == "brains", seed=1000 + i, **options)
            for i in range(SETS)
        ]
        return {name: np.concatenate([d[name] for d in drawn]) for name in drawn[0]}

    return {
        kind: _kept(f"{which}-{kind}", lambda options=options: make(options))
        for kind, options in KINDS.items()
    }


def _images(which: str, path) -> np.ndarray:
    if which == "brains":
        return missing.load_brains(path)
    digits = kreg.data.load_mnist(path)
    return np.concatenate([digits.train.images, digits.test.images])


def _learned(which: str, name: str, path, seed: int) -> dict:
    """Train one method in this process and return its scores."""
    tissue = which == "brains"
    pairs, tests = training_pairs(which, path), test_pairs(which, path)
    watched = {key: stack[:8] for key, stack in tests["missing"].items()}
    shape = pairs["fixed"].shape[1:]
    keras.utils.set_random_seed(seed)
    start, curve = missing.processor_seconds(), missing.Curve(watched)
    if name in (*SEEDED, ORIGINAL):
        if name == ORIGINAL:
            model = global_to_local(
                shape, saliency=OriginalSaliency(), refinement=ConvolutionalRefinement()
            )
        else:
            model = missing.build(shape, tissue=tissue, saliency=name == WITH)
        missing.train(model, pairs, tissue=tissue, seconds=SECONDS[which], seed=seed, watch=[curve])
    else:
        model = {"DIRNet": dirnet, "VoxelMorph": voxelmorph}[name](shape)
        losses = {"warped": missing.similarity(tissue), "displacement": (BendingEnergy(), 0.1)}
        (batch, steps), _ = missing.ALONE
        missing.fit(
            model, losses, pairs, batch=batch, steps=steps, seconds=SECONDS[which], seed=seed
        )
    trained = missing.processor_seconds() - start
    found = {kind: missing.predict(model, arrays) for kind, arrays in tests.items()}
    result = {
        "scores": {
            kind: missing_scores(tests[kind], found[kind]["displacement"]) for kind in KINDS
        },
        "cpu_s": trained,
        "weights": model.count_params(),
        "curve": curve.points,
        "versions": {name: version(name) for name in ("kreg", "keras", "tensorflow", "numpy")},
    }
    if name == WITH:
        area = {**tests["missing"], "warped": found["missing"]["warped"]}
        result["ROC AUC"] = missing.confidence(area, found["missing"]["saliency"])
    if name in (*SEEDED, ORIGINAL):
        result["coarse"] = {
            kind: missing_scores(tests[kind], found[kind]["coarse_displacement"]) for kind in KINDS
        }
    return result


def missing_scores(pairs: dict, displacement: np.ndarray) -> dict:
    """Return the scores of all sets together, and the mean error of each set."""
    error = missing.errors(pairs, displacement)
    sets = [float(np.nanmean(part)) for part in np.split(error, SETS)]
    return {
        **missing.score(pairs, displacement),
        "median": float(np.nanmedian(error)),
        "sets": sets,
    }


def _process(which: str, name: str, seed: int, options) -> dict:
    """Train in a process of one thread."""
    command = [sys.executable, "-m", "benchmarks.missing", "--single", name, "--sets", which]
    command += ["--seeds", str(seed)] + (["--data", options.data] if options.data else [])
    threads = {f"TF_NUM_{kind}_THREADS": "1" for kind in ("INTRAOP", "INTEROP")}
    done = subprocess.run(
        command, cwd=report.ROOT, env=os.environ | ONE_THREAD | threads, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    line = next(part for part in done.stdout.splitlines() if part.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def _peer(which: str, name: str, tests: dict, options) -> dict:
    """Register every test pair by another library."""
    python = options.ants_python if name.startswith("ANTs") else sys.executable
    scores, seconds = {}, []
    for kind, pairs in tests.items():
        with tempfile.TemporaryDirectory() as folder:
            for i in range(len(pairs["fixed"])):
                images = {side: pairs[side][i, ..., 0] for side in ("fixed", "moving")}
                np.savez(Path(folder) / f"{i}.npz", **images)
            done = subprocess.run(
                [python, "-m", "benchmarks.dense.worker", name, "missing", folder],
                cwd=report.ROOT, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, check=True,
            )  # fmt: skip
            first, *facts = map(json.loads, done.stdout.splitlines())
            if "missing" in first:
                raise RuntimeError(f"Expected {name} to be installed. Received: {first}.")
            fields = [np.load(Path(folder) / f"{i}.npy") for i in range(len(facts))]
        scores[kind] = missing_scores(pairs, np.stack(fields))
        seconds += [fact["seconds"] for fact in facts]
    return {
        "scores": scores,
        "cpu_s_a_pair": float(np.median(seconds)),
        "versions": first["versions"],
    }


def measure(options) -> list[dict]:
    """Do what the log lacks; return all results."""
    log = options.log
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.parent.mkdir(parents=True, exist_ok=True)

    def once(which, name, seed, function):
        if any((row["set"], row["method"], row["seed"]) == (which, name, seed) for row in rows):
            return
        row = {"set": which, "method": name, "seed": seed, **function(),
               "provenance": report.provenance()}  # fmt: skip
        rows.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{which}, {name}, seed {seed}: {row['scores']}", file=sys.stderr, flush=True)

    for which in options.sets:
        tests = test_pairs(which, options.data)
        still = {kind: np.zeros_like(pairs["displacement"]) for kind, pairs in tests.items()}
        once(which, "before", 0, lambda tests=tests, still=still: {
            "scores": {kind: missing_scores(tests[kind], still[kind]) for kind in KINDS}
        })  # fmt: skip
        for name in PEERS:
            if name in options.methods and not (
                name.startswith("ANTs") and not options.ants_python
            ):
                once(which, name, 0, lambda w=which, n=name, t=tests: _peer(w, n, t, options))
        for seed in options.seeds:
            for name in SEEDED if seed else LEARNED:
                if name in options.methods:
                    once(
                        which,
                        name,
                        seed,
                        lambda w=which, n=name, s=seed: _process(w, n, s, options),
                    )
    return rows


def _cells(scores: dict) -> list[str]:
    missed, clean = scores["missing"], scores["clean"]
    return [f"{missed['TRE']:.3f}", f"{missed['std']:.3f}", f"{np.std(missed['sets']):.3f}",
            f"{missed['median']:.3f}", f"{missed['near']:.3f}", f"{missed['folds %']:.4f}",
            f"{clean['TRE']:.3f}", f"{clean['std']:.3f}", f"{clean['median']:.3f}",
            f"{clean['folds %']:.4f}"]  # fmt: skip


HEAD = (
    "| method | seed | TRE | std | std of sets | median | near | folds % | clean TRE | std | "
    "median | folds % | CPU s |\n|:--|--:" + "|--:" * 11 + "|"
)


def markdown(rows: list[dict], command: str) -> str:
    """Return the report."""
    about = report.provenance()
    lines = ["# Missing correspondence", "", f"- `{command}`; written {about['date']}; "
             f"{about['cpu']}, {about['system']}; one thread each"]  # fmt: skip
    commits = sorted({row["provenance"]["commit"] for row in rows})
    lines.append(f"- commits: {', '.join(commits)}")
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.get("versions", {})
    lines.append("- " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    lines += ["", *__doc__.split("\n\n", 2)[-1].strip().splitlines(), ""]
    lines.append("CPU s: of training, or in brackets of one pair. Errors in voxels.")
    for which in SECONDS:
        here = [row for row in rows if row["set"] == which]
        if not here:
            continue
        lines += ["", f"## {which}", "", HEAD]
        not_run = [name for name in (*LEARNED, *PEERS) if name not in {r["method"] for r in here}]
        for row in sorted(here, key=lambda row: row["scores"]["missing"]["TRE"]):
            cost = row.get("cpu_s")
            spent = f"{cost:.0f}" if cost else f"({row.get('cpu_s_a_pair', 0):.2g})"
            cells = [row["method"], str(row["seed"]), *_cells(row["scores"]), spent]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *_summary(here)]
        if not_run:
            lines.append(f"- Not run: {', '.join(not_run)}.")
    return "\n".join(lines) + "\n"


def _summary(rows: list[dict]) -> list[str]:
    """Return what the bars ask for."""

    def mean(method, kind, value):
        of = [row["scores"][kind][value] for row in rows if row["method"] == method]
        return float(np.mean(of)) if of else float("nan")

    names = {row["method"] for row in rows}
    others = sorted(names - {WITH, WITHOUT, "before"}, key=lambda n: mean(n, "missing", "TRE"))
    areas = [row["ROC AUC"] for row in rows if row["method"] == WITH]
    lines = []
    if WITH in names and others:
        best = others[0]
        ratio = mean(WITH, "missing", "TRE") / mean(best, "missing", "TRE")
        lines.append(f"- Against the best of {len(others)} other methods, {best}: TRE "
                     f"{ratio:.2f} of its own, standard deviation "
                     f"{mean(WITH, 'missing', 'std'):.3f} against "
                     f"{mean(best, 'missing', 'std'):.3f}.")  # fmt: skip
    if {WITH, WITHOUT} <= names:
        change = {
            text: 100 * (mean(WITH, kind, value) / mean(WITHOUT, kind, value) - 1)
            for text, kind, value in (
                ("TRE", "missing", "TRE"), ("near what is altered", "missing", "near"),
                ("on clean pairs", "clean", "TRE"),
            )
        }  # fmt: skip
        text = ", ".join(f"{name} {value:+.1f} %" for name, value in change.items())
        lines.append(f"- Against itself without saliency, mean of the seeds: {text}.")
    if areas:
        lines.append(f"- ROC AUC of the saliency: {', '.join(f'{area:.3f}' for area in areas)}.")
    return lines


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder as KREG_DATA, which it replaces")
    parser.add_argument("--sets", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=[*LEARNED, *PEERS])
    parser.add_argument("--ants-python", help="of an environment with antspyx")
    parser.add_argument("--log", type=Path, default=report.ROOT / "outputs/missing.jsonl")
    parser.add_argument("--results", type=Path, default=report.ROOT / "benchmarks/results")
    parser.add_argument("--single", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        result = _learned(options.sets[0], options.single, options.data, options.seeds[0])
        print("RESULT " + json.dumps(result))
        return
    rows = measure(options)
    text = markdown(rows, "python -m benchmarks.missing")
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "missing.md").write_text(text)
    (options.results / "missing.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
