"""VoxelMorph 0.3's side of `benchmarks.oasis`: train for a given CPU time, register the pairs.

Run by `benchmarks.oasis` with the interpreter of VoxelMorph's environment.
"""

import argparse
import json
import math
import resource
import time
from pathlib import Path

import numpy as np
import torch
import voxelmorph

from benchmarks import voxelmorph_torch as side
from benchmarks.voxelmorph import WIDTHS

#: Name of the loss -> similarity and weight of the smoothness, as VoxelMorph's authors advise.
LOSSES = {"NCC": (side.local_ncc, 1.0), "MSE": (torch.nn.functional.mse_loss, 0.01)}


def cpu_seconds() -> float:
    """Return user + system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def one_cycle(progress: float) -> float:
    """The learning rate's share: up in the first tenth, then down along a cosine."""
    warmup = 0.1
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def train(images, options):
    """Return the model trained until the CPU seconds are spent, and what that took."""
    start, rng = cpu_seconds(), np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    similarity, weight = LOSSES[options.loss]
    features = [list(part) for part in WIDTHS[options.widths][0]]
    model = voxelmorph.nn.models.VxmPairwise(images.ndim - 2, 1, 1, nb_features=features)
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    steps = 0
    while (spent := cpu_seconds() - start) < options.cpu_seconds:
        optimizer.param_groups[0]["lr"] = options.rate * one_cycle(spent / options.cpu_seconds)
        chosen = np.array([rng.permutation(len(images))[:2] for _ in range(options.batch)])
        moving, fixed = (side.channels_first(images[i]) for i in chosen.T)
        loss = side.step(model, optimizer, moving, fixed, similarity, weight)
        steps += 1
    return model, {"steps": steps, "cpu_s": spent, "loss": loss}


def register(model, moving, fixed):
    """Return displacements and warped images ``(n, *spatial, channels)``."""
    results = []
    model.eval()
    with torch.no_grad():
        for i in range(0, len(moving), 50):
            pair = (side.channels_first(images[i : i + 50]) for images in (moving, fixed))
            results.append(model(*pair, return_warped_source=True))
    return [np.moveaxis(torch.cat(part).numpy(), 1, -1) for part in zip(*results, strict=True)]


def main() -> None:
    """Train on training.npy of a folder, write what becomes of moving.npy and fixed.npy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loss", choices=LOSSES, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--widths", choices=WIDTHS, default=next(iter(WIDTHS)))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    arrays = {p.stem: np.load(p) for p in options.folder.glob("*.npy")}
    model, facts = train(arrays["training"], options)
    start = time.perf_counter()
    displacement, warped = register(model, arrays["moving"], arrays["fixed"])
    facts["ms_a_pair"] = 1e3 * (time.perf_counter() - start) / len(warped)
    np.savez(options.folder / "result.npz", displacement=displacement, warped=warped)
    print("RESULT " + json.dumps({**facts, **side.about()}))


if __name__ == "__main__":
    main()
