"""Pictures of batches: their colours are the roles, their mask is the model's."""

import pytest
import torch
from matplotlib.colors import to_rgb
from tiny import arrange, tokenizer, unit, units

from upo.data.layout import Responses
from upo.data.view import PROMPT, RESPONSES, draw_mask, roles, scored, show_tokens, visible
from upo.errors import UserError

SMALL = [unit([5, 6, 7], [8, 9, 2], [10, 2]), unit([11, 12], [2], [13, 14, 2])]
LAYOUTS = ("packed", "padded")


def test_roles_by_hand() -> None:
    """Two prompts of two responses: EOS is no input, so a response of one token has none."""
    packed = arrange(SMALL)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]
    assert roles(packed).tolist() == [[0, 0, 0, 1, 1, 2, 0, 0, 2, 2]]
    assert roles(arrange(SMALL, "padded")).tolist() == [
        [0, 0, 0, 1, 1],
        [0, 0, 0, 2, -1],
        [0, 0, -1, -1, -1],
        [0, 0, 2, 2, -1],
    ]


def seen_slowly(r: Responses, row: int, i: int, j: int) -> bool:
    prompt, response = r.prompt_segment_ids[row].tolist(), r.response_segment_ids[row].tolist()
    if j > i or prompt[i] < 0 or prompt[i] != prompt[j]:
        return False
    return response[j] == -1 or response[j] == response[i]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_visible_against_the_definition(layout: str) -> None:
    made = units([(3, (2, 4)), (5, (1, 3, 2)), (2, (6,))])
    batch = arrange(made, layout)
    mask = visible(batch)
    rows, width = batch.input_ids.shape
    for row in range(rows):
        for i in range(width):
            for j in range(width):
                assert mask[row, i, j].item() == seen_slowly(batch, row, i, j), (row, i, j)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scored_are_all_response_tokens(layout: str) -> None:
    terms = scored(arrange(SMALL, layout))
    by_response = [[token for _, token, row in terms if row == n] for n in range(4)]
    assert by_response == [[8, 9, 2], [10, 2], [2], [13, 14, 2]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_has_every_token_and_a_frame_for_each_last_one(layout: str) -> None:
    batch, tok = arrange(SMALL, layout), tokenizer()
    html = show_tokens(batch, tok)._repr_html_()
    assert html.count("dashed") == 4 + 1, "one frame a response, one in the legend"
    body = html.split("</span><div", 1)[1]
    assert body.count("font-weight:bold") == len(batch.targets), "bold is scored"
    assert body.count(f"background:{PROMPT}") == sum((roles(batch) == 0).flatten().tolist())
    assert ("padding</span>" in html) == (layout == "padded")


def test_text_is_escaped() -> None:
    tok = tokenizer()
    (bracket,) = tok("<", add_special_tokens=False).input_ids
    html = show_tokens(arrange([unit([bracket, 5], [bracket, 2])]), tok).text
    assert html.count("&lt;</span>") == 2 and "><</span>" not in html


def test_picture_shows_the_mask() -> None:
    batch, tok = arrange(SMALL), tokenizer()
    figure = draw_mask(batch, tok)
    pixels = torch.tensor(figure.axes[0].images[0].get_array().tolist())
    mask, role = visible(batch)[0], roles(batch)[0]
    colours = [to_rgb(c) for c in (PROMPT, *RESPONSES)]
    for i in range(len(mask)):
        for j in range(len(mask)):
            expected = colours[role[j]] if mask[i, j] else (1, 1, 1)
            assert pixels[i, j].tolist() == pytest.approx(expected, abs=1e-6)
    right = [t.get_text() for t in figure.axes[0].child_axes[0].get_yticklabels()]
    assert len(right) == len(set(batch.logit_positions.tolist())) and right[0].count("|") == 1, (
        "a prompt's end predicts both"
    )


def test_long_rows_and_wrong_rows() -> None:
    batch = arrange(units([(60, (30, 20))]))
    assert draw_mask(batch, tokenizer()).axes[0].images
    with pytest.raises(UserError, match="rows 0 to 0"):
        draw_mask(batch, tokenizer(), row=1)
