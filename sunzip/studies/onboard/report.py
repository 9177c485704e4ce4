"""The study as one HTML page: tables and plots, on a wide screen and on a telephone, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sunzip.studies.onboard.svg import bars, lines

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:0 auto;padding:1rem;
 max-width:75rem}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0}
h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid #ccc}
p,ul{max-width:48rem}
li{overflow-wrap:anywhere}
.lead{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;padding:0;max-width:none;
 list-style:none}
.lead li{background:#f3f5f7;border-radius:.4rem;padding:.6rem}
.lead b{display:block;font-size:1.25rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;max-width:36rem}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}
svg .t{font-weight:600;font-size:13px}
svg .s{font-size:11px}
svg .g{stroke:#ddd;fill:none}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid #ddd;vertical-align:top}
th:first-child,td:first-child{text-align:left}
td+td span{white-space:nowrap}
tr.own{background:#eef5fb}
.bad{color:#a40000;font-weight:600}
.good{color:#00612e;font-weight:600}
.note{color:#444;font-size:.9rem}
@media(max-width:40rem){
 td+td span{white-space:normal}
 thead{display:none}
 tr{display:block;border:1px solid #ccc;border-radius:.4rem;margin:.6rem 0;padding:.2rem .5rem}
 td{display:flex;justify-content:space-between;gap:1rem;border-bottom:1px solid #eee}
 td:first-child{font-weight:600}
 td:last-child{border-bottom:0}
 td+td::before{content:attr(data-k);color:#444;text-align:left}
}
"""


def size(n: float | None) -> str:
    """Return a number of bytes, or a dash for none."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for limit, unit, size in ((0.9995, "ms", 1e-3), (119.5, "s", 1), (7170, "min", 60), (172000, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


def _energy(joules: float) -> str:
    return f"{joules / 1000:.3g} kJ" if joules >= 999.5 else f"{joules:.3g} J"


def share(value: float) -> str:
    """Return a share in per cent."""
    if value == 0:
        return "0 %"
    if value < 1e-4:
        return "under 0.01 %"
    return f"{100 * value:.3g} %" if value < 10 else f"{100 * value:,.0f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], own: int | None = None) -> str:
    """Return a table; cells that begin with + or ! are marked good or bad, the row `own` is set off."""
    out = ["<table><thead><tr>", *(f"<th>{escape(h)}</th>" for h in head), "</tr></thead><tbody>"]
    for n, row in enumerate(rows):
        out.append("<tr class=own>" if n == own else "<tr>")
        for name, cell in zip(head, row, strict=True):
            out.append(f'<td data-k="{escape(name, quote=True)}">{_cell(cell)}</td>')
        out.append("</tr>")
    return "".join([*out, "</tbody></table>"])


def _cell(text: str) -> str:
    mark = {"+": "good", "!": "bad"}.get(text[:1])
    return f"<span class={mark}>{escape(text[1:])}</span>" if mark else f"<span>{escape(text)}</span>"


def _yes(value: bool | None) -> str:
    return "–" if value is None else "+yes" if value else "!no"


def page(result: dict[str, Any]) -> str:
    """Return the page of what `sunzip.studies.onboard.study` found."""
    mission, model = result["mission"], result["model"]
    title = f"{mission['name']}: {model['name']} on board"
    quality = "" if model["quality"] is None else f", quality {model['quality']}"
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(mission['summary'])}.</p>",
        _lead(result),
        "<h2>Bytes of a frame</h2>",
        _sizes(result),
        "<h2>Error</h2>",
        _errors(result),
        "<h2>Recorder and downlink</h2>",
        _recorder(result),
        "<h2>Computing</h2>",
        _compute(result),
        "<h2>The mission</h2>",
        _mission(result),
        "<h2>What was assumed</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in result["assumptions"]),
        "</ul><h2>Where the mission's numbers come from</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in mission["sources"] or ["The mission file names no source"]),
        "</ul>",
        f"<p class=note>sunzip {escape(result['sunzip'])}, model {escape(model['name'])} "
        f"(family {escape(model['family'])}, sha256 {escape(model['sha256'][:12])}…)"
        f"{quality}; made in {result['seconds']:.0f} s. The numbers are beside this page as JSON.</p>",
    ]
    return whole(title, parts)


def whole(title: str, parts: Iterable[str]) -> str:
    """Return a page of its own with a title and the given HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="sunzip"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _lead(result: dict[str, Any]) -> str:
    own, now = result["ways"]["model"], result["ways"][result["present"]]
    keeping = [p["processor"].split(",")[0] for p in result["compute"]["processors"] if p["keeps_cadence"]]
    recorder, latency = own["recorder"], own["recorder"]["latency"]
    wanted = result["mission"]["latency"]
    carried, title = size(recorder["capacity_per_day"]), now["title"]
    ratio = now["frame"]["mean"] / own["frame"]["mean"]
    soon = "–" if latency is None else _time(latency["p95"])
    cadence = _time(result["mission"]["cadence"])
    rows = [
        (size(own["frame"]["mean"]), f"a frame, mean; {title} {size(now['frame']['mean'])}"),
        (f"1/{ratio:.3g}", f"of the bytes of {title}, with an error (see below)"),
        (size(recorder["bytes_per_day"]), f"a day; the downlink carries {carried}"),
        (share(recorder["lost"]), f"lost for want of room; {title} {share(now['recorder']['lost'])}"),
        (
            soon,
            "to the ground for 95 % of frames" + ("" if wanted is None else f"; {_time(wanted)} is wanted"),
        ),
        (", ".join(keeping) or "none", f"of the processors looked at keeps the cadence of {cadence}"),
    ]
    return "<ul class=lead>" + "".join(f"<li><b>{escape(a)}</b>{escape(b)}</li>" for a, b in rows) + "</ul>"


