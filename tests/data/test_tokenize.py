"""From texts to ids: BOS, EOS, the boundary, chat templates, what is too long."""

import json

import pytest
from tiny import tokenizer, unit
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from upo.data.chat_format import render
from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.tokenize import Encoder, Limits, truncate
from upo.errors import UserError
from upo.rollout.sampling import _texts

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Writes EOS and a line break behind each turn, as ChatML does."""
WITH_BOS = "{{ bos_token }}" + PLAIN
STRIPS = PLAIN.replace("m.content", "m.content | trim")
NO_EOS = PLAIN.replace("<|end|>", "</turn>")
ONLY_LAST = (
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ loop.length }}<{{ m.role }}>{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Counts the turns at the start, so that no conversation begins as its own prompt does."""

TEMPLATES = {"none": None, "plain": PLAIN, "bos": WITH_BOS, "strips": STRIPS, "no_eos": NO_EOS}
CHAT = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Why is the sky blue? éà 日本 🙂"},
)
TEXTS = (
    "Air scatters\n\nblue light. 🙂 ñ",
    "No",
    " starts with a space",
    "\n\nstarts with lines",
    "x\u0085y\u2028z",
    "  two",
)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Puts a space before every text, knows runs of line breaks as one piece, and stops with </s>."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    corpus = ["\n\nHuman: hello there\n\nAssistant: \n\nhello, how are you\n\n\n"] * 5
    special = ["<unk>", "<s>", "</s>"]
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=60, special_tokens=special))
    learnt = json.loads(bpe.to_str())["model"]
    vocabulary = learnt["vocab"] | {f"<0x{i:02X}>": len(learnt["vocab"]) + i for i in range(256)}
    merges = [tuple(m) for m in learnt["merges"]]
    bpe.model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def encode(encoder: Encoder, prompt, *texts: str):
    report = DataReport()
    example = Example(prompt, tuple(Response(t) for t in texts), source="made")
    return [unit for unit in encoder.encode([example], report) if unit], report


def count(ids: list[int], token: int) -> int:
    return ids.count(token)


# ---- pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
def test_one_bos_and_eos_at_the_end_of_each_response_only(template, bos):
    made = tokenizer(TEMPLATES[template], bos)
    encoder = Encoder(made)
    (unit,), report = encode(encoder, CHAT, *TEXTS)
    wanted = int(bos or template == "bos")
    assert count(unit.prompt, made.bos_token_id) == wanted
    assert (unit.prompt[0] == made.bos_token_id) == bool(wanted)
    for ids in unit.responses:
        assert ids[-1] == made.eos_token_id and count(ids, made.eos_token_id) == 1
        assert count(ids, made.bos_token_id) == 0
    assert not report.sources["made"].dropped


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_read_as_the_whole(template):
    """Decoding prompt and response one behind the other gives the conversation that the template writes."""
    made = tokenizer(TEMPLATES[template])
    encoder = Encoder(made)
    (unit,), _ = encode(encoder, CHAT, *TEXTS)
    for text, ids in zip(TEXTS, unit.responses, strict=True):
        read = made.decode([*unit.prompt, *ids])
        if template == "none":
            assert read == render(made, CHAT) + " " + text + "<|end|>"
            continue
        whole = made.apply_chat_template([*CHAT, {"role": "assistant", "content": text}], tokenize=False)
        assert read == (whole + "<|end|>" if template == "no_eos" else whole.removesuffix("\n"))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_begun_answer_is_continued_inside_its_turn(template):
    """Prompt and step read like the beginning of the whole solution; only its last step is closed."""
    made = tokenizer(TEMPLATES[template])
    encoder, solution = Encoder(made), ("Add one.", "Halve it.", "Answer: 3")
    begun = (*CHAT, {"role": "assistant", "content": "Add one.\n"})
    steps = (Response("Halve it.\n", complete=False), Response("Halve it.\nAnswer: 3"))
    (step,) = encoder.encode([Example(begun, steps, source="s")], DataReport())
    (whole,) = encoder.encode([Example(CHAT, (Response("\n".join(solution)),), source="s")], DataReport())
    texts = [made.decode(step.prompt + r) for r in step.responses]
    expected = made.decode(whole.prompt + whole.responses[0])
    assert texts[1] == expected and step.responses[1][-1] == encoder.eos
    assert expected.startswith(texts[0]) and texts[0].rstrip().endswith("Halve it.")
    assert encoder.eos not in step.responses[0] and "</turn>" not in made.decode(step.responses[0])
    assert "Add one." in made.decode(step.prompt) and "Halve" not in made.decode(step.prompt)


