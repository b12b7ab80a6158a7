"""The shape of the package: who imports whom, what is public, what the wheel holds."""

import ast
import importlib.util
import operator
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

import kreg

ROOT = Path(__file__).parent.parent

# Where each part of the package lies; kreg/layers is a link to layers/.
SOURCES = {"kreg": ROOT / "kreg", "kreg.layers": ROOT / "layers"}

# Part of kreg -> the other parts that it may import. "kreg" is kreg/__init__.py, and nothing may
# take a name from that: whoever needs a part imports the part.
MAY_IMPORT = {
    "kreg": {
        "data",
        "groups",
        "io",
        "layers",
        "losses",
        "machine",
        "metrics",
        "models",
        "ops",
        "pairwise",
        "plots",
        "report",
        "silence",
        "training",
        "transforms",
        "version",
    },
    "__main__": {"cli"},
    "cli": {
        "backend",
        "data",
        "groups",
        "io",
        "layers",
        "losses",
        "machine",
        "metrics",
        "models",
        "pairwise",
        "report",
        "silence",
        "training",
        "transforms",
        "version",
    },
    "mapping": set(),
    "silence": set(),
    "version": set(),
    "backend": set(),
    "machine": {"backend"},
    "groups": set(),
    "ops": {"backend"},
    "layers": {"backend", "groups", "ops"},
    "losses": {"backend", "ops"},
    "metrics": {"backend", "losses", "ops"},  # many a metric is the equation of a loss
    "training": {"backend", "ops"},
    "models": {"layers", "ops", "training"},
    "transforms": {"groups", "layers", "losses"},
    "pairwise": {"backend", "groups", "layers", "losses", "mapping", "ops", "transforms"},
    "data": set(),
    "io": {"mapping", "pairwise", "silence"},
    "plots": {"ops"},
    "report": {"backend", "io", "mapping", "ops", "version"},
}

# Besides the standard library, keras and numpy.
MAY_IMPORT_OUTSIDE = {
    "backend": {"jax", "tensorflow", "torch"},
    "cli": {"absl", "distributed"},
    "data": {"imageio", "scipy", "skimage", "sklearn"},
    "mapping": {"scipy"},
    "io": {"PIL", "SimpleITK", "nibabel", "scipy", "tifffile", "zarr"},
    "metrics": {"scipy", "skimage"},
    "pairwise": {"scipy"},
    "plots": {"matplotlib"},
    "report": {"PIL", "scipy"},
}

# Import name -> name in setup.cfg, where the two differ.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "skimage": "scikit-image"}

# Imported only where wanted: another backend, another source of data.
OPTIONAL = {"SimpleITK", "distributed", "jax", "sklearn", "torch", "zarr"}

