"""Register many pairs, listed in a CSV file; what is done is never done again, nor lost.

usage: kreg batch PAIRS.csv --output FOLDER [options of kreg register]

PAIRS.csv has a header and the columns fixed and moving, paths that start from its own folder,
and where needed fixed_mask, moving_mask, and name: the folder of the pair within FOLDER.

  name,fixed,moving
  patient1,before/1.nii.gz,after/1.nii.gz
  patient2,before/2.nii.gz,after/2.nii.gz

Each pair gets its own folder, as `kreg register` leaves it, once it is whole. A pair that fails
stops no other. FOLDER/summary.csv, kept up to date, lists them all: done, not trusted, failed and
why; `kreg info FOLDER` tells it, and whether the results are still there. Run again, after Ctrl-C
or a power cut, the same command goes on with what is missing, failures first tried again, and does
again what has a damaged result.json; with --overwrite it does all anew.

With --scheduler the workers of a Dask cluster do the work, one pair at a time in each thread of
theirs, wherever they are: with the same kreg, and the same files under the same names. If one is
lost, others do its pairs; Ctrl-C cancels what is queued.

Examples:
  kreg batch pairs.csv --output aligned --transform rigid
  kreg batch pairs.csv --output aligned --json > summary.json
  dask scheduler                                  # on one machine
  dask worker tcp://HOST:8786 --nthreads 1        # on each that is to work
  kreg batch pairs.csv --output aligned --scheduler tcp://HOST:8786

Exit codes: 0 all done and trusted; 1 some failed; 3 all done, some not trusted.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from absl import flags

from kreg.cli import cluster, method
from kreg.cli.method import Method
from kreg.cli.new_folder import RESULT, clear_unfinished, is_damaged, new_folder, result_of
from kreg.cli.outcome import BAD_INPUT, DONE, NOT_TRUSTED, Outcome, UsageError, one_line
from kreg.cli.points import read_table, write_rows
from kreg.cli.register import PairFiles, align
from kreg.cli.terminal import counted, logged, say
from kreg.io.errors import FileError, reason, refusal

SUMMARY = "summary.csv"
#: After the summary was written, it is not written again for so many times as long.
_SHARE = 50
#: Of a list of no more pairs none is compiled by XLA: that takes 15 s for a size, and saves 1 s.
_FEW = 12
_NEEDED = {"settings", "fixed", "moving", "trusted", "similarity_after", "seconds", "reason"}
_STATES = ("done", "not trusted", "failed", "waiting")
_COLUMNS = ["name", "fixed", "moving", "state", "similarity", "seconds", "reason"]
_NUMBERS = {"similarity", "seconds"}


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string("output", None, "the folder of all results", flag_values=values)
    flags.DEFINE_string(
        "scheduler",
        None,
        "the address of a Dask cluster that does the work, such as tcp://host:8786",
        flag_values=values,
    )
    method.define(values)


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Register all pairs of a list."""
    if len(arguments) != 1 or not values.output:
        raise UsageError(
            "Expected PAIRS.csv and --output FOLDER. Received: "
            f"{len(arguments)} files, --output {values.output or 'missing'}."
        )
    how = Method.of(values)
    pairs = read_pairs(Path(arguments[0]))
    output = Path(values.output)
    _make(output)
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "fixed": pair.fixed, "moving": pair.moving, "state": "waiting"}
        for name, pair in pairs.items()
    }
    if values.scheduler is None:
        results = _here(pairs, how, output, values.overwrite)
    else:
        results = _elsewhere(values.scheduler, pairs, how, output, values.overwrite)
    try:
        # Closed where Ctrl-C ends it: else a cluster goes on until the results are forgotten.
        with contextlib.closing(results), logged(not values.json):
            again = 0.0
            for name, told in results:
                rows[name] |= told
                # A killed process writes none at the end.
                if (now := time.monotonic()) >= again:
                    with contextlib.suppress(FileError):  # told at the end
                        _write_summary(output, rows)
                    again = time.monotonic() + _SHARE * (time.monotonic() - now)
    finally:  # also where Ctrl-C ends it
        _write_summary(output, rows)
    found, lines = summarised(output, list(rows.values()))
    code = BAD_INPUT if found["failed"] else NOT_TRUSTED if found["not_trusted"] else DONE
    return Outcome(found, lines, code)


def _write_summary(output: Path, rows: dict[str, dict[str, Any]]) -> None:
    table = [[row.get(column, "") for column in _COLUMNS] for row in rows.values()]
    write_rows(output / SUMMARY, [_COLUMNS, *table], overwrite=True)


