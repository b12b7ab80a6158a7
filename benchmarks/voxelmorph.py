"""One training step of VoxelMorph's network: kreg beside VoxelMorph 0.3 on PyTorch, eager.

    python -m benchmarks.voxelmorph                # about ten minutes on one core
    python -m benchmarks.voxelmorph --rounds 2     # less

VoxelMorph has an environment of its own, for it brings its own versions of the libraries:

    python3 -m venv .venv-voxelmorph
    .venv-voxelmorph/bin/python -m pip install voxelmorph==0.3.4 torch==2.13.0

A step is the forward pass, the loss (local NCC, window 9, plus 1 x the mean squared differences of
the velocity), its gradient and one update by Adam, in float32. Both networks have the same
convolutions but for the last, see `WIDTHS`, and five squarings at full resolution. Either side is
a process of its own with one thread on the same core; they take turns. Times are CPU seconds of the
process, which other work on the machine disturbs less than the clock's.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report

VOXELMORPH_PYTHON = Path(".venv-voxelmorph/bin/python")

#: Name -> (VoxelMorph's features down and up, kreg's encoder and decoder): the same convolutions.
#: VoxelMorph's last are one of size 1 to D channels and one of size 3 from D to D, kreg's is one
#: of size 3; upsampling is linear in VoxelMorph, by repetition in kreg.
WIDTHS = {
    "VoxelMorph 0.3's default": (((16,) * 5, (16,) * 5), ((16,) * 5, (16,) * 6)),
    "as in the paper of 2019": (
        ((16, 32, 32, 32), (32, 32, 32, 16)),
        ((16, 32, 32, 32), (32, 32, 32, 32, 16)),
    ),
}
STEPS, WINDOW = 5, 9
SIZES = {"8 x 256^2": (8, 256, 256, 1), "1 x 64^3": (1, 64, 64, 64, 1)}

#: Contender -> module of this package, form.
SIDES = {
    "kreg": ("voxelmorph_kreg", "float32"),
    "VoxelMorph": ("voxelmorph_torch", "float32"),
    "kreg, mixed bfloat16": ("voxelmorph_kreg", "mixed_bfloat16"),
}


class Worker:
    """A process that takes training steps when asked; see `benchmarks.voxelmorph_worker`."""

    def __init__(self, side: str, python: Path, *arguments):
        command = [python, "-m", "benchmarks.voxelmorph_worker", side, *arguments]
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=report.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._answer()

    def _answer(self) -> dict:
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"Expected an answer from {' '.join(self.process.args)}; it ended with status "
                f"{self.process.wait()}. What it printed stands above."
            )
        return json.loads(answer)

    def steps(self, count: int) -> list[float]:
        """Return the CPU seconds of so many steps."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def voxelmorph_python(path: Path) -> Path:
    """Return the interpreter of VoxelMorph's environment, or say how to make one."""
    if not (report.ROOT / path).exists():
        raise SystemExit(
            f"Expected an environment with VoxelMorph at {path}; make it by `python3 -m venv "
            ".venv-voxelmorph` and `.venv-voxelmorph/bin/python -m pip install voxelmorph==0.3.4 "
            "torch==2.13.0`, or name another with --voxelmorph-python."
        )
    return report.ROOT / path


def _images(shape, folder: Path) -> None:
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(0)
    for name in ("moving", "fixed"):
        image = gaussian_filter(random.random(shape), (0, *[3] * (len(shape) - 2), 0))
        image = (image - image.min()) / (image.max() - image.min())
        np.save(folder / f"{name}.npy", image.astype("float32"))


def _measure(size: str, widths: str, options) -> dict:
    """Return the CPU seconds of every contender's steps, a list a round."""
    rounds: dict[str, list] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        _images(SIZES[size], Path(folder))
        workers = {}
        for contender, (side, form) in SIDES.items():
            python = options.voxelmorph if side == "voxelmorph_torch" else Path(sys.executable)
            workers[contender] = Worker(side, python, folder, widths, form)
            stack.callback(workers[contender].close)
        for number in range(-1, options.rounds):
            for contender, worker in workers.items():
                durations = worker.steps(options.steps)
                if number >= 0:  # the round before warms up
                    rounds[contender].append(durations)
        sides = {contender: worker.about for contender, worker in workers.items()}
    return {"size": size, "widths": widths, "rounds": rounds, "sides": sides}


def _ratio(rounds: list, own: list) -> tuple[float, float, float]:
    """Median and quartiles over the rounds: load that drifts cancels."""
    pairs = zip(rounds, own, strict=True)
    return report.median_and_quartiles([np.median(t) / np.median(o) for t, o in pairs])


def _markdown(run: dict) -> str:
    about = run["provenance"]
    lines = [
        "# One training step: kreg beside VoxelMorph on PyTorch",
        "",
        f"- `{run['command']}`; {about['date']}, commit {about['commit']}",
        f"- {about['cpu']}, {about['system']}; load averages before the run "
        f"{', '.join(map(str, about['load']))}",
    ]
    for contender, facts in run["groups"][0]["sides"].items():
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        lines.append(f"- {contender}: {versions}")
    lines += ["", *__doc__.split("\n\n")[-1].strip().splitlines()]
    lines += [
        "",
        "Medians and quartiles of all steps; the ratio is taken in each round, above 1 kreg in "
        "float32 is faster.",
        "",
        "| images | widths | contender | median ms | quartiles ms | first step s | steps "
        "| time / kreg's |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for group in run["groups"]:
        own = group["rounds"]["kreg"]
        for contender, rounds in group["rounds"].items():
            every = [1000 * duration for turn in rounds for duration in turn]
            middle, low, high = report.median_and_quartiles(every)
            ratio = "" if contender == "kreg" else "{:.2f} ({:.2f} - {:.2f})".format(
                *_ratio(rounds, own)
            )  # fmt: skip
            cells = [group["size"], group["widths"], contender, f"{middle:.0f}",
                     f"{low:.0f} - {high:.0f}", f"{group['sides'][contender]['first']:.1f}",
                     len(every), ratio]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all sizes and widths, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="in each turn")
    parser.add_argument("--size", choices=SIZES, action="append", help="which; all if left out")
    parser.add_argument("--voxelmorph-python", type=Path, default=VOXELMORPH_PYTHON)
    parser.add_argument("--output", type=Path, default=report.ROOT / "benchmarks/results")
    options = parser.parse_args()
    options.voxelmorph = voxelmorph_python(options.voxelmorph_python)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # the workers inherit it
    run = {
        "command": f"python -m benchmarks.voxelmorph --rounds {options.rounds} "
        f"--steps {options.steps}",
        "provenance": report.provenance(),
        "groups": [],
    }
    for size in options.size or SIZES:
        for widths in WIDTHS:
            run["groups"].append(_measure(size, widths, options))
            print(f"measured: {size}, {widths}", file=sys.stderr, flush=True)
    print(_markdown(run))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "voxelmorph.md").write_text(_markdown(run))
    rounded = json.loads(json.dumps(run), parse_float=lambda text: float(f"{float(text):.4g}"))
    (options.output / "voxelmorph.json").write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
