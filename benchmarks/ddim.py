"""Large motion: the DDIM cascade beside a network of one stage, ECC, SIFT, and VoxelMorph's way.

    KREG_DATA=FOLDER python -m benchmarks.ddim                   # about an hour on one core
    KREG_DATA=FOLDER python -m benchmarks.ddim --jobs digits/ddim digits/OpenCV

Pairs are held-out images and themselves under a random transform: rotation up to 45 degrees,
scale 0.7 to 1.4, translation up to 20 % along each axis, then a smooth field of standard deviation
0.6 % of the width and correlation length 15 %. The field alone leaves any matrix a mean error
of about 0.64 %. The error is the mean distance, over all pixels, of where a method sends them from
where they belong, in per cent of the width; "on the object" stands the median of the error over the
fixed image's pixels that are not empty background.

- *digits*: MNIST in 32 x 32, 1000 of the test images; *brains*: 20 held-out slices of OASIS in
  128 x 128, 400 pairs; *inverted*: the same with the moving image's contrast inverted.
- *ddim* is the recipe of examples/ddim.py. *affine_net*, one stage of about as many weights (of
  three times as many for digits), is trained on the same pairs by the same loss for as many CPU
  seconds as the stages, at a learning rate of its own; for brains it sees edges too. *ECC* (affine,
  200 steps, from the identity) and *SIFT* (images enlarged to 256 pixels, ratio test, RANSAC) are
  OpenCV's, on as many of the pairs as stands below; where they give up, the identity counts.
- *different brains*: pairs of two held-out brains, one under a matrix as above and no field.
  ddim's stages are those trained above, which see edges, and go on for 500 steps by NCC, held a
  little by the known matrix; its dense step is `two_pass`, sees grey values, and is trained by NCC
  for 400. *voxelmorph* is kreg's, with its default widths, trained for as many steps at the same
  learning rate by NCC, folds and the smoothness of its velocity (`two_pass` has two of these); it
  sees moving images that the true matrix has already warped, which its milliseconds leave out.
  Both are scored on the original moving image, interpolated once, by the matrix and the
  displacement composed.

CPU ms a pair are those of the matrix, or the displacement, alone, all pairs in one batch, 100 of
those of different brains; ECC and SIFT register one by one.

CPU seconds of training are user + system of the process, one thread, with the drawing of pairs
and compiling. Of same brains and digits, those of ddim's dense step hold the stages'; of different
brains they don't hold what the stages took before, and voxelmorph's hold the warps by the true
matrix.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from keras import ops

from benchmarks import report
from benchmarks.mnist import cpu_seconds
from examples import ddim as example
from kreg.data.known_transforms import KnownTransforms
from kreg.losses.known_transform import GridDistance
from kreg.models.ddim import GradientMagnitudes, GreyValues, NetworkStep

PAIRS = {"digits": 1000, "brains": 400}
BOUND = {"digits": 5, "brains": 3}
JOBS = [
    "digits/ddim",
    "digits/affine_net",
    "digits/OpenCV",
    "brains/ddim",
    "brains/affine_net",
    "brains/OpenCV",
    "different/voxelmorph",
    "different/ddim",
]


# --- measuring ---


def scores(error, kind, inside) -> dict:
    """Return median, 95th percentile and the share below the bound; the median on the object."""
    return {
        "object": float(np.median(inside)),
        "median": float(np.median(error)),
        "95th": float(np.percentile(error, 95)),
        "below": 100 * float(np.mean(error < BOUND[kind])),
    }


def all_scores(pairs, result, kind) -> dict:
    """Return the scores of each step."""
    found = example.errors(pairs, result)
    inside = example.errors(pairs, result, object_alone=True)
    return {step: scores(error, kind, inside[step]) for step, error in found.items()}


def predict(model, images):
    """Return the model's outputs for the pairs."""
    images = {name: images[name] for name in ("moving", "fixed")}
    return model.predict(images, batch_size=100, verbose=0)


