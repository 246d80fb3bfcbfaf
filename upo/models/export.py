"""Hugging Face folders from checkpoints."""

import re
from pathlib import Path

import yaml

from upo.errors import UserError
from upo.metrics.figures import headline_rows
from upo.runtime.atomic_files import read_json, written_at_once
from upo.runtime.markdown import cell, fenced
from upo.runtime.run_folder import RunPaths, Which


def export(
    source: Path,
    folder: Path,
    overwrite: bool = False,
    merge: bool = False,
    checkpoint: Which = "last",
    push: str | None = None,
    public: bool = False,
) -> None:
    """Writes the policy of a run as a Hugging Face folder.

    The folder holds safetensors, tokenizer, generation config and a model card (method, data, configuration and
    figures of the run); `AutoModelForCausalLM.from_pretrained` loads it. For a run that trained an adapter it holds the
    adapter in peft's format or, with `merge`, a full model; the change of log-probs by merging is printed.

    Args:
        source: run folder, or a .ckpt file or folder.
        folder: where the model is written; created if needed.
        overwrite: whether the contents of `folder` may be replaced.
        merge: whether to add an adapter to the weights below it; 4-bit weights are dequantized first.
        checkpoint: which one of a run folder: the newest, or the best by its checkpoint.monitor.
        push: repository of the Hugging Face hub, OWNER/MODEL, that the folder is uploaded to; created if needed. Log in
            first, by `hf auth login` or HF_TOKEN.
        public: whether a repository that `push` creates can be seen by everybody.

    Raises:
        UserError: no usable checkpoint, a folder that is not empty, `merge` without an adapter, or no way to `push`.
    """
    source, folder = Path(source), Path(folder)
    check_free(folder, overwrite)
    from upo.models import push as hub
    from upo.models.adapter_files import write_adapter
    from upo.models.adapters import CONFIG
    from upo.models.checkpoint import model_from, quiet
    from upo.models.checkpoint_files import find_checkpoint, read_checkpoint
    from upo.models.merged_adapter import merged_from

    if push is not None:
        hub.check_push(push)
    elif public:
        raise UserError("--public says who sees a repository of --push; name one")
    file = find_checkpoint(source, checkpoint)
    if file is None:
        raise UserError(f"{source} is neither a run folder nor a checkpoint")
    content = read_checkpoint(file, mmap=True)
    adapter_only = CONFIG in content["policy_files"] and not merge
    if merge and CONFIG not in content["policy_files"]:
        raise UserError(f"{source} trained all weights; there is no adapter to --merge")
    quiet()
    with written_at_once(folder) as partial:
        partial.mkdir()
        if adapter_only:
            write_adapter(content, partial)
        else:
            model, tokenizer = merged_from(content, file) if merge else model_from(content, file)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            for name, data in content["policy_files"].items():
                if not (partial / name).exists() and name != CONFIG:
                    (partial / name).write_bytes(data)
        run = RunPaths(source) if source.is_dir() else RunPaths.of_checkpoint(file)
        card = model_card(run, file, content.get("global_step"), library="peft" if adapter_only else "transformers")
        (partial / "README.md").write_text(card)
    print(f"exported {file} to {folder}")
    if push is not None:
        print(f"uploaded to {hub.push(folder, push, public)}")


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises a `UserError` if `folder` is a file, or not empty and `overwrite` is false."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} is not empty; name another folder or add --overwrite")


def model_card(run: RunPaths, file: Path, steps: int | None, library: str = "transformers") -> str:
    """README.md of an exported model, from the configuration and the ten figures of its run that say most.

    Raises:
        UserError: what stands there is broken.
    """
    text = run.config.read_text() if run.config.is_file() else ""
    metrics = read_json(run.summary) if run.finished else {}
    try:
        method, start, sources = _facts(text)
        head, *rows = [[cell(x) for x in row] for row in headline_rows(metrics)]
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{run.folder}: config.yaml or summary.json is none of a run ({reason})") from None
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [upo, {method.lower()}]\n---",
        f"# {cell(run.folder.resolve().name)}",
        f"A causal language model trained by {method} with [upo](https://arxiv.org/abs/2405.17956).",
        f"- method: {method}\n- starts from: {cell(start)}\n- data: {cell(', '.join(sources)) or 'unknown'}\n"
        f"- checkpoint: {cell(file.name)}, {cell(str(steps))} optimizer steps",
    ]
    if rows:
        lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
        parts.append("## Figures\n\nOn held-out data, with 95 % intervals where there are any.\n\n" + "\n".join(lines))
    if text:
        parts.append(f"## Configuration\n\n{fenced(text.strip(), 'yaml')}")
    return "\n\n".join(parts) + "\n"


def _facts(text: str) -> tuple[str, str, list[str]]:
    """Method, start and data sources of a config.yaml."""
    config = yaml.safe_load(text) or {}
    model = config.get("model") or {}
    method = re.sub(r"\W", "", str(model.get("class_path", "unknown")).rpartition(".")[2])
    policy = (model.get("init_args") or {}).get("policy") or {}
    start = policy.get("init_args", policy).get("path") or "random weights"
    sources = [s.get("path") or s.get("name") for s in (config.get("data") or {}).get("sources") or []]
    return method, str(start), [str(source) for source in sources]
