"""Declaring statistics: each one once, in the body of a `Declared` class, from which everything else derives.

A declaration states the unit, the meaning and, for several values, the label that distinguishes them.  A counted
statistic owns places in the array of numbers and is read and written as a plain attribute; a computed one is a method.
Unless the declaration says otherwise, a statistic appears in the report and in the exposition under its own name, and a
counted one is saved and restored after a crash.

Nothing here knows what is counted.  `fooproxy.stats.counters` declares the statistics; the report, the exposition,
recovery and the tables of the documentation iterate over `Declared.fields`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypedDict, TypeVar, overload

from fooproxy.foo.numbers import zeros

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

    # From typing itself in Python 3.11; only type checkers import this.
    from typing_extensions import Unpack

T = TypeVar("T")
D = TypeVar("D", bound="Declared")


class Declared:
    """A class that declares statistics in its body; the counted ones share one array, in order of declaration."""

    fields: ClassVar[tuple[Field, ...]]
    """All declarations, in order."""
    reported: ClassVar[tuple[Field, ...]]
    """The declarations that are in the report."""
    size: ClassVar[int]
    """The number of places in the array."""

    def __init_subclass__(cls) -> None:
        """Assign a place in the array to each declaration."""
        cls.fields = tuple(value for value in vars(cls).values() if isinstance(value, Field))
        cls.reported = tuple(field for field in cls.fields if field.in_report)
        cls.size = 0
        for field in cls.fields:
            field.place = cls.size
            field.places = {cell: cls.size + number for number, cell in enumerate(field.cells)}
            cls.size += len(field.cells)

    def __init__(self, numbers: MutableSequence[int] | None = None) -> None:
        self.numbers = zeros(self.size) if numbers is None else numbers
        """The array: 64-bit integers."""

    def report(self) -> dict[str, Any]:
        """Return every statistic of the report under its public name, in order of declaration."""
        return {field.name: field.reported_value(self) for field in self.reported}

    def counters(self) -> dict[str, int]:
        """Return the numbers that are saved, by their names in the recovery file."""
        return {name: self.numbers[place] for name, place in self.lasting().items()}

    @classmethod
    def lasting(cls) -> dict[str, int]:
        """Return the places of the numbers that are saved, by their names in the recovery file."""
        return {
            name: field.place + number
            for field in cls.fields
            for number, name in enumerate(field.saved)
            if name is not None
        }


class Shown(TypedDict, total=False):
    """The options of a declaration about where its statistic is shown; see `Field`."""

    series: str | None
    in_report: bool
    summed: bool
    title: str


class Labelled(Shown, total=False):
    """The options of a statistic that may have several values."""

    label: str
    labels: Sequence[str] | Mapping[str, str]


class Kept(Shown, total=False):
    """The options of a counted statistic, which also say how it is saved."""

    saved: Mapping[str, str] | str | None


class Field:
    """One statistic.

    `kind`: counter (only grows), gauge (a current value), histogram (reported as a summary) or info (text).
    `label`, `labels`: the name of the label that distinguishes several values, and its values, with meanings if needed.
    `series`: the name in the exposition, without the common prefix; `None` keeps the statistic out of it.
    `in_report`, `summed`: whether the report contains the statistic, and whether as the sum of its values.
    `title`: the name on the page.
    `cells`: the numbers that the statistic owns in the array, from `place` on.
    `saved`: their names in the recovery file: a prefix, a name for each saved cell, or `None` to save none.
    """

    place = -1
    places: Mapping[str, int]
    """The place of each cell."""

    def __init__(
        self,
        kind: str,
        unit: str,
        meaning: str,
        label: str = "",
        labels: Sequence[str] | Mapping[str, str] = (),
        series: str | None = "",
        in_report: bool = True,
        summed: bool = False,
        cells: Sequence[str] = (),
        saved: Mapping[str, str] | str | None = "",
        title: str = "",
    ) -> None:
        self.kind = kind
        self.unit = unit
        self.meaning = meaning
        self.label = label
        self.labels = labels
        self.series = series
        self.in_report = in_report
        self.summed = summed
        self.cells = tuple(cells)
        self._saved = saved
        self.title = title

    def __set_name__(self, owner: type[Declared], name: str) -> None:
        """Record the public name, from which the other names derive."""
        self.name = name
        if self.series == "":
            self.series = name
        self.title = self.title or name.replace("_", " ").capitalize()

    @property
    def saved(self) -> tuple[str | None, ...]:
        """The name of each cell in the recovery file."""
        if self._saved is None or isinstance(self._saved, Mapping):
            names = self._saved or {}
            return tuple(names.get(cell) for cell in self.cells)
        prefix = self._saved or self.name
        return tuple(f"{prefix}_{cell}" if cell else prefix for cell in self.cells)

    def value(self, stats: Any) -> Any:
        """Return the current value in `stats`: a number, a mapping of labels to numbers, a `Histogram`, or a text."""
        return getattr(stats, self.name)

    def reported_value(self, stats: Any) -> Any:
        """Return the value in the form of the report."""
        value = self.value(stats)
        if self.kind == "histogram":
            return value.summary()
        if self.summed:
            return sum(value.values())
        return dict(value) if self.label else value


class Counter(Field):
    """A counted number, used as an attribute: ``stats.connections_total += 1``."""

    def __init__(self, unit: str, meaning: str, **options: Unpack[Kept]) -> None:
        super().__init__("counter", unit, meaning, cells=("",), **options)

    @overload
    def __get__(self, stats: None, owner: type[Declared]) -> Counter: ...

    @overload
    def __get__(self, stats: Declared, owner: type[Declared]) -> int: ...

    def __get__(self, stats: Declared | None, owner: type[Declared]) -> Counter | int:
        return self if stats is None else stats.numbers[self.place]

    def __set__(self, stats: Declared, value: int) -> None:
        stats.numbers[self.place] = value


class Counters(Field):
    """Counted numbers, one for each of `labels`, used as a mapping: ``stats.connections_closed["drained"] += 1``."""

    def __init__(
        self, unit: str, meaning: str, label: str, labels: Sequence[str] | Mapping[str, str], **options: Unpack[Kept]
    ) -> None:
        super().__init__("counter", unit, meaning, label, labels, cells=tuple(labels), **options)

    @overload
    def __get__(self, stats: None, owner: type[Declared]) -> Counters: ...

    @overload
    def __get__(self, stats: Declared, owner: type[Declared]) -> Cells: ...

    def __get__(self, stats: Declared | None, owner: type[Declared]) -> Counters | Cells:
        return self if stats is None else Cells(stats.numbers, self.places)


class Counted(Field):
    """Places for a block that counts elsewhere and has the names `cells`; other statistics show its numbers."""

    def __init__(self, cells: Sequence[str], saved: Mapping[str, str] | str) -> None:
        super().__init__("counter", "", "", series=None, in_report=False, cells=cells, saved=saved)


class Computed(Field, Generic[T]):
    """A value that a method computes on request, read as an attribute; the method's docstring is the meaning."""

    def __init__(self, read: Callable[[Any], T], kind: str, unit: str, **options: Unpack[Labelled]) -> None:
        super().__init__(kind, unit, read.__doc__ or "", **options)
        self._read = read

    @overload
    def __get__(self, stats: None, owner: type[Declared]) -> Computed[T]: ...

    @overload
    def __get__(self, stats: Declared, owner: type[Declared]) -> T: ...

    def __get__(self, stats: Declared | None, owner: type[Declared]) -> Computed[T] | T:
        return self if stats is None else self._read(stats)


def computed(kind: str, unit: str, **options: Unpack[Labelled]) -> Callable[[Callable[[D], T]], Computed[T]]:
    """Declare the statistic that the decorated method computes; `options` are those of `Field`."""
    return lambda read: Computed(read, kind, unit, **options)


class Cells(MutableMapping[str, int]):
    """A mapping of names to the numbers of an array at their `places`."""

    def __init__(self, numbers: MutableSequence[int], places: Mapping[str, int]) -> None:
        self._numbers = numbers
        self._places = places

    def __getitem__(self, name: str) -> int:
        return self._numbers[self._places[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._numbers[self._places[name]] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("the number of a statistic cannot be deleted; set it to 0 instead")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
