"""The benchmark's picture: bars with whiskers, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, LABEL, SCALE_END = 760, 110, 690
BAR, GAP, HEAD = 18, 6, 34
COLOURS = ("#9aa5b1", "#5b8db8", "#3f6f9b", "#c8663c")


class Bar(NamedTuple):
    """A bar to the median, and a whisker over the middle half."""

    name: str
    low: float
    middle: float
    high: float


def picture(groups: Mapping[str, Sequence[Bar]]) -> str:
    """Groups of horizontal bars, one below the other; all have one scale, which begins at 0."""
    most = max(bar.high for bars in groups.values() for bar in bars)
    lines, y = [], 50
    for title, bars in groups.items():
        lines.append(text(10, y, title, weight="bold"))
        y += 12
        for number, bar in enumerate(bars):
            lines += drawn(bar, y, COLOURS[number % len(COLOURS)], (SCALE_END - LABEL) / most)
            y += BAR + GAP
        y += HEAD
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP}" font-family="sans-serif" '
        f'font-size="13" fill="#333"><rect width="100%" height="100%" fill="#fff"/>'
    )
    caption = text(10, 22, "CPU time of the server for one RPC, in µs (median, and the middle half of the turns)")
    return "\n".join([head, caption, *lines, "</svg>"]) + "\n"


def drawn(bar: Bar, y: int, colour: str, scale: float) -> Iterator[str]:
    low, middle, high = (LABEL + value * scale for value in (bar.low, bar.middle, bar.high))
    centre = y + BAR / 2
    yield text(24, y + BAR - 5, bar.name)
    yield f'<rect x="{LABEL}" y="{y}" width="{middle - LABEL:.1f}" height="{BAR}" fill="{colour}"/>'
    yield f'<path d="M{low:.1f} {centre}H{high:.1f}" stroke="#333" stroke-width="1.5"/>'
    yield text(high + 8, y + BAR - 5, f"{bar.middle:.0f}")


def text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-weight="{weight}">{escape(words)}</text>'
