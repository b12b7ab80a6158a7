"""PyTorch: `grid_sample`, and local NCC with three ways to sum over windows."""

import platform

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.cases import BOTH, FLOW, NCC, WARP, WINDOW

_device = {"name": "cpu", "threads": 0, "where": "cpu"}


def configure(threads: int, gpu: bool) -> None:
    """Size the thread pool; say on which device the arrays will lie."""
    torch.set_num_threads(threads)
    _device["threads"] = threads
    if gpu:
        _device.update(name=torch.cuda.get_device_name(), where="cuda")


def about() -> dict:
    """Return versions, threads and device."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "threads": torch.get_num_threads(), "device": _device["name"]}


def wait(result) -> None:
    """Return when the result has been computed."""
    if _device["where"] == "cuda":
        torch.cuda.synchronize()


def peak_bytes() -> int | None:
    """Return the peak of device memory, or None where that is the process's own."""
    return torch.cuda.max_memory_allocated() if _device["where"] == "cuda" else None


def array(result) -> np.ndarray:
    """Return all parts of the result, channels last, as one vector."""
    parts = [result] if isinstance(result, torch.Tensor) else result
    return np.concatenate([part.cpu().numpy().ravel() for part in parts])


def prepare(task: str, form: str | None, folder):
    """Return the task as a function without arguments; `form` is the window sum of local NCC."""

    def load(name: str):
        return torch.tensor(np.load(folder / f"{name}.npy"), device=_device["where"])

    if task in (WARP, FLOW, BOTH):
        return _warp(task, _channels_first(load("moving")), load("displacement"), load("upstream"))
    fixed, moving = (_channels_first(load(name)) for name in ("fixed", "moving"))
    return _local_ncc(task, _window_sum(form, moving), fixed, moving)


def _channels_first(image):
    return image.movedim(-1, 1).contiguous()


def _channels_last(image):
    return image.movedim(1, -1)


def _warp(task, moving, displacement, upstream):
    spatial = displacement.shape[1:-1]
    axes = [torch.arange(n, dtype=torch.float32, device=moving.device) for n in spatial]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]
    scale = torch.tensor([2.0 / (n - 1) for n in spatial], device=moving.device)
    upstream = _channels_first(upstream)

    def warp(image, u):
        points = ((grid + u) * scale - 1).flip(-1)  # [-1, 1] and x first, as grid_sample wants
        return F.grid_sample(image, points, padding_mode="zeros", align_corners=True)

    def forward():
        with torch.no_grad():
            return _channels_last(warp(moving, displacement))

    def gradient():
        u = displacement.detach().requires_grad_()
        image = moving.detach().requires_grad_(task == BOTH)
        value = (warp(image, u) * upstream).sum()
        value.backward()
        if task == BOTH:
            return value.detach(), u.grad, _channels_last(image.grad)
        return value.detach(), u.grad

    return forward if task == WARP else gradient


def _window_sum(form: str, image):
    """The sum over windows, zeros beyond the edges, of images ``(batch, 1, *spatial)``."""
    dimensions = image.ndim - 2
    conv = {2: F.conv2d, 3: F.conv3d}[dimensions]
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dimensions]
    ones = torch.ones(1, 1, *[WINDOW] * dimensions, device=image.device)

    def by_axes(x):
        for axis in range(dimensions):
            window = [WINDOW if i == axis else 1 for i in range(dimensions)]
            x = pool(x, window, 1, [n // 2 for n in window]) * WINDOW
        return x

    return {
        "conv": lambda x: conv(x, ones, padding=WINDOW // 2),
        "pool": lambda x: pool(x, WINDOW, 1, WINDOW // 2) * WINDOW**dimensions,
        "separable": by_axes,
    }[form]


def _local_ncc(task, window_sum, fixed, moving):
    count = WINDOW ** (fixed.ndim - 2)
    # Channels are compared one by one.
    fixed, moving = (x.reshape(-1, 1, *x.shape[2:]) for x in (fixed, moving))

    def value(warped):
        f, w, ff, ww, fw = map(
            window_sum, (fixed, warped, fixed * fixed, warped * warped, fixed * warped)
        )
        covariance = fw - f * w / count
        variances = (ff - f * f / count) * (ww - w * w / count)
        return (covariance * covariance / (variances + 1e-5)).mean()

    def forward():
        with torch.no_grad():
            return value(moving)

    def gradient():
        warped = moving.detach().requires_grad_()
        result = value(warped)
        result.backward()
        return result.detach(), warped.grad

    return forward if task == NCC else gradient
