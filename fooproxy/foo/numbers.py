"""The numbers that everything is counted in: 64-bit integers in one flat array, which its owner hands in.

A `Block` is a run of places in such an array, and a `Number` gives one of its places a name.  So the same numbers can
be read by their names here, and by their places from C or from another process.  The owner of the array decides which
blocks it has; nothing here knows what is counted.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, ClassVar, overload

if TYPE_CHECKING:
    from collections.abc import MutableSequence

LARGEST = (1 << 62) - 1
"""The largest number that may be put into an array from outside; counting on from there never overflows."""


def zeros(size: int) -> array[int]:
    """Make an array of `size` numbers, all 0."""
    return array("q", bytes(8 * size))


class Block:
    """A run of numbers that starts at place `start` of `numbers`; without an array it makes one of its own."""

    __slots__ = ("numbers", "start")

    names: ClassVar[tuple[str, ...]] = ()
    """The names of all its places, in their order."""

    def __init__(self, numbers: MutableSequence[int] | None = None, start: int = 0) -> None:
        self.numbers = zeros(len(self.names)) if numbers is None else numbers
        self.start = start


class Number:
    """The number at `place` of a block, as an attribute of the block."""

    def __init__(self, place: int) -> None:
        self.place = place

    @overload
    def __get__(self, block: None, owner: type[Block]) -> Number: ...

    @overload
    def __get__(self, block: Block, owner: type[Block]) -> int: ...

    def __get__(self, block: Block | None, owner: type[Block]) -> Number | int:
        return self if block is None else block.numbers[block.start + self.place]

    def __set__(self, block: Block, value: int) -> None:
        block.numbers[block.start + self.place] = value