def milliseconds(model, images, output):
    """Return the CPU milliseconds that one output of a pair takes, all in one batch: a median."""
    alone = kreg.RegistrationModel(model.input, {output: model.output[output]})
    batch = {name: ops.convert_to_tensor(images[name]) for name in ("moving", "fixed")}
    for _ in range(2):  # compiles
        alone.predict_on_batch(batch)
    spent = []
    for _ in range(15):
        start = cpu_seconds()
        alone.predict_on_batch(batch)
        spent.append(cpu_seconds() - start)
    return 1e3 * float(np.median(spent)) / len(batch["fixed"])


def first(pairs, count=100):
    """Return that many of the pairs."""
    return {name: stack[:count] for name, stack in pairs.items()}


def held_out(options, kind):
    """Return training images and held-out pairs."""
    if kind == "digits":
        kreg.data.load_mnist(options.data)  # refuses, where the example would take other digits
    training, test = example.load(kind, options.data)
    return training, example.held_out(test, PAIRS[kind], example.RECIPES[kind])


def inverted(pairs):
    """Return the pairs with the moving images' contrast inverted."""
    return {**pairs, "moving": 1 - pairs["moving"]}


def variants(kind, pairs) -> dict:
    """Return the pairs by name of what is measured."""
    return {kind: pairs} | ({"brains, inverted": inverted(pairs)} if kind == "brains" else {})


# --- jobs ---


def train_ddim(options, kind) -> dict:
    """Train the cascade as the example does; save its weights."""
    training, pairs = held_out(options, kind)
    start = cpu_seconds()
    seconds = {}
    model, history = example.train(
        training, example.RECIPES[kind], seed=options.seed, verbose=0,
        done=lambda phase: seconds.update({phase: cpu_seconds() - start}),
    )  # fmt: skip
    options.folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(options.folder / f"{kind}.weights.h5")
    rows = {}
    for name, data in variants(kind, pairs).items():
        rows[name] = all_scores(data, predict(model, data), kind)
    truth = example.linear_displacement(pairs["moving_matrix"], pairs["fixed"].shape[1:-1])
    known = np.linalg.norm(truth - pairs["moving_displacement"], axis=-1).mean((1, 2))
    return {
        "rows": rows,
        "weights": example.stages_of(model).count_params(),
        "weights of the dense step": model.count_params() - example.stages_of(model).count_params(),
        "steps": example.RECIPES[kind].steps,
        "cpu_s": seconds,
        "ms_a_pair": {
            "stages": milliseconds(model, pairs, "matrix"),
            "dense": milliseconds(model, pairs, "displacement"),
        },
        "loss": {phase: values[-1] for phase, values in history.items()},
        "error of the true matrix": 100 * float(np.median(known)) / pairs["fixed"].shape[2],
    }


def train_affine_net(options, kind) -> dict:
    """Train a network of one stage for as many CPU seconds as the cascade's stages had."""
    training, pairs = held_out(options, kind)
    budget = options.results[f"{kind}/ddim"]["cpu_s"]["stages"]
    recipe = example.RECIPES[kind]
    keras.utils.set_random_seed(options.seed)
    start = cpu_seconds()
    data = KnownTransforms(training, batch_size=recipe.batch, seed=options.seed)
    with kreg.machine.mixed_precision():
        model = single_stage(data.image_shape, edges=kind == "brains")
    loss = {"matrix": GridDistance(data.image_shape[:-1])}
    model.compile(example.optimizer(30), loss=loss)
    example.fit(model, data, 10, 0)
    begun = cpu_seconds()
    example.fit(model, data, 20, 0)
    rate = (cpu_seconds() - begun) / 20
    steps = max(50, int((budget - (cpu_seconds() - start)) / rate))
    model.compile(example.optimizer(steps, options.rate), loss=loss)
    history = example.fit(model, data, steps, 0)
    seconds = cpu_seconds() - start
    rows = {}
    for name, images in variants(kind, pairs).items():
        result = {"stage_matrices": predict(model, images)["matrix"][:, None]}
        rows[name] = {"affine_net": all_scores(images, result, kind)["stage 1"]}
    return {
        "rows": rows,
        "weights": model.count_params(),
        "steps": steps,
        "rate": options.rate,
        "cpu_s": {"stages": seconds},
        "ms_a_pair": {"stages": milliseconds(model, pairs, "matrix")},
        "loss": history["loss"][-1],
    }


