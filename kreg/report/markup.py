"""HTML of the parts of a report; what comes from outside is escaped where it goes in."""

import base64
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from kreg.report import pictures
from kreg.report.kinds import Kind, Painted
from kreg.report.views import View

#: Pictures whose longer side is shorter are shown that large, where there is room: one beside
#: another kind, or the cuts of a volume side by side.
_ALONE, _TOGETHER = 560, 340


def stages(painted: Painted) -> str:
    """Return the fixed image with the moving one over it, on each plane."""
    return _by_place(painted.views, [_stage(painted, i) for i in range(len(painted.views))])


def _stage(painted: Painted, number: int) -> str:
    view = painted.views[number]
    size = _size(painted.views, view)
    under = _image(painted.layer("fixed", number), f"fixed image{_where(view)}", size)
    over = [
        _image(
            painted.layer(state, number),
            f"moving image {state} registration{_where(view)}",
            f'{size} class="over" data-state="{state}"{hidden}',
        )
        for state, hidden in (("after", ""), ("before", " hidden"))
    ]
    tags = "".join(f'<span class="tag of-{side}">{side}</span>' for side in ("fixed", "moving"))
    alone = "" if view.plane.cut else " alone"
    return (
        f'<div class="view{alone}"><div class="picture stage">{under}{"".join(over)}'
        f'<span class="line"></span>{tags}{_ends(view)}</div>{_name(view)}</div>'
    )


def section(identity: str, title: str, kinds: list[Kind], views: list[View]) -> str:
    """Return a section of pictures; "" without any."""
    if not kinds:
        return ""
    style = ' class="volume"' if views[0].plane.cut else ""
    figures = "\n".join(_figure(kind, views) for kind in kinds)
    return (
        f'<section aria-labelledby="{identity}"{style}><h2 id="{identity}">{escape(title)}</h2>\n'
        f'<div class="kinds">{figures}</div></section>'
    )


def _figure(kind: Kind, views: list[View]) -> str:
    shown = f'<p class="big">{escape(kind.number)}</p>'
    if kind.picture is not None:
        blocks = []
        for number, view in enumerate(views):
            alternative = f"{kind.title}{_where(view)}"
            image = _image(kind.picture(number), alternative, _size(views, view))
            picture = f'<div class="picture">{image}{_ends(view)}</div>'
            blocks.append(f'<div class="view">{picture}{_name(view)}</div>')
        shown = _by_place(views, blocks)
    bar = ""
    if kind.bar is not None:
        marks = "".join(f"<span>{escape(mark)}</span>" for mark in kind.bar.marks)
        address = pictures.colour_bar(kind.bar.colours)
        bar = f'<div class="bar"><img src="{address}" alt=""><div>{marks}</div></div>'
    return (
        f"<figure>{shown}{bar}<figcaption><strong>{escape(kind.title)}</strong>"
        f"{escape(kind.caption)}</figcaption></figure>"
    )


def links(titles: Mapping[str, str]) -> str:
    """Return links to sections, identity -> title."""
    return " ".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in titles.items())


def advice(title: str, steps: Iterable[tuple[str, str, str]]) -> str:
    """Return what to try, to be unfolded: why, in the shell, from Python."""
    lines = "".join(
        f"<li>{escape(why)}: <code>{escape(shell)}</code> or <code>{escape(python)}</code></li>"
        for why, shell, python in steps
    )
    return f"<details><summary>{escape(title)}</summary><ul>{lines}</ul></details>"


def slider(views: list[View]) -> str:
    """Return what chooses the place at which a volume is cut; "" where there is but one."""
    count = 1 + max(view.plane.place for view in views)
    if count == 1:
        return ""
    return (
        '<div class="slices"><label>Slices '
        f'<input id="slice" type="range" min="1" max="{count}" step="1" value="{count // 2 + 1}">'
        "</label></div>"
    )


def table(values: Mapping[str, Any]) -> str:
    """Return the rows of a table, name and value."""
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in values.items()
    )


def matrix_table(matrix: np.ndarray) -> str:
    """Return the rows of a matrix."""
    return "\n".join(
        "<tr>" + "".join(f"<td>{value:.7g}</td>" for value in row) + "</tr>" for row in matrix
    )


def content_hash(text: str) -> str:
    """Return what a Content-Security-Policy calls a style or a script."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _by_place(views: list[View], blocks: list[str]) -> str:
    """Return the blocks of the views, those of one place together; the middle one is seen."""
    pairs = sorted(zip(views, blocks, strict=True), key=lambda pair: pair[0].plane.place)
    grouped = [
        (place, "".join(block for _, block in group))
        for place, group in itertools.groupby(pairs, key=lambda pair: pair[0].plane.place)
    ]
    middle = len(grouped) // 2
    lines = []
    for place, text in grouped:
        hidden = "" if place == middle else " hidden"
        lines.append(f'<div class="place" data-place="{place}"{hidden}>{text}</div>')
    return "\n".join(lines)


def _image(picture: np.ndarray, alternative: str, attributes: str) -> str:
    return f'<img src="{pictures.as_uri(picture)}" alt="{escape(alternative)}" {attributes}>'


def _size(views: list[View], view: View) -> str:
    """Return how large to show a view: all at one scale."""
    wanted = _TOGETHER if view.plane.cut else _ALONE
    scale = max(1.0, wanted / max(max(one.plane.shape) for one in views))
    height, width = (round(scale * side) for side in view.plane.shape)
    return f'width="{width}" height="{height}"'


def _where(view: View) -> str:
    return f", {view.plane.name}" if view.plane.cut else ""


def _name(view: View) -> str:
    return f'<p class="name">{escape(view.plane.name)}</p>' if view.plane.cut else ""


def _ends(view: View) -> str:
    sides = ("left", "right", "above", "below")
    return "".join(
        f'<span class="end {side}">{letter}</span>'
        for side, letter in zip(sides, view.plane.ends, strict=False)
    )
