"""Pure: what was measured as an SVG image: bars for medians, lines from them to the 95th percentile."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from hw_tests.bench.results import CONTENDERS, VERBS, Measured, Samples, spread

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 420, 300, 56, 56, 40
_COLOURS = dict(zip(CONTENDERS, ("#2b6cb0", "#dd6b20", "#718096"), strict=True))
_BAR, _GAP = 44, 12


def render_svg(measured: Sequence[Measured]) -> str:
    """One panel per place for single calls and one for bursts."""
    panels = [
        (f"{one.place}: {kind}", samples)
        for one in measured
        for kind, samples in (
            ("one after the other", one.sequential),
            (f"burst of {one.vfs}", one.burst_wall),
        )
        if samples
    ]
    size = f'width="{_WIDTH * 2}" height="{_HEIGHT * ((len(panels) + 1) // 2) + 30}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, (title, samples) in enumerate(panels):
        x, y = _WIDTH * (number % 2), _HEIGHT * (number // 2)
        parts += [f'<g transform="translate({x} {y})">', *_panel(title, samples), "</g>"]
    parts += [*_legend(_HEIGHT * ((len(panels) + 1) // 2) + 14), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(title: str, samples: Samples) -> Iterator[str]:
    most = max((spread(v).p95 for verbs in samples.values() for v in verbs.values()), default=0.0) or 1.0
    base, room = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP
    yield _text(_LEFT, 28, f"{title} (ms, median, line to p95)", weight="bold")
    yield f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH - 10}" y2="{base}" stroke="black"/>'
    for group, verb in enumerate(VERBS):
        left = _LEFT + 10 + group * (3 * _BAR + 3 * _GAP)
        yield _text(left + 1.5 * _BAR, base + 18, verb, anchor="middle")
        for place, who in enumerate(CONTENDERS):
            if values := samples.get(who, {}).get(verb):
                yield from _bar(left + place * (_BAR + 2), base, room / most, values, _COLOURS[who])


def _bar(x: float, base: float, scale: float, values: Sequence[float], colour: str) -> Iterator[str]:
    found = spread(values)
    top, whisker, middle = base - found.p50 * scale, base - found.p95 * scale, x + _BAR / 2
    yield f'<rect x="{x}" y="{top:.1f}" width="{_BAR}" height="{base - top:.1f}" fill="{colour}"/>'
    yield f'<line x1="{middle}" y1="{top:.1f}" x2="{middle}" y2="{whisker:.1f}" stroke="black"/>'
    yield _text(middle, whisker - 4, f"{found.p50:.1f}", anchor="middle")


def _legend(y: float) -> Iterator[str]:
    for number, who in enumerate(CONTENDERS):
        x = _LEFT + number * 220
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{_COLOURS[who]}"/>'
        yield _text(x + 18, y, who)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