def single_stage(image_shape, *, edges):
    """Return `affine_net`, of what the cascade sees."""
    net = kreg.models.affine_net(image_shape)
    inputs = {name: keras.Input(image_shape, name=name) for name in ("moving", "fixed")}
    seen = inputs
    if edges:
        view = GradientMagnitudes()
        seen = {name: view(image, f"{name}_view") for name, image in inputs.items()}
    return kreg.RegistrationModel(inputs, {"matrix": net(seen)["matrix"]})


def run_opencv(options, kind) -> dict:
    """Register the pairs one by one by ECC and by SIFT."""
    import cv2

    cv2.setNumThreads(1)
    _, pairs = held_out(options, kind)
    count = min(options.opencv_pairs, PAIRS[kind])
    pairs = first(pairs, count)
    shape = pairs["fixed"].shape[1:-1]
    rows, spent = {}, {}
    for name, data in variants(kind, pairs).items():
        rows[name] = {}
        for method, register in (("ECC", ecc), ("SIFT", sift)):
            begun = cpu_seconds()
            found = [
                register(cv2, *(np.uint8(255 * data[x][i, ..., 0]) for x in ("fixed", "moving")))
                for i in range(count)
            ]
            spent.setdefault(method, 1e3 * (cpu_seconds() - begun) / count)
            fields = np.stack([pixels_displaced(matrix, shape) for matrix in found])
            failed = sum(np.array_equal(matrix, np.eye(2, 3)) for matrix in found)
            result = {"stage_matrices": np.zeros((count, 0)), "residual": None}
            row = all_scores(data, {**result, "displacement": fields}, kind)["dense"]
            rows[name][method] = {**row, "gave up": 100 * failed / count}
    return {
        "rows": rows,
        "ms_a_pair": spent,
        "cpu_s": {},
        "pairs": count,
        "version": cv2.__version__,
    }


def ecc(cv2, fixed, moving):
    """Return ECC's affine map of (x, y) pixels, fixed to moving; the identity where it fails."""
    start = np.eye(2, 3, dtype="float32")
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-6)
    try:
        _, matrix = cv2.findTransformECC(
            fixed, moving, start.copy(), cv2.MOTION_AFFINE, stop, None, 5
        )
    except cv2.error:
        return start
    return matrix


def sift(cv2, fixed, moving):
    """Return the affine map of (x, y) pixels that SIFT's matches agree on, or the identity."""
    factor = 256 / fixed.shape[0]
    detector, points, described = cv2.SIFT_create(), [], []
    for image in (fixed, moving):
        image = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
        found, descriptors = detector.detectAndCompute(image, None)
        # Pixels share their edges: (i + 1/2) / n is the same place on both grids.
        points.append([(np.array(point.pt) + 0.5) / factor - 0.5 for point in found])
        described.append(descriptors)
    if any(descriptors is None or len(descriptors) < 2 for descriptors in described):
        return np.eye(2, 3)
    matches = cv2.BFMatcher().knnMatch(*described, k=2)
    good = [m for m, other in matches if m.distance < 0.8 * other.distance]
    if len(good) < 3:
        return np.eye(2, 3)
    here = np.float32([points[0][m.queryIdx] for m in good])
    there = np.float32([points[1][m.trainIdx] for m in good])
    cv2.setRNGSeed(0)
    matrix, _ = cv2.estimateAffine2D(here, there, ransacReprojThreshold=fixed.shape[0] / 50)
    return np.eye(2, 3) if matrix is None or not np.isfinite(matrix).all() else matrix


