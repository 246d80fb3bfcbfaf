"""curves.png: what a model does, the steps at which its loss becomes another, and letters that can be read."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from upo.callbacks.curves import draw_curves
from upo.methods import SFT, UPO
from upo.models.policy import Policy
from upo.models.reference import FrozenReference


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of a run of 40 steps whose loss changes at step 10."""
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (kept.append(self), save(self, *args, **options))
    )
    rows = [f"{i},{1 / (i + 1)},{0.1 * i},1,{'' if i % 8 else 0.5}" for i in range(40)]
    head = "step,train/loss,train/kl,train/objective/chosen,val/generated/objective"
    (tmp_path / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    draw_curves(tmp_path, {10: "warm-up ends"})
    return kept[0]


def test_panels_and_marks(drawn: Figure, tmp_path: Path) -> None:
    titles = [axis.get_title() for axis in drawn.axes]
    assert titles == ["loss", "z0, nats, clamped at 0", "R of the policy's texts"], "not R of the data's responses"
    for axis in drawn.axes:
        assert [list(line.get_xdata()) for line in axis.lines if line.get_linestyle() == "--"] == [[10, 10]]
    words = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert words == ["train", "held out", "step 10: warm-up ends"]
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_letters_can_be_read_at_420_pixels(drawn: Figure) -> None:
    """At least 7 pixels high, where a point is 420 / 72 / width pixels."""
    pixels = 420 / (72 * drawn.get_size_inches()[0])
    axis = drawn.axes[0]
    sizes = [axis.title.get_size(), axis.xaxis.label.get_size(), *(x.get_size() for x in axis.get_xticklabels())]
    assert min(sizes) * pixels >= 7


def test_upo_marks_the_end_of_its_warm_up() -> None:
    policy = Policy(config={"model_type": "llama"}, tokenizer="upo.data.sources.world.tokenizer")
    assert SFT(policy).turning_points == {}
    for steps, marked in ((30, {30: "warm-up ends"}), (0, {})):
        assert UPO(policy, reference=FrozenReference(), value_warmup_steps=steps).turning_points == marked