# The public names: whoever adds, renames or removes one says so here and in the changelog.
API = {
    "kreg": [
        "Registration",
        "RegistrationModel",
        "data",
        "groups",
        "io",
        "layers",
        "losses",
        "machine",
        "metrics",
        "models",
        "ops",
        "pairwise",
        "plots",
        "register",
        "report",
        "transforms",
    ],
    "kreg.cli": ["main"],
    "kreg.data": [
        "ArrayPairs",
        "CinePairs",
        "ContrastChange",
        "Digits",
        "FolderPairs",
        "KnownTransforms",
        "LabelledImages",
        "Lesions",
        "MissingPairs",
        "MnistUnavailable",
        "OrderedPairs",
        "PairDataset",
        "RandomAffine",
        "RandomFolderPairs",
        "RandomPairs",
        "SmoothDeformation",
        "SmoothNoise",
        "Strokes",
        "load_cine_folder",
        "load_handwritten_digits",
        "load_lvquan",
        "load_mnist",
        "missing_brain_pairs",
        "missing_digit_pairs",
        "mnist_pairs",
        "split_subjects",
    ],
    "kreg.io": [
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
    ],
    "kreg.layers": [
        "BSplineField",
        "ComposeDisplacements",
        "ComposeLinear",
        "CropLike",
        "DepthToSpace",
        "DisplacePoints",
        "GaussianPyramid",
        "IntegrateVelocity",
        "Interpolator",
        "JointSaliency",
        "Matcher",
        "MatrixExpAffine",
        "MatrixToDisplacement",
        "RefinementStage",
        "ResizeDisplacement",
        "ResizeImage",
        "SaliencyRefinement",
        "SelectDisplacement",
        "SmoothRefinement",
        "SpatialTransformer",
        "Standardise",
        "ThinPlateSpline",
    ],
    "kreg.losses": [
        "BendingEnergy",
        "Charbonnier",
        "Critic",
        "Diffusion",
        "EndpointError",
        "FeatureResidual",
        "FieldLoss",
        "Folding",
        "GradientMagnitude",
        "GridDistance",
        "ImageLoss",
        "InverseConsistency",
        "LandmarkDistance",
        "LocalNCC",
        "MIND",
        "MINE",
        "MutualInformation",
        "NCC",
        "NormalisedGradientFields",
        "NormalisedMutualInformation",
        "SaliencyWeighted",
        "SoftDice",
        "TotalVariation",
        "WeightedSum",
        "bending_energy",
        "charbonnier",
        "diffusion",
        "donsker_varadhan",
        "endpoint_error",
        "feature_residual",
        "folding",
        "gradient_magnitude_distance",
        "grid_distance",
        "inverse_consistency",
        "joint_histogram",
        "landmark_distance",
        "local_ncc",
        "mind",
        "mind_descriptor",
        "mutual_information",
        "ncc",
        "normalised_gradient_fields",
        "normalised_mutual_information",
        "soft_dice",
        "total_variation",
    ],
    "kreg.metrics": [
        "Dice",
        "FoldingFraction",
        "ImageMetric",
        "JacobianStatistics",
        "NCC",
        "dice",
        "dice_labels",
        "fire_auc",
        "folding_fraction",
        "hd95",
        "jacobian_statistics",
        "landmark_error",
        "naed",
        "ncc",
        "rtre",
        "ssim",
    ],
    "kreg.models": [
        "CARDIAC_128",
        "ConvolutionalRefinement",
        "DRAWINGS",
        "DenseHead",
        "NetworkStep",
        "FlowNetSize",
        "GradientMagnitudes",
        "GreyValues",
        "LEAN",
        "MNIST_64",
        "MatchingStage",
        "SmoothStep",
        "TISSUE",
        "UnrolledRefinement",
        "VelocityHead",
        "affine_dense",
        "affine_net",
        "ddim",
        "dirnet",
        "encoder_decoder",
        "global_to_local",
        "two_pass",
        "voxelmorph",
    ],
    "kreg.ops": [
        "LocallyNormalised",
        "OriginalSaliency",
        "TensorCorrelation",
        "box_filter",
        "box_sum",
        "bspline_displacement",
        "bspline_grid_shape",
        "bspline_operator",
        "centred_frame",
        "change_frame",
        "compose",
        "compose_linear",
        "compose_matrices",
        "displace_points",
        "downsample",
        "gaussian_filter",
        "gaussian_pyramid",
        "identity_grid",
        "integrate",
        "invert",
        "invert_matrix",
        "jacobian_determinant",
        "matrix_exponential",
        "matrix_to_displacement",
        "nearest_border",
        "normalise_locally",
        "original_joint_saliency",
        "pyramid_frames",
        "reflect_border",
        "resize",
        "sample",
        "sample_nearest",
        "single_saliency",
        "spatial_gradient",
        "spatial_shape",
        "standardise",
        "structure_tensor",
        "tensor_correlation",
        "tensor_distance",
        "thin_plate_displacement",
        "thin_plate_spline",
        "transform_points",
        "voxel_matrix",
        "warp",
        "zero_border",
    ],
    "kreg.pairwise": [
        "AllLevels",
        "Channels",
        "CoarseToFine",
        "CriticRatio",
        "EdgeSampler",
        "EdgeStrength",
        "FisherScoring",
        "GaussNewton",
        "GaussianRatio",
        "HistogramRatio",
        "LocalNormalisation",
        "LogRatio",
        "MultiStart",
        "Preparation",
        "Registration",
        "Sampler",
        "Schedule",
        "Stage",
        "Standardisation",
        "Unchanged",
        "UniformSampler",
        "field_of_view",
        "register",
    ],
    "kreg.report": ["write"],
}


# What the wheel holds besides modules.
DATA = {
    "kreg/py.typed",
    "kreg/report/page.html",
    "kreg/report/script.js",
    "kreg/report/style.css",
}