def pixels_displaced(matrix, shape):
    """Return the displacement ``(*shape, 2)``, row and column, of a map of (x, y) pixels."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    x, y = np.einsum("ij,jhw->ihw", matrix, np.stack([columns, rows, np.ones(shape)]))
    return np.stack([y - rows, x - columns], axis=-1)


# --- different brains ---


def different_pairs(images, options, *, batch, fresh):
    """Return pairs of different brains, one of them under a known matrix and nothing else."""
    return KnownTransforms(
        images, other=1.0, deformation=None, batch_size=batch,
        seed=options.seed if fresh else 2**20, fresh=fresh,
    )  # fmt: skip


def compile_dense(model, field, options):
    """Compile a model for NCC; `field` is the output that says what no matrix says."""
    velocities = [name for name in model.output if name.endswith("velocity")]
    smooth = {name: kreg.losses.Diffusion() for name in velocities}
    model.compile(
        example.optimizer(options.steps, 6e-3),
        loss={"warped": kreg.losses.NCC(), field: kreg.losses.Folding(margin=0.1), **smooth},
        loss_weights={"warped": 1.0, field: 5.0, **dict.fromkeys(velocities, 0.01)},
    )


def dense_scores(pairs, matrix, residual) -> dict:
    """Return mean NCC, before the dense step and after it, and folds."""
    voxels = kreg.ops.voxel_matrix(matrix, residual.shape[1:-1])
    displacement = kreg.ops.compose_linear(voxels, residual)
    warped = {
        "NCC before": linear_warp(pairs["moving"], matrix),
        "NCC": kreg.ops.warp(pairs["moving"], displacement),
    }
    scores = {k: float(np.mean(kreg.metrics.ncc(pairs["fixed"], x))) for k, x in warped.items()}
    folds = kreg.metrics.folding_fraction(displacement)
    return {**scores, "folds %": 100 * float(np.mean(folds))}


def linear_warp(moving, matrix):
    """Return the moving images warped by matrices."""
    field = example.linear_displacement(matrix, moving.shape[1:-1])
    return np.array(kreg.ops.warp(moving, field))


def train_dense_ddim(options, _) -> dict:
    """Train the cascade by NCC: its stages go on, then a dense step learns what they have left."""
    training, test = example.load("brains", options.data)
    keras.utils.set_random_seed(options.seed)
    recipe = example.RECIPES["brains"]
    shape = training.shape[1:]
    trained = recipe.build(shape)
    trained.load_weights(options.folder / "brains.weights.h5")
    start = cpu_seconds()
    stages = recipe.build(shape, dense=None, detached=False)
    copy_stages(trained, stages)
    stages.compile(
        example.optimizer(options.stage_steps, 1e-3),
        loss={"warped": kreg.losses.NCC(), "stage_matrices": GridDistance(shape[:-1])},
        loss_weights={"warped": 1.0, "stage_matrices": 0.002},
    )
    pairs = different_pairs(training, options, batch=16, fresh=True)
    example.fit(stages, pairs, options.stage_steps, 0)

    model = recipe.build(shape, dense=NetworkStep(view=GreyValues()))
    copy_stages(stages, model)
    example.stages_of(model).trainable = False
    compile_dense(model, "residual", options)
    pairs = different_pairs(training, options, batch=8, fresh=True)
    history = example.fit(model, pairs, options.steps, 0)
    seconds = cpu_seconds() - start
    pairs = different_pairs(test, options, batch=PAIRS["brains"], fresh=False)[0][0]
    result = predict(model, pairs)
    return {
        "rows": {"different brains": dense_scores(pairs, result["matrix"], result["residual"])},
        "weights": model.count_params(),
        "steps": options.steps,
        "cpu_s": {"dense": seconds},
        "ms_a_pair": {"dense": milliseconds(model, first(pairs), "displacement")},
        "loss": history["loss"][-1],
    }


def copy_stages(source, target):
    """Give the stages of one cascade the weights of another's."""
    own = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.name.startswith(("interpolator", "matcher")):
            layer.set_weights(own[layer.name].get_weights())


