"""Finds the marker in a text, in any script, ignoring case and Unicode composition.

Two texts are equal here if they are a canonical caseless match (Unicode 17, chapter 3.13, D145):
both decomposed (NFD), case-folded and decomposed again. So `ß` equals `SS`, a final sigma equals any
other, and `é` is the same as one character or two. A hit begins and ends at character boundaries of the
text: `e` is not found in `é`, nor `s` in `ß`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def fold(text: str) -> str:
    """The text, normalised for comparison."""
    return _decomposed(_decomposed(text).casefold())


def _characters(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each character with its combining marks."""
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or not combines(text[end]):
            yield start, end
            start = end


def combines(character: str) -> bool:
    """Is this a combining mark, which joins the character before it?"""
    return unicodedata.combining(_decomposed(character)[0]) != 0


def spans(text: str, wanted: str) -> list[tuple[int, int]]:
    """(start, end) in `text` of every hit of `wanted`, left to right; hits do not overlap."""
    folded, sought = fold(text), fold(wanted)
    if not sought or sought not in folded:
        return []
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    length = 0
    for start, end in _characters(text):
        starts[length] = start
        length += len(fold(text[start:end]))
        ends[length] = end
    found = []
    at = folded.find(sought)
    while at >= 0:
        stop = at + len(sought)
        hit = at in starts and stop in ends
        if hit:
            found.append((starts[at], ends[stop]))
        at = folded.find(sought, stop if hit else at + 1)
    return found


def holds(text: str, wanted: str) -> bool:
    """Does `wanted` occur in `text`?"""
    return bool(spans(text, wanted))


def spoils(text: str, marker: str, forbidden: Sequence[str]) -> bool:
    """Does an answer hold the marker, or a text that would open or end turns?"""
    return holds(text, marker) or any(mark in text for mark in forbidden)
