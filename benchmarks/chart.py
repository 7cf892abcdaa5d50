"""Draws the peers' costs as ratios to HAProxy's: bars on a logarithmic axis, one group for each shape, as SVG.

Less is better throughout: of rates, the inverse is drawn.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import FIGURES, MORE_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.shapes import Shape

BASE = "haproxy"
WIDTH, LEFT, RIGHT, TOP = 800, 120, 60, 46
BAR, GAP, TITLE = 14, 3, 26
OURS, THEIRS = "#0b6e4f", "#9aa5b1"

# Text has a white edge, so that lines behind it do not cross it.
_STYLE = (
    "text{font:12px sans-serif;fill:#222;paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".title{font-weight:bold}.grid{stroke:#ddd}.one{stroke:#222}"
)


def chart(summaries: Iterable[tuple[Shape, Mapping[str, Mapping[str, Any]]]]) -> str | None:
    """Draw the figures that were compared with HAProxy; return `None` if there are none."""
    groups = [
        (f"{shape.title}: {FIGURES[name].meaning}", costs)
        for shape, summary in summaries
        for name in shape.compared
        if len(costs := _costs(name, summary)) > 1
    ]
    if not groups:
        return None
    values = [cost for _, costs in groups for cost in costs.values()]
    # The axis has no zero; it begins far enough below the smallest value for that to have a bar.
    low, high = math.floor(math.log2(min(values)) - 0.5), math.ceil(math.log2(max(values)))
    scale = (WIDTH - LEFT - RIGHT) / (high - low)

    def x(cost: float) -> float:
        return LEFT + (math.log2(cost) - low) * scale

    bars: list[str] = []
    y = TOP
    for title, costs in groups:
        bars.append(_text(8, y + 17, title, "title"))
        y += TITLE
        for peer, cost in costs.items():
            bars.append(_bar(y, x(cost), peer, cost))
            y += BAR + GAP
    grid = [_line(x(2.0**power), y, power) for power in range(low, high + 1)]
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8}" role="img">',
        "<title>Cost of each proxy relative to HAProxy</title>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(8, 16, "Cost relative to HAProxy (1 = the same; less is better; of rates the inverse; logarithmic)"),
    ]
    return "\n".join([*head, *grid, *bars, "</svg>", ""])


def _costs(name: str, summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    ratios = {peer: outcome["ratios"][name].get(BASE) for peer, outcome in summary.items() if peer != "direct"}
    # An added latency within the noise may be 0 or negative, which this axis cannot show.
    return {
        peer: 1 / ratio if name in MORE_IS_BETTER else ratio
        for peer, ratio in ratios.items()
        if ratio is not None and ratio > 0
    }


def _bar(y: int, end: float, peer: str, cost: float) -> str:
    colour = OURS if peer.startswith("fooproxy") else THEIRS
    base = y + BAR - 3
    return "\n".join(
        [
            _text(LEFT - 6, base, peer, anchor="end"),
            f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" fill="{colour}"/>',
            _text(end + 4, base, f"{cost:.2f}"),
        ]
    )


def _line(x: float, bottom: int, power: int) -> str:
    kind = "grid" if power else "one"
    label = f"{2**power}" if power >= 0 else f"1/{2**-power}"
    line = f'<line class="{kind}" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}"/>'
    return line + "\n" + _text(x, TOP - 12, label, anchor="middle")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
