"""Batches on a real Dask cluster: a scheduler and workers, processes of their own."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import pytest

from kreg.cli import batch, main
from kreg.cli import cluster as cluster_module
from kreg.cli.cluster import ClusterError, each
from kreg.io import write
from kreg.version import __version__
from tests.cli.conftest import FEW, scene

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="one backend is enough for the cluster"
)

ROOT = Path(__file__).parents[2]
PAIRS = 12


class Cluster:
    """A scheduler, and the workers that are started one by one."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.address = ""
        self.processes = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")

    def wait_for_address(self):
        """Return where the scheduler listens."""
        wait_for(lambda: self.file.exists() and self.file.read_text(encoding="utf-8").endswith("}"))
        return json.loads(self.file.read_text(encoding="utf-8"))["address"]

    def worker(self, name, path=ROOT):
        """Start a worker that finds kreg in a folder."""
        self._start("worker", "--nthreads", "1", "--no-nanny", "--name", name, PYTHONPATH=str(path))
        return self.processes[-1]

    def _start(self, role, *options, **environment):
        shared = ("--no-dashboard", "--scheduler-file", str(self.file))
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *shared, *options]
        with (self.folder / "log.txt").open("a") as log:
            started = subprocess.Popen(
                command, cwd=self.folder, env=os.environ | environment, stdout=log, stderr=log
            )
        self.processes.append(started)

    def wait_for_workers(self, count):
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)

    def wait_until_idle(self):
        """Wait until nothing is left to do, be it cancelled."""

        def at_work(dask_worker):
            return dask_worker.state.executing_count + len(dask_worker.state.ready)

        with distributed.Client(self.address, set_as_default=False) as client:
            wait_for(lambda: not sum(client.run(at_work).values()))

    def close(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@contextlib.contextmanager
def once(condition, act):
    """Do something as soon as it is time for it, beside what is done within."""
    done, ended = threading.Event(), threading.Event()

    def watch():
        wait_for(lambda: condition() or ended.is_set())
        if not ended.is_set():
            act()
            done.set()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    ended.set()
    thread.join()
    assert done.is_set()


@pytest.fixture
def cluster(tmp_path):
    found = Cluster(tmp_path)
    try:
        found.address = found.wait_for_address()
        yield found
    finally:
        found.close()


@pytest.fixture
def folder(tmp_path):
    """A list of pairs."""
    path = tmp_path / "pairs"
    path.mkdir()
    write(path / "fixed.png", scene())
    write(path / "moving.png", scene((1.5, -2.0)))
    rows = [f"p{number:02},fixed.png,moving.png" for number in range(PAIRS)]
    (path / "pairs.csv").write_text("\n".join(["name,fixed,moving", *rows]) + "\n")
    return path


def command(folder, address):
    listed, output = folder / "pairs.csv", folder / "all"
    return ["batch", str(listed), "--output", str(output), "--scheduler", address,
            *FEW, "--similarity=ncc"]  # fmt: skip


def finished(folder):
    return sorted(path.parent.name for path in (folder / "all").glob("*/result.json"))


def unfinished(folder):
    return list((folder / "all").glob(".*.unfinished"))


def summary(folder):
    with (folder / "all" / "summary.csv").open() as file:
        return [(row["name"], row["state"]) for row in csv.DictReader(file)]


def test_a_lost_worker_and_ctrl_c_lose_nothing_and_double_nothing(
    cluster, folder, capsys, monkeypatch
):
    names = [f"p{number:02}" for number in range(PAIRS)]
    victim = cluster.worker("victim")
    survivor = cluster.worker("survivor")
    cluster.wait_for_workers(2)

    def both_are_within_a_pair():
        return finished(folder) and len(unfinished(folder)) == 2

    with once(both_are_within_a_pair, victim.kill):
        code = main(command(folder, cluster.address))
    assert code in (0, 3)
    assert victim.wait() == -signal.SIGKILL
    assert summary(folder) == [(name, "done" if code == 0 else "not trusted") for name in names]
    assert sorted(os.listdir(folder / "all")) == [*names, "summary.csv"]
    for name in names:
        result = json.loads((folder / "all" / name / "result.json").read_text(encoding="utf-8"))
        assert sorted(os.listdir(folder / "all" / name)) == sorted(result["files"])
    assert f"of {PAIRS} pairs" in capsys.readouterr().out

    def interrupt():
        """Ctrl-C; the worker is held, so that nothing depends on which of them is faster."""
        survivor.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_within(path, rows, overwrite):
        """The same between two results; the other one comes while it waits for the next."""
        if sum(row[3] in ("done", "not trusted") for row in rows) > 2:
            monkeypatch.undo()
            interrupt()

    # Twice more, with all but two of them missing: Ctrl-C leaves what is queued undone.
    kept = (folder / "all" / "p00" / "result.json").stat().st_mtime_ns
    for within in (False, True):
        for name in names[2:]:
            shutil.rmtree(folder / "all" / name, ignore_errors=True)
        with contextlib.ExitStack() as stack:
            if within:
                monkeypatch.setattr(batch, "_SHARE", 0)
                monkeypatch.setattr(batch, "write_rows", interrupt_within)
            else:
                stack.enter_context(once(lambda: len(finished(folder)) > 2, interrupt))
            assert main(command(folder, cluster.address)) == 130
        survivor.send_signal(signal.SIGCONT)
        assert "goes on" in capsys.readouterr().err
        cluster.wait_until_idle()
        before = finished(folder)
        assert 3 <= len(before) < PAIRS
        waiting = {name for name, state in summary(folder) if state == "waiting"}
        assert waiting >= {*names} - {*before}

    assert main(command(folder, cluster.address)) == code
    assert finished(folder) == names
    assert (folder / "all" / "p00" / "result.json").stat().st_mtime_ns == kept


def stub(folder, version):
    """A folder with no more of kreg than its version: enough for work that needs nothing of it."""
    (folder / "stub" / "kreg").mkdir(parents=True)
    (folder / "stub" / "kreg" / "__init__.py").touch()
    (folder / "stub" / "kreg" / "version.py").write_text(f'__version__ = "{version}"\n')
    return folder / "stub"


def test_a_worker_with_another_kreg_is_named(cluster, folder, capsys):
    cluster.worker("other", stub(folder, "0.0.1"))
    cluster.wait_for_workers(1)
    assert main(command(folder, cluster.address)) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"kreg batch: Expected kreg {__version__}, as here, on every worker")
    assert said.endswith("Received: 0.0.1.")
    assert not finished(folder)


