"""What an encoder chooses beside symbols: how far others are trusted, which levels are worth their bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sunzip.codec.family import Float
from sunzip.codec.symbols import _TOO_FEW, Coder, Coefficients, Draft, Int, Reader, Writer
from sunzip.codec.wavelet import WaveletFamily
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.nn.planes import SCALES, TRUST_MOST
from sunzip.weights import Model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def family(wavelet_model: Model) -> WaveletFamily:
    return WaveletFamily(wavelet_model)


class Kept(Writer):
    """Keeps what it is to put."""

    def __init__(self, family: WaveletFamily) -> None:
        super().__init__(None, family.tables, family.bits, family.shifted)
        self.puts: list[tuple[str, list[int], list[int]]] = []

    def put(self, kind: str, index: Int, entries: Int) -> None:
        self.puts.append((kind, index.tolist(), entries.tolist()))


# --- trusts ----------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def trusts(
    family: WaveletFamily, mean: Float, others: Float, values: Float, before: int = 0, scale: int | Int = 15
) -> list[int]:
    """Return the trusts of channels whose coefficients (C, N) are foretold so, if they were all as before."""
    count = len(mean)
    index, usual = np.arange(count, dtype=np.int32), np.full(count, before, np.int32)
    scales = np.broadcast_to(np.asarray(scale, np.int32), mean.shape)
    writer = Kept(family)
    change = writer.trusts(index, usual, mean, others, scales, values)
    assert writer.puts == [("trusts", index.tolist(), change.tolist())]
    return (usual + change).tolist()


@pytest.mark.parametrize("before", [0, 5, TRUST_MOST])
def test_others_are_trusted_where_they_are_right_and_not_where_they_are_wrong(
    family: WaveletFamily, before: int
) -> None:
    values, wrong = noise(2, 60), noise(2, 60, seed=1)
    right = values.copy()
    assert trusts(family, values + wrong, right, values, before) == [8, 8]
    assert trusts(family, right, values + wrong, values, before) == [0, 0]
    # Each channel by itself.
    mean, others = values.copy(), values.copy()
    mean[0] += wrong[0]
    others[1] += wrong[1]
    assert trusts(family, mean, others, values, before) == [8, 0]


@pytest.mark.parametrize(
    ("way", "trust"),
    [(-1, 0), (0.02, 0), (0.25, 2), (0.5, 4), (0.9, 7), (1.13, 9), (1.25, 10), (3, TRUST_MOST)],
)
def test_so_many_eighths_of_the_way_are_gone_as_values_lie(
    family: WaveletFamily, way: float, trust: int
) -> None:
    mean, others = noise(1, 400), noise(1, 400, seed=1)
    values = mean + (others - mean) * np.float32(way)
    assert trusts(family, mean, others, values) == [trust]


def test_coefficients_count_the_more_the_surer_they_are(family: WaveletFamily) -> None:
    values, wrong = noise(1, 60), noise(1, 60, seed=1)
    mean, others = values.copy(), values.copy()
    mean[:, ::2] += wrong[:, ::2]
    others[:, 1::2] += 3 * wrong[:, 1::2]
    sure, unsure = 5, 60
    even = np.arange(60) % 2 == 0
    assert trusts(family, mean, others, values, scale=np.where(even, sure, unsure)) == [8]
    assert trusts(family, mean, others, values, scale=np.where(even, unsure, sure)) == [0]


@pytest.mark.parametrize("before", [0, 5, TRUST_MOST])
def test_trusts_stay_where_they_gain_less_than_they_cost(family: WaveletFamily, before: int) -> None:
    values, wrong = noise(1, 60), noise(1, 60, seed=1)
    assert trusts(family, values + wrong / 100, values, values, before) == [before]
    assert trusts(family, values, values + wrong / 100, values, before) == [before]
    assert trusts(family, values, values, values + wrong, before) == [before]  # no trust makes a difference


@pytest.mark.parametrize("before", [0, 5, TRUST_MOST])
def test_trusts_of_too_few_coefficients_stay(family: WaveletFamily, before: int) -> None:
    values, wrong = noise(2, _TOO_FEW), noise(2, _TOO_FEW, seed=1) + 50
    assert trusts(family, values + wrong, values, values, before) == [8, 8]
    values, wrong = values[:, 1:], wrong[:, 1:]
    assert trusts(family, values + wrong, values, values, before) == [before, before]


# Halfway between two eighths it is the last bit of a sum that decides.
CODE = """
import os, sys
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = sys.argv[1]
import numpy as np
from sunzip.codec.symbols import Sets, Writer
from sunzip.entropy.tables import Tables
tables = Tables.from_probabilities([[1.0] * 31] * 48, [-15] * 48, [1e-4] * 48)
empty = np.zeros(0, np.float32)
writer = Writer(None, Sets(*[None] * 6, tables), empty, empty)
rng = np.random.default_rng(0)
index = np.arange(48, dtype=np.int32)
mean, others = rng.normal(0, 1, (2, 48, 60_000)).astype(np.float32)
halves = (np.arange(48) % 8 + 0.5).astype(np.float32)[:, None] / 8
values = mean + (others - mean) * halves
print(*writer.trusts(index, 0 * index, mean, others, np.full(mean.shape, 15), values))
"""


def test_trusts_do_not_depend_on_the_number_of_threads() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", CODE, threads],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for threads in ("1", "3")
    ]
    assert found[0] == found[1]
    # Which of two it is is chance.
    assert {int(trust) - n % 8 for n, trust in enumerate(found[0])} == {0, 1}


# --- symbols ---------------------------------------------------------------------------------------------


def draft_of(family: WaveletFamily) -> Draft:
    return Draft(family.tables, family.bits, family.shifted)


def test_bits_of_the_field_are_worth_less_so_that_fewer_coefficients_become_0(family: WaveletFamily) -> None:
    values = np.tile(np.linspace(0, 3, 400, dtype=np.float32), (2, 1))
    tables = np.full(values.shape, 20, np.int32)
    both = Coefficients(np.array([0, 9], np.int32), tables, np.zeros_like(tables), tables < 0, values)
    draft = draft_of(family)
    corona, field = draft.symbols(both)
    assert (field >= corona).all()
    assert ((field == 1) & (corona == 0)).any()
    assert (np.abs(field - values[0]) < 1).all()
    bits = [
        family.bits[20, symbols + family.bits.shape[1] // 2].sum(dtype=np.float64)
        for symbols in (corona, field)
    ]
    draft.judge([0, 9], np.zeros(2))
    for channel, worth_of_bits in ((0, 0.115 * bits[0]), (9, 0.085 * bits[1])):
        assert draft.cost([channel], np.zeros((1, 1)), None) == pytest.approx(worth_of_bits, rel=1e-5)


# --- drafts ----------------------------------------------------------------------------------------------


def halves(level: int, channels: list[int]) -> list[Coefficients]:
    """Return the coefficients of the two halves of a level; those of the first channel take the most bits."""
    found, count = [], len(channels)
    for half in range(2):
        values = noise(count, 2 * 4**level, seed=10 * level + half)
        values /= 1 + np.arange(count, dtype=np.float32)[:, None]
        tables = np.full(values.shape, 20 + SCALES * 10, np.int32)
        found.append(
            Coefficients(np.array(channels, np.int32), tables, np.zeros_like(tables), tables < 0, values)
        )
    return found


def spent_on(family: WaveletFamily, these: Coefficients) -> list[float]:
    """Return what the bits of each channel's coefficients are worth."""
    found = []
    for n in range(len(these.tables)):
        draft = draft_of(family)
        draft.symbols(Coefficients(*(part[n : n + 1] for part in these)))
        draft.judge([n], np.zeros(1))
        found.append(draft.cost([n], np.zeros((1, 1)), None))
    return found


