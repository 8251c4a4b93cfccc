"""Bar charts as SVG."""

from collections.abc import Mapping
from html import escape

WIDTH, LABELS, VALUES = 760, 210, 70
BAR, GAP, TOP = 12, 10, 34
COLORS = ("#9ecae1", "#4292c6", "#084594")


def bars(
    unit: str,
    rows: Mapping[str, Mapping[str, float]],
    lines: Mapping[str, float] | None = None,
) -> str:
    """Return a chart of horizontal bars: a group for each row, a bar for each series in it."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = lines or {}
    largest = max([*lines.values(), *(value for row in rows.values() for value in row.values())])
    scale = (WIDTH - LABELS - VALUES) / largest
    y = TOP
    body = []
    for label, row in rows.items():
        middle = y + len(row) * BAR / 2 + 4
        body.append(
            f'<text x="{LABELS - 8}" y="{middle:g}" text-anchor="end">{escape(label)}</text>'
        )
        for name, value in row.items():
            color = COLORS[series.index(name) % len(COLORS)]
            width = value * scale
            body.append(
                f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 1}" '
                f'fill="{color}"/>'
                f'<text x="{LABELS + width + 4:.1f}" y="{y + BAR - 2}" class="v">'
                f"{short(value)}</text>"
            )
            y += BAR
        y += GAP
    for label, value in lines.items():
        x = LABELS + value * scale
        body.append(
            f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{y - GAP + 4}"/>'
            f'<text x="{x:.1f}" y="{TOP - 10}" text-anchor="end" class="v">{escape(label)}</text>'
        )
    legend, x = [], LABELS
    for name, color in zip(series, COLORS, strict=False):
        legend.append(
            f'<rect x="{x}" y="{y}" width="{BAR - 1}" height="{BAR - 1}" fill="{color}"/>'
            f'<text x="{x + BAR + 4}" y="{y + BAR - 2}" class="v">{escape(name)}</text>'
        )
        x += 30 + 7 * len(name)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + BAR + GAP}">',
            "<style>text{font:12px sans-serif}.v{font-size:10px}line{stroke:#cb181d}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            f'<text x="8" y="16">{escape(unit)}</text>',
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def short(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
