import csv
import html
import json
import os
import re
import shlex
import signal

import numpy as np
import pytest

from kreg.cli import batch, register
from kreg.io import FileError, load_transform
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

    def align(pair, how, folder, **options):
        done.append(pair.moving)
        return register.align(pair, how, folder, **options)

    monkeypatch.setattr(batch, "align", align)
    return done


@pytest.mark.parametrize("few", [0, 1])
def test_report_names_a_command_and_how_closely_it_gives_the_same(
    kreg, folder, quick, monkeypatch, few
):
    """XLA compiles many pairs, which the command for a single one does not; few neither."""
    monkeypatch.setattr(batch, "_FEW", few)
    assert kreg(*listed(folder, "a,../fixed.png,../moving.png"))[0] in (0, 3)
    text = html.unescape((folder / "all" / "a" / "report.html").read_text(encoding="utf-8"))
    assert ("the same but for rounding" in text) == (few == 0)
    (command,) = re.findall(r"kreg (register .*--output=FOLDER)<", text)
    assert kreg(*shlex.split(command.replace("FOLDER", "again")))[0] in (0, 3)
    one, other = (load_transform(folder / path / "transform.npz") for path in ("all/a", "again"))
    np.testing.assert_allclose(one.matrix, other.matrix, atol=0.01 if few == 0 else 1e-6)
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
    code, printed, said = kreg(*command)
    assert code in (0, 3)
    assert said.splitlines() == [
        "pair 1 of 3: a", "pair 2 of 3: b", "looking for the transform ...", "pair 3 of 3: ç d",
    ]  # fmt: skip
    assert kreg("info", "all")[1] == printed
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

    def slow(pair, how, unfinished, **options):
        with batch.new_folder(folder / "all" / "a", overwrite=False) as faster:
            result = register.align(pair, how, faster, **options)
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

    def second_is_interrupted(pair, how, folder, **options):
        if pair.moving.endswith("fixed.png"):
            signal.raise_signal(signal.SIGINT)
        return register.align(pair, how, folder, **options)

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


def test_the_summary_is_written_as_pairs_are_finished(kreg, folder, quick, monkeypatch):
    """A process that is killed writes none at the end."""
    command = listed(folder, "a,../fixed.png,../moving.png", "b,../moving.png,../fixed.png")
    found = []

    def align(pair, how, unfinished, **options):
        if pair.moving.endswith("fixed.png"):
            found.append(summary(folder))
            found.append(batch.summarised(folder, batch.read_summary(folder / "all"))[0])
        return register.align(pair, how, unfinished, **options)

    monkeypatch.setattr(batch, "align", align)
    assert kreg(*command)[0] in (0, 3)
    assert [row["state"] == "waiting" for row in found[0].values()] == [False, True]
    assert (found[1]["failed"], found[1]["waiting"]) == (0, 1)


def test_the_summary_takes_little_of_the_time(kreg, folder, monkeypatch):
    command = listed(folder, *[f"p{i},a.png,b.png" for i in range(2000)])
    written = []

    def write_rows(*arguments, **options):
        written.append(arguments)
        return write(*arguments, **options)

    write = batch.write_rows
    monkeypatch.setattr(batch, "write_rows", write_rows)
    monkeypatch.setattr(batch, "_one", lambda *_, **__: {"state": "failed", "reason": "none"})
    assert kreg(*command)[0] == 1
    assert 2 <= len(written) < 200
    assert {row["state"] for row in summary(folder).values()} == {"failed"}


def test_a_summary_that_cannot_be_written_meanwhile_stops_nothing(kreg, folder, quick, monkeypatch):
    command = listed(folder, "a,../fixed.png,../moving.png", "b,../moving.png,../fixed.png")

    def full(path, rows, overwrite):
        if any(row[3] == "waiting" for row in rows):
            raise FileError("no space")
        write(path, rows, overwrite)

    write = batch.write_rows
    monkeypatch.setattr(batch, "write_rows", full)
    assert kreg(*command)[0] in (0, 3)
    assert set(summary(folder)) == {"a", "b"}


def test_results_of_other_files_are_not_taken_for_those_of_a_pair(kreg, folder, quick):
    assert kreg(*listed(folder, "a,../fixed.png,../moving.png"))[0] in (0, 3)
    (folder / "mask.png").write_bytes((folder / "fixed.png").read_bytes())
    for row, header in (
        ("a,../moving.png,../moving.png", "name,fixed,moving"),
        ("a,../fixed.png,../fixed.png", "name,fixed,moving"),
        ("a,../fixed.png,../moving.png,../mask.png", "name,fixed,moving,fixed_mask"),
    ):
        code, printed, _ = kreg(*listed(folder, row, header=header))
        assert (code, summary(folder)["a"]["state"]) == (1, "failed")
        assert "a result of the same files and options" in printed
    assert kreg(*listed(folder, "a,../fixed.png,../moving.png"))[0] in (0, 3)
    assert summary(folder)["a"]["state"] != "failed"


def test_a_damaged_result_that_another_process_has_mended_stays(kreg, folder, quick, monkeypatch):
    command = listed(folder, "a,../fixed.png,../moving.png")
    kreg(*command)
    result = folder / "all" / "a" / "result.json"
    whole = result.read_text(encoding="utf-8")
    result.write_text("{")

    def slow(pair, how, unfinished, **options):
        found = register.align(pair, how, unfinished, **options)
        result.write_text(whole, encoding="utf-8")
        return found

    monkeypatch.setattr(batch, "align", slow)
    code, printed, _ = kreg(*command)
    assert (code in (0, 3), "done again" in printed) == (True, False)
    assert result.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("text", ["", '{"kreg": "0', "[1, 2]", "{}", '{"files": "all"}'])
def test_a_damaged_result_is_done_again(kreg, folder, quick, monkeypatch, text):
    command = listed(folder, "a,../fixed.png,../moving.png")
    result = folder / "all" / "a" / "result.json"
    assert kreg(*command)[0] in (0, 3)
    whole = json.loads(result.read_text(encoding="utf-8"))
    result.write_text(text, encoding="utf-8")
    code, printed, said = kreg("info", "all/a")
    assert (code, printed, said.count("\n")) == (1, "", 1)
    assert "result.json" in said
    code, printed, _ = kreg(*command)
    assert code in (0, 3)
    assert "done again: a: its result.json was damaged" in printed
    again = json.loads(result.read_text(encoding="utf-8"))
    assert again["matrix"] == whole["matrix"]
    done = counted(monkeypatch)
    assert "done again" not in kreg(*command)[1]
    assert done == []
    # What is not a result's own file stays.
    result.write_text(text, encoding="utf-8")
    (folder / "all" / "a" / "thesis.txt").touch()
    assert "'thesis.txt', and a damaged result.json" in kreg(*command)[1]
    assert (folder / "all" / "a" / "thesis.txt").exists()


def test_a_result_without_a_number_does_not_end_the_batch(kreg, folder, quick):
    command = listed(folder, "a,../fixed.png,../moving.png")
    kreg(*command)
    path = folder / "all" / "a" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(result | {"similarity_after": None}), encoding="utf-8")
    assert kreg(*command)[0] in (0, 3)
    del result["settings"]
    path.write_text(json.dumps(result), encoding="utf-8")
    code, printed, _ = kreg(*command)
    assert (code, "--overwrite replaces it" in printed) == (1, True)