def worth(family: WaveletFamily, gains: dict[int, list[float]], asked: list[int]) -> list[int] | None:
    """Return in how many levels symbols are found to be worth it.

    Parameters
    ----------
    gains
        Of each channel, by how much leaving out each of its levels costs more than its symbols.
    asked
        The channels that are asked for, of which some may have no levels.
    """
    draft = draft_of(family)
    most = max(map(len, gains.values()))
    left_out = {c: [7.0] * most for c in asked}  # where there is nothing that could be left out
    for level in range(most):
        active = [c for c in gains if len(gains[c]) > level]
        both = halves(level, active)
        errors = 10.0 + np.arange(len(active)) + level
        for half in both:
            draft.symbols(half)
        draft.judge(active, errors)
        spent = np.sum([spent_on(family, half) for half in both], 0)
        assert spent.min() > 0.5
        for c, cost in zip(active, errors + spent, strict=True):
            left_out[c][level] = cost + gains[c][level]
    found = draft.worth(asked, np.array([left_out[c] for c in asked]))
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    ("gains", "levels"),
    [
        ([0.01, 0.01, 0.01], 3),
        ([5, 5, -0.01], 2),
        ([5, -0.01, -3], 1),
        ([-0.01, -1, -9], 0),
        ([5, -3, 4], 3),  # one in the middle that the next finer makes good
        ([5, -3, 2], 1),
        ([-3, 5, -1], 2),
        ([-3, 2, 0.5], 0),
        ([5, -3, 2, 2, -1], 4),
        ([5], 1),
    ],
)
def test_levels_are_cut_from_where_they_cost_more_than_leaving_them_out(
    family: WaveletFamily, gains: list[float], levels: int
) -> None:
    cut = levels < len(gains)
    assert worth(family, {3: gains}, [3]) == ([levels] if cut else None)
    # Each channel for itself, in the order in which they are asked for.
    for both in ({3: gains, 8: [1, 1]}, {8: [1, 1], 3: gains}):
        for asked in ([3, 8], [8, 3], [3, 5, 8]):
            expected = [{3: levels, 8: 2}.get(c, 0) for c in asked]
            assert worth(family, both, asked) == (expected if cut else None)
    assert worth(family, {3: gains, 8: [-1, -1]}, [3, 8]) == [levels, 0]


