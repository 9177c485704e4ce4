"""What was made lately is kept within a limit, and forgotten in the order in which it was last asked for."""

from __future__ import annotations

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