def _sizes(result: dict[str, Any]) -> str:
    rows, plotted = [], []
    for way in result["ways"].values():
        plotted.append((way["title"], [way["frame"]["mean"], way["frame"]["p999"]]))
        for name, s in way["periods"].items():
            rows.append(
                [
                    f"{way['title']}, {name}",
                    size(s["mean"]),
                    size(s["p95"]),
                    size(s["p999"]) + (" (fit)" if s["p999_fitted"] else ""),
                    size(s["worst"]),
                    str(s["frames"]),
                ]
            )
    head = ["way", "mean", "95th percentile", "99.9th percentile", "worst seen", "frames"]
    plot = bars("Bytes of a frame", "bytes", plotted, ["mean", "99.9th percentile"])
    stress = "; ".join(f"{escape(k)}: {size(v)}" for k, v in result["measured"]["stress"].items())
    absent = "".join(
        f"<p class=note>{escape(k)} is not compared: {escape(v)}.</p>" for k, v in result["absent"].items()
    )
    return (
        f"<div class=plots><figure>{plot}</figure></div>{table(head, rows)}"
        f"<p>Buffers are sized by the worst. Frames that no Sun shows, with "
        f"{escape(result['model']['name'])}: "
        f"{stress}.</p>{absent}"
    )


def _errors(result: dict[str, Any]) -> str:
    measured = result["measured"]
    rows = [
        [
            name,
            f"{e['read']:.3g}",
            f"{e['true']:.3g}",
            "–" if e["read_jpeg2000"] is None else f"{e['read_jpeg2000']:.3g}",
        ]
        for name, e in measured["errors"].items()
    ]
    head = [
        "period",
        "against what the camera read",
        "against the frame before its noise",
        "JPEG 2000, as many bytes",
    ]
    curve = measured["curve"]
    plot = ""
    if len(curve) > 1:
        bits = [c["bits_per_sample"] for c in curve]
        plot = lines(
            "Error against bytes",
            "bits per pixel and channel",
            "error, in units of the noise",
            [
                ("camera", bits, [c["read"] for c in curve]),
                ("before noise", bits, [c["true"] for c in curve]),
            ],
            log_x=True,
        )
    return (
        "<p>Root mean square error of the first frame of each period, in units of the noise of a pixel, "
        "averaged over the channels. Against what the camera read, 1 is what a perfect picture without "
        "noise would have. The lossless ways have 0.</p>"
        f"<div class=plots><figure>{plot}</figure><div>{table(head, rows)}</div></div>"
    )


