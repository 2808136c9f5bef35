"""What was measured, as a table, a file of JSON and a chart."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.problems import JOBS, Job

Results = dict[str, dict[str, dict[str, Any]]]  # by job, then by peer


def median(result: dict[str, Any]) -> float:
    """Seconds of a whole job: some peers do a part, and say how many steps."""
    return statistics.median(result["seconds"]) * result["of_steps"] / result["steps"]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{1 if seconds > 0.01 else 2}f}"


def rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    ours = median(results["fgd"]) if "seconds" in results.get("fgd", {}) else None
    table = []
    for peer, result in results.items():
        if "seconds" not in result:
            table.append([peer, f"skipped: {result['missing']}", "", "", "", ""])
            continue
        scale = result["of_steps"] / result["steps"]
        low, high = min(result["seconds"]) * scale, max(result["seconds"]) * scale
        middle = median(result)
        table.append(
            [
                peer,
                milliseconds(middle),
                f"{milliseconds(low)}–{milliseconds(high)}",
                "" if ours is None or peer == "fgd" else f"{middle / ours:,.2f}",
                f"{result['first'] - statistics.median(result['seconds']):.2f}",
                f"{result['peak_mb']:,.0f}",
            ]
        )
    return table


def least(job: Job, limits: dict[str, float]) -> dict[str, float]:
    """Seconds of a step at the rates of `_limits`, by what would take them."""
    return {
        "Its products at the peak of a large one:": job.flops / limits["flops"],
        "Reading its data once a step:": job.bytes / limits["bytes"],
        "An empty loop of as many steps:": job.loops * limits["iteration"],
    }


def markdown(results: Results, limits: dict[str, float], heading: str) -> str:
    lines = [
        heading,
        "",
        f"Limits measured in the same run: {limits['flops'] / 1e9:,.0f} GFLOP/s in a large matrix "
        f"product, {limits['bytes'] / 1e9:,.0f} GB/s in a scalar product of 100,000 values, "
        f"{1e9 * limits['iteration']:,.0f} ns an iteration of an empty loop.",
    ]
    for job, by_peer in results.items():
        lines += ["", f"## {JOBS[job].title} (`{job}`)", ""]
        head = ["", "ms, median", "range", "× fgd's time", "first run − median, s", "peak MB"]
        lines += ["| " + " | ".join(head) + " |", "|---|--:|--:|--:|--:|--:|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows(by_peer)]
        fgd = by_peer.get("fgd", {})
        for what, seconds in least(JOBS[job], limits).items():
            if seconds and "seconds" in fgd:
                seconds *= fgd["of_steps"]
                times = median(fgd) / seconds
                lines += ["", f"{what} {1e3 * seconds:,.2f} ms; fgd takes {times:.2f} ×."]
    return "\n".join(lines) + "\n"


def chart(results: Results, path: Path) -> None:
    """Each peer's time over fgd's, a row for each job, on a log axis."""
    import matplotlib.pyplot as plt

    peers = dict.fromkeys(
        peer for by_peer in results.values() for peer in by_peer if not peer.startswith("fgd")
    )
    jobs = [
        job
        for job, by_peer in results.items()
        if "seconds" in by_peer.get("fgd", {}) and any(peer in by_peer for peer in peers)
    ]
    figure, ax = plt.subplots(figsize=(11, 0.36 * len(jobs) + 1.2), layout="constrained")
    ax.axvline(1, color="#1b7837", linewidth=2, label="fgd")
    for peer, marker in zip(peers, itertools.cycle("os^vDPX*<>hd"), strict=False):
        points = [
            (median(results[job][peer]) / median(results[job]["fgd"]), len(jobs) - 1 - i)
            for i, job in enumerate(jobs)
            if "seconds" in results[job].get(peer, {})
        ]
        if points:
            ax.plot(*zip(*points, strict=True), marker, label=peer, markersize=7)
    ax.set(xscale="log", xlabel="time over fgd's (right of the line: slower than fgd)")
    ax.set_yticks(range(len(jobs)), [JOBS[job].title for job in reversed(jobs)])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="x", which="both", alpha=0.2)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150)


def save(results: Results, limits: dict[str, float], heading: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"heading": heading, "limits": limits, "jobs": results}
    (folder / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results, limits, heading))
    chart(results, folder / "ratios.png")
