"""Carry images, label maps or points by a transform that `kreg register` found.

usage: kreg apply TRANSFORM FILE --output FILE [options]

TRANSFORM is the folder of a registration, or its transform.npz. What belongs to the moving image
is carried to the fixed one, images and points alike; with --inverse the other way.

FILE is an image, of the moving image's world but of any grid, or a table of points (.csv) with
the columns x, y and, in 3-D, z; other columns stay as they are. Points are world coordinates: in
pictures pixels, x the column and y the row, (0, 0) the centre of the first pixel; in scanners'
files millimetres, x to the left, y to the back, z up (LPS, as ITK and 3D Slicer save them).

Examples:
  kreg apply aligned second_channel.tif --output second_channel_on_fixed.tif
  kreg apply aligned labels.nii.gz --labels --output labels_on_fixed.nii.gz
  kreg apply aligned landmarks.csv --output landmarks_on_fixed.csv
  kreg apply aligned atlas.nii.gz --inverse --like moving.nii.gz --output atlas_on_moving.nii.gz
"""

from pathlib import Path

from absl import flags

from kreg import io
from kreg.cli.outcome import Outcome, UsageError
from kreg.cli.points import check_arrived, check_output, read_points, write_points

#: Formats that change values.
_LOSSY = (".jpg", ".jpeg")


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string("output", None, "the file to write", flag_values=values)
    flags.DEFINE_bool("inverse", False, "from the fixed image to the moving", flag_values=values)
    flags.DEFINE_bool(
        "labels",
        False,
        "a map of labels: the nearest, nothing between them; of palettes the indices",
        flag_values=values,
    )
    flags.DEFINE_float("outside", 0.0, "the value beyond the image", flag_values=values)
    flags.DEFINE_string(
        "like", None, "an image whose grid the result takes, in place of the fixed image's",
        flag_values=values,
    )  # fmt: skip


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Apply a transform to a file."""
    if len(arguments) != 2 or not values.output:
        raise UsageError(
            "Expected TRANSFORM, FILE and --output FILE. Received: "
            f"{len(arguments)} files, --output {values.output or 'missing'}."
        )
    given, source, output = Path(arguments[0]), Path(arguments[1]), Path(values.output)
    points = source.suffix.lower() == ".csv"
    if points != (output.suffix.lower() == ".csv"):
        raise UsageError(
            f"Expected points (.csv) to become points, images images. Received: {source.name} and "
            f"--output {output.name}."
        )
    if values.labels and output.suffix.lower() in _LOSSY:
        raise UsageError(
            "Expected a format that keeps labels, such as .png, .tif or .nii.gz. Received: "
            f"--labels --output {output.name}."
        )
    check_output(output, values.overwrite)
    transform = transform_of(given)
    if points:
        table, before = read_points(source, transform.fixed.dimensions)
        there = transform.transform_world_points
        back = transform.inverse_transform_world_points
        after = (there if values.inverse else back)(before)
        check_arrived(source, after)
        write_points(output, table, after, values.overwrite)
        what = f"{len(before)} points"
    else:
        image = io.read(source, labels=values.labels)
        grid = None if values.like is None else io.read(values.like).grid
        transform = transform.inverse() if values.inverse else transform
        result = transform.apply(image, grid, labels=values.labels, outside=values.outside)
        io.write(output, result, overwrite=values.overwrite)
        what = " x ".join(map(str, result.shape)) + " voxels"
    return Outcome(
        {"transform": str(given), "source": str(source), "output": str(output),
         "inverse": values.inverse}, [f"written to {output}: {what}"],
    )  # fmt: skip


def transform_of(path: Path):
    """Return the transform of a file, or of a folder of results.

    Raises:
        FileError: if there is none.
    """
    return io.load_transform(path / "transform.npz" if path.is_dir() else path)
