"""Learned registration of brain slices: kreg and VoxelMorph 0.3 after the same CPU time.

    KREG_DATA=FOLDER python -m benchmarks.oasis               # about an hour on one core
    KREG_DATA=FOLDER python -m benchmarks.oasis --seeds 0     # less

The 100 slices and the split are those of examples/brains.py: 80 to train on in random pairs, all
380 ordered pairs of the other 20 to test. kreg is the configuration of that example, with
`--steps` steps. VoxelMorph, in an environment of its own (see `benchmarks.voxelmorph`), is its
`VxmPairwise` with default widths, batches of one pair, Adam, and the two losses that its authors
recommend: local NCC (window 9, smoothness 1) and mean squared error (smoothness 0.01). Each loss is
tried at each of `--rates` for `--tuning-seconds`, under the same cycle of the learning rate that
kreg has. The two settings with the best NCC on the test pairs, a choice in VoxelMorph's favour,
then get as many CPU seconds as kreg's training took with the same seed.

CPU seconds are user + system of the process, one thread, from before the model is built to the end
of training, compilation and first steps included.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.mnist import cpu_seconds
from benchmarks.voxelmorph import VOXELMORPH_PYTHON, voxelmorph_python
from examples import brains

LOSSES = "NCC", "MSE"
KREG, PEER = "kreg", "VoxelMorph"


def _result(command: list) -> dict:
    """Run a command of one thread and return what it printed behind RESULT."""
    single = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
        "1",
    )
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=report.ROOT,
        env={**os.environ, **single, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    line = next(part for part in done.stdout.splitlines() if part.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def _data(path):
    training, test = brains.split(brains.load(path))
    return training, brains.held_out(test)


def train_kreg(options) -> dict:
    """Train kreg in this process; return scores and CPU seconds."""
    training, images = _data(options.data)
    before = cpu_seconds()
    model, history = brains.train(training, steps=options.steps, seed=options.seeds[0], verbose=0)
    seconds = cpu_seconds() - before
    result, milliseconds = brains.register(model, images)
    scores = brains.score(images["fixed"], result["warped"], result["displacement"])
    versions = {name: version(name) for name in ("keras", "tensorflow", "numpy")}
    return {
        "setting": "examples/brains.py",
        "steps": options.steps,
        "cpu_s": seconds,
        "ms_a_pair": milliseconds,
        "loss": history.history["loss"][-1],
        "before": brains.score(images["fixed"], images["moving"]),
        "scores": scores,
        "versions": {"kreg": kreg.__version__, **versions, "python": platform.python_version()},
    }


def train_voxelmorph(options, setting: dict, seconds: float, seed: int) -> dict:
    """Train VoxelMorph in a process of its own; return scores by kreg's metrics."""
    training, images = _data(options.data)
    with tempfile.TemporaryDirectory() as folder:
        for name, stack in {"training": training, **images}.items():
            np.save(Path(folder) / f"{name}.npy", stack)
        command = [options.voxelmorph, "-m", "benchmarks.oasis_voxelmorph", folder]
        command += ["--loss", setting["loss"], "--rate", setting["rate"], "--seed", seed]
        command += ["--cpu-seconds", seconds]
        answer = _result(command)
        with np.load(Path(folder) / "result.npz") as arrays:
            warped, displacement = arrays["warped"], arrays["displacement"]
    own = kreg.ops.warp(images["moving"][:50], displacement[:50])
    difference = float(np.abs(np.array(own) - warped[:50]).max())
    if difference > 1e-3:
        raise RuntimeError(
            "Expected VoxelMorph's displacements in voxels, in axis order ij: kreg's warp by them "
            f"then gives its warped images. Received: a difference of {difference:.2g}."
        )
    return {
        "setting": describe(setting),
        "steps": answer["steps"],
        "cpu_s": answer["cpu_s"],
        "ms_a_pair": answer["ms_a_pair"],
        "loss": answer["loss"],
        "scores": brains.score(images["fixed"], warped, displacement),
        "versions": answer["versions"],
        "difference": difference,
    }


def describe(setting: dict) -> str:
    """Return a setting in words."""
    return f"{setting['loss']}, rate {setting['rate']:g}, one cycle"


