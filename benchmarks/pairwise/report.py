"""The log of finished pairs as Markdown tables, and as JSON with every pair."""

import json
from pathlib import Path

import numpy as np

from benchmarks.report import median_and_quartiles

HEAD = (
    "| method | n | success % | median px | quartiles px | largest px | CPU s | quartiles s "
    "| first call s | trusted, wrong | distrusted, right |\n|:--|" + "--:|" * 10
)


def read(log: Path) -> dict[tuple[str, str], dict]:
    """Return the last finished row of each (case, method); a line cut short by an end is no row."""
    rows = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["case"], row["method"]] = row
    return rows


def _pixels(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "failed"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def error_of(row: dict) -> float:
    """Return the mean error of a pair; JSON has no infinity, so a failure is stored as null."""
    return float("inf") if row["error"] is None else row["error"]


def _quantile(values, percent: float) -> float:
    # Not interpolated: half way to a failure is no distance.
    return float(np.percentile(values, percent, method="inverted_cdf"))


def _row(method: str, rows: list[dict]) -> str:
    errors = [error_of(row) for row in rows]
    good = [e <= row["limit"] for e, row in zip(errors, rows, strict=True)]
    seconds, low, high = median_and_quartiles([row["seconds"] for row in rows])
    firsts = [row["first"] for row in rows if row["first"] is not None]
    judged = [(row["trusted"], ok) for row, ok in zip(rows, good, strict=True) if "trusted" in row]
    verdicts = ["", ""]
    if judged:
        verdicts = [sum(t and not ok for t, ok in judged), sum(ok and not t for t, ok in judged)]
    cells = [
        method,
        len(rows),
        f"{100 * np.mean(good):.0f}",
        _pixels(_quantile(errors, 50)),
        f"{_pixels(_quantile(errors, 25))} - {_pixels(_quantile(errors, 75))}",
        _pixels(max(errors)),
        f"{seconds:.2f}",
        f"{low:.2f} - {high:.2f}",
        f"{np.median(firsts):.2f}" if firsts else "",
        *verdicts,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _pairs(rows: list[dict], methods: list[str]) -> list[str]:
    """Every real pair: floor, limit, the error of each method, in bold where it succeeded."""
    lines = [
        f"| pair | floor | limit | {' | '.join(methods)} |",
        "|:--|" + "--:|" * (len(methods) + 2),
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        here = {row["method"]: row for row in rows if row["case"] == case}
        first = next(iter(here.values()))
        cells = [case.split("/")[-1], _pixels(first["floor"]), _pixels(first["limit"])]
        for method in methods:
            if method not in here:
                cells.append("")
                continue
            error = error_of(here[method])
            text = _pixels(error)
            cells.append(f"**{text}**" if error <= first["limit"] else text)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _others(rows: list[dict]) -> list[str]:
    """Errors at further sets of points, with the floor of each."""
    lines = []
    for row in rows:
        for name, facts in row.get("others", {}).items():
            lines.append(
                f"- {row['method']}: {_pixels(facts['mean'])} px (median {_pixels(facts['median'])}"
                f') at the {facts["points"]} points of "{name}", floor {_pixels(facts["floor"])}'
            )
    return lines


def markdown(rows: list[dict], iterations: list[dict], about: dict, methods: list[str]) -> str:
    """Return the whole report."""
    lines = [
        "# Pairwise registration beside its peers",
        "",
        f"- Written {about['date']}; {about['cpu']}, {about['system']}; each method on one core, "
        f"one thread; load averages at the end {', '.join(map(str, about['load']))}",
    ]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        if own:
            versions = ", ".join(f"{n} {v}" for n, v in own[-1]["versions"].items())
            commits = ", ".join(dict.fromkeys(row["commit"] for row in own))
            lines.append(f"- {method}: {versions}; commit {commits}")
    lines += [
        "",
        "Errors are mean distances in pixels of the moving image: on a 17 x 17 grid where the "
        "transform is known, at landmarks elsewhere. Success: at most 1 px, on real pairs 1.5 "
        "times the floor + 1 px; the floor is what a least-squares affine fit to the same points "
        "leaves. CPU s: user + system, without the first call, which stands beside: for kreg it "
        "compiles, for others it loads the library. SIFT made the points of the pair of FIRE, "
        "which flatters it there.",
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        here = [row for row in rows if row["group"] == group]
        present = [m for m in methods if any(row["method"] == m for row in here)]
        lines += [f"## {group.replace('/', ', ')}", "", HEAD]
        lines += [_row(m, [row for row in here if row["method"] == m]) for m in present]
        lines.append("")
        if group.startswith("real"):
            lines += [*_pairs(here, present), ""]
        others = _others(here)
        lines += [*others, ""] if others else []
    measured = [row for row in iterations if row["seconds"] is not None]
    if measured:
        lines += ["## One iteration at DRMIME's published sampling, pair of FIRE", ""]
        lines += ["| | CPU s |", "|:--|--:|"]
        lines += [f"| {row['method']} | {row['seconds']:.3f} |" for row in measured] + [""]
    return "\n".join(lines)


def write(rows, iterations, about: dict, methods: list[str], folder: Path) -> Path:
    """Write ``pairwise.md`` and ``.json``; return the former."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairwise.md"
    path.write_text(markdown(rows, iterations, about, methods))
    versions = {row["method"]: row["versions"] for row in [*rows, *iterations]}
    lean = [{k: v for k, v in row.items() if k != "versions"} for row in rows]
    run = {"provenance": about | {"versions": versions}, "rows": lean, "iterations": iterations}
    rounded = json.loads(json.dumps(run), parse_float=lambda text: float(f"{float(text):.6g}"))
    path.with_suffix(".json").write_text(json.dumps(rounded) + "\n")
    return path
