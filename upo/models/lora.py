"""LoRA adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685) through peft, on frozen weights."""

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveFloat, PositiveInt

from upo.errors import UserError
from upo.models.adapter_files import StoredAdapter
from upo.models.adapters import START, TRAINED, activate, for_changed_base, inject, owner
from upo.models.merged_adapter import probe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class LoRA:
    """W + (alpha / r) B A with trainable A and B in place of linear maps W; without dropout, as log-ratios need it."""

    def __init__(
        self,
        r: PositiveInt = 16,
        alpha: PositiveFloat = 32,
        target_modules: list[str] | str = "all-linear",
        modules_to_save: list[str] = [],
        dora: bool = False,
        rslora: bool = False,
        path: str | None = None,
    ):
        """
        Args:
            r: rank of B A (ours: 16).
            alpha: B A is multiplied by alpha / r (ours: 32, a factor of 2).
            target_modules: endings of the names of the linear maps to adapt, or a regular expression; all-linear is
                every linear map except the output head.
            modules_to_save: endings of the names of modules that are trained as a whole, in `policy.dtype`, e.g.
                [lm_head].
            dora: whether direction and length of W's columns are learned separately (DoRA, Liu et al., 2024,
                https://arxiv.org/abs/2402.09353).
            rslora: whether the factor is alpha / sqrt(r) (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
            path: start from this adapter, a folder in peft's format or a run; its settings replace those above.
        """
        self.r, self.alpha = r, alpha
        self.target_modules, self.modules_to_save = target_modules, modules_to_save
        self.dora, self.rslora = dora, rslora
        self.path = path

    def attach(self, model: "PreTrainedModel", base: str | None, grown: bool) -> None:
        """Adds the adapter to a model and freezes all other parameters.

        Args:
            base: path or hub name of the model, which is stored in the adapter's config.
            grown: whether the model has embeddings for new tokens, which `base` does not have.

        Raises:
            UserError: modules that the model does not have, new embeddings that would not be trained, or an adapter at
                `path` that does not fit.
        """
        from peft import LoraConfig

        start = None if self.path is None else StoredAdapter.at(self.path)
        if start is None:
            config = LoraConfig(
                r=self.r, lora_alpha=self.alpha, target_modules=self.target_modules, use_dora=self.dora,
                modules_to_save=self.modules_to_save or None, use_rslora=self.rslora, task_type="CAUSAL_LM",
            )  # fmt: skip
        else:
            config = copy.deepcopy(start.config)
            config.inference_mode = False
        base = str(Path(base).resolve()) if base and Path(base).is_dir() else base
        if start is not None and (other := config.base_model_name_or_path) not in (None, base):
            warnings.warn(f"the adapter at {self.path} was trained on {other}, here it is put on {base}")
        config.base_model_name_or_path = base
        inject(model, config, TRAINED)
        if grown and not any(p.requires_grad for p in model.get_input_embeddings().parameters()):
            raise UserError(
                "control tokens have new embeddings, which an adapter does not train; "
                "set policy.adapter.modules_to_save: [embed_tokens] (or what the model calls its embeddings)"
            )
        if start is not None:
            if loads := model.device.type != "meta":  # on meta, the values come from rank 0
                start.into(model, TRAINED)
                before = probe(model)
            inject(model, for_changed_base(config), START)
            if loads:
                start.into(model, START)
                for name in (START, TRAINED):
                    activate(model, name)
                    check_same(probe(model), before, start.where)
            activate(model, TRAINED)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(owner(name) == TRAINED)


def check_same(logps: "Tensor", before: "Tensor", where: str) -> None:
    """Compares log-probs of random tokens with those of the adapter as peft loads it, before it got its twin.

    Raises:
        UserError: they differ by more than rounding.
    """
    if not (gap := (logps - before).abs().max().item()) <= 1e-3:
        raise UserError(
            f"{where}: log-probs change by {gap:.3g} nats when the adapter is put on twice, as policy and reference; "
            "this kind is not supported, merge it into its model and set policy.path"
        )