def _recorder(result: dict[str, Any]) -> str:
    mission = result["mission"]
    rows, curves = [], []
    for way in result["ways"].values():
        r, wait = way["recorder"], way["recorder"]["latency"]
        rows.append(
            [
                way["title"],
                size(r["bytes_per_day"]),
                ("+" if r["bytes_per_day"] <= r["capacity_per_day"] else "!")
                + share(r["bytes_per_day"] / r["capacity_per_day"]),
                ("+" if not r["lost"] else "!") + share(r["lost"]),
                share(r["overflow"]),
                *(["never"] * 3 if wait is None else [_time(wait[k]) for k in ("mean", "p95", "worst")]),
                "–"
                if r["years"] is None
                else f"{r['years']:.3g} years"
                if r["years"] >= 1
                else _time(r["years"] * 31557600),
            ]
        )
        curves.append(
            (
                way["title"].split(",")[0].split(" (")[0],
                r["fill"]["days"],
                [f / 1e6 for f in r["fill"]["worst"]],
            )
        )
    head = ["way", "bytes a day", "of the downlink", "lost", "runs that lose", "latency, mean"]
    head += ["95th percentile", "worst", "one recorder holds"]
    fill = ""
    if mission["storage"]:
        # An empty recorder has no place on a logarithmic axis: a kilobyte stands for nothing.
        fill = lines(
            "Recorder, the fullest of all runs",
            "days",
            "MB",
            [(n, x, [max(v, 1e-3) for v in y]) for n, x, y in curves],
            log_y=True,
            level=("recorder", mission["storage"] / 1e6),
        )
    return (
        f"<div class=plots><figure>{fill}</figure></div>{table(head, rows, 0)}"
        "<p class=note>Latency is from exposure to the last byte on the ground, of the frames that came "
        "down.</p>"
    )


def _compute(result: dict[str, Any]) -> str:
    c, mission = result["compute"], result["mission"]
    counted, frame = c["counted"], c["frame"]
    rows = [
        [
            p["processor"],
            ("+" if p["keeps_cadence"] else "!") + _time(p["seconds"]),
            _time(p["network"]),
            _time(p["traffic"]),
            _time(p["scalar"]),
            _energy(p["joules"]),
            "–" if p["watts"] is None else f"{p['watts']:.3g} W",
            _yes(p["keeps_cadence"]),
            _yes(p["within_power"]),
            _yes(p["within_memory"]),
        ]
        for p in c["processors"]
    ]
    rows.append(
        ["one core of this machine, measured", ("+" if c["here"]["keeps_cadence"] else "!") +
        _time(c["here"]["seconds"]),
         "–", "–", "–", "–", "–", _yes(c["here"]["keeps_cadence"]), "–", "–"]
    )  # fmt: skip
    head = ["processor", "time of a frame", "network", "its memory", "rest", "energy of a frame"]
    head += ["mean power", "keeps cadence", "within power", "within memory"]
    plot = bars(
        "Time of a frame",
        "seconds",
        [
            (r[0], [s])
            for r, s in zip(
                rows, [*(p["seconds"] for p in c["processors"]), c["here"]["seconds"]], strict=True
            )
        ],
        ["time"],
        ("cadence", mission["cadence"]),
    )
    side = result["measured"]["side"]
    return (
        f"<p>A frame takes {frame['macs'] / 1e9:.4g} GMAC, moves {size(frame['traffic'])} of float32 and "
        f"entropy-codes "
        f"{frame['symbols'] / 1e6:.3g} million symbols. The model has {size(counted['weights'])}; a tile "
        f"of {side}×{side} "
        f"has {size(counted['activations'])} of float32 alive at once, so that peak memory is "
        f"{size(counted['weights'] + counted['activations'])} in float32.</p>"
        f"<div class=plots><figure>{plot}</figure></div>{table(head, rows)}"
    )


def _mission(result: dict[str, Any]) -> str:
    m = result["mission"]
    passes = "; ".join(
        f"every {_time(p['every'])} for {_time(p['lasts'])}"
        + (f" from {_time(p['begins'])}" if p["begins"] else "")
        for p in m["passes"]
    )
    limits = [] if m["power"] is None else [f"{m['power']:.3g} W"]
    limits += [] if m["memory"] is None else [size(m["memory"])]
    rows = [
        [
            "channels",
            ", ".join(
                i["name"] if i["name"] == i["like"] else f"{i['name']} (like {i['like']})"
                for i in m["images"]
            ),
        ],
        ["images", f"{m['side']}×{m['side']}, {m['bits']} bit, binned {m['binning']}×{m['binning']}"],
        ["cadence", _time(m["cadence"])],
        ["recorder", size(m["storage"])],
        ["downlink", f"{m['rate'] / 1000:.4g} kbit/s, {passes}; {share(m['usable'])} of passes come about"],
        ["latency wanted", "–" if m["latency"] is None else _time(m["latency"])],
        ["for coding", ", ".join(limits) or "–"],
        ["active Sun", f"{share(m['active'])} of the time"],
        *(
            [f"frames, {p['name']}", f"{p['source']}; {share(p['share'])} of the time"]
            for p in result["measured"]["periods"]
        ),
    ]
    return table(["entry", "value"], rows)
