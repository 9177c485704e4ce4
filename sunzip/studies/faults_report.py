"""What faults do to frames, as one HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from sunzip.display import count
from sunzip.studies.onboard.report import share, size, table, whole
from sunzip.studies.onboard.svg import bars

#: Of each kind of fault, its title and what it is.
KINDS = {
    "loss": ("packets lost one by one", "Each packet is lost by itself (Bernoulli)."),
    "bursts": ("packets lost in bursts", "As many, in bursts of geometric length (Gilbert and Elliott)."),
    "flips_after": (
        "bits flipped on the way",
        "After the packet's checksum was made: 1 bit in half of the packets struck, 2 to 32 in the others. "
        "The CRC-16 finds it, else the CRC-32 of the unit.",
    ),
    "flips_before": (
        "bits flipped in the recorder",
        "Before packets are made, whose checksums then agree with what is wrong: the CRC-32 of the unit "
        "finds it.",
    ),
}  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """Return the page of what `sunzip.studies.faults.faults` found."""
    model, channel, frames = result["model"], result["channel"], result["frames"]
    title = f"{model['name']}: faults between camera and ground"
    ok = result["silent"] == 0
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{count(frames['coded'], 'frame')} of {frames['side']}×{frames['side']} pixels, "
        f"{count(frames['images'], 'image')} of {' '.join(frames['channels'])} "
        f"({escape(frames['source'])}), sent again and again as CCSDS space packets of up to "
        f"{channel['packet']} bytes, "
        f"of which {share(channel['loss'])} are lost.</p>",
        f"<p class={'good' if ok else 'bad'}>Decoded silently wrong: {result['silent']}.</p>",
        "<h2>What resilience costs</h2>",
        _plot(result),
    ]
    for kind, (name, what) in KINDS.items():
        parts += [f"<h2>{escape(name.capitalize())}</h2><p>{escape(what)}</p>", _kind(result, kind)]
    parts += [_rest(result)]
    return whole(title, parts)


def _plot(result: dict[str, Any]) -> str:
    def failed(row: dict[str, Any], kind: str) -> float:
        k = row["kinds"][kind]
        # What no trial showed is drawn as what one in all trials would be.
        return max(1.0, float(k["frames"] - k["whole"])) / float(k["frames"])

    rows = [(r["title"], [failed(r, "loss"), failed(r, "bursts")]) for r in result["schemes"]]
    plot = bars("Frames that are not whole, at most", "share of frames", rows, ["one by one", "in bursts"])
    sizes = table(
        ["way", "bytes of a frame", "more than one block a frame", "packets of a frame"],
        [
            [
                r["title"],
                size(r["bytes_per_frame"]),
                f"{100 * r['overhead']:.1f} %",
                f"{r['packets_per_frame']:.1f}",
            ]
            for r in result["schemes"]
        ],
    )
    return f"<div class=plots><figure>{plot}</figure><div>{sizes}</div></div>"


def _kind(result: dict[str, Any], kind: str) -> str:
    rows = []
    for r in result["schemes"]:
        k = r["kinds"][kind]
        rows.append(
            [
                r["title"],
                f"{k['faults']:,}",
                f"{k['frames']:,}",
                *(share(k[part] / k["frames"]) for part in ("whole", "damaged")),
                share(k["area"]) if k["damaged"] else "–",
                *(share(k[part] / k["frames"]) for part in ("based", "lost")),
                f"{k['refused']:,}",
                ("!" if k["silent"] else "+") + str(k["silent"]),
            ]
        )
    head = ["way", "faults", "frames sent", "whole", "tiles missing", "area missing of these", "base only"]
    head += ["lost", "units refused", "silently wrong"]
    return table(head, rows)


def _rest(result: dict[str, Any]) -> str:
    shown, p, w = result["concealed"], result["payloads"], result["weights"]
    return (
        "<h2>Error of what is shown</h2>"
        "<p>Root mean square error in units of noise (of pixels averaged to 512²), over the whole frame.</p>"
        + table(
            ["shown", "error"],
            [
                [what, "–" if shown[key] is None else f"{shown[key]:.3g}"]
                for what, key in (
                    ("the frame as decoded", "decoded"),
                    ("its base, where the frame is lost", "base"),
                    ("the frame before, where it or a tile of it is lost", "before"),
                )
            ],
        )
        + "<h2>Bits flipped in payloads, before any checksum</h2>"
        f"<p>{p['faults']:,} faults: {p['refused']:,} refused by the entropy decoder, which must end "
        f"where the encoder "
        f"began; {p['same']:,} changed nothing; {p['passed']:,} passed. Memory that holds a payload "
        f"before the block's "
        "checksum is made must correct errors itself.</p>"
        "<h2>Bits flipped in the encoder's weights</h2>"
        f"<p>{w['faults']:,} single bits of {size(w['bytes'])}, one at a time, each followed by coding a "
        f"frame. The block "
        "that comes of it agrees with itself, so that the ground cannot tell; only its error can. A "
        "CRC-32 of the "
        f"weights, taken before a block is let go, found {w['noticed']:,} of {w['faults']:,}; taking it "
        f"takes "
        f"{1000 * w['digest_seconds']:.3g} ms on this machine.</p>"
        + table(
            ["the block", "faults"],
            [
                ["is the same", f"{w['same']:,}"],
                ["decodes to an error at most 1 % larger", f"{w['harmless']:,}"],
                ["decodes to a larger error", f"{w['worse']:,}"],
                ["decodes to twice the error or more", f"{w['useless']:,}"],
                ["is refused", f"{w['refused']:,}"],
                ["was not made, as the encoder broke off", f"{w['broken_off']:,}"],
                [
                    "passes unnoticed in spite of the digest",
                    ("!" if w["unnoticed"] else "+") + f"{w['unnoticed']:,}",
                ],
            ],
        )
        + f"<p class=note>sunzip {escape(result['sunzip'])}, seed {result['channel']['seed']}; made in "
        f"{result['seconds']:.0f} s. Headers and checksums of packets take "
        f"{result['channel']['overhead']} bytes each. "
        "The numbers are beside this page as JSON.</p>"
    )
