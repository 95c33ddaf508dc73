"""Frames survive any cut of their bytes, and what is not a frame is an error and nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.plugin_host.frames import HEADER_SIZE, MAX_BODY, Frame, FrameError, FrameReader, Kind, write_frame

FRAMES = st.lists(st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=300)))


def frames_of(reader: FrameReader) -> list[Frame]:
    return list(iter(reader.read, None))


@given(FRAMES, st.lists(st.integers(0, 2000)))
def test_any_cut_of_the_bytes_gives_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(write_frame(*frame) for frame in frames)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reader, read = FrameReader(), []
    for begin, end in pairwise(places):
        reader.feed(data[begin:end])
        read += frames_of(reader)
    assert read == frames


@given(st.lists(st.binary(max_size=60), max_size=20), FRAMES)
def test_garbage_waits_for_more_or_is_a_frame_error_and_takes_no_more_memory_than_it_has(
    pieces: list[bytes], frames: list[Frame]
) -> None:
    reader, read = FrameReader(), []
    for piece in [*(write_frame(*frame) for frame in frames), *pieces]:
        reader.feed(piece)
        try:
            read += frames_of(reader)
        except FrameError:
            with pytest.raises(FrameError):
                reader.read()
        assert len(reader) <= sum(map(len, pieces)) + sum(HEADER_SIZE + len(frame.body) for frame in frames)
    assert read[: len(frames)] == frames


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("ffffffff 07 0000000000000001", "a frame of 4294967295 bytes"),
        ("00400001 07 0000000000000001", f"a frame of {MAX_BODY + 1} bytes"),
        ("00000000 00 0000000000000001", "the unknown kind 0"),
        ("00000000 ff 0000000000000001", "the unknown kind 255"),
    ],
)
def test_a_header_that_announces_too_much_or_an_unknown_kind_is_refused_before_its_body(
    header: str, message: str
) -> None:
    reader = FrameReader()
    reader.feed(bytes.fromhex(header))
    with pytest.raises(FrameError, match=message):
        reader.read()


def test_a_body_that_was_announced_is_only_held_as_far_as_it_has_come() -> None:
    reader = FrameReader()
    reader.feed(bytes.fromhex("00400000 07 0000000000000001") + b"drip")
    assert reader.read() is None
    assert len(reader) == HEADER_SIZE + 4