@pytest.mark.parametrize("text", TEXTS)
def test_a_string_is_continued_as_it_is(text):
    made = tokenizer(bos=True)
    (unit,), _ = encode(Encoder(made), "Once upon a time", text)
    assert made.decode(unit.prompt) == "<|bos|>Once upon a time"
    assert made.decode(unit.responses[0]) == text + "<|end|>"


def test_a_bos_that_the_text_brings_is_not_doubled():
    made = tokenizer(bos=True)
    (unit,), _ = encode(Encoder(made), "<|bos|>Once", " upon")
    assert count(unit.prompt, made.bos_token_id) == 1


def test_a_template_that_does_not_continue_its_prompt_is_dropped_and_counted():
    units, report = encode(Encoder(tokenizer(ONLY_LAST)), CHAT, "No", "Yes")
    assert units == []
    assert report.sources["made"].dropped == {"chat template does not continue its own prompt": 1}


def test_dropped_examples_do_not_shift_their_neighbours():
    """The template drops conversations about bees; each of the others keeps its own prompt and responses."""
    only = "{% if messages|length > 1 and 'bees' in messages[0].content %}?{% endif %}" + PLAIN
    made = tokenizer(only)
    examples = [
        Example(
            ({"role": "user", "content": f"{what} {i}"},),
            tuple(Response(f"{what} {i} {k}") for k in range(k)),
        )
        for i, (what, k) in enumerate([("ants", 2), ("bees", 3), ("cats", 1), ("bees", 1), ("dogs", 2)])
    ]
    report = DataReport()
    found = Encoder(made).encode(examples, report)
    assert [unit is None for unit in found] == [False, True, False, True, False], "in the order of the examples"
    units = [unit for unit in found if unit]
    assert [u.example for u in units] == [examples[i] for i in (0, 2, 4)]
    for u in units:
        assert u.example.prompt[0]["content"] in made.decode(u.prompt)
        assert [made.decode(r) for r in u.responses] == [r.text + "<|end|>" for r in u.example.responses]
    assert sum(report.sources[""].dropped.values()) == 2


@pytest.mark.parametrize("prompt", ["Once", CHAT])
@pytest.mark.parametrize("template", [None, PLAIN, NO_EOS])
def test_a_response_that_spells_eos_out_does_not_end_there(template, prompt):
    made = tokenizer(template)
    (unit,), report = encode(Encoder(made), prompt, "fine", "one <|end|> two")
    for ids in unit.responses:
        assert ids[-1] == made.eos_token_id and count(ids, made.eos_token_id) == 1
    assert "one <|end|> two" in made.decode(unit.responses[1])
    spelled = "special token spelled out: read as text (policy.preformatted keeps it a token)"
    assert report.sources["made"].altered == {spelled: 1} and not report.sources["made"].dropped


@pytest.mark.parametrize("prompt", ["Once", CHAT])
@pytest.mark.parametrize("template", [None, PLAIN, NO_EOS])
@pytest.mark.parametrize("end", ["<|end|>", "<|end|>\n"])
def test_an_eos_that_a_response_brings_is_not_doubled(template, prompt, end):
    encoder = Encoder(tokenizer(template))
    ((plain,), _), ((unit,), report) = (encode(encoder, prompt, f"fine{x}", "well") for x in ("", end))
    assert unit.responses == plain.responses
    assert report.sources["made"].altered == {"response ends with EOS: not closed twice": 1}


@pytest.mark.parametrize("bos", [True, False])
def test_a_prompt_without_any_token_has_nothing_to_predict_from(bos):
    units, report = encode(Encoder(tokenizer(bos=bos)), "", "fine")
    assert [u.prompt for u in units] == ([[1]] if bos else [])
    assert report.sources["made"].dropped == ({} if bos else {"prompt without any token": 1})