class Log:
    """Results by name, a line of JSON each: a run that was stopped goes on where it was."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.results = dict(map(json.loads, lines))

    def once(self, name: str, function) -> dict:
        """Return the result of that name, from the log or, for the first time, of `function`."""
        if name not in self.results:
            self.results[name] = function()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps([name, self.results[name]]) + "\n")
        result = self.results[name]
        print(f"{name}: {result['scores']}, {result['cpu_s']:.0f} CPU s", file=sys.stderr)
        return result


def measure(options) -> dict:
    """Run what the log does not hold yet; return everything."""
    log, seeds = Log(options.log), options.seeds
    own = {}
    for seed in seeds:
        command = [sys.executable, "-m", "benchmarks.oasis", "--single", "--seeds", seed]
        command += ["--steps", options.steps] + (["--data", options.data] if options.data else [])
        own[seed] = log.once(
            f"{KREG}, {options.steps} steps, seed {seed}", lambda c=tuple(command): _result(list(c))
        )
    seconds = options.tuning_seconds
    settings = [{"loss": loss, "rate": rate} for loss in LOSSES for rate in options.rates]
    tried = [
        log.once(
            f"{PEER}, {describe(setting)}, {seconds:g} s",
            lambda s=setting: train_voxelmorph(options, s, seconds, 0),
        )
        for setting in settings
    ]
    ranked = np.argsort([-result["scores"]["NCC"] for result in tried])
    peer = [
        (
            seed,
            log.once(
                f"{PEER}, {describe(settings[i])}, as long as {options.steps} steps of kreg, "
                f"seed {seed}",
                lambda i=i, s=seed: train_voxelmorph(options, settings[i], own[s]["cpu_s"], s),
            ),
        )
        for i in ranked[:2]
        for seed in seeds
    ]
    return {KREG: list(own.items()), PEER: peer, "tuning": [(0, result) for result in tried]}


HEAD = (
    "| | seed | setting | NCC | MSE | folds % | steps | CPU s of training | ms a pair |\n"
    "|---|--:|---|--:|--:|--:|--:|--:|--:|"
)


def _row(name, seed, result: dict) -> str:
    scores = result["scores"]
    cells = [name, seed, result["setting"], f"{scores['NCC']:.4f}", f"{scores['MSE']:.5f}",
             f"{scores['folds %']:.5f}", result["steps"], f"{result['cpu_s']:.0f}",
             f"{result['ms_a_pair']:.1f}"]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown(run: dict) -> str:
    """Return the whole report."""
    about = run["provenance"]
    first = {name: run[name][0][1] for name in (KREG, PEER)}
    lines = [
        "# Learned registration of brain slices",
        "",
        f"- `{run['command']}`; {about['date']}, commit {about['commit']}",
        f"- {about['cpu']}, {about['system']}; one thread each; load averages "
        f"{', '.join(map(str, about['load']))}",
    ]
    for name, result in first.items():
        versions = ", ".join(f"{key} {number}" for key, number in result["versions"].items())
        lines.append(f"- {name}: {versions}")
    before = first[KREG]["before"]
    lines += ["", *__doc__.split("\n\n", 2)[-1].strip().splitlines(), ""]
    lines += [
        f"Before registration: NCC {before['NCC']:.4f}, MSE {before['MSE']:.5f}. Warped by kreg "
        "with VoxelMorph's displacements, images differ from its own by at most "
        f"{max(result['difference'] for _, result in run[PEER]):.0e}.",
        "",
        HEAD,
    ]
    for name in (KREG, PEER):
        lines += [_row(name, seed, result) for seed, result in run[name]]
    lines += ["", "What was tried for VoxelMorph:", "", HEAD]
    lines += [_row(PEER, seed, result) for seed, result in run["tuning"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="npz file or folder; KREG_DATA if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=400, help="of kreg; VoxelMorph gets its time")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3, 4e-3, 1e-2])
    parser.add_argument("--tuning-seconds", type=float, default=40)
    parser.add_argument("--voxelmorph-python", type=Path, default=VOXELMORPH_PYTHON)
    parser.add_argument("--log", type=Path, default=report.ROOT / "outputs/oasis.jsonl")
    parser.add_argument("--results", type=Path, default=report.ROOT / "benchmarks/results")
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        print("RESULT " + json.dumps(train_kreg(options)))
        return
    options.voxelmorph = voxelmorph_python(options.voxelmorph_python)
    command = f"python -m benchmarks.oasis --steps {options.steps}"
    command += f" --tuning-seconds {options.tuning_seconds:g}"
    run = {"command": command, "provenance": report.provenance(), **measure(options)}
    print(markdown(run))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "oasis.md").write_text(markdown(run))
    (options.results / "oasis.json").write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
