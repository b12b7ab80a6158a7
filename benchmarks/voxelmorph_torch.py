"""VoxelMorph 0.3's side of `benchmarks.voxelmorph` and of `benchmarks.oasis`, on PyTorch."""

import platform
from importlib.metadata import version

import neurite
import numpy as np
import torch
import voxelmorph

from benchmarks.voxelmorph import STEPS, WIDTHS, WINDOW


def about() -> dict:
    """Return versions."""
    versions = {name: version(name) for name in ("voxelmorph", "neurite", "torch", "numpy")}
    versions["python"] = platform.python_version()
    return {"versions": versions}


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Return images ``(batch, *spatial, channels)`` as VoxelMorph takes them."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def local_ncc(fixed, warped):
    """1 - local NCC, by the library VoxelMorph 0.3 points to."""
    return 1 - neurite.nn.modules.NCC(window_size=WINDOW)(fixed, warped).mean()


def step(model, optimizer, moving, fixed, similarity, weight: float) -> float:
    """Update the weights once by similarity + weight x squared differences of the velocity."""
    optimizer.zero_grad(set_to_none=True)
    velocity, warped = model(moving, fixed, return_warped_source=True, return_field_type="velocity")
    smoothness = neurite.nn.modules.SpatialGradient("l2")(velocity)
    loss = similarity(fixed, warped) + weight * smoothness
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def prepare(widths: str, form: str, folder):
    """Return a training step in float32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    moving, fixed = (
        channels_first(np.load(folder / f"{name}.npy")) for name in ("moving", "fixed")
    )
    features = [list(part) for part in WIDTHS[widths][0]]
    model = voxelmorph.nn.models.VxmPairwise(
        moving.ndim - 2, 1, 1, nb_features=features, integration_steps=STEPS
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    return lambda: step(model, optimizer, moving, fixed, local_ncc, 1.0)
