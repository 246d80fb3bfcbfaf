"""JSON and scripts, by hand."""

import pytest

from upo.errors import UserError
from upo.rewards import Script, ValidJSON


def score(reward, *texts):
    return reward([""] * len(texts), texts)


@pytest.mark.parametrize(
    "text", ["{}", ' [1, "a", null]\n', "3", '"x"', "1" * 9000, "-1e999", '{"a": {"b": [true]}}', '"\\u00e9"']
)
def test_json(text):
    assert score(ValidJSON(), text) == [1.0]


@pytest.mark.parametrize(
    "text", ["", "{", "{'a': 1}", "[1,]", "NaN", "[Infinity]", "```json\n{}\n```", "{} {}", "[" * 200_000, "// x\n1"]
)
def test_no_json(text):
    assert score(ValidJSON(), text) == [0.0]


def test_json_keys():
    reward = ValidJSON(["name", "age"])
    assert score(reward, '{"age": 1, "name": 2, "x": 3}', '{"age": 1}', '["name", "age"]', "{}") == [1, 0, 0, 0]
    assert reward.fingerprint() == ValidJSON(["age", "name"]).fingerprint() != ValidJSON().fingerprint()


def test_script_is_a_share_of_letters():
    texts = ["Hello, world 123!", "Привет, world", "東京 Tokyo", "Ünïcode", "", "123 !?"]
    assert score(Script(), *texts) == pytest.approx([1, 5 / 11, 5 / 7, 1, 0, 0])
    assert score(Script("cyrillic"), *texts) == pytest.approx([0, 6 / 11, 0, 0, 0, 0])
    assert score(Script("CJK"), *texts)[2] == pytest.approx(2 / 7)


def test_unknown_script():
    with pytest.raises(UserError, match="did you mean `CYRILLIC`"):
        Script("cyrilic")
