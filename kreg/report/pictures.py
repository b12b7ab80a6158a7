"""Values as colours, and pictures as text that a page can hold."""

import base64
import io
from collections.abc import Sequence

import numpy as np

#: Where there is no image, or nothing to say: neither dark nor bright.
OUTSIDE = 128
_LINES = np.array([194, 65, 12])
_FOLD = np.array([220, 38, 38])
#: Where neither image has an edge.
NOTHING = np.array([214, 217, 220])
_TINT = np.array([255, 112, 0])

#: Colours at equal distances, to be interpolated.
AMOUNT = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
DIFFERENCE = ("#1e3a8a", "#60a5fa", "#f8fafc", "#f87171", "#991b1b")
CAUTION = ("#7f2704", "#d94801", "#fd8d3c", "#fdd0a2", "#fff5eb")
CHANGE = ("#7f3b08", "#f1a340", "#f7f7f7", "#998ec3", "#2d004b")

#: Pictures of no more pixels are stored as they are, larger ones as JPEG.
_LOSSLESS = 2**16
#: Smaller pictures are enlarged, each pixel to a square.
_SMALL = 400
#: Squares of a checkerboard, and lines of a lattice, along the longer side.
_SQUARES, _LATTICE = 8, 14


def contrast(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return what is to be black and white, but for outliers."""
    together = np.concatenate([one.ravel() for one in values])
    if not together.size:
        return 0.0, 1.0
    low, high = np.quantile(together, (0.005, 0.995))
    if low == high:  # an image that is sparse
        low, high = together.min(), together.max()
    return float(low), float(high)


def scaled(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return values from 0, at the lower limit, to 1."""
    low, high = limits
    return np.clip((values - low) / (high - low or 1.0), 0, 1)


def painted(unit: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return values in [0, 1], ``(rows, columns, 1 or 3)``, as grey or RGB."""
    return np.where(inside[..., None], np.rint(255 * unit), OUTSIDE).astype("uint8")


def where(inside: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return a picture, grey where it says nothing."""
    return np.where(inside[..., None], picture, OUTSIDE).astype("uint8")


def mixed(picture: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return a share, in [0, 1], of a picture, and the rest of a colour."""
    share = share[..., None]
    return np.rint(share * picture + (1 - share) * colour).astype("uint8")


def tinted(picture: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """Return a picture, more orange where doubt, in [0, 1], is larger."""
    return mixed(picture, _TINT, 1 - 0.8 * doubt)


def coloured(unit: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """Return values in [0, 1], ``(rows, columns)``, as RGB."""
    stops = np.array([[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in colours])
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(unit, places, stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype("uint8")


def volume_change(volume: np.ndarray, doublings: float) -> np.ndarray:
    """Return determinants as RGB: halves and doubles alike far from white, folds red."""
    folded = volume <= 0
    change = np.log2(np.where(folded, 1, np.maximum(volume, 1e-6)))
    colours = coloured(scaled(change, (-doublings, doublings)), CHANGE)
    return np.where(folded[..., None], _FOLD, colours).astype("uint8")


def checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return one picture on the even squares of a board, another on the odd ones."""
    shape = first.shape[:2]
    rows, columns = (np.arange(size) * _SQUARES // max(shape) for size in shape)
    odd = (rows[:, None] + columns) % 2 == 1
    return np.where(odd[..., None], second, first)


def lattice_spacing(shape: tuple[int, ...]) -> float:
    """Return the pixels between the lines of a lattice over a picture of that shape."""
    return max(shape) / _LATTICE


def lattice(picture: np.ndarray, places: np.ndarray, scale: int, inside: np.ndarray) -> np.ndarray:
    """Return a picture, pale, with the lines of a lattice.

    Args:
        picture: ``(rows, columns, 1 or 3)``.
        places: the lattice's own coordinates ``(rows, columns, 2)``, of `scale` times the pixels.
        scale: see `places`.
        inside: where there are lines, ``(rows, columns)``.
    """
    picture, inside = (one.repeat(scale, 0).repeat(scale, 1) for one in (picture, inside))
    distance = lattice_spacing(places.shape[:2])
    cover = np.zeros(places.shape[:2])
    for place in np.moveaxis(places, -1, 0):
        slope = np.hypot(*np.gradient(place))
        apart = np.abs((place / distance) % 1 - 0.5) * distance
        cover = np.maximum(cover, np.clip(1.4 - apart / np.maximum(slope, 1e-6), 0, 1))
    cover = (cover * inside)[..., None]
    pale = 255 - 0.45 * (255.0 - picture)
    return np.rint((1 - cover) * pale + cover * _LINES).astype("uint8")


def outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a picture, dimmed where its mask is False, with the edge of the mask drawn."""
    edge = np.zeros_like(mask)
    for axis in range(2):
        edge |= mask & ~(np.roll(mask, 1, axis) & np.roll(mask, -1, axis))
    dimmed = np.where(mask[..., None], picture, 0.35 * picture)
    return np.where(edge[..., None], [253, 231, 37], dimmed).astype("uint8")


def as_uri(picture: np.ndarray) -> str:
    """Return a picture as a ``data:`` address."""
    from PIL import Image

    small = picture.shape[0] * picture.shape[1] <= _LOSSLESS
    times = max(1, _SMALL // max(picture.shape[:2]))
    picture = picture.repeat(times, 0).repeat(times, 1)
    held = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    file = io.BytesIO()
    if small:
        held.save(file, "PNG")
    else:
        held.save(file, "JPEG", quality=85, subsampling=0)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def colour_bar(colours: Sequence[str]) -> str:
    """Return all colours from the lowest to the highest, as a ``data:`` address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(coloured(np.linspace(0, 1, 256)[None], colours)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