def after_interrupt(values: flags.FlagValues) -> str:
    """Return what is left where Ctrl-C ended it."""
    return f"finished pairs are in {values.output}; the same command goes on with the others"


def read_pairs(path: Path) -> dict[str, PairFiles]:
    """Return the pairs of a list by their names.

    Raises:
        FileError: if it is no such list, or a name occurs twice or is none of a folder.
    """
    table = read_table(path, "fixed, moving")
    places = {name: table.column(name) for name in ("name", *PairFiles._fields)}
    if places["fixed"] is None or places["moving"] is None:
        received = f"the columns {', '.join(table.header)}"
        raise refusal(path, "a CSV file with the columns fixed and moving", received)
    pairs: dict[str, PairFiles] = {}
    for number, row in enumerate(table.rows, 1):
        found = {name: row[place].strip() for name, place in places.items() if place is not None}
        files = {
            side: os.path.abspath(path.parent / found[side]) if found.get(side) else None
            for side in PairFiles._fields
        }
        if not files["fixed"] or not files["moving"]:
            raise refusal(path, "a fixed and a moving image in every row", f"none in row {number}")
        name = found.get("name") or f"pair{number:04d}"
        if name in pairs or name in (SUMMARY, ".", "..") or name[0] == "." or {*"/\\"} & {*name}:
            expected = "names of folders, each once, in the column name"
            raise refusal(path, expected, f"'{name}' in row {number}")
        pairs[name] = PairFiles(**files)  # type: ignore[arg-type]
    return pairs


def _make(output: Path) -> None:
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        received = "a file" if output.exists() else f"no folder '{output.parent}'"
        raise refusal(output, "a folder, or a name for one", received)
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise refusal(output, "a folder that can be written", reason(error)) from error


def _here(
    pairs: dict[str, PairFiles], how: Method, output: Path, overwrite: bool
) -> Generator[tuple[str, dict[str, Any]]]:
    """Yield names, and what the summary says of them, one after the other."""
    for name, pair in counted(pairs.items(), len(pairs), "pair"):
        yield name, _one(pair, how, output / name, overwrite, compiled=len(pairs) > _FEW)


def _elsewhere(
    scheduler: str, pairs: dict[str, PairFiles], how: Method, output: Path, overwrite: bool
) -> Generator[tuple[str, dict[str, Any]]]:
    """Yield the same as the workers of a cluster finish it, and first what has been done before."""
    output = output.absolute()
    mark = f"{secrets.token_hex(6)}-"
    waiting = {}
    for name, pair in pairs.items():
        if not overwrite and _finished(output / name) is not None:
            yield name, _one(pair, how, output / name, overwrite)
        else:
            waiting[name] = (pair, how, output / name, overwrite, mark, len(pairs) > _FEW)
    if not waiting:
        return
    say(f"{len(waiting)} of {len(pairs)} pairs to do")
    with contextlib.closing(cluster.each(scheduler, _one, waiting)) as finished:
        for name, told in counted(finished, len(waiting), "pair"):
            if isinstance(told, Exception):
                told = {"state": "failed", "reason": one_line(told)}
            if told["state"] == "failed" and not overwrite and _finished(output / name) is not None:
                # By a worker that had been taken for lost, while another one tried it again.
                told = _one(pairs[name], how, output / name, overwrite)
            yield name, told
    clear_unfinished(output, mark)  # of lost workers; not after Ctrl-C, when some still write


