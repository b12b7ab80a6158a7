"""Train on several machines at once, in step: each takes its part of every batch.

    export KERAS_BACKEND=jax                              # and pip install jax
    python examples/distributed.py --processes 2          # two processes here, to try it out
    python examples/distributed.py --processes 2 --quick  # a few steps

On two machines, started within five minutes of one another, A being reached by the other::

    A$ python examples/distributed.py --processes 2 --process 0 --coordinator A:4321 --output DIR
    B$ python examples/distributed.py --processes 2 --process 1 --coordinator A:4321

One process drives all accelerators of its machine; each machine needs the same data. The weights
are those of one process that trains on whole batches, up to rounding. The model, a small
registration network for handwritten digits, is saved once, by process 0.
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
from absl import app, flags, logging

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line."""
    flags.DEFINE_integer("processes", 2, "how many train together", lower_bound=1)
    flags.DEFINE_integer("process", None, "which one this is; all are started here if left out", 0)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, with --process")
    flags.DEFINE_string(
        "mnist", None, "mnist.npz, or a folder that holds it; searched for if left out"
    )
    flags.DEFINE_integer("steps", 300, "training steps", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "pairs a step, of all processes together", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of weights and pairs, the same for all processes")
    flags.DEFINE_string("output", None, "new folder for the model; nothing is saved if left out")
    flags.DEFINE_string(
        "logs", None, "existing folder for what processes 1, 2 ... started here say"
    )
    flags.DEFINE_float("timeout", None, "seconds after which processes started here are ended")
    flags.DEFINE_bool("quick", False, "6 steps of 8 pairs: a check, not a result")


# --- one process of many ---


class Share(kreg.data.PairDataset):
    """The part of each batch of `pairs` that one of several processes trains on."""

    def __init__(self, pairs, process, processes):
        if pairs.batch_size % processes:
            raise ValueError(
                "Expected a batch that can be shared equally; choose --batch accordingly. "
                f"Received: {pairs.batch_size} pairs for {processes} processes."
            )
        size = pairs.batch_size // processes
        super().__init__(pairs.moving, pairs.fixed, batch_size=size)
        self.pairs, self.part = pairs, slice(process * size, (process + 1) * size)

    def __len__(self):
        return len(self.pairs)

    def indices(self, batch):
        """Return the images of this part of the batch: no others are read."""
        moving, fixed = self.pairs.indices(batch)
        return moving[self.part], fixed[self.part]

    def on_epoch_end(self):
        """Go on to the next epoch."""
        self.pairs.on_epoch_end()


def load_digits(path):
    """Return MNIST or, where it can't be had, the real digits that come with scikit-learn."""
    try:
        return kreg.data.load_mnist(path)
    except kreg.data.MnistUnavailable:
        return kreg.data.load_handwritten_digits()


def train(digits, *, process=0, processes=1, steps=300, batch=64, seed=0):
    """Return the trained model, its history and the losses on held-out pairs before and after.

    All processes call it with the same arguments but `process`; it returns the same everywhere.
    """
    keras.utils.set_random_seed(seed)  # the same weights to start from
    epochs = max(1, steps // 100)

    def shared(images, steps, **options):
        pairs = kreg.data.mnist_pairs(images, images, batch_size=batch, steps=steps, **options)
        return Share(pairs, process, processes)

    training = shared(digits.train, steps // epochs, seed=seed)
    held_out = shared(digits.test, 2, seed=seed + 1, fresh=False)
    # Weights on every device, each part of a batch on its own: the data are shared out already.
    with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
        model = kreg.models.dirnet(training.image_shape, spacing=4)
        model.compile(
            keras.optimizers.Adam(2e-3),
            loss={"warped": kreg.losses.NCC(), "displacement": kreg.losses.Diffusion()},
            loss_weights={"warped": 1.0, "displacement": 0.05},
        )
        before = model.evaluate(held_out, return_dict=True, verbose=0)
        history = model.fit(
            training,
            epochs=epochs,
            shuffle=False,  # parts of one batch belong together
            verbose=2 if process == 0 else 0,
        )
        after = model.evaluate(held_out, return_dict=True, verbose=0)
    return model, history.history, {"before": before, "after": after}


def fingerprint(model):
    """Return a few letters that are equal where all weights are, to the last bit."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()[:12]


def take_part(process, processes, coordinator):
    """Join the others, train with them; process 0 speaks and saves."""
    if coordinator is not None:  # before anything is computed
        keras.distribution.initialize(coordinator, processes, process)
    digits = load_digits(FLAGS.mnist)
    steps, batch = (6, 8) if FLAGS.quick else (FLAGS.steps, FLAGS.batch)
    if process == 0:
        devices = ", ".join(keras.distribution.list_devices())
        print(f"Data: {digits.source}\n{steps} steps of {batch} pairs on {devices}", flush=True)
    start = time.perf_counter()
    model, history, losses = train(
        digits, process=process, processes=processes, steps=steps, batch=batch, seed=FLAGS.seed
    )
    print(f"Process {process} of {processes}: weights {fingerprint(model)}", flush=True)
    if process != 0:
        return
    before, after = (losses[when]["warped_loss"] for when in ("before", "after"))
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s; 1 - NCC of held-out pairs {before:.3f} -> {after:.3f}")
    if FLAGS.output is not None:
        folder = Path(FLAGS.output)
        folder.mkdir(parents=True)
        model.save(folder / "model.keras")
        (folder / "losses.json").write_text(json.dumps({"history": history, **losses}) + "\n")
        print(f"Written to {folder}: losses.json, model.keras")


# --- all of them on this machine ---


@contextlib.contextmanager
def free_port():
    """Yield the number of a port that nobody else is given meanwhile."""
    with socket.socket() as held:
        # Bound here, where others are not to have it, and yet open to the coordinator: gRPC asks
        # for a port that is shared.
        if hasattr(socket, "SO_REUSEPORT"):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("localhost", 0))
        yield held.getsockname()[1]


def launch(command, processes, *, logs, timeout=None):
    """Run `command` as process 0, 1 ... with a coordinator; end all where one fails.

    Args:
        command: a list, to which ``--process=`` and ``--coordinator=`` are added.
        processes: how many.
        logs: folder for ``process-1.log`` ...: what they say. Process 0 speaks here.
        timeout: seconds; None for no limit.

    Raises:
        RuntimeError: if a process fails, with the end of what it said.
        TimeoutError: if they have not ended in time.
    """
    logs = Path(logs)
    # One machine's processes would each take all its accelerators: here they are left alone.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    deadline = None if timeout is None else time.monotonic() + timeout
    children = []
    with free_port() as port, contextlib.ExitStack() as files:
        try:
            for process in range(processes):
                log = files.enter_context(open(logs / f"process-{process}.log", "wb"))
                children.append(
                    subprocess.Popen(
                        [*command, f"--process={process}", f"--coordinator=localhost:{port}"],
                        stdout=None if process == 0 else log,
                        stderr=log,
                        env=environment,
                    )
                )
            _wait(children, logs, deadline)
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.wait()


def _wait(children, logs, deadline):
    """Return when all have ended well."""
    while None in (codes := [child.poll() for child in children]) and not any(codes):
        if deadline is not None and time.monotonic() > deadline:
            late = [k for k, code in enumerate(codes) if code is None]
            raise TimeoutError(
                "Expected all processes to end in time; give them more with --timeout. Received: "
                f"processes {late} still at work."
            )
        time.sleep(0.1)
    said = [
        f"--- process {k}, exit code {code}:\n"
        + (logs / f"process-{k}.log").read_text(errors="replace")[-4000:]
        for k, code in enumerate(codes)
        if code
    ]
    if said:
        raise RuntimeError("Expected all processes to end well. Received:\n" + "\n".join(said))


def main(arguments):
    """Start all processes, or be one of them."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    if keras.config.backend() != "jax":
        raise app.UsageError(
            "Expected the JAX backend, with which Keras trains across machines: set "
            f"KERAS_BACKEND=jax, pip install jax. Received: {keras.config.backend()}."
        )
    if (FLAGS.process is None) != (FLAGS.coordinator is None):
        raise app.UsageError(
            "Expected --process and --coordinator together, or neither to start all processes "
            f"here. Received: {FLAGS.process} and {FLAGS.coordinator}."
        )
    if FLAGS.output is not None and Path(FLAGS.output).exists():
        raise app.UsageError(
            "Expected an output folder that does not exist yet; name another with --output. "
            f"Received: {FLAGS.output}."
        )
    logging.set_verbosity(logging.WARNING)  # JAX tells in detail how it starts
    if FLAGS.process is not None:
        take_part(FLAGS.process, FLAGS.processes, FLAGS.coordinator)
    elif FLAGS.processes == 1:
        take_part(0, 1, None)
    else:
        # A request to end is an exit like others: the processes started here are ended, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *sys.argv]
            launch(command, FLAGS.processes, logs=FLAGS.logs or folder, timeout=FLAGS.timeout)


if __name__ == "__main__":
    define_flags()
    app.run(main)
