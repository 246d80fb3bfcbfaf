"""Variables of chat templates: given, remembered with the tokenizer, and the date of a run that goes on tomorrow."""

import csv
import json
import shutil
from datetime import date
from pathlib import Path

import families
import pytest
import tiny
from families import tokenizer
from transformers import AutoTokenizer

from upo.data import module
from upo.data.codec import TextCodec
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.data.templates import apply_template, keep_date, options_of, with_template
from upo.data.tokenize import Encoder
from upo.data.views import PairedView
from upo.errors import UserError
from upo.evaluation.runs import load_run
from upo.fit import main
from upo.models.checkpoint import load_model
from upo.models.export import export
from upo.models.policy import Policy

ASKED = ({"role": "user", "content": "Why is the sky blue?"},)


def test_a_fixed_date_is_written_in_every_format() -> None:
    """As strftime would; all else stands where it stood."""
    formats = ("%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %y", "%j|%%d|today")
    template = (
        "\n  {% macro again(f) %}{{ strftime_now(f) }}{% endmacro %}\n  "
        + "".join(f"{{{{ strftime_now('{f}') }}}};{{{{ again('{f}') }}}}\n" for f in formats)
        + "{% if strftime_now is defined %}  {{ messages[0].content }}{% endif %}\n"
    )
    made = tiny.tokenizer(template)
    today = apply_template(made, ASKED)
    assert date.today().strftime("%Y-%m-%d") in today
    with_template(made, None, {"strftime_now": "2024-07-06"})
    fixed = apply_template(made, ASKED)
    for f in formats:
        assert f"{date(2024, 7, 6).strftime(f)};{date(2024, 7, 6).strftime(f)}\n" in fixed
    with_template(made, None, {"strftime_now": date.today().isoformat()})
    assert apply_template(made, ASKED) == today


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_thinkng": True}, "reads no variable `enable_thinkng`"),
        ({"tokenize": True}, "reads no variable `tokenize`"),
        ({"messages": []}, "reads no variable `messages`"),
        ({"strftime_now": "tomorrow"}, "`tomorrow` is no date such as 2026-11-30"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_template(tokenizer("smollm3"), None, options)


def test_options_and_date_travel_with_the_tokenizer(tmp_path: Path) -> None:
    """A date may be one to YAML. What is given later is laid over what is remembered."""
    options = {"enable_thinking": False, "strftime_now": date(2024, 7, 6)}
    made = with_template(tokenizer("smollm3"), None, options)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = Encoder(again).prompts([ASKED])
    assert [ids] == Encoder(made).prompts([ASKED]) != Encoder(tokenizer("smollm3")).prompts([ASKED])
    text = again.decode(ids)
    assert "Today Date: 06 July 2024\nReasoning Mode: /no_think" in text and text.endswith("<think>\n\n</think>\n")
    with_template(again, None, {"enable_thinking": True})
    assert options_of(again) == {"enable_thinking": True, "strftime_now": "2024-07-06"}
    keep_date(again, "2030-01-01")
    assert options_of(again)["strftime_now"] == "2024-07-06", "a date is kept"


def test_what_changes_tokens_changes_the_fingerprint() -> None:
    """Data made for one tokenizer serve no other; neither do tokens on disk, which are found by the rendered texts."""
    variants = [
        tokenizer("smollm3"),
        with_template(tokenizer("smollm3"), None, {"enable_thinking": False}),
        with_template(tokenizer("smollm3"), None, {"strftime_now": "2024-07-06"}),
        with_template(tokenizer("smollm3"), None, preformatted=True),
        tokenizer("qwen3"),
    ]
    other_end = tokenizer("smollm3")
    other_end.chat_template = other_end.chat_template.replace("~ '<|im_end|>\\n' }}", "~ '<|endoftext|>' }}")
    found = [str(TextCodec(made).fingerprint) for made in (*variants, other_end)]
    assert len(set(found)) == len(found)
    assert found[0] == str(TextCodec(tokenizer("smollm3")).fingerprint)


def test_policies_and_their_likes_write_alike() -> None:
    options = {"strftime_now": "2024-07-06"}
    policy = Policy("nowhere", tokenizer="families.dated", template_options=options, preformatted=True)
    for made in (policy, policy.like("nowhere")):
        assert options_of(made.tokenizer) == options and Encoder(made.tokenizer).format.preformatted
    with pytest.raises(UserError, match="no variable `thinking`"):
        _ = Policy("nowhere", tokenizer="families.dated", template_options={"thinking": True}).tokenizer


# ---- runs ----------------------------------------------------------------------------------------------------------

CONFIG = """
model:
  class_path: SFT
  init_args:
    policy:
      config: {model_type: llama, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}
      tokenizer: families.dated
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data: {sources: [{name: trl, path: pairs.jsonl}], validation: 2, pairs_per_step: 2, tokens_cache: null}
trainer: {default_root_dir: run, accelerator: cpu, max_steps: 2, enable_progress_bar: false}
checkpoint: {every_n_train_steps: 1}
"""


def set_today(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    class Day(date):
        @classmethod
        def today(cls) -> date:
            return date.fromisoformat(day)

    monkeypatch.setattr(module, "date", Day)
    monkeypatch.setattr("upo.callbacks.run_folder.date", Day)


def losses(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return [row["train/loss"] for row in csv.DictReader(lines)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("upo.callbacks.run_folder.draw_curves", lambda *_: None)
    turns = [{"role": "user"}, {"role": "assistant"}]
    rows = []
    for prompt, *answers in tiny.PAIRS:
        chosen, rejected = ([turns[1] | {"content": text}] for text in answers)
        rows.append({"prompt": [turns[0] | {"content": prompt}], "chosen": chosen, "rejected": rejected})
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.turns(2)
@pytest.mark.slow
def test_a_run_goes_on_with_the_date_of_its_first_start(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a kill, an evaluation, an export and a copy of its checkpoint; another run begins with its own day."""
    set_today(monkeypatch, "2026-09-30")
    main(["--config", "run.yaml", "--trainer.default_root_dir", "whole"])
    main(["--config", "run.yaml", "--trainer.max_steps", "1"])
    Path("run/summary.json").unlink()  # it was killed
    shutil.copytree("run/checkpoints", "copied/checkpoints", symlinks=True)
    shutil.copy("run/environment.json", "copied")
    set_today(monkeypatch, "2026-10-01")
    main(["--config", "run.yaml", "--ckpt_path", "last"])
    assert losses(Path("run")) == losses(Path("whole"))
    assert json.loads(Path("run/environment.json").read_text())["started"] == "2026-09-30"
    elsewhere = ["--trainer.default_root_dir", "elsewhere", "--ckpt_path", "copied/checkpoints/step=1.ckpt"]
    main(["--config", "run.yaml", *elsewhere])
    assert losses(Path("elsewhere"))[-1:] == losses(Path("whole"))[-1:]
    export(Path("run"), Path("exported"))
    method, _, _ = load_run("run", trust=True)
    for made in (load_model("run")[1], method.policy.tokenizer, AutoTokenizer.from_pretrained("exported")):
        assert options_of(made) == {"strftime_now": "2026-09-30"}
        assert "Today Date: 30 Sep 2026" in made.decode(Encoder(made).prompts([ASKED])[0])
    main(["--config", "run.yaml", "--overwrite", "true", "--trainer.max_steps", "1"])
    assert options_of(load_model("run")[1]) == {"strftime_now": "2026-10-01"}
    assert losses(Path("run"))[0] != losses(Path("whole"))[0], "the date is read"


def test_an_export_stops_where_its_turns_end(tmp_path: Path) -> None:
    """ChatML on a base model, whose generation config knows <|endoftext|> alone."""
    policy = tiny.policy(vocab_size=400)
    assert json.loads(policy.files()["generation_config.json"])["eos_token_id"] == policy.tokenizer.eos_token_id
    policy.__dict__["tokenizer"] = made = tokenizer("chatml")
    policy.model.generation_config.eos_token_id = made.eos_token_id
    stops = json.loads(policy.files()["generation_config.json"])["eos_token_id"]
    assert stops == [made.eos_token_id, made.convert_tokens_to_ids("<|im_end|>")]
    assert policy.model.generation_config.eos_token_id == made.eos_token_id, "the model is as it was"


# ---- templates that refuse -----------------------------------------------------------------------------------------


def prepared(shared: Path, file: str, name: str) -> PreferenceData:
    data = PreferenceData((Source(name="trl", path=str(shared / "data/awkward" / file)),), validation=0)
    made = tokenizer(name) if name in families.FAMILIES else tiny.tokenizer()
    if name == "raise":
        with_template(made, str(shared / "data/awkward/raise.jinja"))
    data.prepare(made, PairedView())
    return data


@pytest.mark.parametrize("name", ["gemma", "raise"])
def test_one_system_turn_of_many_is_a_counted_drop(name: str, shared: Path) -> None:
    report = prepared(shared, "one_system_of_many.jsonl", name).report.sources["trl"]
    reason = "chat template refuses: System role not supported"
    assert report.dropped == {reason: 1}
    assert report.places[reason].endswith("one_system_of_many.jsonl:1")
    assert report.kept["train pairs"] == report.kept["examples"] - 1 > 0


def test_where_all_are_refused_the_template_is_named(shared: Path) -> None:
    with pytest.raises(UserError, match=r"System role not supported.*policy\.chat_template"):
        prepared(shared, "system_pairs.jsonl", "raise")


def test_rendered_texts_keep_their_bos(shared: Path) -> None:
    data = prepared(shared, "preformatted_bos.jsonl", "llama2")
    for unit in data.train.units:
        assert [i for i in unit.prompt if i == 480] == [480] and unit.prompt[0] == 480, "one <s>"
    assert not data.report.sources["trl"].altered
