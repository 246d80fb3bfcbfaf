"""Turns of a conversation as data have them, and as chat templates want them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from upo.data.example import Message, Prompt, Response
from upo.data.row import Row, Unusable, parsed

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""The role that the names found in data stand for, in lower case."""
CALLING = ("function_call", "tool_call")
"""Roles whose text is a call, as in ShareGPT."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of what was thought before the answer."""


def messages_in(row: Row, field: str) -> list[Message] | None:
    """The messages of a field that holds a list of them, a single one, or either as JSON text; None for other texts.

    Raises:
        Unusable: one of them is no message.
    """
    value = row.data.get(field)
    if isinstance(value, str):
        value = _as_messages(value)
        if value is None:
            return None
    if isinstance(value, dict):
        return [message(row.nested(field, [value])[0])]
    if isinstance(value, list):
        return [message(inner) for inner in row.nested(field, value)]
    return None


def _as_messages(text: str) -> list[Any] | dict[str, Any] | None:
    """JSON text that is a message or a list of them; an answer that is JSON of another kind stays a text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    value = parsed(text)
    items = value if isinstance(value, list) else [value]
    alike = all(
        isinstance(x, dict) and ({"role", "content"} <= x.keys() or {"from", "value"} <= x.keys()) for x in items
    )
    return value if items and alike else None


def message(row: Row) -> Message:
    """A message in either of the usual schemas: {"role", "content"} or ShareGPT's {"from", "value"}.

    The content may be a list of text parts. Calls of tools, reasoning, the name of a tool and the tools themselves are
    kept under the names that chat templates read.

    Raises:
        Unusable: an unknown role, no content, a part that is no text.
    """
    role, content = ("from", "value") if "from" in row else ("role", "content")
    name = row.text(role)
    if (known := name.strip().lower()) not in ROLES:
        raise Unusable(f"unknown role `{name}`")
    further = _further(row)
    if known in CALLING:
        called = parsed(row.text(content))
        if called is None:
            raise Unusable("a call of a tool is no JSON")
        further["tool_calls"] = _calls(called)
        return {"role": "assistant", "content": "", **further}
    if content not in row and "tool_calls" in further:
        return {"role": ROLES[known], "content": "", **further}
    return {"role": ROLES[known], "content": _content(row, content), **further}


def _content(row: Row, field: str) -> str:
    if not isinstance(row.data.get(field), list):
        return row.text(field)
    texts = []
    for part in row.items(field):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise Unusable(f"`{row.path}{field}` holds a part of type `{kind}`; text alone is read")
        texts.append(Row({field: text}, row.where, row.path).text(field))
    return "".join(texts)


def _further(row: Row) -> dict[str, Any]:
    further: dict[str, Any] = {}
    if thought := [x for x in REASONING if x in row and row.text(x).strip()]:
        further["reasoning_content"] = row.text(thought[0])
    if calls := structured(row, "tool_calls"):
        further["tool_calls"] = _calls(calls)
    elif call := structured(row, "function_call"):
        further["tool_calls"] = _calls(call)
    if tools := tools_in(row, "tools"):
        further["tools"] = tools
    for name in ("name", "tool_call_id"):
        if name in row and row.text(name):
            further[name] = row.text(name)
    return further


def structured(row: Row, field: str) -> Any:
    """A list or object, also as JSON text; None where the field is empty.

    Raises:
        Unusable: a text that is no JSON, or something else.
    """
    value = row.data.get(field)
    if isinstance(value, str) and value.strip():
        value = parsed(value)
        if value is None:
            raise Unusable(f"`{row.path}{field}` is a text, and no JSON")
    if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list | dict):
        raise Unusable(f"`{row.path}{field}` is {type(value).__name__}, not list")
    return value


def tools_in(row: Row, field: str) -> list[dict[str, Any]]:
    """The functions that a model may call, in the format of chat templates; empty where there are none."""
    value = structured(row, field) or []
    tools = [value] if isinstance(value, dict) else value
    if not all(isinstance(tool, dict) and isinstance(tool.get("function", tool), dict) for tool in tools):
        raise Unusable(f"`{row.path}{field}` holds something that is no tool")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _calls(value: Any) -> list[dict[str, Any]]:
    """Calls as {"type": "function", "function": {"name", "arguments"}}; arguments in JSON text become an object."""
    calls = []
    for call in value if isinstance(value, list) else [value]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise Unusable("a call of a tool has no name")
        arguments = inner.get("arguments", inner.get("parameters"))
        if isinstance(arguments, str):
            arguments = parsed(arguments) if isinstance(parsed(arguments), dict) else arguments
        function = {"name": inner["name"], "arguments": {} if arguments is None else arguments}
        named = {"id": call["id"]} if call.get("id") else {}
        calls.append({**named, "type": "function", "function": function})
    return calls


def conversation(turns: Sequence[Message]) -> Prompt:
    """A prompt that chat templates can render: perhaps a system turn, then user and assistant in turns, user last.

    Calls of tools are followed by their results, and a prompt may end with one. An empty system turn is left out.

    Raises:
        Unusable: the turns are not like that, or one is empty.
    """
    if turns and turns[0]["role"] == "system" and not turns[0]["content"].strip():
        tools = {"tools": turns[0]["tools"]} if "tools" in turns[0] else {}
        turns = [m | tools if i == 0 else m for i, m in enumerate(turns[1:])]
    spoken = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if any(m["role"] != "tool" and not m["content"].strip() and not m.get("tool_calls") for m in turns):
        raise Unusable("empty turn in the prompt")
    before: Mapping[str, Any] = {"role": "assistant"}
    for m in spoken:
        if m["role"] not in _next(before):
            raise Unusable("turns of the prompt do not alternate")
        before = m
    if not spoken or spoken[-1]["role"] not in ("user", "tool"):
        raise Unusable("prompt does not end with a user turn")
    return tuple(turns)


def _next(message: Mapping[str, Any]) -> tuple[str, ...]:
    """Roles that may follow a message."""
    if message["role"] == "tool":
        return ("tool", "assistant")
    if message["role"] == "user":
        return ("assistant",)
    return ("tool",) if message.get("tool_calls") else ("user",)


def answered(turns: Sequence[Message]) -> tuple[list[Message], Response]:
    """The turns before the last one, and the assistant's answer in it."""
    if not turns or turns[-1]["role"] != "assistant":
        raise Unusable("does not end with an assistant turn")
    further = {key: x for key, x in turns[-1].items() if key not in ("role", "content", "tools")}
    return list(turns[:-1]), Response(turns[-1]["content"], message=further)


def dumped(value: Any) -> str:
    """JSON text, for comparison."""
    return json.dumps(value, sort_keys=True, default=str)