def test_failures_take_the_place_of_results_and_a_lost_scheduler_is_told(cluster, folder):
    cluster.worker("worker", stub(folder, __version__))
    cluster.wait_for_workers(1)
    results = each(cluster.address, int, {"a": ("7",), "b": ("x",)})
    failed, done = sorted(results, key=lambda named: str(named[1]), reverse=True)
    assert done == ("a", 7)
    assert failed[0] == "b"
    assert isinstance(failed[1], ValueError)

    results = each(cluster.address, time.sleep, {"short": (0,), "long": (60,)})
    assert next(results) == ("short", None)
    cluster.processes[0].kill()
    with pytest.raises(ClusterError, match="lost connection"):
        next(results)


def test_says_where_there_is_no_cluster(folder, capsys, monkeypatch):
    monkeypatch.setattr(cluster_module, "_PATIENCE", 1)
    assert main(command(folder, "tcp://127.0.0.1:9")) == 1
    begin, connecting, said = capsys.readouterr().err.splitlines()
    assert begin == f"{PAIRS} of {PAIRS} pairs to do"
    assert connecting == "connecting to tcp://127.0.0.1:9 ..."
    assert "`dask scheduler` starts one. Received: tcp://127.0.0.1:9" in said
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(command(folder, "tcp://127.0.0.1:9")) == 1
    assert 'pip install "kreg[dask]"' in capsys.readouterr().err