def _one(
    pair: PairFiles,
    how: Method,
    folder: Path,
    overwrite: bool,
    mark: str = "",
    compiled: bool = False,
) -> dict[str, Any]:
    """Return what the summary says of one pair, registered now or before."""
    try:
        if not overwrite and (before := _finished(folder)) is not None:
            if before["settings"] != how.settings() or not _same(before, pair):
                raise refusal(
                    folder, "a result of the same files and options", "another", "--overwrite"
                )
            return _told(before)
        again = is_damaged(folder)
        with new_folder(folder, overwrite or again, mark) as unfinished:
            result = align(pair, how, unfinished, compiled=compiled)
            if again and not is_damaged(folder):
                raise refusal(folder, f"a damaged {RESULT}", "a result that is finished by now")
        return _told(result) | ({"again": True} if again else {})
    except Exception as error:
        # Another process may have been faster.
        before = None if overwrite else _finished(folder)
        if before is not None and before["settings"] == how.settings() and _same(before, pair):
            return _told(before)
        return {"state": "failed", "reason": one_line(error)}


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the result of a registration, or None."""
    result = result_of(folder)
    return result if result is not None and result.keys() >= _NEEDED else None


def _same(result: dict[str, Any], pair: PairFiles) -> bool:
    return all(result.get(side) == path for side, path in pair._asdict().items())


def _told(result: dict[str, Any]) -> dict[str, Any]:
    similarity = result["similarity_after"]  # in a file, null for NaN
    return {
        "state": "done" if result["trusted"] else "not trusted",
        "similarity": similarity if similarity is None else round(similarity, 4),
        "seconds": result["seconds"],
        "reason": result["reason"],
    }


def read_summary(folder: Path) -> list[dict[str, Any]] | None:
    """Return what there is to say of each pair of a batch; None if the folder is none of one.

    The summary lists the pairs and their failures; what is done, their own folders tell.

    Raises:
        FileError: if the summary is damaged.
    """
    path = folder / SUMMARY
    if not _is_batch(folder):
        return None
    remedy = "run the same `kreg batch` again, which writes it anew"
    try:
        table = read_table(path, ", ".join(_COLUMNS))
    except FileError as error:
        received = str(error).rpartition("Received: ")[2].rstrip(".")
        raise refusal(path, "the summary of a batch", received, remedy) from error
    if table.header != _COLUMNS:
        received = f"the columns {', '.join(table.header)}"
        raise refusal(path, f"the columns {', '.join(_COLUMNS)}", received, remedy)
    rows = []
    for number, texts in enumerate(table.rows, 1):
        row: dict[str, Any] = {
            name: text for name, text in zip(_COLUMNS, texts, strict=True) if text
        }
        if row.get("state") not in _STATES:
            expected, found = f"a state, {', '.join(_STATES)}", row.get("state", "")
            raise refusal(path, expected, f"'{found}' in row {number}", remedy)
        if not {"name", "fixed", "moving"} <= row.keys():
            expected = "a name, a fixed and a moving image in every row"
            raise refusal(path, expected, f"none in row {number}", remedy)
        for name in _NUMBERS & row.keys():
            try:
                row[name] = float(row[name])
            except ValueError as error:
                received = f"'{row[name]}' in row {number}"
                raise refusal(path, f"a number as {name}", received, remedy) from error
        rows.append(_as_it_is(folder, row))
    return rows


def _is_batch(folder: Path) -> bool:
    """Whether the summary in a folder, if there is one, is of a batch, be it a damaged one."""
    path = folder / SUMMARY
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            begins = file.readline(1000).removeprefix(b"\xef\xbb\xbf").strip()
    except OSError:
        return False
    ours = ",".join(_COLUMNS).encode().startswith(begins)
    return ours or any(folder.glob(f"*/{RESULT}"))


def _as_it_is(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the summary as the folder of its pair is now."""
    if row["state"] == "failed":
        return row
    result = _finished(folder / row["name"])
    pair = {name: row[name] for name in ("name", "fixed", "moving")}
    if result is not None and all(result[side] == row[side] for side in ("fixed", "moving")):
        with contextlib.suppress(TypeError):  # no number, in a damaged one
            return pair | {name: one for name, one in _told(result).items() if one is not None}
    if row["state"] == "waiting":
        return row
    gone = f"it was {row['state']}, and its folder holds no finished result of these images"
    return pair | {"state": "waiting", "reason": gone}


def summarised(output: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return what there is to say of the pairs in a folder, to machines and to people."""
    named = {state: [row for row in rows if row["state"] == state] for state in _STATES}
    counted_up = [
        f"{len(chosen)} {state}"
        for state, chosen in named.items()
        if chosen or state != "waiting"  # as after Ctrl-C
    ]
    lines = [f"{', '.join(counted_up)}, of {len(rows)} pairs: {output / SUMMARY}"]
    for state in ("failed", "not trusted", "waiting"):
        chosen = [row for row in named[state] if state != "waiting" or row.get("reason")]
        lines += [f"  {state}: {row['name']}: {row.get('reason', '')}" for row in chosen]
    again = [row["name"] for row in rows if row.get("again")]
    lines += [f"  done again: {name}: its {RESULT} was damaged" for name in again]
    counts = {state.replace(" ", "_"): len(chosen) for state, chosen in named.items()}
    return {"output": str(output), **counts, "pairs": rows}, lines
