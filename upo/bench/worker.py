"""One contestant in a process of its own: trains for as many steps as it is told to, then reports and waits.

The parent writes `go` for one block of steps or closes the pipe; the worker answers with one JSON line.
"""

import json
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch

from upo.bench.model import config, text, tokenizer
from upo.bench.work import Work, rows
from upo.ops.memory import keep_memory


class Clock:
    """Counts steps; at the end of each block it reports seconds and memory, and waits for the next `go`."""

    def __init__(self, work: Work, out: Any):
        self.work, self.out = work, out
        self.steps, self.start = -2, 0.0  # two steps to warm up

    def resident(self) -> None:
        """Everything is loaded, no step has run: what comes from here on is the price of training."""
        if self.work.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
            return
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.base = _status("VmRSS")

    def step(self) -> bool:
        """Call after each optimizer step; False: stop."""
        self.steps += 1
        if self.steps not in (0, self.work.steps):
            return True
        if self.work.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.start
        peak = _status("VmHWM") if self.work.device == "cpu" else torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "memory": peak - self.base}), file=self.out, flush=True)
        self.steps = 0
        go_on = sys.stdin.readline().strip() == "go"
        self.start = time.perf_counter()
        return go_on


def _status(field: str) -> int:
    """Bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_of(work: Work) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = AutoConfig.for_model(**config(work.model, work.vocabulary))
    model = AutoModelForCausalLM.from_config(
        shape, dtype=getattr(torch, work.dtype), attn_implementation="sdpa", trust_remote_code=False
    )
    return model.to(work.device)


def policy_of(work: Work) -> Any:
    from upo.models.policy import Policy

    policy = Policy(config=config(work.model, work.vocabulary), tokenizer="upo.bench.model.tokenizer", dtype=work.dtype)
    policy.adopt(model_of(work))
    return policy


def units(work: Work) -> list[Any]:
    """One block's rows as tokens, with ranks and one auxiliary reward."""
    from upo.data.example import Example, Response
    from upo.data.units import Unit

    eos, made = tokenizer().eos_token_id, []
    for i, (prompt, responses) in enumerate(rows(work, work.pairs * work.steps)):
        known = tuple(Response(str(k), rank=k, rewards={"r": (i + k) % 3 / 2}) for k in range(len(responses)))
        made.append(Unit.of(prompt, tuple([*r, eos] for r in responses), Example(f"prompt {i}", known)))
    return made


def forward(work: Work, clock: Clock) -> None:
    """Log-probs of a step's responses and their gradient."""
    from upo.data.layout import collate_responses

    policy, every, budget = policy_of(work), units(work), 4096
    steps = [every[i : i + work.pairs] for i in range(0, len(every), work.pairs)]
    batches = [
        collate_responses([unit.groups[0] for unit in u], work.layout, row_tokens=budget, pad_id=3).to(work.device)
        for u in steps
    ]
    clock.resident()
    while True:
        for batch in batches:
            policy.zero_grad()
            policy(batch)["logps"].sum().backward()
            if not clock.step():
                return


def upo(work: Work, clock: Clock) -> None:
    """The method as `upo.fit` runs it, without checkpoints and progress bar."""
    import lightning.pytorch as pl
    from attrs import evolve

    import upo.methods as methods
    from upo.data.module import PreferenceData
    from upo.data.partners import with_partners
    from upo.data.rounds import Round, Split
    from upo.models.reference import FrozenReference

    class Rows(PreferenceData):
        def prepare(self, tokenizer: Any, view: Any, rewards: Iterable[str] = (), context: Any = None) -> None:
            made = []
            for unit in units(work):
                ((draft,), measured) = view.drafts(unit.example, 1), [r.rewards["r"] for r in unit.example.responses]
                made.append(evolve(unit, example=draft.example, columns=dict.fromkeys(rewards, measured)))
            self.pad_id, self.columns = 3, tuple(rewards)
            self.read = Round(Split.of(with_partners(made, view, 0, 8192), view), Split(()))
            self.use(self.read)

    class Block(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            clock.resident()

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if not clock.step():
                trainer.should_stop = True

    options: dict[str, Any] = {"reward_weights": {"r": 1.0}} if work.method.startswith("UPO") else {}
    if work.stored:
        from upo.models.stored_reference import StoredReference

        options["reference"] = StoredReference()
    method = getattr(methods, work.method)(
        policy_of(work),
        **{"reference": FrozenReference()} | options,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-6),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    )
    data = Rows((), validation=0, pairs_per_step=work.pairs, tokens_per_microbatch=4096, layout=work.layout)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(
        max_epochs=-1,
        accelerator="cpu" if work.device == "cpu" else "gpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[Block()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **quiet,  # type: ignore[arg-type]
    ).fit(method, datamodule=data)


def trl(work: Work, clock: Clock) -> None:
    """TRL's trainer for the same method: no gradient checkpointing, batches sorted by length where it can."""
    import tempfile

    import trl as peer
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    class Block(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.resident()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not clock.step()

    made = tempfile.TemporaryDirectory()
    folder, table, pairs = made.name, [], work.method != "KTO"
    for prompt, (chosen, rejected) in rows(work, work.pairs * work.steps):
        common = {"prompt": text(prompt)}
        if pairs:
            table.append(common | {"chosen": " " + text(chosen), "rejected": " " + text(rejected)})
        else:
            table.append(common | {"completion": " " + text(chosen), "label": True})
            table.append(common | {"completion": " " + text(rejected), "label": False})
    settings = getattr(peer, f"{work.method}Config")(
        output_dir=folder,
        per_device_train_batch_size=work.pairs * (1 if pairs else 2),
        max_steps=1_000_000,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        precompute_ref_log_probs=work.stored,
        max_length=None,
        use_cpu=work.device == "cpu",
        bf16=work.dtype == "bfloat16",
        optim="adamw_torch_fused",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="random" if pairs else "sequential",
    )
    data = Dataset.from_list(table)
    model_of(work).save_pretrained(folder)  # its reference is read from where the policy came from
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, work.dtype), attn_implementation="sdpa", trust_remote_code=False
    )
    trainer = getattr(peer, f"{work.method}Trainer")(
        model, args=settings, train_dataset=data, processing_class=tokenizer(), callbacks=[Block()]
    )
    trainer.train()
    made.cleanup()


def main() -> NoReturn:
    work = Work(**json.loads(sys.argv[1]))
    torch.set_num_threads(work.threads)
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print; the pipe is for figures
    if work.engine != "trl":
        keep_memory()  # as upo.fit does
    {"upo": upo, "trl": trl, "forward": forward}[work.engine](work, Clock(work, out))
    sys.exit(0)


if __name__ == "__main__":
    main()
