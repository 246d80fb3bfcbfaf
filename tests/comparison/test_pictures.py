"""What pictures of a comparison look like, however many methods it has."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from upo.comparison.pictures import colors_of, draw_fronts, legend_below


@pytest.mark.parametrize("methods", [3, 66])
def test_a_legend_takes_no_room_from_the_panels(methods: int) -> None:
    figure = Figure(figsize=(10.4, 4.2))
    axis = figure.subplots(1, 2)[0]
    legend_below(figure, [Line2D([], [], label=f"method {i}") for i in range(methods)])
    figure.canvas.draw()
    height = axis.get_position().height * figure.get_size_inches()[1]
    assert 3.4 < height < 4.2
    legend = figure.legends[0].get_window_extent()
    assert legend.y0 >= 0 and legend.y1 < axis.get_window_extent().y0, "below the panels, inside the picture"


def test_colors_stay_where_a_front_lacks_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colors = colors_of(["kto", "dpo", "kto", "upo"])
    assert list(colors) == ["kto", "dpo", "upo"] and len(set(colors.values())) == 3
    drawn: list[Any] = []
    monkeypatch.setattr("upo.comparison.pictures.legend_below", lambda figure, handles: drawn.append((figure, handles)))
    value = {"mean": 0.5, "low": 0.4, "high": 0.6}
    point = {"family": "upo", "name": "upo", "runs": [], "x": value, "y": value, "front": True, "settings": {}}
    front = {"x": "kl", "y": "objective", "points": [point], "families": {"upo": {}}, "start": None}
    assert draw_fronts([front], colors, tmp_path / "fronts.png")
    ((figure, handles),) = drawn
    assert [handle.get_label() for handle in handles] == ["upo"], "only what is drawn; no reference, no star"
    used = {line.get_color() for line in figure.axes[0].lines}
    assert used == {colors["upo"]} == {handles[0].get_color()}
