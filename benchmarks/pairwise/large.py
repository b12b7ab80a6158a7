"""A pair of 30,000 x 30,000 pixels, memory-mapped: error, time and peak memory.

Run it as `python -m benchmarks.pairwise.large [--side 30000] [--folder FOLDER]`; it writes the two
images, side^2 bytes each, into the folder (a temporary one by default).
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import kreg  # before keras: it silences TensorFlow's start-up messages

# isort: split
import cv2
import numpy as np
import scipy.ndimage
import skimage.data

_BAND = 256
_ANGLE, _SCALE, _SHIFT = 12.0, 1.08, (0.05, -0.07)


def truth(side: int) -> np.ndarray:
    """The matrix from fixed to moving voxels."""
    angle = np.deg2rad(_ANGLE)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = _SCALE * turn
    middle = np.full(2, (side - 1) / 2)
    matrix[:2, 2] = middle + np.multiply(_SHIFT, side) - matrix[:2, :2] @ middle
    return matrix


def write_pair(folder: Path, side: int) -> tuple[Path, Path]:
    """Write the fixed image, a retina with texture down to a few pixels, and the moving one.

    The moving image is the fixed one under the inverse of `truth`, inverted, with another gamma.
    """
    paths = folder / "fixed.npy", folder / "moving.npy"
    fixed, moving = (np.lib.format.open_memmap(p, "w+", "uint8", (side, side)) for p in paths)
    retina = skimage.data.retina()[150:1250, 150:1250].mean(-1).astype("float32")
    generator = np.random.default_rng(0)
    grain = scipy.ndimage.gaussian_filter(generator.normal(size=(2048, 2048)), 1.5, mode="wrap")
    grain = (9 * grain / grain.std()).astype("float32")
    columns = np.linspace(0, retina.shape[1] - 1, side, dtype="float32")
    for start in range(0, side, _BAND):
        rows = np.arange(start, min(start + _BAND, side))
        place = rows * np.float32((retina.shape[0] - 1) / (side - 1))
        y = np.repeat(place[:, None].astype("float32"), side, axis=1)
        x = np.repeat(columns[None], len(rows), axis=0)
        band = cv2.remap(retina, x, y, cv2.INTER_LINEAR)
        # Each stretch of columns starts elsewhere in the grain: there are no repeats to lock on.
        shift = generator.integers(0, 2048, 1 + side // 1024)
        texture = [
            grain[(rows + s)[:, None] % 2048, (np.arange(1024) + 3 * s) % 2048] for s in shift
        ]
        band = 0.85 * band + 20 + np.concatenate(texture, axis=1)[:, :side]
        fixed[start : start + len(rows)] = np.clip(band, 0, 255).astype("uint8")
    inverse = np.linalg.inv(truth(side))
    table = (255 * (1 - np.arange(256) / 255) ** 1.5).round().astype("uint8")
    for start in range(0, side, _BAND):
        for left in range(0, side, 4096):
            rows = np.arange(start, min(start + _BAND, side), dtype="float64")
            cols = np.arange(left, min(left + 4096, side), dtype="float64")
            y = inverse[0, 0] * rows[:, None] + inverse[0, 1] * cols + inverse[0, 2]
            x = inverse[1, 0] * rows[:, None] + inverse[1, 1] * cols + inverse[1, 2]
            low = np.clip([y.min() - 2, x.min() - 2], 0, side - 1).astype(int)
            high = np.clip([y.max() + 3, x.max() + 3], 1, side).astype(int)
            if (high <= low + 1).any():
                continue
            part = np.asarray(fixed[low[0] : high[0], low[1] : high[1]])
            warped = cv2.remap(
                part,
                (x - low[1]).astype("float32"),
                (y - low[0]).astype("float32"),
                cv2.INTER_CUBIC,
            )
            moving[start : start + len(rows), left : left + len(cols)] = table[warped]
    fixed.flush()
    moving.flush()
    return paths


def main() -> None:
    """Write the pair, register it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "fixed.npy", folder / "moving.npy"
        if not all(path.exists() for path in paths):
            print(f"writing two images of {arguments.side}^2 pixels into {folder}", flush=True)
            write_pair(folder, arguments.side)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        fixed, moving = (np.load(path, mmap_mode="r") for path in paths)
        result = kreg.register(fixed, moving, verbose=True)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        side = len(fixed)
        grid = np.stack(np.meshgrid(*[np.linspace(0, side - 1, 17)] * 2, indexing="ij"), -1)
        there = grid @ truth(side)[:2, :2].T + truth(side)[:2, 2]
        error = np.linalg.norm(result.transform_points(grid) - there, axis=-1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{side} x {side}: mean error {error.mean():.3f} px, worst {error.max():.3f} px; "
            f"{wall:.0f} s, {cpu:.0f} CPU s; peak memory {peak / 2**20:.2f} GiB "
            f"(before registering {before / 2**20:.2f}); {result.reason}"
        )


if __name__ == "__main__":
    main()
