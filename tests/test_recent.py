"""What was made lately is kept within a limit, and forgotten in the order in which it was last asked for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sunzip.recent import Recent


def test_what_was_asked_for_longest_ago_is_forgotten_first():
    recent = Recent(100)
    for key in "abc":
        recent.put(key, key.upper(), 30)
    assert recent.get("a") == "A"
    recent.put("d", "D", 30)
    assert [recent.get(key) for key in "abcd"] == ["A", None, "C", "D"]


def test_a_value_that_is_put_again_counts_once():
    recent = Recent(100)
    for size in (90, 40):
        recent.put("a", size, size)
    recent.put("b", "B", 60)
    assert (recent.get("a"), recent.get("b")) == (40, "B")
    recent.put("a", "large", 41)
    assert (recent.get("a"), recent.get("b")) == ("large", None)


def test_what_is_larger_than_all_that_may_be_is_not_kept_unless_so_many_are():
    recent = Recent(100)
    recent.put("a", "A", 101)
    assert recent.get("a") is None
    recent.put("b", "B", 100)
    assert recent.get("b") == "B"
    few = Recent(100, fewest=2)
    for key in "abc":
        few.put(key, key, 1000)
    assert [few.get(key) for key in "abc"] == [None, "b", "c"]


@pytest.mark.parametrize(("most", "times"), [(100, 1), (10, 4)])
def test_who_asks_for_what_another_thread_makes_waits_for_it_if_it_is_kept(most: int, times: int):
    recent, made = Recent[str, str](most), []
    together = threading.Barrier(4)

    def value(_: int) -> str:
        together.wait()
        with recent.making("a") as found:
            if found is None:
                made.append("A")
                time.sleep(0.1)
                recent.put("a", found := "A", 30)
        return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(value, range(4))) == ["A"] * 4
    assert len(made) == times


def test_who_fails_to_make_a_value_keeps_nobody_waiting():
    recent = Recent[str, str](100)
    with pytest.raises(KeyError), recent.making("a"):
        raise KeyError
    with recent.making("a") as found:
        assert found is None
        recent.put("a", "A", 1)
    with recent.making("a") as found:
        assert found == "A"
