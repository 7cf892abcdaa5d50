"""The numbers in which everything is counted: 64-bit integers in one flat array, supplied by its owner.

A `Block` is a run of places in such an array, and a `Number` names one of them.  Python code thus reads a number by its
name, while C code or another process can read the same number by its place.  The owner of the array decides which
blocks it contains; nothing here knows what is counted.  `fooproxy.foo.analyzer` and `fooproxy.foo.latency` define
blocks, and `fooproxy.stats` owns the array.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, ClassVar, overload

from fooproxy.core import core

if TYPE_CHECKING:
    from collections.abc import MutableSequence

LARGEST = (1 << 62) - 1
"""The largest number that may be restored into an array; counting on from it does not overflow in practice."""


def zeros(size: int) -> array[int]:
    """Return an array of `size` zeros."""
    return array("q", bytes(8 * size))


class Block:
    """A run of numbers from place `start` of `numbers` on; without an array, the block creates its own.

    A subclass declares each number as an attribute, a `Number`; their order is that of the places.
    """

    __slots__ = ("_row", "numbers", "start")

    more: ClassVar[tuple[str, ...]] = ()
    """The names of the places that follow those of the attributes."""
    largest: ClassVar[tuple[str, ...]] = ()
    """The attributes that are not additive: of several blocks, the largest value counts."""
    names: ClassVar[tuple[str, ...]]
    """The names of all places, in order."""

    def __init_subclass__(cls) -> None:
        """Assign the places."""
        numbers = {name: value for name, value in vars(cls).items() if isinstance(value, Number)}
        for place, number in enumerate(numbers.values()):
            number.place = place
        cls.names = (*numbers, *cls.more)

    def __init__(self, numbers: MutableSequence[int] | None = None, start: int = 0) -> None:
        self.numbers = zeros(len(self.names)) if numbers is None else numbers
        self.start = start
        self._row: Any = None

    @property
    def row(self) -> Any:
        """The same numbers for the compiled twins, which keep the array from being resized."""
        if self._row is None:
            self._row = core.Row(self.numbers, self.start, len(self.names))
        return self._row


class Number:
    """The number at `place` of a block, as an attribute of the block."""

    place = -1

    @overload
    def __get__(self, block: None, owner: type[Block]) -> Number: ...

    @overload
    def __get__(self, block: Block, owner: type[Block]) -> int: ...

    def __get__(self, block: Block | None, owner: type[Block]) -> Number | int:
        return self if block is None else block.numbers[block.start + self.place]

    def __set__(self, block: Block, value: int) -> None:
        block.numbers[block.start + self.place] = value