class Import(NamedTuple):
    where: str
    module: str


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module

    @property
    def part(self) -> str:
        return part(self.name)

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name.rpartition(".")[0] if self.path.name != "__init__.py" else self.name

    @property
    def file_in_wheel(self) -> str:
        return f"{self.package.replace('.', '/')}/{self.path.name}"

    def imports(self) -> Iterator[Import]:
        """`from kreg import ops` imports kreg.ops, `from kreg import Model` kreg itself."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(self.at(node), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                relative = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(relative, self.package)
                for alias in node.names:
                    name = f"{base}.{alias.name}"
                    yield Import(self.at(node), name if is_module_of_kreg(name) else base)


def part(module: str) -> str:
    """`kreg.ops.linear` -> "ops", `kreg` -> "kreg"."""
    return module.split(".")[1] if "." in module else module


def is_module_of_kreg(name: str) -> bool:
    return any(module.name == name for module in MODULES)


def read_modules() -> list[Module]:
    modules = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            if package == "kreg" and path.is_relative_to(ROOT / "kreg" / "layers"):
                continue  # from Python 3.13 on, rglob follows the link
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            modules.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return modules


MODULES = read_modules()
PACKAGES = sorted(module.name for module in MODULES if module.path.name == "__init__.py")


def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def run_python(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with a user's environment: not what tests/conftest.py has set."""
    ours = {"MPLBACKEND", "PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL"}
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- who imports whom ---


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_only_what_its_part_may(module):
    assert module.part in MAY_IMPORT, f"a new part of kreg: give {module.part} a line in MAY_IMPORT"
    outside = {"keras", "numpy"} | MAY_IMPORT_OUTSIDE.get(module.part, set())
    wrong = []
    for where, name in module.imports():
        root = name.partition(".")[0]
        if root == "kreg":
            allowed = part(name) in {module.part, *MAY_IMPORT[module.part]} - {"kreg"}
        else:
            allowed = root in outside or root in sys.stdlib_module_names
        if not allowed:
            wrong.append(f"{where} imports {name}")
    assert not wrong


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_only_kreg_backend_asks_which_backend_runs(module):
    if module.part == "backend":
        return
    asks = {"keras.backend.backend", "keras.config.backend", "backend.backend", "config.backend"}
    wrong = [
        f"{module.at(node)}: {ast.unparse(node)}"
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in asks)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module in {"keras.backend", "keras.config"}
            and any(alias.name == "backend" for alias in node.names)
        )
    ]
    assert not wrong


def test_every_third_party_import_is_declared():
    requirements = setup_cfg()["options"]["install_requires"].split()
    declared = {re.split(r"[<>=!~\[;]", requirement)[0] for requirement in requirements}
    roots = {name.partition(".")[0] for module in MODULES for _, name in module.imports()}
    needed = roots - sys.stdlib_module_names - OPTIONAL - {"kreg"}
    assert {DISTRIBUTIONS.get(root, root) for root in needed} <= declared


def test_no_file_is_called_utils():
    assert not [module.name for module in MODULES if module.path.stem in {"utils", "util"}]


# --- what is public ---


def test_every_package_is_listed():
    assert setup_cfg()["options"]["packages"].split() == PACKAGES
    assert sorted(API) == PACKAGES


@pytest.mark.parametrize("package", API)
def test_public_names(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(API[package])
    assert not [name for name in module.__all__ if not hasattr(module, name)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_everything_public_is_documented(module):
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [
        node
        for node in module.tree.body
        if isinstance(node, definitions) and not node.name.startswith("_")
    ]
    undocumented = [node for node in [module.tree, *public] if not ast.get_docstring(node)]
    assert not [f"{module.at(node)} has no docstring" for node in undocumented]


# --- what is installed ---


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """$KREG_WHEEL, or one built from a copy: a build in the checkout would leave files there."""
    if "KREG_WHEEL" in os.environ:
        return ROOT / os.environ["KREG_WHEEL"]
    copy = tmp_path_factory.mktemp("source")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, copy)
    for name in ("kreg", "layers"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    built = run_python("-m", "build", "--wheel", "--no-isolation", cwd=copy)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


def test_wheel_holds_every_module(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {module.file_in_wheel for module in MODULES} | DATA


def test_wheel_states_version_licence_and_readme(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    header, _, description = metadata.partition("\n\n")
    assert f"Version: {kreg.__version__}" in header.splitlines()
    assert "License-Expression: Apache-2.0" in header.splitlines()
    assert description.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_wheel_works_without_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site))
    installed = run_python(*pip, str(wheel), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(importlib.import_module(name).__file__)\n"
    )
    imported = run_python("-c", script, *PACKAGES, cwd=tmp_path, PYTHONPATH=str(site))
    assert imported.returncode == 0, imported.stderr
    expected = [site.joinpath(*package.split("."), "__init__.py") for package in PACKAGES]
    assert [Path(line) for line in imported.stdout.splitlines()] == expected


def test_plain_layers_is_refused():
    imported = run_python("-c", "import layers", cwd=ROOT)
    assert imported.returncode == 1
    *_, error = imported.stderr.splitlines()
    assert error.startswith("ImportError")
    assert "kreg.layers" in error


def test_import_is_quiet():
    imported = run_python("-c", "import kreg", cwd=ROOT)
    assert (imported.returncode, imported.stdout, imported.stderr) == (0, "", "")


def test_readme_is_finished_and_its_files_exist():
    text = (ROOT / "README.md").read_text()
    assert not re.findall(r"@[A-Z]+@", text)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_readme_names_what_there_is():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`kreg\.([\w.]+)", text):
        assert operator.attrgetter(name)(kreg) is not None
    for name in re.findall(r"examples/\w+\.\w+", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`kreg ([a-z]+)", text):
        assert (ROOT / "kreg" / "cli" / f"{name}.py").exists(), name
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
