"""Large images wait for one another, and never for themselves."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tcl.data.images import decode as decoding
from tcl.data.images.decode import ImageError, decode
from tcl.data.images.in_flight import Room
from tests.data.files import png


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Images of 100 pixels are large, and there is room for one and a half."""
    room = Room(150)
    monkeypatch.setattr(decoding, "LARGE", 100)
    monkeypatch.setattr(decoding, "room", room)
    return room


def test_a_large_image_waits_until_the_one_before_is_let_go(room: Room) -> None:
    first = decode(png(10, 10))
    assert room._used == 100
    second = []
    thread = threading.Thread(target=lambda: second.append(decode(png(10, 10)).size))
    thread.start()
    thread.join(0.2)
    assert not second and room._used == 100
    small = decode(png(9, 10))  # which never waits
    del first
    thread.join(30)
    assert second == [(10, 10)] and room._used == 0 and small.size == (9, 10)


def test_a_thread_does_not_wait_for_itself(room: Room) -> None:
    images = [decode(png(10, 10)) for _ in range(5)]
    assert room._used == 500
    images.clear()
    assert room._used == 0


def test_one_image_is_never_too_large(room: Room) -> None:
    assert decode(png(100, 100)).size == (100, 100)


def test_a_damaged_image_leaves_its_room(room: Room, tmp_path: Path) -> None:
    data = png(10, 10)
    with pytest.raises(ImageError):
        decode(data[:-30])
    assert room._used == 0


def test_an_open_image_stays_with_its_owner(room: Room) -> None:
    first = decode(png(10, 10))
    again = decode(first)
    again.putpixel((0, 0), (1, 2, 3))
    assert first.getpixel((0, 0)) != (1, 2, 3)
