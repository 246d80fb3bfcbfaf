"""Hidden states of a transformers model for a batch of responses, in the packed or the padded layout."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from upo.data.layout import Responses
from upo.errors import UserError
from upo.ops import flex_attention, prefix_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_states(
    model: "PreTrainedModel", responses: Responses, every: bool = False, plan: Any = None
) -> list[Tensor]:
    """The last hidden states [R T, D], which the output head reads; with `every`, those after each layer before them.

    Args:
        plan: of the packed attention, for those who look at it afterwards; made here by default, of the batch as
            `flex_attention.arranged` gives it.

    Raises:
        UserError: the model's layers do not call the attention that the packed layout needs.
    """
    size = responses.input_ids.numel()
    responses = flex_attention.arranged(responses) if responses.layout == "packed" else responses
    options = {"input_ids": responses.input_ids, "use_cache": False, "output_hidden_states": every}
    if responses.layout == "packed":
        plan = prefix_attention.plan(responses) if plan is None else plan
        options |= prefix_attention.packed_inputs(responses, plan)
    outputs = model.base_model(**options)
    if plan is not None and not plan.calls:
        raise UserError(
            f"{model.config.model_type} did not call the packed attention: its tokens would see other responses; "
            "set data.layout: padded"
        )
    states = [x.flatten(0, 1) for x in (*(outputs.hidden_states[1:] if every else ()), outputs.last_hidden_state)]
    return states if size == responses.input_ids.numel() else [x[:size] for x in states]
