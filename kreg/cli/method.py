"""How to register: the options of ``kreg register`` and ``kreg batch``."""

from dataclasses import asdict, dataclass
from typing import Any

from absl import flags

from kreg.cli.outcome import UsageError, check_finite

_LINEAR = ("translation", "rigid", "similarity", "affine", "homography")
_SIMILARITIES = ("histogram", "mine", "ncc")
#: What other programs read, by its suffix.
_EXPORTS = ("tfm", "mat", "nii.gz")


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string(
        "transform",
        "affine",
        f"what to look for: {', '.join(_LINEAR)} (2-D), dense (a displacement), or one after the "
        "other, such as rigid+dense",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "similarity",
        None,
        _SIMILARITIES,
        "what fits: histogram (mutual information, also between modalities), mine (the same, "
        "learned by a network), ncc (images alike); where left out, histogram, and ncc for dense",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "edges", False, "compare edges: where grey values have little in common", flag_values=values
    )
    flags.DEFINE_enum(
        "start",
        "search",
        ["search", "frames"],
        "search for large offsets, or begin where the files say that the images lie (without a "
        "common frame, middle over middle)",
        flag_values=values,
    )
    flags.DEFINE_float(
        "control_spacing", 12.0, "dense: distance of control points, voxels", 1, flag_values=values
    )
    flags.DEFINE_float(
        "elastic", 2e-3, "dense: how much motion resists; less for larger", 0, flag_values=values
    )
    flags.DEFINE_float("fluid", 1e-3, "dense: how much each step resists", 0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of everything random", 0, flag_values=values)
    flags.DEFINE_multi_enum(
        "export",
        [],
        _EXPORTS,
        "also write the transform for ITK, ANTs and 3D Slicer: tfm or mat (linear), nii.gz (a "
        "displacement field); may be repeated",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "report", True, "leave report.html, too; --noreport spares it", flag_values=values
    )


@dataclass(frozen=True)
class Method:
    """The options, checked."""

    transform: str
    similarity: str | None
    edges: bool
    start: str
    control_spacing: float
    elastic: float
    fluid: float
    seed: int
    export: tuple[str, ...]
    report: bool

    @classmethod
    def of(cls, values: flags.FlagValues) -> "Method":
        """Return what the command line says.

        Raises:
            UsageError: if it makes no sense.
        """
        chosen: dict[str, Any] = {name: values[name].value for name in cls.__dataclass_fields__}
        method = cls(**{**chosen, "export": tuple(chosen["export"])})
        linear, dense = method.parts
        if linear not in (*_LINEAR, None) or not (linear or dense):
            raise UsageError(
                f"Expected --transform {' '.join(_LINEAR)}, dense, or two of them such as "
                f"rigid+dense. Received: {method.transform!r}."
            )
        check_finite(values, "control_spacing", "elastic", "fluid")
        if dense and not method.elastic + method.fluid > 0:
            raise UsageError("Expected --elastic or --fluid above 0. Received: 0 and 0.")
        if {"tfm", "mat"} & set(method.export) and (dense or linear == "homography"):
            raise UsageError(
                "Expected --export nii.gz, since tfm and mat hold nothing but affine transforms. "
                f"Received: {' '.join(method.export)}, with --transform {method.transform}."
            )
        return method

    @property
    def parts(self) -> tuple[str | None, bool]:
        """The linear part, and whether there is a dense one."""
        first, plus, then = self.transform.partition("+")
        if plus:
            return (first, True) if then == "dense" else (self.transform, False)
        return (None, True) if first == "dense" else (first, False)

    def settings(self) -> dict[str, Any]:
        """Return the options as what a result file says of them."""
        return {**asdict(self), "export": list(self.export)}

    def arguments(self) -> list[str]:
        """Return the options as a command line says them, all of them."""
        said = []
        for name, value in asdict(self).items():
            if isinstance(value, bool):
                said.append(f"--{name}" if value else f"--no{name}")
            elif isinstance(value, tuple):
                said += [f"--{name}={one}" for one in value]
            elif value is not None:
                said.append(f"--{name}={value}")
        return said

    def options(self) -> dict[str, Any]:
        """Return the arguments of `kreg.io.register`. Imports Keras."""
        from kreg import groups, losses, pairwise, transforms

        linear, dense = self.parts
        similarities = {
            "histogram": pairwise.HistogramRatio,
            "mine": losses.MINE,
            "ncc": losses.NCC,
        }
        parts: list[Any] = []
        if linear is not None:
            parts.append(transforms.Linear(getattr(groups, linear.capitalize())()))
        if dense:
            parts.append(transforms.Dense(self.control_spacing, self.elastic, self.fluid))
        return {
            "transform": transforms.Composed(*parts) if len(parts) == 2 else parts[0],
            "similarity": similarities[self.similarity]() if self.similarity else None,
            "preparation": pairwise.EdgeStrength() if self.edges else None,
            "start": pairwise.MultiStart() if self.start == "search" else None,
            "seed": self.seed,
        }