class Aligned(keras.utils.PyDataset):
    """Pairs whose moving image the true matrix has already warped."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs, self.steps = pairs, pairs.steps

    def __len__(self):
        return self.steps

    def __getitem__(self, batch):
        (data,) = self.pairs[batch]
        moving = linear_warp(data["moving"], data["moving_matrix"])
        return ({"moving": moving, "fixed": data["fixed"]},)

    def on_epoch_end(self):
        self.pairs.on_epoch_end()


def train_voxelmorph(options, _) -> dict:
    """Train kreg's voxelmorph on moving images that the true matrix has warped."""
    training, test = example.load("brains", options.data)
    data = Aligned(different_pairs(training, options, batch=8, fresh=True))
    keras.utils.set_random_seed(options.seed)
    with kreg.machine.mixed_precision():
        model = kreg.models.voxelmorph(data.pairs.image_shape)
    start = cpu_seconds()
    compile_dense(model, "displacement", options)
    history = example.fit(model, data, options.steps, 0)
    seconds = cpu_seconds() - start
    pairs = different_pairs(test, options, batch=PAIRS["brains"], fresh=False)
    aligned = Aligned(pairs)[0][0]
    result = predict(model, aligned)
    (pairs,) = pairs[0]
    return {
        "rows": {
            "different brains": dense_scores(pairs, pairs["moving_matrix"], result["displacement"])
        },
        "weights": model.count_params(),
        "steps": options.steps,
        "cpu_s": {"dense": seconds},
        "ms_a_pair": {"dense": milliseconds(model, first(aligned), "displacement")},
        "loss": history["loss"][-1],
    }


# --- running and reporting ---

FUNCTIONS = {
    "digits/ddim": train_ddim,
    "brains/ddim": train_ddim,
    "digits/affine_net": train_affine_net,
    "brains/affine_net": train_affine_net,
    "digits/OpenCV": run_opencv,
    "brains/OpenCV": run_opencv,
    "different/voxelmorph": train_voxelmorph,
    "different/ddim": train_dense_ddim,
}


