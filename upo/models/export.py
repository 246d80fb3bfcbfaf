"""Hugging Face folders from checkpoints."""

import json
from pathlib import Path

from upo.errors import UserError
from upo.runtime.atomic_files import written_at_once
from upo.runtime.run_folder import RunPaths


def export(source: Path, folder: Path, overwrite: bool = False, merge: bool = False) -> None:
    """Writes the policy of a run as a Hugging Face folder.

    The folder holds safetensors, tokenizer, generation config and a model card (method, data, configuration and
    metrics of the run); `AutoModelForCausalLM.from_pretrained` loads it. For a run that trained an adapter it holds the
    adapter in peft's format or, with `merge`, a full model; the change of log-probs by merging is printed.

    Args:
        source: run folder (its newest checkpoint is taken), or a .ckpt file or folder.
        folder: where the model is written; created if needed.
        overwrite: whether the contents of `folder` may be replaced.
        merge: whether to add an adapter to the weights below it; 4-bit weights are dequantized first.

    Raises:
        UserError: no usable checkpoint, a folder that is not empty, or `merge` without an adapter.
    """
    source, folder = Path(source), Path(folder)
    check_free(folder, overwrite)
    from upo.models.adapter_files import write_adapter
    from upo.models.adapters import CONFIG
    from upo.models.checkpoint import model_from, quiet
    from upo.models.checkpoint_files import find_checkpoint, read_checkpoint
    from upo.models.merged_adapter import merged_from

    file = find_checkpoint(source)
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


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises a `UserError` if `folder` is a file, or not empty and `overwrite` is false."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} is not empty; name another folder or add --overwrite")


def model_card(run: RunPaths, file: Path, steps: int | None, library: str = "transformers") -> str:
    """README.md of an exported model, from the configuration and metrics in its run folder."""
    import yaml

    text = run.config.read_text() if run.config.is_file() else ""
    config = yaml.safe_load(text) or {}
    model = config.get("model") or {}
    method = str(model.get("class_path", "unknown")).rpartition(".")[2]
    policy = (model.get("init_args") or {}).get("policy") or {}
    start = policy.get("init_args", policy).get("path") or "random weights"
    sources = [s.get("path") or s.get("name") for s in (config.get("data") or {}).get("sources") or []]
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [upo, {method.lower()}]\n---",
        f"# {run.folder.resolve().name}",
        f"A causal language model trained by {method} with [upo](https://arxiv.org/abs/2405.17956).",
        f"- method: {method}\n- starts from: {start}\n- data: {', '.join(map(str, sources)) or 'unknown'}\n"
        f"- checkpoint: {file.name}, {steps} optimizer steps",
    ]
    if run.finished and (metrics := json.loads(run.summary.read_text())):
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
        parts.append(f"## Metrics\n\n| name | value |\n|---|---|\n{rows}")
    if text:
        parts.append(f"## Configuration\n\n```yaml\n{text.strip()}\n```")
    return "\n\n".join(parts) + "\n"
