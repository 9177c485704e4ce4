"""The order of a block's frames: what each builds on comes first, is near enough, and is kept until then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sunzip.codec.order import (
    _ALIKE,
    FURTHEST,
    GROUP,
    MOST_KEPT,
    Kept,
    Step,
    around,
    likeness,
    needed,
    order,
)
from sunzip.errors import DamagedError


@given(st.integers(0, 200), st.booleans(), st.floats(0, 1))
def test_every_frame_comes_once_and_after_those_that_it_builds_on(
    count: int, follows: bool, likeness: float
) -> None:
    done = {-1} if follows else set()
    for step in order(count, follows, likeness):
        assert step.place not in done
        assert 0 <= step.back <= FURTHEST
        assert 0 <= step.ahead <= FURTHEST
        before, after = step.builds_on
        assert before == (step.place - step.back if step.back else None)
        assert after == (step.place + step.ahead if step.ahead else None)
        assert {place for place in step.builds_on if place is not None} <= done
        done.add(step.place)
    assert done == set(range(-1 if follows else 0, count))


@given(st.integers(1, 200), st.booleans(), st.floats(0, 1))
def test_what_a_frame_builds_on_is_less_deep_and_lies_next_to_it_then(
    count: int, follows: bool, likeness: float
) -> None:
    depths = {-1: 0} if follows else {}
    for step in order(count, follows, likeness):
        before, after = step.builds_on
        if before is None:
            # Only the first of all builds on none.
            assert (step, follows) == (Step(0, 0, 0, 0), False)
        elif after is None:
            # The last of a group builds on that of the group before.
            assert step.depth == 1
            assert depths[before] <= 1
            assert step.back <= GROUP
            assert max(depths) == before
        else:
            assert step.depth == 1 + max(1, depths[before], depths[after])
            assert abs(step.back - step.ahead) <= 1
        # No frame between those is known yet.
        others = (before, after if after is not None else step.place)
        if before is not None:
            assert not set(range(others[0] + 1, others[1])) & set(depths)
        depths[step.place] = step.depth


@given(st.integers(1, 200).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count))))
def test_those_around_a_frame_are_near_it_and_not_itself(both: tuple[int, int]) -> None:
    place, count = both
    near = around(place, count)
    assert near == sorted(set(near))
    assert all(0 <= n < count and 0 < abs(n - place) < GROUP for n in near)
    assert {n for n in (place - 1, place + 1) if 0 <= n < count} <= set(near)


@given(st.integers(0, 200), st.floats(0, 1))
def test_groups_end_where_they_would_if_frames_had_come_before(count: int, likeness: float) -> None:
    alone = [step for step in order(count, False, likeness) if step.place]
    after = [step._replace(place=step.place + 1) for step in order(max(count - 1, 0), True, likeness)]
    assert alone == after


def test_a_group_of_eight_is_halved() -> None:
    if GROUP != 8:
        pytest.skip("groups are of another size")
    steps = list(order(11, False, _ALIKE))
    assert [step.place for step in steps] == [0, 8, 4, 2, 1, 3, 6, 5, 7, 10, 9]
    assert [step.depth for step in steps] == [0, 1, 2, 3, 4, 4, 3, 4, 4, 1, 2]


@given(st.integers(0, 50), st.booleans())
def test_frames_that_are_unlike_go_from_one_to_the_next(count: int, follows: bool) -> None:
    steps = list(order(count, follows, 0.99 * _ALIKE))
    assert [step.place for step in steps] == list(range(count))
    for step in steps:
        builds = follows or step.place > 0
        assert step.builds_on == (step.place - 1 if builds else None, None)
        assert step.depth == builds


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, list[int]], list[int]]:
    """Return numbers and those that each builds on, without circles, and some that are wanted."""
    places = draw(st.permutations(range(draw(st.integers(1, 12)))))
    below = {
        place: draw(st.lists(st.sampled_from(places[:n]), max_size=2)) if n else []
        for n, place in enumerate(places)
    }
    return below, draw(st.lists(st.sampled_from(places), max_size=6))


def reached(below: dict[int, list[int]], wanted: list[int]) -> set[int]:
    """Return those wanted and all that they build on."""
    found: set[int] = set()
    left = list(wanted)
    while left:
        place = left.pop()
        if place not in found:
            found.add(place)
            left += below[place]
    return found


@given(graphs())
def test_needed_are_those_wanted_and_what_they_build_on_and_that_first(
    graph: tuple[dict[int, list[int]], list[int]],
) -> None:
    below, wanted = graph
    found = needed(wanted, below.__getitem__)
    assert sorted(found) == sorted(reached(below, wanted))
    for n, place in enumerate(found):
        assert set(below[place]) <= set(found[:n])


@given(st.data())
def test_circles_are_damage_where_they_are_reached(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10))
    some = st.lists(st.integers(0, count - 1), max_size=2)
    below = {place: data.draw(some) for place in range(count)}
    wanted = data.draw(st.lists(st.integers(0, count - 1), max_size=4))
    circle = any(place in reached(below, below[place]) for place in reached(below, wanted))
    if circle:
        with pytest.raises(DamagedError, match="in a circle"):
            needed(wanted, below.__getitem__)
    else:
        assert set(needed(wanted, below.__getitem__)) == reached(below, wanted)


@given(st.integers(1, 200), st.booleans(), st.floats(0, 1), st.data())
def test_of_our_own_blocks_few_frames_are_kept(
    count: int, follows: bool, likeness: float, data: st.DataObject
) -> None:
    below = {
        step.place: [place for place in step.builds_on if place is not None and place >= 0]
        for step in order(count, follows, likeness)
    }
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1))) or range(count))
    steps = needed(wanted, below.__getitem__)
    kept = Kept([other for place in steps for other in below[place]])
    for place in steps:
        for other in below[place]:
            assert kept.take(other) == other
        kept.put(place, place)
        assert len(kept._left) <= 5 < MOST_KEPT


def test_frames_of_which_too_many_would_be_kept_are_damage() -> None:
    def ladder(rungs: int) -> list[int]:
        """Of two chains from the last to the first the even one builds on the other, too."""
        last = 2 * rungs - 1
        return needed(
            [0],
            lambda n: [m for m in ((n + 2, n + 1) if n % 2 == 0 else (n + 2,)) if m <= last],
        )

    assert sorted(ladder(MOST_KEPT // 2)) == list(range(MOST_KEPT))
    with pytest.raises(DamagedError, match=f"more than {MOST_KEPT} frames of a block wait"):
        ladder(4 * MOST_KEPT)


def test_long_chains_are_no_trouble() -> None:
    count = 4096
    found = needed([count - 1], lambda place: [place - 1] if place else [])
    assert found == list(range(count))
    with pytest.raises(DamagedError, match="in a circle"):
        needed([0], lambda place: [(place + 1) % count])
    with pytest.raises(DamagedError, match="in a circle"):
        needed([3], lambda place: [place])


@given(graphs())
def test_frames_are_kept_as_long_as_some_other_builds_on_them(
    graph: tuple[dict[int, list[int]], list[int]],
) -> None:
    below, wanted = graph
    steps = needed(wanted, below.__getitem__)
    uses = [other for place in steps for other in below[place]]
    kept: Kept[str] = Kept([None, *uses, None])
    for place in steps:
        for other in below[place]:
            assert kept.wanted(other)
            assert kept.take(other) == f"frame {other}"
            uses.remove(other)
            assert kept.wanted(other) == (other in uses)
        kept.put(place, f"frame {place}")
        # What is left is what is wanted of that which was put.
        done = steps[: steps.index(place) + 1]
        assert kept._left == {other: f"frame {other}" for other in done if other in uses}
    assert not kept._left


def test_what_was_not_put_or_is_not_wanted_is_not_there() -> None:
    kept: Kept[str] = Kept([3, 3, None])
    assert kept.take(None) is None
    assert kept.take(3) is None
    kept.put(3, "three")
    assert kept.take(3) == "three"
    assert not kept.wanted(3)
    assert kept.take(3) is None
    kept.put(3, "again")
    kept.put(4, "four")
    assert kept.take(4) is None
    assert kept.take(3) is None


@given(st.integers(3, 40), st.data())
def test_one_spoiled_frame_does_not_make_frames_unlike(count: int, data: st.DataObject) -> None:
    spoiled = data.draw(st.integers(0, count - 1))
    asked = []

    def of(three: Sequence[int]) -> float:
        assert list(three) == list(range(three[0], three[0] + 3))
        asked.append(three)
        return 0.1 if spoiled in three else 0.8

    assert likeness(range(count), of) == 0.8 or count < 9
    assert likeness(range(count), lambda three: 0.8) == 0.8
    assert len(asked) <= 3
    assert len(set(asked)) == len(asked)


def test_frames_that_are_surely_alike_are_judged_at_once() -> None:
    asked: list[Sequence[int]] = []
    assert likeness(range(16), lambda three: asked.append(three) or 0.95) == 0.95  # type: ignore[func-returns-value]
    assert asked == [range(7, 10)]
    assert likeness([], lambda three: 1.0) == likeness([1, 2], lambda three: 1.0) == 0
