"""The table, the plot, and the page in docs/: `python -m tests.bench.report [RESULTS]` makes the page again.

RESULTS is the results.json of a run, which is kept beside the page; without it the page is made of the one kept there.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.measures import MEASURES
from tests.bench.rows import ROWS, Rounds, Row, Spread, as_json, figure, spread
from tests.servers import PROJECT

DOCS = PROJECT / "docs"
PAGE, KEPT, PLOT = DOCS / "performance.md", DOCS / "performance.json", DOCS / "performance.png"
SERVERS = {"hub": "hub", "c": "C, epoll", "nats": "nats-server", "nchan": "nginx with nchan", "tutorial": "tutorial"}


def with_rows(results: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The results with the outcome of each row."""
    return {**results, "rows": [as_json(row, results["measures"]) for row in rows]}


def _cells(row: Row, rounds: Rounds) -> list[str]:
    return [
        row.title,
        spread(row.figures(rounds), row.unit),
        row.peer,
        spread(row.peers_figures(rounds), row.unit),
        spread(row.ratios(rounds), "×"),
        row.target(),
        row.verdict(rounds),
    ]


HEADINGS = ["what", "hub", "against", "", "times better", "target", ""]


def table(results: Mapping[str, Any], rows: Sequence[Row] = ROWS) -> str:
    """The rows as text in columns, and below them what went wrong."""
    lines = [HEADINGS, *(_cells(row, results["measures"]) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text += ["", _load_note(results)]
    text += [f"FAULT: {fault}" for fault in results["faults"]]
    return "\n".join(text)


def _load_note(results: Mapping[str, Any]) -> str:
    """Whether the rates are the servers': they are as far as the servers were busy, and the load was not."""
    shares = []
    for name, title in SERVERS.items():
        turns = [values for values in results["measures"].get("fanout", {}).get(name, ()) if values]
        if turns:
            server, load = (max(values[key] for values in turns) for key in ("w8_server_busy", "w8_load_busy"))
            shares.append(f"{title} {server:.0%} and {load:.0%}")
    return (
        f"Busy with 1,000 sockets and 8 in flight, the server and the core of the load (client and Redis), at most: "
        f"{', '.join(shares) or 'not measured'}. Other programs took {results['others']:.0%} of all cores."
    )


# ---- the plot ----


def plot(results: Mapping[str, Any], file: Path) -> Path | None:
    """Draw the rows with a target against it, and the CPU per delivery. None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rounds: Rounds = results["measures"]
    figure_, (left, right) = pyplot.subplots(1, 2, figsize=(15, 6.5), width_ratios=(3, 2), layout="constrained")
    bars = [bar for row in ROWS if (bar := _bar(row, rounds)) is not None]
    for place, (_, share, met) in enumerate(reversed(bars)):
        color = "#2563eb" if met else "#dc2626"
        left.barh(place, share.median, color=color, height=0.6)
        left.plot([share.least, share.most], [place, place], color="#0f172a", linewidth=1.5)
        left.annotate(f" {figure(share.median)}", (share.most, place), va="center", fontsize=8)
    left.set_yticks(range(len(bars)), [label for label, _, _ in reversed(bars)], fontsize=8)
    left.axvline(1, color="#0f172a", linewidth=1, linestyle="--")
    left.set_xscale("log")
    left.set_xlabel("how much better than the target (1 = just met); line: least to most of the rounds")
    left.margins(x=0.12)
    width = 0.38
    for offset, (value, label, color) in enumerate(
        (("w8_cpu_us", "8 events in flight", "#2563eb"), ("w1_cpu_us", "one at a time", "#93c5fd"))
    ):
        for place, name in enumerate(SERVERS):
            found = [values[value] for values in rounds.get("fanout", {}).get(name, ()) if value in values]
            middle = Spread.over(found)
            if middle is None:
                continue
            where = place + (offset - 0.5) * width
            right.bar(where, middle.median, width, color=color, label=label if name == "hub" else None)
            right.plot([where, where], [middle.least, middle.most], color="#0f172a", linewidth=1.5)
            right.annotate(figure(middle.median), (where, middle.most), ha="center", va="bottom", fontsize=8)
    right.set_xticks(
        range(len(SERVERS)), [title.replace(" with ", "\nwith ") for title in SERVERS.values()], fontsize=9
    )
    right.set_yscale("log")
    right.set_ylabel("CPU per delivery, µs (1,000 sockets)")
    right.margins(y=0.15)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False)
    left.xaxis.set_major_formatter("{x:g}")
    right.yaxis.set_major_formatter("{x:g}")
    right.set_visible("fanout" in rounds)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    # Without the date and version that would make every run another file.
    figure_.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure_)
    return file


def _bar(row: Row, rounds: Rounds) -> tuple[str, Spread, bool] | None:
    met = row.verdict(rounds) != "missed"
    if row.at_most is not None:
        own = row.figures(rounds)
        if own is None:
            return None
        share = Spread(row.at_most / own.median, row.at_most / own.most, row.at_most / own.least)
        return f"{row.title}\n{row.target()}", share, met
    ratios, wanted = row.ratios(rounds), row.at_least
    if ratios is None or wanted is None:
        return None
    share = Spread(ratios.median / wanted, ratios.least / wanted, ratios.most / wanted)
    return f"{row.title}\n{figure(wanted)} × {row.peer}", share, met


# ---- the page ----


def page(results: Mapping[str, Any]) -> str:
    """docs/performance.md."""
    rounds: Rounds = results["measures"]
    machine, versions = results["machine"], results["versions"]
    missed = [row for row in ROWS if row.verdict(rounds) == "missed"]
    unmeasured = [row for row in ROWS if row.verdict(rounds) == "not measured"]
    parts = [
        "# What fan-out costs",
        f"Measured on {results['date'][:10]} with `python -m tests.bench{' --quick' if results['quick'] else ''}`, "
        f"rounds: {results['rounds']}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_mb'] // 1024} GB, {machine['system']}, kernel {machine['kernel']}. "
        f"{_settings(results['settings'])}This page is made by `python -m tests.bench.report` from "
        "[performance.json](performance.json), which has every single figure.",
        "![The rows against their targets, and the CPU per delivery of each server](performance.png)",
        "Figures are medians, with least and most over the rounds in brackets. *Times better* is taken within each "
        "round: what the other spends divided by what the hub spends, or the other way round where more is better.",
        _markdown([HEADINGS, *(_cells(row, rounds) for row in ROWS)]),
        _summary(missed, unmeasured, rounds),
    ]
    if results["faults"]:
        parts += ["Something went wrong in this run:", "\n".join(f"- {fault}" for fault in results["faults"])]
    parts += [
        "## What each row means",
        "\n".join(f"- **{row.title}, against {row.peer}** (`{row.name}`). {row.meaning}" for row in ROWS),
        "## All servers",
        _fanout_table(rounds),
        _load_note(results) + " Where the server is far from 100 %, the rate is that of the load, or of what else ran "
        "there; the CPU per delivery does not depend on it.",
        "## How it was measured",
        METHOD.strip(),
        "\n".join(
            f"- `{measure.name}` ({', '.join(measure.turns)}): {_one_line(measure.description)}"
            for measure in MEASURES.values()
        ),
        "## Reproduce it",
        REPRODUCE.strip(),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _settings(settings: Mapping[str, str]) -> str:
    named = ", ".join(f"`{name}={value}`" for name, value in settings.items())
    return f"The hub had {named} besides. " if named else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    heading, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [heading, ["---"] * len(heading), *body])


def _summary(missed: Sequence[Row], unmeasured: Sequence[Row], rounds: Rounds) -> str:
    sentences = []
    if missed:
        sentences.append("**Missed** in this run:")
        sentences += [
            f"\n- {row.title}, against {row.peer}: {spread(row.ratios(rounds), '×')}, wanted {row.target()}"
            if row.at_most is None
            else f"\n- {row.title}: {spread(row.figures(rounds), row.unit)}, wanted {row.target()}"
            for row in missed
        ]
    else:
        sentences.append("No row missed its target in this run.")
    if unmeasured:
        sentences.append(f"\n\nNot measured: {', '.join(f'`{row.name}`' for row in unmeasured)}.")
    return "".join(sentences)


def _fanout_table(rounds: Rounds) -> str:
    columns = (
        ("w8_cpu_us", "CPU per delivery, 8 in flight, µs", 1.0),
        ("w1_cpu_us", "one at a time, µs", 1.0),
        ("w8_rate", "deliveries, 8 in flight, k/s", 1e-3),
        ("w1_rate", "one at a time, k/s", 1e-3),
        ("half_us", "half of the receivers, ms", 1e-3),
        ("most_us", "99 %, ms", 1e-3),
        ("last_us", "the last, ms", 1e-3),
    )
    lines = [["1,000 sockets", *(title for _, title, _ in columns)]]
    for name, title in SERVERS.items():
        found = [values for values in rounds.get("fanout", {}).get(name, ()) if values]
        if found:
            lines.append(
                [title, *(spread(Spread.over([values[key] * scale for values in found])) for key, _, scale in columns)]
            )
    return _markdown(lines)


METHOD = """
Every server is one process on one core of its own, pinned; the load client, and Redis for those that use it, share
another. No TLS, no compression. Payloads are 200 bytes. The servers of a measurement take turns within each round, so
that a busy neighbour of the machine meets all of them: trust the ratios, not single figures, and no ratio below 1.5.

- **The hub** is started by its own command line, `manage.py runhub ADDRESS --no-worker`, with `REDIS_URL`: Redis layer
  and Redis log, a topic of `HUB_TOPICS` that keeps a window of 100 events or 60 seconds. Each socket is another user's,
  authenticated by a signed token, and subscribed with recovery. Events are published with the protocol's `publish`
  command by another connection.
- **The tutorial's consumer** is in `tests/bench/tutorial/`: `AllowedHostsOriginValidator`, `AuthMiddlewareStack`,
  `URLRouter`, `AsyncWebsocketConsumer`, channels-redis pub/sub, uvicorn with uvloop and its default WebSocket class.
  Each member of the room is signed in by a session cookie, and one of them speaks.
- **C, epoll** is `tests/bench/epollserver.c`: the frame built once, one write per connection and turn of the loop.
- **nginx with nchan** has one worker and a buffer of 200 messages, **nats-server** no TLS, no compression and
  `GOMAXPROCS=1`. Both are left out where they are not installed.

The load client (`tests/bench/loadclient.c`) is one thread over epoll. Each message carries its topic, its sequence and
the time at which it was *meant* to be sent, so that a server which falls behind cannot make its own delays look short;
delays are taken at the receivers. It counts what arrived against what was expected, and what came twice, out of order
or on the wrong topic; any such thing is listed above as a fault. CPU is that of the server process and its children, to
the nanosecond, from before the first message to after the last; Redis' own is in performance.json.
"""

REPRODUCE = """
```
pip install -e '.[test,bench]'
apt-get install gcc libnginx-mod-nchan nginx nats-server   # the peers; gcc or another C compiler is needed in any case
python -m tests.bench            # every row, 3 rounds
python -m tests.bench --quick    # every row, one short round, in under two minutes
python -m tests.bench --only cpu-w8 rate-c --rounds 5
python -m tests.bench.report var/bench/results.json    # makes this page of a run
```

It needs Linux, two cores, and 11,000 open files (`ulimit -Hn`). With fewer peers installed their rows are left out.
"""


def main(words: Sequence[str]) -> None:
    """Make the page, of the results named or of those kept beside it."""
    if words:
        results = json.loads(Path(words[0]).read_text())
        shutil.copyfile(words[0], KEPT)
    else:
        results = json.loads(KEPT.read_text())
    PAGE.write_text(page(results))
    plotted = plot(results, PLOT)
    print(f"{PAGE} written" + ("" if plotted else "; the plot was left as it is: matplotlib is not installed"))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