def test_pieces_are_compared_with_the_whole():
    """ "assistant" is one token, which no prompt that ends with "assis" can lead to."""
    made = tokenizer()
    assert len(made("assistant").input_ids) == 1
    units, report = encode(Encoder(made), "the assis", "tant is here", "k was done")
    assert len(units) == 1, "kept, but counted"
    assert report.sources["made"].altered == {"tokens differ from the whole text's at the response's start": 1}
    for prompt, text in (("the assistant", " is"), (CHAT, "tant")):
        assert not encode(Encoder(made), prompt, text)[1].sources["made"].altered


@pytest.mark.parametrize("bos", [True, False])
def test_bos_makes_no_difference_to_that_comparison(bos):
    assert not encode(Encoder(tokenizer(bos=bos)), "and the", " rest", " others")[1].sources["made"].altered


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizers_with_a_space_before_every_text(text):
    """SentencePiece-like: the space must not come between prompt and response."""
    for made in (sentencepiece(), tokenizer(prefix_space=True)):
        encoder = Encoder(made)
        prompt, response = encoder.prompts(["Assistant:"])[0], encoder.responses([text])[0]
        assert made.decode([*prompt, *response[:-1]]).lstrip() == "Assistant:" + text
        assert response[-1] == made.eos_token_id
        assert _texts(encoder, [response]) == [text], "and sampling reads it back"


def test_a_response_that_begins_like_the_anchor_loses_nothing():
    """SentencePiece-like vocabularies may hold "\\n\\n" as one piece, which swallows an anchor of one line break."""
    made = sentencepiece()
    assert len(made("\n\n", add_special_tokens=False).input_ids) <= 2, "the vocabulary joins line breaks"
    encoder = Encoder(made)
    for text in ("\n\nhello", "\nhello", "\n", "\n\n\nhello"):
        assert made.decode(encoder.responses(["x" + text])[0][:-1]) == "x" + text
        with_prompt = [*encoder.prompts(["Assistant:"])[0], *encoder.responses([text])[0][:-1]]
        assert made.decode(with_prompt) == "Assistant:" + text


def test_without_eos_there_is_nothing_to_learn_to_stop_with():
    made = tokenizer()
    made.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        Encoder(made)


def test_pad_as_eos_changes_no_id():
    one, other = tokenizer(), tokenizer(pad="<|end|>")
    assert other.pad_token_id == other.eos_token_id
    assert encode(Encoder(one), CHAT, *TEXTS)[0] == encode(Encoder(other), CHAT, *TEXTS)[0]


# ---- real texts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared) -> list[Example]:
    """Dialogues of HH and UltraFeedback; the latter hold code, tables and many scripts."""
    hh = Source("hh", local=str(shared / "data/hh/harmless-base.test.jsonl.gz"), limit=120)
    ultra = Source(
        "ultrafeedback",
        local=str(shared / "data/scored/ultrafeedback_binarized_eval_clean.jsonl.gz"),
        limit=80,
    )
    return [e for source in (hh, ultra) for e in source.examples(DataReport())]


@pytest.mark.parametrize("kind", ["stories260k", "bytes", "chat"])
def test_real_texts_survive_the_round_trip(kind, real, stories260k):
    made = {
        "stories260k": lambda: AutoTokenizer.from_pretrained(stories260k),
        "bytes": lambda: tokenizer(bos=True),
        "chat": lambda: tokenizer(PLAIN),
    }[kind]()
    report = DataReport()
    encoder = Encoder(made)
    units = encoder.encode(real, report)
    assert len(units) == len(real)
    for u in units:
        assert all(r[-1] == made.eos_token_id for r in u.responses)
        assert count(u.prompt, made.bos_token_id) == (kind != "chat")
        for response, ids in zip(u.example.responses, u.responses, strict=True):
            whole = made.decode([*u.prompt, *ids[:-1]])
            start = render(made, u.example.prompt)
            expected = start + (" " if kind != "chat" else "") + response.text
            bos = made.bos_token if kind != "chat" else ""
            assert whole.removeprefix(bos).lstrip(" ") == expected.lstrip(" ")
    differ = "tokens differ from the whole text's at the response's start"
    assert sum(part.altered[differ] for part in report.sources.values()) == 0


# ---- too long ------------------------------------------------------------------------------------------------------

BOS, EOS = 1, 2
LONG = unit([BOS, *range(10, 29)], [*range(40, 49), EOS], [*range(60, 64), EOS])
"""20 prompt tokens, responses of 10 and of 5."""


