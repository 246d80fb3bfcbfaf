"""What settings of TRL, HALOs and LLaMA-Factory are called here, for hints and for experiments/README.md."""

from typing import NamedTuple


class Habit(NamedTuple):
    """Names in other packages of one setting, and its key here."""

    others: tuple[str, ...]
    here: str
    note: str = ""


HABITS = (
    Habit(
        ("loss_type", "pref_loss", "loss", "rl_algo", "stage"),
        "model.class_path",
        "a class for each method: DPO, IPO, SimPO, KTO, ...; `python -m upo.methods` lists them",
    ),
    Habit(("pref_beta", "dpo_beta", "kl_coef"), "model.init_args.beta"),
    Habit(("simpo_gamma", "gamma_beta_ratio"), "model.init_args.gamma", "of SimPO"),
    Habit(
        ("rpo_alpha", "pref_ftx", "sft_weight", "cpo_alpha"),
        "model.init_args.nll_weight",
        "methods with a likelihood term have it; `python -m upo.methods` says which",
    ),
    Habit(("dpo_label_smoothing", "label_smoothing_factor"), "model.init_args.label_smoothing"),
    Habit(("model_name_or_path", "model_name", "pretrained"), "model.init_args.policy.path"),
    Habit(("tokenizer_name_or_path", "tokenizer_name"), "model.init_args.policy.tokenizer"),
    Habit(("torch_dtype", "policy_dtype"), "model.init_args.policy.dtype"),
    Habit(("template", "chat_template_path"), "model.init_args.policy.chat_template"),
    Habit(("gradient_checkpointing", "use_gradient_checkpointing"), "model.init_args.policy.activation_checkpointing"),
    Habit(("use_peft", "finetuning_type", "peft_config"), "model.init_args.policy.adapter"),
    Habit(("lora_r", "lora_rank"), "model.init_args.policy.adapter.r"),
    Habit(("lora_alpha",), "model.init_args.policy.adapter.alpha"),
    Habit(("lora_target", "lora_target_modules"), "model.init_args.policy.adapter.target_modules"),
    Habit(("load_in_4bit", "quantization_bit"), "model.init_args.policy.quantization", "nf4"),
    Habit(
        ("ref_model", "reference_model", "ref_model_path"),
        "model.init_args.reference",
        "FrozenReference, StoredReference or AdapterReference; FrozenReference has a `path` of its own",
    ),
    Habit(
        ("precompute_ref_log_probs", "cache_reference_logprobs"),
        "model.init_args.reference",
        "StoredReference computes them once and keeps them",
    ),
    Habit(("learning_rate", "lr"), "model.init_args.optimizer", "{class_path: AdamW, init_args: {lr: 5.0e-7}}"),
    Habit(("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"), "model.init_args.optimizer", "its init_args"),
    Habit(("optim", "optimizer_name"), "model.init_args.optimizer", "any class of torch.optim or bitsandbytes.optim"),
    Habit(
        ("lr_scheduler_type", "lr_scheduler", "warmup_ratio", "warmup_steps", "num_warmup_steps", "warmup"),
        "model.init_args.scheduler",
        "{class_path: LinearLR, init_args: {start_factor: 0.1, total_iters: 150}} warms up over 150 steps",
    ),
    Habit(("dataset", "datasets", "dataset_name", "dataset_dir", "train_file"), "data.sources"),
    Habit(("val_size", "test_size", "eval_dataset"), "data.validation", "a number or a share of prompts"),
    Habit(("max_seq_length", "max_seq_len", "cutoff_len", "model_max_length"), "data.max_length"),
    Habit(
        ("max_prompt_length", "truncation_mode", "truncation"),
        "data.overlong",
        "[truncate_prompt_left] cuts prompts to what max_length leaves",
    ),
    Habit(("max_completion_length", "max_response_length", "max_target_length"), "data.max_response"),
    Habit(
        (
            *("per_device_train_batch_size", "train_batch_size", "batch_size", "micro_batch_size"),
            *("gradient_accumulation_steps", "accumulate_grad_batches"),
        ),
        "data.pairs_per_step",
        "pairs of one optimizer step over all devices; data.tokens_per_microbatch says how many fit at a time",
    ),
    Habit(("packing", "padding_free", "neat_packing"), "data.layout", "packed is the default"),
    Habit(("dataset_num_proc", "dataloader_num_workers", "preprocessing_num_workers"), "data.workers"),
    Habit(("num_train_epochs", "n_epochs", "num_epochs"), "trainer.max_epochs"),
    Habit(("n_examples", "total_steps"), "trainer.max_steps"),
    Habit(("bf16", "fp16", "mixed_precision"), "trainer.precision", "bf16-mixed"),
    Habit(("max_grad_norm", "gradient_clipping"), "trainer.gradient_clip_val"),
    Habit(
        ("deepspeed", "fsdp", "fsdp_config", "device_map"),
        "trainer.strategy",
        "experiments/hardware has YAMLs for several GPUs",
    ),
    Habit(("output_dir", "save_dir", "cache_dir", "local_run_dir"), "trainer.default_root_dir"),
    Habit(("report_to", "use_wandb"), "trainer.logger", "lightning.pytorch.loggers.WandbLogger"),
    Habit(("logging_steps", "log_interval"), "trainer.log_every_n_steps"),
    Habit(("eval_steps", "eval_every", "eval_strategy", "evaluation_strategy"), "trainer.val_check_interval"),
    Habit(("save_steps", "save_every", "save_strategy"), "checkpoint.every_n_train_steps"),
    Habit(("save_total_limit",), "checkpoint.save_top_k"),
    Habit(("metric_for_best_model", "load_best_model_at_end"), "checkpoint.monitor"),
    Habit(("data_seed", "seed"), "seed_everything"),
    Habit(("resume_from_checkpoint", "resume"), "ckpt_path", "last"),
    Habit(("overwrite_output_dir", "overwrite_cache"), "overwrite"),
)
"""In the order of a YAML."""

CLASSES = {
    "cosine": "CosineAnnealingLR",
    "linear": "LinearLR",
    "constant": "ConstantLR",
    "adamw_torch": "AdamW",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger",
    "wandb": "lightning.pytorch.loggers.WandbLogger",
    "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
    "lora": "LoRA",
}
"""Words that stand for a class elsewhere."""


def habit(word: str) -> str | None:
    """A hint for the name that another package gives to a setting or to a class; none for other words."""
    if cls := CLASSES.get(word.lower()):
        return f"give the class: `{cls}`"
    found = next((x for x in HABITS if word.lower() in x.others), None)
    return found and f"here it is `{found.here}`" + (f": {found.note}" if found.note else "")


def table() -> str:
    """All settings as a Markdown table."""
    rows = [f"| {', '.join(f'`{x}`' for x in h.others)} | `{h.here}` | {h.note} |" for h in HABITS]
    return "\n".join(["| elsewhere | here | |", "|---|---|---|", *rows])
