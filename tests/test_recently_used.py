"""The bounded memory of what is asked for again and again."""

from __future__ import annotations

from exchange_service.recently_used import RecentlyUsed


def test_what_was_asked_for_least_lately_goes_when_there_is_no_room() -> None:
    kept: RecentlyUsed[str, int] = RecentlyUsed(2)
    kept["old"], kept["asked"] = 1, 2
    assert (kept.get("old"), kept.get("missing"), kept.get("missing", 5)) == (1, None, 5)
    kept["new"] = 3
    assert dict(kept) == {"old": 1, "new": 3}
    kept["old"] = 4
    kept["newest"] = 5
    assert dict(kept) == {"old": 4, "newest": 5}
    assert (kept.get("new"), kept.get("old")) == (None, 4)


def test_values_have_sizes_and_what_is_removed_makes_room() -> None:
    kept: RecentlyUsed[str, bytes] = RecentlyUsed(6, getsizeof=len)
    kept["first"], kept["second"] = b"11", b"222"
    assert kept.pop("first", None) == b"11"
    kept["third"] = b"333"
    assert (dict(kept), kept.currsize) == ({"second": b"222", "third": b"333"}, 6)
    kept["fourth"] = b"4444"
    assert (dict(kept), kept.currsize) == ({"fourth": b"4444"}, 4)
    kept.clear()
    assert (kept.get("fourth"), len(kept), kept.currsize) == (None, 0, 0)
    kept["fifth"] = b"555555"
    assert dict(kept) == {"fifth": b"555555"}
