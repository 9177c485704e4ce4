"""From measured curves to one number a range: bytes of sunzip over bytes of the best peer at equal error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from benchmarks.rate_distortion.curves import Mean, Mixture, RateCurve, bjontegaard, mean_ratio

Array = npt.NDArray[np.float64]

#: Ranges of our rate, in bits per sample.
RANGES = {"below 0.01": (0.0, 0.01), "0.01 to 0.1": (0.01, 0.1), "0.1 to 0.5": (0.1, 0.5)}

#: Codecs of single channels that code a series as a film.
FILMS = ("hevc-film", "av1-film")

_STEPS = 61

#: The names under which all peers, and all but those behind a transform, count as one.
BEST, BEST_SINGLE = "best", "best without KLT"


def _rates(result: Mapping[str, Any], case: str) -> dict[str, dict[str, RateCurve]]:
    """Return the curves of a case's peers: by peer and channel."""
    return {
        peer: {name: RateCurve(c["bits"], c["rmse_sigma"]) for name, c in channels.items()}
        for peer, channels in result["peers"].get(case, {}).items()
    }


def channels(result: Mapping[str, Any], model: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare channel by channel, each coded by itself: by case, channel and range."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for case, found in result["models"][model].items():
        peers = _rates(result, case)
        out[case] = {}
        for name, c in found["channels"].items():
            ours = RateCurve(c["bits"], c["rmse_sigma"])
            theirs = {peer: curves[name] for peer, curves in peers.items() if name in curves}
            out[case][name] = {
                what: bjontegaard(ours, theirs, *limits).as_dict() for what, limits in RANGES.items()
            }
    return out


class _Knob:
    """A model's rate and errors in a case as smooth functions of its quality."""

    def __init__(self, frame: Mapping[str, Any]) -> None:
        quality = frame["quality"]
        self.names = list(frame["channels"])
        self._bits = PchipInterpolator(quality, np.log(frame["bits"]))
        errors = np.array([frame["channels"][name]["rmse_sigma"] for name in self.names])
        self._errors = PchipInterpolator(quality, np.log(errors), axis=1)

    def bits(self, quality: Array) -> Array:
        return np.exp(self._bits(quality))

    def errors(self, quality: Array) -> Array:
        """Return (C, N)."""
        return np.exp(self._errors(quality))


def overall(result: Mapping[str, Any], model: str, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compare all channels of some cases together: by peer, or best of them, and range.

    At each quality every peer's bytes are those that it needs for the very errors that we have, channel by
    channel. Every channel of a case weighs the same, whatever the number of its frames.
    """
    found = result["models"][model]
    knobs = {case: _Knob(found[case]["frame"]) for case in cases}
    ends = [found[case]["frame"]["quality"] for case in cases]
    quality = np.linspace(max(q[0] for q in ends), min(q[-1] for q in ends), _STEPS)
    total = sum(len(k.names) for k in knobs.values())
    ours = sum((len(k.names) * k.bits(quality) for k in knobs.values()), np.zeros(_STEPS)) / total
    error = np.exp(sum((np.log(k.errors(quality)).sum(0) for k in knobs.values()), np.zeros(_STEPS)) / total)

    # Beyond the last range nothing needs a price.
    used = ours < max(high for _, high in RANGES.values())
    quality, ours, error = quality[used], ours[used], error[used]
    sums: dict[str, Array] = {}
    for n, (case, knob) in enumerate(knobs.items()):
        prices = _prices(result, case, knob.names, knob.errors(quality))
        sums = {
            peer: price / total + (sums[peer] if n else 0)
            for peer, price in prices.items()
            if not n or peer in sums
        }
    out: dict[str, dict[str, Any]] = {}
    for peer, theirs in sums.items():
        out[peer] = {}
        for what, (low, high) in RANGES.items():
            inside = (ours >= low) & (ours < high)
            mean = (
                mean_ratio(error[inside], ours[inside], {peer: theirs[inside]})
                if inside.sum() > 1
                else Mean(None, 0.0)
            )
            out[peer][what] = {**mean.as_dict(), "who": None}
    return out


def _prices(result: Mapping[str, Any], case: str, names: Sequence[str], errors: Array) -> dict[str, Array]:
    """Return what each peer needs for (C, N) errors, in bits per sample summed over channels."""
    peers = _rates(result, case)
    each = {
        peer: np.stack([curves[name](e) for name, e in zip(names, errors, strict=True)])
        for peer, curves in peers.items()
        if all(name in curves for name in names)
    }
    prices = {peer: rates.sum(0) for peer, rates in each.items()}
    if not each:
        return prices
    # A peer that cannot err as much as we do still has a price, which may be the least of all. Only by itself
    # it is not held against us there.
    table = np.stack(
        [[peers[peer][name].at_most(e) for name, e in zip(names, errors, strict=True)] for peer in each]
    )
    # Where no peer reaches a channel's error the sum is unknown.
    single = np.where(np.isfinite(table), table, np.inf).min(0).sum(0)
    prices[BEST_SINGLE] = np.where(np.isfinite(single), single, np.nan)
    mixed: dict[str, list[Array]] = {}
    for key, found in result["mixtures"].get(case, {}).items():
        price = Mixture(
            np.array(found["matrix"]),
            [c["bits"] for c in found["components"]],
            [c["error"] for c in found["components"]],
            found["extra_bits"],
            found["frame"]["bits"],
            found["frame"]["excess"],
        )
        rates = np.array([price(e) for e in errors.T]) * len(names)
        mixed.setdefault(key.split(":")[0], []).append(rates)
    for base in {key.split(":")[0] for found in result["mixtures"].values() for key in found}:
        # One channel alone has nothing to be mixed with.
        options = mixed.get(base, [each[base]] if base in each and len(names) == 1 else [])
        if options:
            prices[f"KLT + {base}"] = np.fmin.reduce([o.reshape(-1) for o in options])
    all_of_them = [prices[BEST_SINGLE], *(p for peer, p in prices.items() if peer.startswith("KLT"))]
    prices[BEST] = np.fmin.reduce(all_of_them)
    return prices


def blocks(result: Mapping[str, Any], model: str, case: str) -> dict[str, Any]:
    """Compare a series coded in blocks with the same frames one by one, at equal mean log-error."""
    found = result["models"][model][case]
    curves = []
    for kind in ("frame", "single"):
        errors = np.array([c["rmse_sigma"] for c in found[kind]["channels"].values()])
        curves.append(RateCurve(found[kind]["bits"], np.exp(np.log(errors).mean(0)).tolist()))
    ours, single = curves
    return {what: bjontegaard(ours, {"single": single}, *limits).as_dict() for what, limits in RANGES.items()}


def compare(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return all comparisons of all models that were measured on all cases."""
    out: dict[str, Any] = {}
    for model, found in result["models"].items():
        stills = [c for c in found if not result["cases"][c]["series"]]
        groups = {case: [case] for case in found}
        real = [c for c in stills if result["cases"][c]["real"]]
        if len(real) > 1:
            groups["real"] = real
        out[model] = {
            "channels": channels(result, model),
            "overall": {group: overall(result, model, members) for group, members in groups.items()},
            "blocks": {case: blocks(result, model, case) for case, row in found.items() if "single" in row},
        }
    return out
