"""docs/migration.md: every block runs, and gives what the library gave that it stands for."""

import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import kreg
from kreg import ops

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "migration.md"


class Section(NamedTuple):
    chapter: str
    title: str
    code: str


def sections() -> list[Section]:
    """The page's headings of the third level that have code, and the code below each."""
    found, chapter = [], ""
    for part in re.split(r"^(?=##+ )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        title = part.partition("\n")[0]
        blocks = re.findall(r"^```python\n(.*?)^```", part, flags=re.DOTALL | re.MULTILINE)
        if title.startswith("### "):
            found += [Section(chapter, title[4:].strip("`"), "\n".join(blocks))] if blocks else []
            continue
        chapter = title.removeprefix("## ")
        assert not blocks or chapter.startswith("#"), "code stands below a call, or at the top"
    return found


SECTIONS = sections()


def run(code: str, names: dict) -> dict:
    names = {"keras": keras, "kreg": kreg, "np": np, "ops": ops} | names
    exec(compile(code, str(PAGE), "exec"), names)
    return names


# The name of a result on the page -> that in the reference.
ADDONS = {
    "dense_image_warp": {"warped": "dense_image_warp"},
    "interpolate_bilinear": {
        "values": "interpolate_bilinear",
        "values_xy": "interpolate_bilinear_xy",
    },
    "sparse_image_warp": {
        "warped": "sparse_image_warp",
        "flow_field": "sparse_image_warp_flow",
        "warped_between_edges": "sparse_image_warp_boundary",
    },
    "interpolate_spline": {
        "interpolated": "interpolate_spline",
        "interpolated_volume": "interpolate_spline_volume",
        "interpolated_cubic": "interpolate_spline_cubic",
    },
    "gaussian_filter2d": {
        "blurred": "gaussian_filter2d",
        "blurred_reflect": "gaussian_filter2d_reflect",
        "blurred_constant": "gaussian_filter2d_constant",
    },
    "transform": {
        "warped": "transform",
        "warped_nearest": "transform_nearest",
        "warped_reflect": "transform_reflect",
        "warped_to_shape": "transform_shape",
    },
}
VOXELMORPH = {
    "layers.SpatialTransformer": {
        "warped": "warped",
        "labels": "labels",
        "zero_fill": "zero_fill",
        "moved": "affine",
    },
    "layers.VecInt": {"integrated": "integrated"},
    "layers.ComposeTransform": {"composed": "composed"},
    "layers.RescaleTransform": {"rescaled": "rescaled"},
    "losses.Grad": {"grad": "grad"},
    "networks.VxmDense": {},
}


def named(title: str) -> str:
    """`vxm.losses.Grad("l2").loss` -> "losses.Grad"."""
    return title.partition("(")[0].removeprefix("tfa.image.").removeprefix("vxm.")


def of(chapter: str) -> dict[str, Section]:
    return {named(one.title): one for one in SECTIONS if one.chapter == chapter}


def reference(file: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "parity" / f"{file}.npz") as stored:
        return dict(stored)


def test_every_section_is_tried():
    assert list(of("tensorflow-addons")) == list(ADDONS)
    assert list(of("VoxelMorph")) == list(VOXELMORPH)
    chapters = ["tensorflow-addons"] * len(ADDONS) + ["VoxelMorph"] * len(VOXELMORPH)
    assert [one.chapter for one in SECTIONS] == chapters + ["SimpleITK"] * len(of("SimpleITK"))


@pytest.mark.parametrize(
    ("chapter", "name", "results"),
    [("tensorflow-addons", *one) for one in ADDONS.items()]
    + [("VoxelMorph", *one) for one in VOXELMORPH.items()],
)
def test_gives_what_the_other_library_gave(chapter, name, results, uncompiled):
    file, prefix = {"tensorflow-addons": ("tensorflow_addons", "tfa_"),
                    "VoxelMorph": ("voxelmorph", "vxm_")}[chapter]  # fmt: skip
    if name == "networks.VxmDense" and keras.config.backend() == "jax":
        pytest.skip("JAX takes longest to compile what the models' tests cover")
    arrays = reference(file)
    given = {key: value for key, value in arrays.items() if not key.startswith(prefix)}
    found = run(of(chapter)[name].code, given)
    for result, stored in results.items():
        expected = arrays[prefix + stored]
        actual = keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(found[result]))
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=result)


def test_own_border_and_angle():
    arrays = reference("tensorflow_addons")
    found = run(of("tensorflow-addons")["transform"].code, arrays)
    shape = arrays["image"].shape[1:-1]
    matrix = found["matrix"]
    grid = np.asarray(ops.identity_grid(shape))[None]
    points = np.asarray(ops.transform_points(matrix, grid))
    repeated = np.mod(points, shape)
    between = (repeated > np.subtract(shape, 1)).any(axis=-1)  # the last pixel and the first
    assert ((points != repeated).any(axis=-1) & ~between).sum() > 0
    expected = arrays["tfa_transform_wrap"][~between]
    np.testing.assert_allclose(np.asarray(found["warped_wrap"])[~between], expected, atol=1e-5)

    turned = ops.transform_points(found["quarter"], np.float32([[[1, 0]]]))
    np.testing.assert_allclose(turned, [[[0, 1]]], atol=1e-6)


def test_simpleitk_reads_the_same(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    spacing = (0.8, 1.3)  # x, y
    smooth = gaussian_filter(np.random.default_rng(0).random((48, 44)), 2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    for name, part in (("fixed", smooth[4:-4, 4:-4]), ("moving", smooth[3:-5, 6:-2])):
        image = sitk.GetImageFromArray(part.astype("float32"))
        image.SetSpacing(spacing)
        image.SetOrigin((-20, 5))
        sitk.WriteImage(image, str(tmp_path / f"{name}.mha"))
    field = gaussian_filter(np.random.default_rng(1).normal(size=(40, 36, 2)), (4, 4, 0)) * 12
    names = {"folder": tmp_path, "field": field, "spacing": np.array(spacing)}
    found = run("\n".join(one.code for one in of("SimpleITK").values()), names)

    fixed, moving = (sitk.ReadImage(str(tmp_path / f"{name}.mha")) for name in ("fixed", "moving"))
    transform = sitk.ReadTransform(str(tmp_path / "found.tfm"))
    # The moving image lies one row lower and two columns further left.
    np.testing.assert_allclose(transform.TransformPoint((0.0, 0.0)), [-1.6, 1.3], atol=0.05)
    np.testing.assert_allclose(found["points"][0], transform.TransformPoint((3.0, 5.0)), atol=1e-5)
    inside = (slice(4, -4),) * 2
    resampled = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0)
    for array in (
        found["warped"].array,
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "warped.mha"))),
    ):
        expected = sitk.GetArrayFromImage(resampled)
        np.testing.assert_allclose(array[inside], expected[inside], atol=1e-5)

    vectors = sitk.GetImageFromArray(field, isVector=True)
    vectors.CopyInformation(moving)
    resampled = sitk.Resample(moving, moving, sitk.DisplacementFieldTransform(vectors))
    ours = ops.warp(sitk.GetArrayFromImage(moving)[None, ..., None], found["voxels"][None])
    largest = int(np.ceil(np.abs(found["voxels"]).max()))
    inside = (slice(largest, -largest),) * 2
    expected = sitk.GetArrayFromImage(resampled)[inside]
    assert largest < 12
    np.testing.assert_allclose(np.asarray(ours)[0, ..., 0][inside], expected, atol=1e-5)
