import csv
import html
import json
import os
import re
import shlex
import signal

import numpy as np

from kreg.cli import batch, register
from kreg.io import load_transform
from tests.cli.conftest import FEW


def listed(folder, *rows, header="name,fixed,moving"):
    (folder / "lists").mkdir(exist_ok=True)
    lines = [header, *rows]
    (folder / "lists" / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ("batch", "lists/pairs.csv", "--output", "all", *FEW)


def summary(folder):
    with (folder / "all" / "summary.csv").open(encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def counted(monkeypatch):
    """The pairs that are registered."""
    done = []

    def align(pair, how, folder):
        done.append(pair.moving)
        return register.align(pair, how, folder)

    monkeypatch.setattr(batch, "align", align)
    return done


def test_report_names_a_command_and_how_closely_it_gives_the_same(kreg, folder, quick):
    assert kreg(*listed(folder, "a,../fixed.png,../moving.png"))[0] in (0, 3)
    text = html.unescape((folder / "all" / "a" / "report.html").read_text(encoding="utf-8"))
    assert "the same but for rounding" in text
    (command,) = re.findall(r"kreg (register .*--output=FOLDER)<", text)
    assert kreg(*shlex.split(command.replace("FOLDER", "again")))[0] in (0, 3)
    one, other = (load_transform(folder / path / "transform.npz") for path in ("all/a", "again"))
    np.testing.assert_allclose(one.matrix, other.matrix, atol=0.01)
    again = (folder / "again" / "report.html").read_text(encoding="utf-8")
    assert "but for rounding" not in again  # the same command gives exactly the same


def test_failures_stop_nothing_and_finished_work_stays(kreg, folder, quick, monkeypatch):
    done = counted(monkeypatch)
    command = listed(
        folder, "a,../fixed.png,../moving.png", "b,../fixed.png,../none.png",
        "ç d,../moving.png,../fixed.png",
    )  # fmt: skip
    code, printed, said = kreg(*command, "--json")
    found = json.loads(printed)
    assert (code, found["failed"], len(found["pairs"])) == (1, 1, 3)
    assert said == ""
    assert sorted(os.listdir(folder / "all")) == ["a", "summary.csv", "ç d"]
    assert "no such file" in summary(folder)["b"]["reason"]
    assert [row["state"] == "failed" for row in summary(folder).values()] == [False, True, False]
    # Once more, now that the file is there: only what failed is done.
    (folder / "none.png").write_bytes((folder / "moving.png").read_bytes())
    before = (folder / "all" / "a" / "result.json").stat().st_mtime_ns
    del done[:]
    code, printed, _ = kreg(*command)
    assert code in (0, 3)
    assert done == [str(folder / "none.png")]
    assert (folder / "all" / "a" / "result.json").stat().st_mtime_ns == before
    assert sorted(os.listdir(folder / "all")) == ["a", "b", "summary.csv", "ç d"]
    assert "of 3 pairs" in printed
    # Other options are not taken for the same work.
    code, printed, _ = kreg(*command, "--seed=1")
    assert (code, printed.count("result of the same files and options")) == (1, 3)
    code, _, _ = kreg(*command, "--seed=1", "--overwrite")
    assert code in (0, 3)


def test_what_another_process_has_finished_meanwhile_is_no_failure(
    kreg, folder, quick, monkeypatch
):
    command = listed(folder, "a,../fixed.png,../moving.png")

    def slow(pair, how, unfinished):
        with batch.new_folder(folder / "all" / "a", overwrite=False) as faster:
            result = register.align(pair, how, faster)
        (unfinished / "half").touch()
        return result

    monkeypatch.setattr(batch, "align", slow)
    code, _, _ = kreg(*command)
    assert code in (0, 3)
    assert summary(folder)["a"]["state"] in ("done", "not trusted")
    assert sorted(os.listdir(folder / "all")) == ["a", "summary.csv"]
    assert "half" not in os.listdir(folder / "all" / "a")


def test_interrupted_it_goes_on_later(kreg, folder, quick, monkeypatch):
    command = listed(folder, "../fixed.png,../moving.png", "../moving.png,../fixed.png",
                     header="fixed,moving")  # fmt: skip

    def second_is_interrupted(pair, how, folder):
        if pair.moving.endswith("fixed.png"):
            signal.raise_signal(signal.SIGINT)
        return register.align(pair, how, folder)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "align", second_is_interrupted)
        code, _, said = kreg(*command)
    assert code == 130
    assert "goes on" in said
    assert sorted(os.listdir(folder / "all")) == ["pair0001", "summary.csv"]
    assert summary(folder)["pair0002"]["state"] == "waiting"
    done = counted(monkeypatch)
    assert kreg(*command)[0] in (0, 3)
    assert done == [str(folder / "fixed.png")]
    assert summary(folder)["pair0002"]["state"] != "waiting"
