"""Fronts as one HTML file that needs nothing else: points say what they are, a click on a method hides it."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from upo.comparison.pictures import colors_of
from upo.comparison.view import TITLES, cell

WIDTH, HEIGHT, LEFT, BOTTOM = 560, 420, 64, 44

STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222}
svg{background:#fff;max-width:100%}.fronts{display:flex;flex-wrap:wrap;gap:1.5em}
table{border-collapse:collapse;font-size:13px}td,th{padding:3px 10px;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.legend button{border:0;background:none;font:inherit;cursor:pointer}
.off{opacity:.3}circle:hover{stroke:#000;stroke-width:2}.tick{fill:#666;font-size:11px}
"""
SCRIPT = """
document.querySelectorAll('.legend button').forEach(b=>b.addEventListener('click',()=>{
 const off=b.classList.toggle('off');
 document.querySelectorAll('g.family').forEach(g=>{if(g.dataset.family===b.dataset.family)g.style.display=off?'none':''})
}));
"""


def page(content: Mapping[str, Any]) -> str:
    """The whole file: legend, a drawing and a table of measures for each front, then all rows."""
    colors = colors_of(row["family"] for row in content["rows"] if "family" in row)
    legend = "".join(
        f'<button data-family="{_safe(family)}"><span style="color:{color}">&#9679;</span> {_safe(family)}</button>'
        for family, color in colors.items()
    )
    notes = "".join(f"<p><b>{_safe(note)}</b></p>" for note in content["notes"])
    fronts = "".join(f"<section>{_drawing(front, colors)}{_measures(front)}</section>" for front in content["fronts"])
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title>'
        f"<style>{STYLE}</style><h1>Comparison</h1>{notes}<p>Large points: means over seeds with 95 % intervals; "
        "hollow ones are beaten by another one of their method. Small points: runs. Star: the reference.</p>"
        f'<p class="legend">{legend}</p><div class="fronts">{fronts}</div>{_rows(content)}'
        f"<script>{SCRIPT}</script></html>\n"
    )


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)


def _title(text: str) -> str:
    """What the browser shows when the pointer rests on a shape."""
    return f"<title>{_safe(text)}</title>"


def _drawing(front: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    values = {
        axis: [p[axis][end] for p in front["points"] for end in ("low", "high")]
        + [run[i] for p in front["points"] for run in p["runs"]]
        + ([front["start"][i]] if front["start"] else [])
        for i, axis in enumerate("xy")
    }
    low, high = ({a: f(values[a]) for a in "xy"} for f in (min, max))
    room = {a: (high[a] - low[a]) * 0.05 or 0.5 for a in "xy"}
    low, high = {a: low[a] - room[a] for a in "xy"}, {a: high[a] + room[a] for a in "xy"}

    def x(value: float) -> float:
        return round(LEFT + (value - low["x"]) / (high["x"] - low["x"]) * (WIDTH - LEFT - 10), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low["y"]) / (high["y"] - low["y"]) * (HEIGHT - BOTTOM - 10), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">']
    bottom, right = HEIGHT - BOTTOM, WIDTH - 10
    parts.append(f'<path d="M{LEFT},10V{bottom}H{right}" fill="none" stroke="#999"/>')
    for i in range(5):
        at = {a: low[a] + (high[a] - low[a]) * (i + 0.5) / 5 for a in "xy"}
        parts.append(f'<text class="tick" x="{x(at["x"])}" y="{bottom + 15}" text-anchor="middle">{at["x"]:.3g}</text>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(at["y"]) + 4}" text-anchor="end">{at["y"]:.3g}</text>')
    titles = [_safe(TITLES.get(front[a], front[a])) for a in "xy"]
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{titles[0]}</text>')
    parts.append(f'<text transform="translate(14,{bottom / 2}) rotate(-90)" text-anchor="middle">{titles[1]}</text>')
    for family, color in colors.items():
        points = [point for point in front["points"] if point["family"] == family]
        parts.append(f'<g class="family" data-family="{_safe(family)}" stroke="{color}" fill="{color}">')
        line = sorted((p["x"]["mean"], p["y"]["mean"]) for p in points if p["front"])
        parts.append(f'<polyline points="{" ".join(f"{x(a)},{y(b)}" for a, b in line)}" fill="none"/>')
        for point in points:
            for a, b, seed in point["runs"]:
                tip = f"{point['name']}, seed {seed}\n{front['x']} {a:.3f}\n{front['y']} {b:.3f}"
                parts.append(f'<circle cx="{x(a)}" cy="{y(b)}" r="3" opacity=".35">{_title(tip)}</circle>')
            parts.append(_mean(point, front, x, y))
        parts.append("</g>")
    if front["start"]:
        a, b = front["start"]
        tip = _title(f"reference\n{front['x']} {a:.3f}\n{front['y']} {b:.3f}")
        parts.append(f'<text x="{x(a)}" y="{y(b) + 6}" text-anchor="middle" font-size="20">&#9733;{tip}</text>')
    return "".join(parts) + "</svg>"


def _mean(point: Mapping[str, Any], front: Mapping[str, Any], x: Any, y: Any) -> str:
    a, b = point["x"]["mean"], point["y"]["mean"]
    settings = "".join(f"\n{key} {value}" for key, value in point["settings"].items())
    tip = _title(f"{point['name']}{settings}\n{front['x']} {cell(point['x'])}\n{front['y']} {cell(point['y'])}")
    cross = f"M{x(point['x']['low'])},{y(b)}H{x(point['x']['high'])}M{x(a)},{y(point['y']['low'])}V"
    fill = "" if point["front"] else ' fill="#fff"'
    return (
        f'<path d="{cross}{y(point["y"]["high"])}" fill="none"/>'
        f'<circle cx="{x(a)}" cy="{y(b)}" r="6"{fill}>{tip}</circle>'
    )


def _measures(front: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for own in front["families"].values() for name in own))
    rows = [
        [family, *(f"{own[n]:.3g}" if n in own else "" for n in names)] for family, own in front["families"].items()
    ]
    return _table(["", *(name.replace("_", " ") for name in names)], rows)


def _rows(content: Mapping[str, Any]) -> str:
    names = [name for name in content["figures"] if any(name in row["figures"] for row in content["rows"])]
    rows = [[row["name"], *(cell(row["figures"].get(name)) for name in names)] for row in content["rows"]]
    return "<h2>All groups</h2>" + _table(["", *(TITLES.get(name, name) for name in names)], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_safe(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_safe(x)}</td>' for x in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
