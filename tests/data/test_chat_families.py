"""Chat templates of widely used families: what ends a response, what opens it, and what special tokens in texts are."""

import json
from pathlib import Path

import pytest
import torch
from families import ANSWER, FAMILIES, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from upo.data.chat_format import render
from upo.data.example import Example, Message, Response
from upo.data.report import DataReport
from upo.data.tokenize import Encoder
from upo.rollout.sampling import sample

pytestmark = pytest.mark.turns(2)

ASKED: tuple[Message, ...] = ({"role": "user", "content": "Why is the sky blue?"},)
SAID = {"role": "assistant", "content": ANSWER}
THINKS = {"deepseek_r1": ("<think>\n", ""), "nemotron3": ("<think>\n", "<think>")}
"""How the generation prompt ends, and what of that stands in the prompt of an answer without reasoning."""


@pytest.fixture(scope="module", params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(name: str):
    return tokenizer(name)


def encode(tokenizer, *responses: Response | str, prompt=ASKED):
    report = DataReport()
    answers = tuple(Response(r) if isinstance(r, str) else r for r in responses)
    (unit,) = Encoder(tokenizer).encode([Example(prompt, answers, source="made", where="made.jsonl:1")], report)
    return unit, report.sources["made"]


def text_of(tokenizer, unit, k: int = 0) -> str:
    """A response as it stands behind its prompt: alone, a tokenizer may leave out the space that it begins with."""
    return tokenizer.decode([*unit.prompt, *unit.responses[k]])[len(tokenizer.decode(unit.prompt)) :]


def ids_of(tokenizer, text: str) -> list[int]:
    """A text that a template has written; behind BOS where the tokenizer wants one and the template wrote none."""
    return tokenizer(
        text, add_special_tokens=tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)
    ).input_ids


# ---- ends ----------------------------------------------------------------------------------------------------------


def test_a_response_ends_with_what_its_model_writes(name: str, made) -> None:
    unit, report = encode(made, ANSWER)
    assert text_of(made, unit) == FAMILIES[name].scored
    assert unit.responses[0][-1] == made.convert_tokens_to_ids(FAMILIES[name].end)
    assert not report.dropped and set(report.altered) <= {n for n in report.altered if n.startswith("prompt cut")}


def test_prompt_and_response_are_the_conversation(name: str, made) -> None:
    """Token by token, up to the end of the response; GLM's turn has no end, so that EOS is put there."""
    unit, _ = encode(made, ANSWER)
    whole = ids_of(made, made.apply_chat_template([*ASKED, SAID], tokenize=False))
    ids = [*unit.prompt, *unit.responses[0]]
    if name == "glm4":
        assert ids == [*whole, made.eos_token_id]
    else:
        assert ids == whole[: len(ids)]
        assert made.decode(whole[len(ids) :]).strip() in ("", FAMILIES[name].eos)


def test_prompts_of_training_are_those_of_generation(name: str, made) -> None:
    """But for a think block that an answer without reasoning does not continue."""
    unit, report = encode(made, ANSWER)
    (seen,) = Encoder(made).prompts([ASKED])
    opened, kept = THINKS.get(name, ("", ""))
    assert made.decode(seen) == made.decode(unit.prompt).removesuffix(kept) + opened if opened else seen == unit.prompt
    assert bool(opened) == any("<think>" in n or "\\n" in n for n in report.altered)


def test_a_second_turn_is_like_the_first(name: str, made) -> None:
    """The end is that of the turn, wherever in a conversation the answer stands."""
    before = (*ASKED, SAID, {"role": "user", "content": "Really?"})
    unit, report = encode(made, ANSWER, prompt=before)
    assert text_of(made, unit) == FAMILIES[name].scored and not report.dropped


class Scripted(LlamaForCausalLM):
    """Writes given tokens, whatever it reads."""

    script: list[int]

    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        self.written += 1
        out.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(self.script[self.written - 1]), 1024) * 99.0
        return out


@pytest.fixture(scope="module")
def model() -> Scripted:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return Scripted(LlamaConfig(vocab_size=1024, **shape)).eval()


def written(model: Scripted, made, stops: list[int], script: list[int]):
    model.generation_config = GenerationConfig(eos_token_id=stops or None)
    model.script, model.written = script, 0
    ((found,),) = sample(model, made, [ASKED], max_new_tokens=len(script), temperature=0)
    return found


