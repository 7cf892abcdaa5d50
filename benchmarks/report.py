"""The results: medians over the rounds, ratios, tables for people and one object for JSON.

Ratios are made within each round, between runs that were close in time, and their median is taken; so a machine that is
slow for a while does not distort them.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import ADDED, FIGURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.runs import Figures
    from benchmarks.shapes import Shape

BASELINES = ("haproxy", "nginx-njs")


class Results:
    """The figures of all runs so far, which peers were `skipped` and why, and which runs were `failures`."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.failures: list[str] = []
        self._runs: dict[str, dict[str, dict[int, Figures]]] = {}

    def add(self, shape: Shape, peer: str, number: int, figures: Figures) -> Figures:
        """Keep the `figures` of `peer` in the round `number`, with those derived from the round's direct run."""
        rounds = self._runs.setdefault(shape.name, {})
        direct = rounds.get("direct", {}).get(number)
        if direct is not None:
            added = {name: figures[ADDED[name]] - direct[ADDED[name]] for name in shape.compared if name in ADDED}
            figures = {**figures, **added}
        rounds.setdefault(peer, {})[number] = figures
        return figures

    def summary(self, shape: Shape) -> dict[str, dict[str, Any]]:
        """Return each peer's `medians`, its `ratios` to the baselines, and the figures of each of the `rounds`."""
        runs = self._runs.get(shape.name, {})
        return {
            peer: {
                "medians": _medians(rounds.values()),
                "ratios": {
                    name: {
                        base: ratio
                        for base in BASELINES
                        if (ratio := _ratio(name, rounds, runs.get(base, {}))) is not None
                    }
                    for name in shape.compared
                },
                "rounds": [rounds[number] for number in sorted(rounds)],
            }
            for peer, rounds in runs.items()
        }


def _medians(rounds: Iterable[Figures]) -> Figures:
    rounds = list(rounds)
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def _ratio(name: str, rounds: Mapping[int, Figures], base: Mapping[int, Figures]) -> float | None:
    """Divide by the same round's figure in `base`, and take the median; `None` if no round has both."""
    ratios = [
        figures[name] / base[number][name]
        for number, figures in rounds.items()
        if name in figures and base.get(number, {}).get(name)
    ]
    return median(ratios) if ratios else None


def table(shape: Shape, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out the medians of one shape, a line for each peer."""
    headings = [
        "",
        *(FIGURES[name].heading for name in shape.figures),
        *(f"{FIGURES[name].heading} / {base}'s" for name in shape.compared for base in BASELINES),
    ]
    lines = [headings]
    for peer, outcome in summary.items():
        medians, ratios = outcome["medians"], outcome["ratios"]
        lines.append(
            [
                peer,
                *(_cell(medians.get(name), FIGURES[name].digits) for name in shape.figures),
                *(_cell(ratios[name].get(base), 2) for name in shape.compared for base in BASELINES),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines)
    return "\n".join([shape.title, *rows, ""])


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
