"""Who gets a place for an upload, and who loses one."""

from __future__ import annotations

import pytest

from service.foundation.errors import Unavailable
from service.http.upload_slots import Upload, UploadSlots
from tests.service.clock import Clock


def taken(slots: UploadSlots, *callers: str) -> list[Upload]:
    return [slots.take(caller) for caller in callers]


def test_one_caller_has_half_of_the_places_at_most() -> None:
    slots = UploadSlots(4)
    first, _ = taken(slots, "a", "a")
    with pytest.raises(Unavailable, match="2 of your uploads"):
        slots.take("a")
    taken(slots, "b", "b")
    slots.give_back(first)
    slots.take("a")


def test_of_one_place_one_caller_may_have_it() -> None:
    UploadSlots(1).take("a")


def test_who_is_slow_makes_room_for_a_caller_who_has_fewer_places() -> None:
    clock = Clock()
    slots = UploadSlots(4, clock=clock)
    quick, slow, *_ = uploads = taken(slots, "a", "a", "b", "c")
    for upload in uploads:
        upload.arrived = 1000
    quick.arrived = 2000
    clock.now += 4.0
    with pytest.raises(Unavailable):  # nobody is called slow so soon
        slots.take("d")
    clock.now += 1.0
    slots.take("d")
    assert [upload.cut for upload in uploads] == [False, True, False, False]
    slots.give_back(slow)  # its place is somebody else's by now, and stays so
    with pytest.raises(Unavailable):  # all have one place, and so has the caller
        slots.take("d")


def test_who_sends_fast_or_has_sent_all_keeps_the_place() -> None:
    clock = Clock()
    slots = UploadSlots(2, clock=clock)
    fast, complete = taken(slots, "a", "b")
    clock.now += 10.0
    fast.arrived = 10 * 2**20
    complete.arriving = False
    with pytest.raises(Unavailable, match="Too many uploads"):
        slots.take("c")
    assert not fast.cut
    assert not complete.cut


def test_many_callers_with_a_place_each_do_not_keep_out_another() -> None:
    clock = Clock()
    slots = UploadSlots(32, clock=clock)
    uploads = taken(slots, *(f"address {number}" for number in range(32)))
    clock.now += 6.0
    for number in range(32):
        slots.take(f"newcomer {number}")
        clock.now += 1.0
    assert all(upload.cut for upload in uploads)