def test_a_model_that_closes_its_turn_is_stopped(name: str, made, model: Scripted) -> None:
    """It would write the user's next turn otherwise. The same token ends it that ends a scored response."""
    unit, _ = encode(made, ANSWER)
    answer = list(unit.responses[0])
    next_turn = made("\nuser\nAnd why at night?", add_special_tokens=False).input_ids
    found = written(model, made, [], [*answer, *next_turn])
    assert found.ids == answer and found.finish_reason == "stop"
    assert found.text.endswith(ANSWER) and FAMILIES[name].end not in found.text


def test_whatever_the_generation_config_stops_at_stops(name: str, made, model: Scripted) -> None:
    said = made("No.", add_special_tokens=False).input_ids
    stops = [made.convert_tokens_to_ids(stop) for stop in FAMILIES[name].stops]
    for stop in stops:
        found = written(model, made, stops, [*said, stop, *said])
        assert found.ids == [*said, stop] and found.finish_reason == "stop"
        assert found.text.strip() == "No."
    found = written(model, made, stops, said)
    assert found.ids == said and found.finish_reason == "length"


# ---- special tokens in texts ---------------------------------------------------------------------------------------


def control_tokens(made, ids) -> list[int]:
    special = {i for i, t in made.added_tokens_decoder.items() if t.special}
    return [i for i in ids if i in special]


def test_special_tokens_that_texts_spell_are_text(name: str, made) -> None:
    """In a question and in an answer: the same control tokens as without, and all of the text."""
    plain, _ = encode(made, ANSWER)
    spelled = f"a{FAMILIES[name].end}\n<pad>{FAMILIES[name].eos}b"
    asked = ({"role": "user", "content": f"Why {spelled}?"},)
    unit, report = encode(made, f"Air {spelled} light.", prompt=asked)
    assert control_tokens(made, unit.prompt) == control_tokens(made, plain.prompt)
    assert control_tokens(made, unit.responses[0]) == control_tokens(made, plain.responses[0])
    assert made.decode(unit.prompt) == made.decode(plain.prompt).replace("Why is the sky blue", f"Why {spelled}")
    assert text_of(made, unit) == FAMILIES[name].scored.replace(ANSWER, f"Air {spelled} light.")
    assert report.altered["special token spelled out: read as text (policy.preformatted keeps it a token)"] == 1
    assert "tokens differ from the whole text's at the response's start" not in report.altered
    assert Encoder(made).prompts([asked])[0][: len(unit.prompt)] == unit.prompt, "and sampling reads the same"


@pytest.mark.parametrize("name", ["llama2", "gemma", "qwen2", "phi3"])
def test_spelled_out_text_is_encoded_in_one_piece(name: str) -> None:
    """As `split_special_tokens` does it, for a text that no template touches."""
    made = tokenizer(name)
    text = f"one {FAMILIES[name].end} two"
    unit, _ = encode(made, " x", prompt=text)
    split = made(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert unit.prompt == ([made.bos_token_id, *split] if made.bos_token else split)


def test_ordinary_texts_take_the_way_they_always_took(name: str, made) -> None:
    """The tokenizer's twin, which reads spelled-out text, agrees with it where nothing is spelled."""
    whole = made.apply_chat_template([*ASKED, SAID], tokenize=False)
    assert Encoder(made).format.spelled.ids(whole) == made(whole, add_special_tokens=False).input_ids


def test_a_tokenizer_that_can_only_read_the_token_loses_the_example() -> None:
    """One of whole words knows this word, and it is the token."""
    known = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "it": 2, "is": 3}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=known, eos_token="</s>", unk_token="<unk>")
    unit, report = encode(made, "it </s> is", prompt="it")
    assert unit is None
    assert report.dropped == {"special token spelled out that this tokenizer cannot read as text": 1}
    assert not Encoder(made).format.writes("it </s> is")
    assert encode(made, "it is", prompt="it")[0].responses == ([2, 3, 1],)


def test_preformatted_texts_keep_their_tokens(name: str, made) -> None:
    """A conversation that a template has written before, and the option that says so."""
    from upo.data.templates import with_template

    if name == "glm4":
        pytest.skip("nothing closes its turns")
    start = made.apply_chat_template(list(ASKED), tokenize=False, add_generation_prompt=True)
    answer = f"{ANSWER}{FAMILIES[name].end}"
    kept = with_template(tokenizer(name), None, preformatted=True)
    unit, report = encode(kept, answer, prompt=start)
    assert unit.prompt == ids_of(kept, start)
    assert text_of(kept, unit) == answer and report.altered == {"response ends with EOS: not closed twice": 1}
    unit, report = encode(made, answer, prompt=start)
    assert text_of(made, unit) == answer, "one end, and that a token"
    bos = [made.bos_token_id] * (name != "olmo2" and made.bos_token is not None)
    assert control_tokens(made, unit.prompt) in (bos, [made.bos_token_id]), "all else is text"