def cut(*overlong: str, max_length: int = 100, max_response: int = 100, unit=LONG, bos: int | None = BOS):
    report = DataReport()
    got = truncate(unit, Limits(max_length, max_response, list(overlong), bos), report)
    part = report.sources["made"]
    return got, dict(part.dropped), dict(part.altered)


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt_left", "truncate_response", "error"])
def test_what_fits_is_left_alone(policy):
    assert cut(policy, max_length=30, max_response=10) == (LONG, {}, {})


@pytest.mark.parametrize("limits", [{"max_length": 29}, {"max_response": 9}])
def test_drop(limits):
    assert cut("drop", **limits) == (None, {"too long": 1}, {})
    assert cut(**limits) == (None, {"too long": 1}, {})


@pytest.mark.parametrize("limits", [{"max_length": 29}, {"max_response": 9}])
def test_error_says_what_to_change(limits):
    with pytest.raises(UserError, match=r"20 prompt \+ 10 response tokens .* data.overlong"):
        cut("error", **limits)


def test_the_prompt_is_cut_on_the_left_behind_its_bos():
    got, dropped, altered = cut("truncate_prompt_left", max_length=16)
    assert got.prompt == [BOS, 24, 25, 26, 27, 28] and got.responses == LONG.responses
    assert not dropped and altered == {"prompt cut on the left": 1}
    assert cut("truncate_prompt_left", max_length=16, bos=None)[0].prompt == [23, 24, 25, 26, 27, 28]
    assert cut("truncate_prompt_left", max_length=12)[0].prompt == [BOS, 28], "one token is left"
    assert cut("truncate_prompt_left", max_length=11)[:2] == (None, {"too long": 1}), "never BOS alone"


def test_a_cut_response_carries_no_eos_and_all_responses_are_cut_alike():
    got, dropped, altered = cut("truncate_response", max_length=24)
    assert got.prompt == LONG.prompt and got.responses == ([40, 41, 42, 43], [60, 61, 62, 63])
    assert not dropped and altered == {"response cut, no EOS": 1}
    got, _, _ = cut("truncate_response", max_response=7)
    assert got.responses == ([*range(40, 47)], [60, 61, 62, 63, EOS]), "a response that fits keeps its EOS"


def test_never_an_empty_response():
    assert cut("truncate_response", max_length=21)[0].responses == ([40], [60])
    assert cut("truncate_response", max_length=20) == (None, {"too long": 1}, {})


def test_a_list_is_tried_in_order():
    both = ("truncate_prompt_left", "truncate_response")
    got, _, altered = cut(*both, max_length=12, max_response=6)
    assert got.prompt == [BOS, *range(24, 29)] and list(map(len, got.responses)) == [6, 5]
    assert altered == {"prompt cut on the left": 1, "response cut, no EOS": 1}
    got, _, altered = cut(*both[::-1], max_length=24)
    assert len(got.prompt) == 20 and altered == {"response cut, no EOS": 1}
    got, _, altered = cut(*both[::-1], max_length=12)
    assert len(got.prompt) + max(map(len, got.responses)) <= 12, "no room behind the prompt: it is cut as well"
    with pytest.raises(UserError):
        cut("truncate_prompt_left", "error", max_length=11)
    assert cut("drop", "truncate_response", max_length=24)[0] is None


@pytest.mark.parametrize(
    "overlong", [["truncate_prompt_left", "truncate_response"], ["truncate_response", "truncate_prompt_left"]]
)
def test_whatever_comes_out_fits(overlong):
    for max_length in range(2, 34):
        for max_response in range(1, 12):
            got, dropped, _ = cut(*overlong, max_length=max_length, max_response=max_response)
            if got is None:
                assert dropped == {"too long": 1}
                continue
            longest = max(map(len, got.responses))
            assert min(map(len, got.responses)) >= 1 and longest <= max_response
            assert len(got.prompt) + longest <= max_length
            assert got.prompt[0] == BOS and got.prompt[-1] == LONG.prompt[-1] and len(got.prompt) >= 2
            for ids, whole in zip(got.responses, LONG.responses, strict=True):
                assert ids == whole[: len(ids)]


def test_units_that_are_dropped_are_not_counted_as_cut():
    assert cut("truncate_prompt_left", max_length=16, max_response=9) == (None, {"too long": 1}, {})
