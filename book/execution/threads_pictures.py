"""The pictures of "When to use threads": where the workers' time went, pools of some sizes, an open loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from book.execution.workload import WAIT_S
from labkit.network.tiers import origin
from labkit.plots import Picture, style

if TYPE_CHECKING:
    from book.execution.trial import Trial
    from labkit.load.load import Load
    from labkit.queues.run_queue import ThreadTimes


def workers_of(trial: Trial) -> list[ThreadTimes]:
    """The threads that do the work: those with a number in their name, or the only one."""
    numbered = [times for times in trial.threads if times.name[-1:].isdigit()]
    return numbered or list(trial.threads)


def limits(trial: Trial) -> dict[str, float]:
    """Where a worker's time went, in percent of the time under load, on the average of all workers.

    "on a CPU" and "in the run queue" are the scheduler's numbers; "waits 20 ms" follows from how many slow requests
    were completed; "the rest" is what is left: it had nothing to do, or slept until it got the GIL.
    """
    workers, load = workers_of(trial), trial.load
    observed_s = (load.duration_s + load.warmup_s) * len(workers)
    slow = load.latencies(1).get_total_count() if len(load.requests) > 1 else 0
    parts = {
        "on a CPU": sum(times.running_s for times in workers) / observed_s,
        "in the run queue": sum(times.waiting_s for times in workers) / observed_s,
        "waits 20 ms": slow * WAIT_S / (load.duration_s * len(workers)),
    }
    whole = max(1.0, sum(parts.values()))  # what begins before the end of the run and ends after it counts as well
    percent = {name: 100 * part / whole for name, part in parts.items()}
    return {**percent, "the rest": max(0.0, 100 - sum(percent.values()))}


def plot_time(trials: Sequence[Trial], title: str) -> Picture:
    """Where the workers' time went: a bar for each trial.

    Args:
        trials: with requests of two kinds, the second of which waits.
        title: the finding.
    """
    figure, axes = style.new_figure(1.2 + 0.42 * len(trials))
    looks = {
        "on a CPU": (style.BLUE, ""),
        "in the run queue": ("white", "/////"),
        "waits 20 ms": (style.ORANGE, ""),
        "the rest": ("#e5e5e5", ""),
    }
    told = []
    for row, each in enumerate(trials):
        left, parts = 0.0, limits(each)
        for name, part in parts.items():
            colour, hatch = looks[name]
            axes.barh(
                row, part, 0.66, left, color=colour, hatch=hatch, label=name if row == 0 else None, linewidth=0.5,
                edgecolor=style.BLUE if hatch else "white",
            )  # fmt: skip
            if part >= 6:
                axes.text(
                    left + part / 2, row, f"{part:.0f}", ha="center", va="center", fontsize=style.SIZE,
                    color="white" if name == "on a CPU" else style.INK,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1} if hatch else None,
                )  # fmt: skip
            left += part
        told.append(f"{each.name}: " + ", ".join(f"{name} {part:.0f} %" for name, part in parts.items()))
    axes.set_yticks(range(len(trials)), [f"{each.name} ({len(workers_of(each))})" for each in trials])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(trials) - 0.4, -0.6)
    axes.set_xlabel("% of a worker's time, average of all workers (their number in brackets)", fontsize=style.SIZE)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=style.SIZE, frameon=False)
    style.set_title(axes, title)
    style.add_note(figure, origin(trials[0].tier, "Measured"))
    return Picture(figure, f"{title}. {'. '.join(told)}.")


def plot_pools(pools: Mapping[int, Load], hold_s: float, title: str) -> Picture:
    """Throughput over the number of workers, and the bound that follows from the time a request holds a worker."""
    figure, axes = style.new_figure(3.3)
    sizes = list(pools)
    bounds = [size / hold_s for size in sizes]
    measured = [load.throughput for load in pools.values()]
    axes.plot(sizes, bounds, "--", color=style.GREY, linewidth=1.5)
    axes.annotate(
        f"workers / {1000 * hold_s:g} ms of waiting",
        (sizes[-1], bounds[-1]), xytext=(-24, 0), textcoords="offset points", ha="right", va="center",
        fontsize=style.SIZE, color=style.GREY,
    )  # fmt: skip
    axes.plot(sizes, measured, "o-", color=style.BLUE, linewidth=2)
    for size, value in zip(sizes, measured, strict=True):
        axes.annotate(
            f"{value:.0f}", (size, value), xytext=(4, -12), textcoords="offset points", fontsize=style.SIZE,
            color=style.BLUE,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    ticks = [250, 500, 1000, 2000, 4000, 8000]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(min(*measured, 250) / 1.5, 1.3 * bounds[-1])
    axes.set_xlim(0.85, 1.35 * sizes[-1])
    axes.set_xlabel("worker threads", fontsize=style.SIZE)
    axes.set_ylabel("requests a second", fontsize=style.SIZE)
    style.set_title(axes, title)
    style.add_note(figure, origin(pools[sizes[0]].tier, "Measured"))
    told = ", ".join(f"{size} workers {value:.0f}" for size, value in zip(sizes, measured, strict=True))
    return Picture(figure, f"{title}. Requests a second: {told}.")


def plot_open(loads: Mapping[str, Load], title: str) -> Picture:
    """Latency at percentiles, from when requests were due and from when they were sent."""
    figure, axes = style.new_figure(3.3)
    percentiles = (50, 75, 90, 99, 100)
    told = []
    for (name, load), colour in zip(loads.items(), (style.BLUE, style.VERMILION), strict=False):
        for corrected, dash in ((True, "o-"), (False, "o:")):
            values = [load.percentile_ms(p, corrected=corrected) for p in percentiles]
            since = "since it was due" if corrected else "since it was sent"
            axes.plot(range(len(values)), values, dash, color=colour, label=f"{name}, {since}")
            told.append(f"{name}, {since}: p50 {values[0]:.3g} ms, p99 {values[3]:.3g} ms")
    axes.set_yscale("log")
    ticks = [10, 20, 50, 100, 200, 500, 1000]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 15), max(high, 60))
    axes.set_xticks(range(len(percentiles)), [f"p{p}" if p < 100 else "max" for p in percentiles])
    axes.set_xlabel("percentile", fontsize=style.SIZE)
    axes.set_ylabel("latency, ms", fontsize=style.SIZE)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=style.SIZE, frameon=False)
    style.set_title(axes, title)
    style.add_note(figure, origin(next(iter(loads.values())).tier, "Measured"))
    return Picture(figure, f"{title}. {'. '.join(told)}.")