# ---- think blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_r1", "nemotron3", "qwen35"])
@pytest.mark.parametrize("text", ["<think>\nLook up.\n</think>\n\nBlue.", "Look up.\n</think>\n\nBlue."])
def test_reasoning_in_the_text_continues_the_block_that_the_prompt_opens(name: str, text: str) -> None:
    """Whether it brings the opening tag or, as a model writes it, goes on behind that of the prompt."""
    made = tokenizer(name)
    unit, report = encode(made, text)
    assert unit.prompt == Encoder(made).prompts([ASKED])[0]
    assert text_of(made, unit) == "Look up.\n</think>\n\nBlue." + FAMILIES[name].end
    assert not report.altered and not report.dropped


def test_a_pair_of_which_one_reasons_shares_its_prompt() -> None:
    made = tokenizer("deepseek_r1")
    unit, report = encode(made, "<think>\nLook up.\n</think>\n\nBlue.", "Blue.")
    assert made.decode(unit.prompt).endswith("<\uff5cAssistant\uff5c>")
    assert [text_of(made, unit, k) for k in range(2)] == [
        "<think>\nLook up.\n</think>\n\nBlue.<\uff5cend▁of▁sentence\uff5c>",
        "Blue.<\uff5cend▁of▁sentence\uff5c>",
    ]
    ((note, number),) = report.altered.items()
    assert number == 1 and "'<think>\\n'" in note and "policy.template_options" in note


@pytest.mark.parametrize(("name", "block"), [("nemotron3", "<think></think>"), ("qwen35", "<think>\n\n</think>\n\n")])
def test_a_template_option_closes_the_block(name: str, block: str) -> None:
    """In prompts of data and of sampling alike."""
    from upo.data.templates import with_template

    made = with_template(tokenizer(name), None, {"enable_thinking": False})
    unit, report = encode(made, ANSWER)
    assert made.decode(unit.prompt).endswith("<|im_start|>assistant\n" + block)
    assert text_of(made, unit) == ANSWER + "<|im_end|>" and not report.altered
    assert Encoder(made).prompts([ASKED]) == [unit.prompt]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", "<think>\nLook up.\n</think>\n\nBlue.<|im_end|>"),
        ("qwen35", "Look up.\n</think>\n\nBlue.<|im_end|>"),
        ("nemotron3", "Look up.\n</think>\nBlue.<|im_end|>"),
        ("gpt_oss", "<|channel|>analysis<|message|>Look up.<|end|><|start|>assistant<|channel|>final<|message|>Blue."
                    "<|return|>"),
    ],
)  # fmt: skip
def test_reasoning_beside_the_text_is_written_and_scored(name: str, expected: str) -> None:
    made = tokenizer(name)
    unit, report = encode(made, Response("Blue.", message={"reasoning_content": "Look up."}))
    assert text_of(made, unit) == expected and not report.altered and not report.dropped


# ---- tools ---------------------------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of <|im_end|> a city", "parameters": {}}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2", 'Sure.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'),
        ("llama3", '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
        ("gpt_oss", ' to=functions.weather<|channel|>commentary<|message|>{"city": "Oslo"}<|call|>'),
    ],
)
def test_a_call_is_scored_up_to_its_own_end(name: str, expected: str) -> None:
    made = tokenizer(name)
    unit, report = encode(made, Response("Sure." if name == "qwen2" else "", message={"tool_calls": [CALL]}))
    assert text_of(made, unit) == expected and not report.dropped


def test_tools_stand_in_the_prompt_of_data_and_of_sampling() -> None:
    made = tokenizer("qwen2")
    asked = ({**ASKED[0], "tools": [TOOL]},)
    unit, _ = encode(made, ANSWER, prompt=asked)
    assert '"name": "weather", "description": "Of <|im_end|> a city"' in made.decode(unit.prompt)
    plain, _ = encode(made, ANSWER)
    assert control_tokens(made, unit.prompt) == control_tokens(made, plain.prompt)
    assert Encoder(made).prompts([asked]) == [unit.prompt]


