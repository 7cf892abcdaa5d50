"""How a statistic is declared: once, in the body of a `Declared` class, and everything derives from that.

A declaration says the unit and the meaning, and by what label its values are told apart, if they are.  What is counted
owns places in the array of numbers, and is read and written there as a plain attribute; what is computed is a method.
Unless the declaration says otherwise, a statistic is in the report and in the exposition under its own name, and what
is counted is saved and comes back after a crash.

`fooproxy.stats.counters` declares the statistics; report, exposition, recovery and the tables in the documents walk
through `Declared.fields`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from fooproxy.foo.numbers import zeros

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

T = TypeVar("T")
D = TypeVar("D", bound="Declared")


class Declared:
    """A class whose statistics are declared in its body; those that are counted share one array, in their order."""

    fields: ClassVar[tuple[Field, ...]]
    """All declarations, in their order."""
    reported: ClassVar[tuple[Field, ...]]
    """Those of the report."""
    size: ClassVar[int]
    """The number of places that the array has."""

    def __init_subclass__(cls) -> None:
        """Give each declaration its place."""
        cls.fields = tuple(value for value in vars(cls).values() if isinstance(value, Field))
        cls.reported = tuple(field for field in cls.fields if field.in_report)
        cls.size = 0
        for field in cls.fields:
            field.place = cls.size
            cls.size += len(field.cells)

    def __init__(self, numbers: MutableSequence[int] | None = None) -> None:
        self.numbers = zeros(self.size) if numbers is None else numbers
        """The array: 64-bit integers."""

    def report(self) -> dict[str, Any]:
        """Return every statistic of the report under its public name, in the order of the declarations."""
        return {field.name: field.told(self) for field in self.reported}

    def counters(self) -> dict[str, int]:
        """Return the numbers that outlive the process, by the names that the recovery file has for them."""
        return {name: self.numbers[place] for name, place in self.lasting().items()}

    @classmethod
    def lasting(cls) -> dict[str, int]:
        """Return the places of the numbers that outlive the process, by the names that the recovery file has."""
        return {
            name: field.place + number
            for field in cls.fields
            for number, name in enumerate(field.saved)
            if name is not None
        }


class Field:
    """One statistic.

    `kind`: counter (only grows), gauge (an instant), histogram (summed up) or info (a text).
    `label`, `labels`: what tells its values apart, if it has several, and their names, with meanings if they need any.
    `series`: its name in the exposition, without the common prefix; `None` keeps it out.
    `in_report`, `summed`: whether the report has it, and as the sum of its values.
    `title`: its name on the page.
    `cells`: the numbers that it owns in the array, from `place` on.
    `saved`: their names in the recovery file: a prefix, a name for each cell that is saved, or `None` if none is.
    """

    place = -1

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
        """Take the public name, which all other names derive from."""
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
        """Return the value as it stands in `stats`: a number, a number by label, a `Histogram`, or a text."""
        return getattr(stats, self.name)

    def told(self, stats: Any) -> Any:
        """Return the value as the report has it."""
        value = self.value(stats)
        if self.kind == "histogram":
            return value.summary()
        if self.summed:
            return sum(value.values())
        return dict(value) if self.label else value


class Counter(Field):
    """A number that is counted, as an attribute: ``stats.connections_total += 1``."""

    def __init__(self, unit: str, meaning: str, **options: Any) -> None:
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
    """Numbers that are counted, one for each of `labels`, as a mapping: ``stats.closed["drained"] += 1``."""

    def __init__(
        self, unit: str, meaning: str, label: str, labels: Sequence[str] | Mapping[str, str], **options: Any
    ) -> None:
        super().__init__("counter", unit, meaning, label, labels, cells=tuple(labels), **options)

    @overload
    def __get__(self, stats: None, owner: type[Declared]) -> Counters: ...

    @overload
    def __get__(self, stats: Declared, owner: type[Declared]) -> Cells: ...

    def __get__(self, stats: Declared | None, owner: type[Declared]) -> Counters | Cells:
        return self if stats is None else Cells(stats.numbers, self.place, self.cells)


class Counted(Field):
    """Numbers that are counted elsewhere, by a block with such `cells`; other statistics show them."""

    def __init__(self, cells: Sequence[str], saved: Mapping[str, str] | str) -> None:
        super().__init__("counter", "", "", series=None, in_report=False, cells=cells, saved=saved)


class Computed(Field, Generic[T]):
    """What a method computes when it is asked for, as an attribute; the method's docstring is the meaning."""

    def __init__(self, read: Callable[[Any], T], kind: str, unit: str, **options: Any) -> None:
        super().__init__(kind, unit, read.__doc__ or "", **options)
        self._read = read

    @overload
    def __get__(self, stats: None, owner: type[Declared]) -> Computed[T]: ...

    @overload
    def __get__(self, stats: Declared, owner: type[Declared]) -> T: ...

    def __get__(self, stats: Declared | None, owner: type[Declared]) -> Computed[T] | T:
        return self if stats is None else self._read(stats)


def computed(kind: str, unit: str, **options: Any) -> Callable[[Callable[[D], T]], Computed[T]]:
    """Declare the statistic that the decorated method computes; `options` are those of `Field`."""
    return lambda read: Computed(read, kind, unit, **options)


class Cells(MutableMapping[str, int]):
    """Numbers of an array, from `place` on, by `names`."""

    def __init__(self, numbers: MutableSequence[int], place: int, names: Sequence[str]) -> None:
        self._numbers = numbers
        self._place = place
        self._names = names

    def __getitem__(self, name: str) -> int:
        return self._numbers[self._find(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._numbers[self._find(name)] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("a number has its place for good")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _find(self, name: str) -> int:
        try:
            return self._place + self._names.index(name)
        except ValueError:
            raise KeyError(name) from None
