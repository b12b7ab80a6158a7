"""The results as Markdown, and as JSON with everything that was measured."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def _commit() -> str:
    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "kreg", "layers", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance() -> dict:
    """Return when, on what and from which commit, and how busy the machine was just now."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def median_and_quartiles(durations: list[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    low, middle, high = np.percentile(durations, [25, 50, 75])
    return float(middle), float(low), float(high)


def _milliseconds(seconds: float) -> str:
    """Three digits: 0.123, 12.3, 1230."""
    return f"{float(f'{1000 * seconds:.3g}'):g}"


def _flat(row: dict) -> list[float]:
    return [duration for turn in row["rounds"] for duration in turn]


def _row(row: dict) -> str:
    ratio, low, high = row["ratio"] or (None, None, None)
    durations = _flat(row)
    middle, lower, upper = median_and_quartiles(durations)
    difference = row["difference"]
    cells = [
        row["contender"],
        _milliseconds(middle),
        f"{_milliseconds(lower)} - {_milliseconds(upper)}",
        f"{row['first']:.2f}",
        f"{max(row['peak_bytes'], 0) / 2**20:.0f}",
        str(len(durations)),
        "" if ratio is None else f"{ratio:.2f} ({low:.2f} - {high:.2f})",
        "" if difference is None else f"{difference:.1e}",
    ]
    return "| " + " | ".join(cells) + " |"


def _summary(groups: list[dict]) -> list[str]:
    """A line a size, a column a task: PyTorch's time / kreg's, of its fastest form."""
    tasks = list(dict.fromkeys(group["task"] for group in groups))
    sizes = list(dict.fromkeys(group["size"] for group in groups))
    cells = {}
    for group in groups:
        peers = [row for row in group["rows"] if row["contender"].startswith("torch")]
        best = min(peers, key=lambda row: median_and_quartiles(_flat(row))[0])
        cells[group["size"], group["task"]] = f"{best['ratio'][0]:.2f}"
    lines = [f"| | {' | '.join(tasks)} |", "|:--|" + "--:|" * len(tasks)]
    for size in sizes:
        lines.append(f"| {size} | " + " | ".join(cells[size, task] for task in tasks) + " |")
    return lines


HEAD = (
    "| contender | median ms | quartiles ms | first call s | memory MiB | calls "
    "| time / kreg's | differs by |\n|:--|--:|--:|--:|--:|--:|--:|--:|"
)


def markdown(run: dict) -> str:
    """Return the whole report."""
    about = run["provenance"]
    lines = [
        f"# kreg on {run['backend']} beside its peers",
        "",
        f"- {about['date']}, commit {about['commit']}",
        f"- {about['cpu']}, {about['system']}; load averages before the run "
        f"{', '.join(map(str, about['load']))}, after it {', '.join(map(str, run['load_after']))}",
    ]
    for side, facts in run["sides"].items():
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
        lines.append(f"- {side}: {versions}; {threads}; {facts['device']}")
    lines += ["", "How to read this: [../README.md](../README.md).", ""]
    lines += ["## PyTorch's time / kreg's; where there are forms, its fastest", ""]
    lines += [*_summary(run["groups"]), ""]
    for group in run["groups"]:
        lines += [f"## {group['task']}, {group['size']}", "", HEAD]
        lines += [_row(row) for row in group["rows"]]
        lines.append("")
    return "\n".join(lines)


def write(run: dict, folder: Path) -> Path:
    """Write ``operations-<backend>-<device>-<threads>.md`` and ``.json``; return the former."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"operations-{run['backend']}-{run['device']}-{run['threads']}"
    path = folder / f"{stem}.md"
    path.write_text(markdown(run))
    # Four digits of each duration are more than any clock here is good for.
    rounded = json.loads(json.dumps(run), parse_float=lambda text: float(f"{float(text):.4g}"))
    (folder / f"{stem}.json").write_text(json.dumps(rounded) + "\n")
    return path
