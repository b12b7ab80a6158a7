"""Pairs of small images with a known transform, rendered from a larger one."""

import functools

import numpy as np
from scipy import ndimage
from skimage import data

from tests.fields import grid


@functools.cache
def photograph() -> np.ndarray:
    """A photograph of 256^2 pixels, in [0, 1]."""
    smooth = ndimage.gaussian_filter(data.camera() / 255, 1.0)
    return ndimage.zoom(smooth, 0.5, order=1)


@functools.cache
def coloured() -> np.ndarray:
    """A photograph of 256^2 pixels with three channels, in [0, 1]."""
    smooth = ndimage.gaussian_filter(data.astronaut() / 255, (1.0, 1.0, 0))
    return ndimage.zoom(smooth, (0.5, 0.5, 1), order=1)


@functools.cache
def volume() -> np.ndarray:
    """Blurred noise of 60^3 voxels."""
    noise = np.random.default_rng(0).normal(size=(60, 60, 60))
    return ndimage.gaussian_filter(noise, 2.0)


def rendered(scene, shape, matrix=None, spacing=None) -> np.ndarray:
    """Return image(y) = scene(inverse(matrix) y), y in world units of one scene voxel.

    The scene may have channels, and content beyond the frame.
    """
    dimensions = len(shape)
    spacing = np.ones(dimensions) if spacing is None else np.asarray(spacing)
    points = (grid(shape).astype("float64") - (np.asarray(shape) - 1) / 2) * spacing
    if matrix is not None:
        points = transformed(np.linalg.inv(matrix), points)
    points = np.moveaxis(points + (np.asarray(scene.shape[:dimensions]) - 1) / 2, -1, 0)
    layers = np.moveaxis(scene.reshape(*scene.shape[:dimensions], -1), -1, 0)
    values = [ndimage.map_coordinates(one, points, order=3, mode="nearest") for one in layers]
    return np.stack(values, -1).reshape(*shape, *scene.shape[dimensions:]).astype("float32")


def transformed(matrix, points) -> np.ndarray:
    """Apply a homogeneous matrix to points ``(..., D)``."""
    image = np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1) @ np.swapaxes(
        matrix, -1, -2
    )
    return image[..., :-1] / image[..., -1:]


def turned(degrees, *, scale=1.0, shift=(0, 0), shear=0.0, projection=(0, 0)) -> np.ndarray:
    """Return a 3 x 3 world matrix."""
    a = np.deg2rad(degrees)
    rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * rotation @ np.array([[1, shear], [0, 1]])
    matrix[:2, 2], matrix[2, :2] = shift, projection
    return matrix


def error(result, truth) -> float:
    """Return the mean distance, in world units, between a result and the true world matrix."""
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * len(result.fixed_shape)), -1)
    voxels = steps * (np.asarray(result.fixed_shape) - 1)
    world = (voxels - (np.asarray(result.fixed_shape) - 1) / 2) * result.fixed_spacing
    moving = result.moving.shape
    there = result.transform_points(voxels) - (np.asarray(moving) - 1) / 2
    gaps = there * result.moving_spacing - transformed(truth, world)
    return float(np.linalg.norm(gaps, axis=-1).mean())
