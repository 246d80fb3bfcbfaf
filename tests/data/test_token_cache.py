"""Tokens on disk: the same as without, found again, and never those of another tokenizer or text."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import tokenizer

from upo.data import token_cache
from upo.data.token_cache import TokenCache
from upo.data.tokenize import Encoder

TEXTS = ["Name a colour: red", "", "\ud83d a lone surrogate's neighbour", "Name a colour:", " red"]


def never(texts):
    raise AssertionError("tokenised again")


@pytest.fixture(autouse=True)
def cache_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "SMALL", 0)


def test_the_same_list_is_tokenised_once(tmp_path: Path) -> None:
    numbers = iter(range(100))
    made = TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[next(numbers)] * len(t) for t in texts])
    assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, never) == made
    assert made[1] == []
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_other_texts_or_another_tokenizer_are_tokenised_anew(tmp_path: Path) -> None:
    TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[1]] * len(texts))
    other = tokenizer()
    other.add_tokens(["colour"])
    for cache, texts in [
        (TokenCache(tmp_path, other), TEXTS),
        (TokenCache(tmp_path, tokenizer()), [*TEXTS[:3], "Name a colour: red"]),
    ]:
        with pytest.raises(AssertionError, match="tokenised again"):
            cache.ids(texts, never)


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[1]] * len(texts))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[2]] * len(texts)) == [[2]] * len(TEXTS)
    assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, never) == [[2]] * len(TEXTS)


def test_small_lists_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "SMALL", 10_000)
    assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[3]] * len(texts)) == [[3]] * len(TEXTS)
    assert not list(tmp_path.iterdir())


def test_an_encoder_with_a_cache_gives_what_it_gives_without(tmp_path: Path) -> None:
    texts = [f"answer {i} in words" for i in range(50)]
    plain = Encoder(tokenizer())
    for _ in range(2):  # written, read
        cached = Encoder(tokenizer(), tmp_path)
        assert cached.responses(texts) == plain.responses(texts)
        assert cached.prompts(texts) == plain.prompts(texts)
    assert list(tmp_path.iterdir())


def test_a_changed_file_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One bit of an id, which would train on other words; and files of earlier versions, which have no sum."""
    TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[1, 7]] * len(texts))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in (len(whole) - 1, len(whole) - 30):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        caplog.clear()
        assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[1, 7]] * len(texts)) == [[1, 7]] * 5
        assert "was changed" in caplog.text and file.read_bytes() == whole
    save_file(load_file(file), file)
    assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, lambda texts: [[2]] * len(texts)) == [[2]] * 5
    assert TokenCache(tmp_path, tokenizer()).ids(TEXTS, never) == [[2]] * 5
