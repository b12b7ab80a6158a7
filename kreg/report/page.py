"""The report: what it says, and in which order."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from kreg import backend
from kreg.io.align import Alignment
from kreg.io.files import replacing
from kreg.io.image import Image
from kreg.report import kinds, markup
from kreg.report.curve import similarity_curve
from kreg.report.numbers import numbers
from kreg.report.planes import pixel_size
from kreg.report.views import Scene
from kreg.version import __version__


class _Verdict(NamedTuple):
    style: str
    mark: str
    word: str
    meaning: str


_VERDICTS = {
    True: _Verdict(
        "trusted",
        "✔",
        "Trusted",
        "The images fit clearly better than when they are laid wrongly on purpose. Look at the "
        "pictures all the same.",
    ),
    False: _Verdict(
        "distrusted",
        "✖",
        "NOT TRUSTED",
        "It may be right, but nothing proves it. Do not build on it before you have looked: where "
        "edges run on across “Checkerboard, after” and stay in place as the images flicker, it "
        "fits, whatever stands here.",
    ),
}

#: What to try where it does not fit: why, in the shell, from Python.
_ADVICE = (
    ("masks, to leave out a black surround or what only one image has", "--fixed_mask",
     "fixed_mask="),
    ("edges instead of grey values, between different kinds of image", "--edges",
     "preparation=EdgeStrength()"),
    ("a transform of less freedom", "--transform rigid", "transform=Linear(Rigid())"),
    ("no search, where the files say about where the images lie", "--start frames", "start=None"),
)  # fmt: skip

#: The sections after the pictures.
_LAST = {"search": "The search", "numbers": "Numbers", "again": "To reproduce it"}


def write(
    path: str | Path,
    alignment: Alignment,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an HTML file that shows an alignment, and what speaks for it and against it.

    It holds all it needs: images, style and script. Volumes are shown by slices across their
    three axes; large images are scaled down.

    Args:
        path: the file, such as "report.html". Its folder must be there.
        alignment: of `kreg.io.register`.
        fixed_mask, moving_mask: the masks that were used, a `kreg.io.Image` or array of the sizes
            of its image; None without one.
        provenance: what else to say under "To reproduce it": name -> value.
        overwrite: whether to replace a file of that name.

    Raises:
        ValueError: if a mask has other sizes than its image.
        FileError: if the file exists, or cannot be written.
    """
    masks = [
        _mask(mask, image, name)
        for mask, image, name in (
            (fixed_mask, alignment.fixed, "fixed_mask"),
            (moving_mask, alignment.moving, "moving_mask"),
        )
    ]
    text = _page(Scene(alignment, *masks), provenance or {})
    with replacing(Path(path), overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _mask(mask: Any, image: Image, name: str) -> np.ndarray | None:
    if mask is None:
        return None
    array = np.asarray(mask.array if isinstance(mask, Image) else mask)
    if array.shape not in (image.shape, (*image.shape, 1)):
        raise ValueError(
            f"Expected `{name}` of the sizes {image.shape} of its image. Received: {array.shape}."
        )
    return (array > 0).reshape(image.shape).astype("float32")


def _page(scene: Scene, provenance: Mapping[str, Any]) -> str:
    alignment = scene.alignment
    found, fixed, moving = alignment.registration, alignment.fixed, alignment.moving
    views = scene.views()
    painted = kinds.Painted(scene, views)
    sections = (
        ("fit", "Does it fit?", kinds.fits(painted)),
        ("done", "What was done to the moving image", kinds.done(painted)),
        ("confidence", "Where to look twice", kinds.confidence(painted)),
        ("masks", "What was looked at", kinds.masks(painted)),
    )
    titles = {identity: title for identity, title, shown in sections if shown}
    verdict = _VERDICTS[found.trusted]
    heading = f"{_named(moving, 'moving image')} laid over {_named(fixed, 'fixed image')}"
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    files = resources.files("kreg.report")
    style, script, page = (
        files.joinpath(name).read_text(encoding="utf-8")
        for name in ("style.css", "script.js", "page.html")
    )
    rows, columns = views[0].plane.shape
    style = Template(style).substitute(ratio=f"{columns / rows:.6g}")
    return Template(page).substitute(
        version=__version__,
        date=date,
        title=escape(f"{verdict.word}: {heading}"),
        heading=escape(heading),
        verdict_class=verdict.style,
        verdict_mark=verdict.mark,
        verdict_word=verdict.word,
        verdict_meaning=verdict.meaning,
        reason=escape(found.reason),
        advice="" if found.trusted else markup.advice("If it does not fit, try", _ADVICE),
        slider=markup.slider(views),
        without_script="; the slices of a volume stand one below the other"
        if fixed.dimensions > 2
        else "",
        stages=markup.stages(painted),
        before_is=escape(scene.before_is),
        links=markup.links({"compare": "Compare", **titles, **_LAST}),
        sections="\n".join(markup.section(*one, views) for one in sections),
        curve=similarity_curve(found.history),
        numbers=markup.table(numbers(scene)),
        axes=", ".join("xyz"[: fixed.dimensions]),
        fixed_unit=fixed.unit,
        moving_unit=moving.unit,
        matrix=markup.matrix_table(alignment.transform.matrix),
        provenance=markup.table({**provenance, **_made(alignment, date)}),
        footer=escape(_footer(fixed)),
        style=style,
        script=script,
        style_hash=markup.content_hash(style),
        script_hash=markup.content_hash(script),
    )


def _named(image: Image, otherwise: str) -> str:
    return Path(image.source).name or otherwise


def _made(alignment: Alignment, date: str) -> dict[str, str]:
    """Return what a report knows of how it came to be."""
    return {
        "fixed": _described(alignment.fixed),
        "moving": _described(alignment.moving),
        "date": date,
        "kreg": __version__,
        **backend.versions(),
        "numpy": np.__version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
    }


def _described(image: Image) -> str:
    sizes = " × ".join(map(str, image.shape))
    steps = " × ".join(f"{step:.4g}" for step in image.spacing)
    channels = f", {image.channels} channels" if image.channels else ""
    return f"{sizes} voxels of {steps} {image.unit}{channels}, {image.array.dtype}"


def _footer(fixed: Image) -> str:
    size, step = pixel_size(fixed.grid), min(fixed.spacing)
    scaled = f", scaled down from voxels of {step:.4g} {fixed.unit}" if size > 1.001 * step else ""
    return (
        f"A pixel of the pictures is {size:.4g} {fixed.unit} wide{scaled}. Grey values are "
        "stretched: the 0.5 % darkest are black, the 0.5 % brightest white. Middle grey is where "
        "the moving image does not reach. Pictures are for looking; measure on the files."
    )