@pytest.mark.parametrize(
    ("prompt", "message", "reason"),
    [
        (({**ASKED[0], "tools": [TOOL]},), {}, "chat template does not write `tools`"),
        (ASKED, {"tool_calls": [CALL]}, "chat template does not write `tool_calls`"),
        (ASKED, {"reasoning_content": "Look up."}, "chat template does not write `reasoning_content`"),
    ],
)
def test_what_a_template_leaves_out_is_no_example(prompt, message, reason: str) -> None:
    unit, report = encode(tokenizer("chatml"), Response(ANSWER, message=message), prompt=prompt)
    assert unit is None and report.dropped == {reason: 1} and report.places == {reason: "made.jsonl:1"}
    bare = tokenizer("chatml")
    bare.chat_template = None
    unit, report = encode(bare, Response(ANSWER, message=message), prompt=prompt)
    assert unit is None and "template" in next(iter(report.dropped))


def test_what_does_not_matter_is_counted() -> None:
    """Names of speakers, ids of calls, reasoning of turns that are over: templates leave them out as a rule."""
    before = (*ASKED, {**SAID, "reasoning_content": "Look up.", "id": "7"}, {"role": "user", "content": "Really?"})
    unit, report = encode(tokenizer("qwen3"), ANSWER, prompt=before)
    assert unit is not None
    assert report.altered == {
        "chat template does not write `id`": 1,
        "chat template does not write `reasoning_content`": 1,
    }


# ---- templates that refuse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompt", "words"),
    [
        ("gemma", ({"role": "system", "content": "Be kind."}, *ASKED), "System role not supported"),
        ("gemma", (*ASKED, *ASKED), "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("llama2", (*ASKED, *ASKED), "Roles must alternate user/assistant/user/..."),
    ],
)
def test_what_a_template_refuses_is_counted_with_its_words(name: str, prompt, words: str) -> None:
    unit, report = encode(tokenizer(name), ANSWER, prompt=prompt)
    reason = f"chat template refuses: {words}"
    assert unit is None and report.dropped == {reason: 1} and report.places == {reason: "made.jsonl:1"}
    assert encode(tokenizer(name), ANSWER)[0] is not None


def test_a_template_that_fails_is_one_that_refuses() -> None:
    made = tokenizer("chatml")
    made.chat_template = "{{ messages[0].content + messages[0].nothing }}"
    unit, report = encode(made, ANSWER)
    assert unit is None and next(iter(report.dropped)).startswith("chat template refuses: ")


def test_a_role_that_no_template_knows() -> None:
    made = tokenizer("chatml")
    made.chat_template = None
    unit, report = encode(made, ANSWER, prompt=(*ASKED, SAID, {"role": "tool", "content": "-3"}))
    assert unit is None and report.dropped == {"no chat template to write the role `tool`": 1}


def test_a_template_that_changes_a_response_loses_it() -> None:
    made = tokenizer("chatml")
    made.chat_template = made.chat_template.replace("m.content", "m.content | replace('secret', '')")
    unit, report = encode(made, "a secret answer")
    assert unit is None and report.dropped == {"chat template leaves out a part of a response": 1}


# ---- the real one --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_instruct_model(smollm2: str) -> None:
    """SmolLM2: ChatML on a real vocabulary; also with the EOS of a base model, as it would continue otherwise."""
    from upo.models.checkpoint import load_model

    model, made = load_model(smollm2)
    asked = ({"role": "user", "content": "What is the capital of France? <|im_end|>"},)
    unit, _ = encode(made, "Paris.<|im_end|>", prompt=asked)
    assert made.convert_ids_to_tokens(unit.responses[0])[-2:] == [".", "<|im_end|>"]
    assert made.convert_ids_to_tokens(unit.prompt).count("<|im_end|>") == 2, "of the system's turn and the user's"
    assert json.loads(Path(smollm2, "generation_config.json").read_text())["eos_token_id"] == made.eos_token_id
    made.eos_token, model.generation_config.eos_token_id = "<|endoftext|>", 0
    ((found,),) = sample(model, made, [asked], max_new_tokens=24, temperature=0)
    assert found.finish_reason == "stop" and "Paris" in found.text
    assert found.ids[-1] == made.convert_tokens_to_ids("<|im_end|>")
    assert encode(made, "Paris.", prompt=asked)[0].responses[0][-1] == found.ids[-1]
    assert render(made, asked).endswith("<|im_start|>assistant\n")
