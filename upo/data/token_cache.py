"""Token ids on disk, by content: a data set is tokenised once for all runs of one tokenizer."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from upo.runtime.atomic_files import written_at_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SMALL = 500_000
"""Characters below which tokenising costs less than looking."""


class TokenCache:
    """Lists of token ids, one file for all texts that were tokenised together."""

    def __init__(self, folder: Path, tokenizer: "PreTrainedTokenizerBase"):
        """
        Args:
            folder: shared by any number of processes: files appear whole or not at all and never change.
            tokenizer: only one that knows itself as a string (a "fast" one) is cached for.
        """
        self.folder = folder
        state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
        self.fingerprint = state and hashlib.sha256(f"{version('tokenizers')}\0{state}".encode()).hexdigest()

    def ids(self, texts: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]]) -> list[list[int]]:
        """The ids of each text: from disk where the very same list was met before, else from `encode`."""
        if self.fingerprint is None or sum(map(len, texts)) < SMALL:
            return encode(texts)
        import torch
        from safetensors.torch import save_file

        key = hashlib.sha256(self.fingerprint.encode())
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            key.update(len(data).to_bytes(8, "little") + data)
        path = self.folder / f"{key.hexdigest()[:32]}.safetensors"
        if (kept := _read(path)) is not None:
            return kept
        found = encode(texts)
        lengths, flat = torch.tensor([len(ids) for ids in found]), torch.tensor([i for ids in found for i in ids])
        content = {"ids": flat.to(torch.int32), "lengths": lengths}
        with written_at_once(path, shared=True) as partial:
            save_file(content, partial, {"sha256": _sha256(content)})
        return found


def _read(path: Path) -> list[list[int]] | None:
    """The ids of a file; None where it is not there, broken, or has changed since it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in ("ids", "lengths")}
            if (file.metadata() or {}).get("sha256") == _sha256(kept):
                return [ids.tolist() for ids in kept["ids"].split(kept["lengths"].tolist())]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        pass
    log.warning("%s is broken, was changed, or is of an earlier version: its texts are tokenised anew", path)
    return None


def _sha256(content: "Mapping[str, Tensor]") -> str:
    return hashlib.sha256(b"".join(content[name].numpy().tobytes() for name in ("lengths", "ids"))).hexdigest()