def test_a_draft_costs_what_its_symbols_do_and_what_is_left_out(family: WaveletFamily) -> None:
    draft, costs = draft_of(family), []
    for level in range(3):
        active = [4, 9][: 2 - level // 2]  # the second has one level fewer
        both = halves(level, active)
        for half in both:
            draft.symbols(half)
        errors = np.array([10.0, 20.0][: len(active)]) + level
        draft.judge(active, errors)
        costs.append(errors + np.sum([spent_on(family, half) for half in both], 0))
    left_out = np.array([[100.0, 200, 400, 800], [1000, 2000, 4000, 8000], [1, 2, 4, 8]])
    asked = [4, 9, 2]  # the last has none
    everything = sum(c.sum() for c in costs) + 800 + 12000 + 15
    assert draft.cost(asked, left_out, None) == pytest.approx(everything)
    some = costs[0][0] + costs[0][1] + costs[1][1] + 1400 + 12000 + 15
    assert draft.cost(asked, left_out, np.array([1, 2, 0], np.int32)) == pytest.approx(some)


def say(coder: Coder) -> None:
    """Give a coder some of all that it may be asked, in the order of a walk."""
    one, two = np.zeros(1, np.int32), np.arange(2, dtype=np.int32)
    coder.side("silent", two, two + 1)
    coder.side("base", two + 20, np.array([40, -7], np.int32))
    for level in range(3):
        coder.side("weights", one + 6, one + level)
        for these in halves(level, [3, 4]):
            assert these.values is not None
            scale, mean = these.tables % SCALES, these.values + 1
            coder.trusts(two, two, mean, these.values, scale, these.values)
            coder.shifts(two, two, these)
            coder.symbols(these)


def test_a_draft_hands_on_all_that_it_was_given_in_order(family: WaveletFamily) -> None:
    draft, direct, handed = draft_of(family), Kept(family), Kept(family)
    say(draft)
    say(direct)
    draft.hand_to(handed)
    assert [kind for kind, _, _ in direct.puts] == ["silent", "base"] + [
        "weights", "trusts", "shifts", "bands", "trusts", "shifts", "bands",
    ] * 3  # fmt: skip
    assert handed.puts == direct.puts
    payloads = []
    for give in (say, draft.hand_to):
        encoder = Encoder()
        give(Writer(encoder, family.tables, family.bits, family.shifted))
        payloads.append(encoder.finish())
    assert payloads[0] == payloads[1]
    decoder = Decoder(payloads[0])
    say(Reader(decoder, family.tables))
    decoder.finish()
