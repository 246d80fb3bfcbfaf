"""Hidden states of a transformers model for a batch of responses, in the packed or the padded layout."""

from typing import TYPE_CHECKING

from torch import Tensor

from upo.data.layout import Responses
from upo.errors import UserError
from upo.ops import prefix_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_states(model: "PreTrainedModel", responses: Responses, every: bool = False) -> list[Tensor]:
    """The last hidden states [R T, D], which the output head reads; with `every`, those after each layer before them.

    Raises:
        UserError: the model's layers do not call the attention that the packed layout needs.
    """
    options = {"input_ids": responses.input_ids, "use_cache": False, "output_hidden_states": every}
    plan = None
    if responses.layout == "packed":
        plan = prefix_attention.plan(responses)
        options |= prefix_attention.packed_inputs(responses, plan)
    body = model.base_model(**options)
    if plan is not None and not plan.calls:
        raise UserError(
            f"{model.config.model_type} did not call the packed attention: its tokens would see other responses; "
            "set data.layout: padded"
        )
    return [x.flatten(0, 1) for x in (*(body.hidden_states[1:] if every else ()), body.last_hidden_state)]