def run_job(options, job) -> dict:
    """Run a job in a process of its own, of one thread, and return what it measured."""
    single = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
         "TF_NUM_INTEROP_THREADS"), "1",
    )  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.ddim", "--single", job, *sys.argv[1:]]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=report.ROOT,
        env={**os.environ, **single, "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    line = next(part for part in done.stdout.splitlines() if part.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def logged(path) -> dict:
    """Return the results of a log, a line of JSON each."""
    return dict(map(json.loads, path.read_text().splitlines())) if path.exists() else {}


#: What a job starts from: the budget, or the stages, of an earlier one.
NEEDS = {
    "digits/affine_net": "digits/ddim",
    "brains/affine_net": "brains/ddim",
    "different/ddim": "brains/ddim",
}


def measure(options) -> dict:
    """Run the jobs that the log does not hold yet; return all results that it then holds."""
    done = logged(options.log)
    jobs = [job for job in JOBS if job in options.jobs and job not in done]
    for job in jobs:
        if NEEDS.get(job, job) not in {*jobs, *done}:
            sys.exit(
                f"Expected {NEEDS[job]}, which {job} starts from, in the log {options.log} or "
                f"among --jobs. Received: --jobs {' '.join(options.jobs)}."
            )
    for job in jobs:
        start = time.perf_counter()
        result = {**run_job(options, job), "provenance": report.provenance()}
        options.log.parent.mkdir(parents=True, exist_ok=True)
        with options.log.open("a") as file:
            file.write(json.dumps([job, result]) + "\n")
        print(f"{job}: {time.perf_counter() - start:.0f} s\n{result['rows']}", file=sys.stderr)
    return logged(options.log)


def _cells(*values) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def _transform_table(results, kind, name) -> list[str]:
    """The rows of one kind of pairs: each method and step."""
    lines = [
        f"## {name}",
        "",
        _cells(
            "",
            "median %",
            "95th %",
            f"< {BOUND[kind]} %",
            "on the object %",
            "CPU s of training",
            "CPU ms a pair",
        ),
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for job, result in results.items():
        if not job.startswith(f"{kind}/") or name not in result["rows"]:
            continue
        method = job.split("/")[1]
        for step, row in result["rows"][name].items():
            phase = "dense" if step == "dense" else "stages"
            seconds = result["cpu_s"].get(phase)
            cost = result["ms_a_pair"].get(step, result["ms_a_pair"].get(phase))
            label = step if method == "OpenCV" or step == method else f"{method}, {step}"
            if step == "before":
                label, seconds, cost = step, None, None
            if "gave up" in row:
                label += f" (gave up on {row['gave up']:.0f} %)"
            inner = step.startswith("stage ") and step != list(result["rows"][name])[-2]
            lines.append(
                _cells(
                    label, f"{row['median']:.2f}", f"{row['95th']:.2f}", f"{row['below']:.1f}",
                    f"{row['object']:.2f}",
                    "" if seconds is None or inner else f"{seconds:.0f}",
                    "" if cost is None or inner else f"{cost:.3g}",
                )
            )  # fmt: skip
    return [*lines, ""] if len(lines) > 4 else []


def markdown(run: dict) -> str:
    """Return the whole report."""
    results = run["results"]
    lines = [
        "# Large motion: the DDIM cascade",
        "",
        f"- `{run['command']}`; " + ", ".join(f"{k} {v}" for k, v in run["versions"].items()),
    ]
    for job, result in results.items():
        about = result["provenance"]
        extra = [f"{result['weights']} weights"] if "weights" in result else []
        if "weights of the dense step" in result:
            extra.append(f"and {result['weights of the dense step']} of the dense step")
        if "steps" in result:
            extra.append(f"steps {result['steps']}")
        if "rate" in result:
            extra.append(f"learning rate {result['rate']}")
        if "pairs" in result:
            extra.append(f"the first {result['pairs']} pairs")
        if "error of the true matrix" in result:
            extra.append(f"the true matrix errs by {result['error of the true matrix']:.2f} %")
        lines.append(
            f"- {job}: {about['date']}, commit {about['commit']}, {about['cpu']}, load "
            f"{', '.join(map(str, about['load']))}" + "".join(f"; {part}" for part in extra)
        )
    lines += ["", *__doc__.split("\n\n", 2)[-1].strip().splitlines(), ""]
    for kind, names in (("digits", ["digits"]), ("brains", ["brains", "brains, inverted"])):
        for name in names:
            lines += _transform_table(results, kind, name)
    different = {job: r for job, r in results.items() if job.startswith("different/")}
    if different:
        lines += [
            "## Different brains",
            "",
            _cells("", "NCC before the dense step", "NCC", "folds %", "CPU s", "CPU ms a pair"),
            "|---|--:|--:|--:|--:|--:|",
        ]
        for job, result in different.items():
            row = result["rows"]["different brains"]
            lines.append(
                _cells(
                    job.split("/")[1], f"{row['NCC before']:.4f}", f"{row['NCC']:.4f}",
                    f"{row['folds %']:.5f}", f"{result['cpu_s']['dense']:.0f}",
                    f"{result['ms_a_pair']['dense']:.2f}",
                )
            )  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder; KREG_DATA if left out")
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="for different brains")
    parser.add_argument("--stage-steps", type=int, default=500, help="before these, of the stages")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of affine_net")
    parser.add_argument("--opencv-pairs", type=int, default=200)
    parser.add_argument("--log", type=Path, default=report.ROOT / "outputs/ddim.jsonl")
    parser.add_argument("--results", type=Path, default=report.ROOT / "benchmarks/results")
    parser.add_argument("--single", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder, results = options.results, logged(options.log)
    options.folder, options.results = options.log.with_suffix(""), results
    if options.single:
        kreg.machine.keep_freed_memory()
        job = options.single
        print("RESULT " + json.dumps(FUNCTIONS[job](options, job.split("/")[0])))
        return
    results = measure(options)
    names = ("keras", "tensorflow", "numpy", "opencv-python-headless")
    versions = {"kreg": kreg.__version__, **{name: version(name) for name in names}}
    run = {
        "command": shlex.join(["python", "-m", "benchmarks.ddim", *sys.argv[1:]]),
        "versions": {**versions, "python": platform.python_version()},
        "results": results,
    }
    print(markdown(run))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ddim.md").write_text(markdown(run))
    (folder / "ddim.json").write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
