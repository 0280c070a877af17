"""When a dead worker's place is taken again; what a supervisor does is in `test_process.py`."""

from __future__ import annotations

from plugin.sidecar.workers import _Place


def test_the_waits_grow_until_a_worker_has_lived_long() -> None:
    place = _Place()
    assert place.due < 0  # the first is not waited for
    now, waits = 0.0, []
    for lived in (10, 3, 3, 3, 3, 3, 3, 3, 59, 60, 3):
        place.begun = now
        now += lived
        waits.append(place.end(now))
        assert place.due == now + waits[-1]
        now = place.due
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 2]
