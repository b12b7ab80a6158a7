"""Image files and transform files: in, aligned, and out again.

* An `Image` is an array with its grid: ``affine`` sends voxel indices, in the order of the
  array's axes, to the *world*.
* The world is ITK's physical space: axes (x, y) or (x, y, z); in scanners x to the left, y to
  the back, z up (LPS), in millimetres. NIfTI, whose x and y point the other way (RAS), is turned
  round as it is read and written, and nowhere else. A picture without a known spacing lies in
  pixels, (x, y) = (column, row), unit "px".
* A `Transform` sends world points of the fixed image to world points of the moving one. It needs
  no Keras: neither does anything here but `register`.
"""

from typing import TYPE_CHECKING

from kreg.io.errors import FileError
from kreg.io.files import read, write
from kreg.io.image import Grid, Image
from kreg.io.transform import Transform
from kreg.io.transform_files import load_transform, save_transform

if TYPE_CHECKING:
    from kreg.io.align import Alignment, register

__all__ = [
    "Alignment",
    "FileError",
    "Grid",
    "Image",
    "Transform",
    "load_transform",
    "read",
    "register",
    "save_transform",
    "write",
]


def __getattr__(name: str):
    # What registers imports Keras, which takes seconds: not for those who only read and write.
    if name in {"Alignment", "register"}:
        from kreg.io import align

        return getattr(align, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
