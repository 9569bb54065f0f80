"""Boundaries of multipart bodies, however the body is cut into pieces."""

from __future__ import annotations

import pytest

from service.http.middleware.boundaries import Boundaries

PART = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n'


def follow(body: bytes, size: int) -> tuple[bool, bool]:
    """Whether a body is fine, and whether it was closed."""
    boundaries = Boundaries(b"B")
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return all(boundaries.follow(piece) for piece in pieces), boundaries.closed


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize(
    ("body", "fine", "closed"),
    [
        (PART + b"x\r\n--B--\r\n", True, True),
        (b"preamble\r\n" + PART + b"x\r\n" + PART + b"y\r\n--B--epilogue", True, True),
        (PART + b"x\r\n--\r\n\r\n--\r--B--\r\n--A\r\n--B--", True, True),
        (PART + b"x\r\n--B", True, False),
        (PART + b"x\r\n--B-", True, False),
        (PART + b"x--B--", True, False),  # not at the beginning of a line
        (PART + b"\r\n--Bx" * 9 + b"\r\n--B--", False, False),
        (PART + b"\r\n--B-x\r\n--B--", False, False),
        (PART + b"\r\n--B  \r\n\r\n--B--", False, False),
    ],
)
def test_a_boundary_is_followed_by_a_part_or_by_the_end(
    body: bytes, fine: bool, closed: bool, size: int
) -> None:
    found = follow(body, size)
    assert found[0] is fine
    assert not fine or found[1] is closed
