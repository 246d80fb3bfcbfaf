"""Log-probs on disk, keyed by content: a folder of small files that are written once and never changed.

A folder belongs to one fingerprint (weights, arithmetic, layout version). The key of a log-prob is the hash of the
fingerprint and of the tokens of prompt and response. Files appear whole or not at all, so that a killed run loses only
seconds of work and several processes may read and write at once.
"""

import hashlib
import time
import uuid
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from upo.errors import UserError
from upo.runtime.atomic_files import written_at_once
from upo.runtime.lock import Lock


class LogpsStore:
    """Log-probs of responses under one model."""

    def __init__(self, folder: Path, fingerprint: str):
        """
        Args:
            folder: for log-probs of this fingerprint only.
            fingerprint: describes everything except the tokens that a log-prob depends on.
        """
        self.folder, self.fingerprint = folder, fingerprint

    def key(self, prompt: Sequence[int], response: Sequence[int]) -> bytes:
        """The key of a prompt with its response, 32 bytes; it depends on where the response begins."""
        content = array("q", [len(prompt), *prompt, *response]).tobytes()
        return hashlib.sha256(self.fingerprint.encode() + content).digest()

    def read(self, keys: Collection[bytes]) -> dict[bytes, float]:
        """Log-probs by key, of those `keys` that are stored; where a key was written twice, the first one.

        Raises:
            UserError: a file is broken, or belongs to another model.
        """
        values: dict[bytes, float] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            for key, value in self._shard(file):
                if key in keys:
                    values.setdefault(key, value)
        return values

    def _shard(self, file: Path) -> Iterator[tuple[bytes, float]]:
        try:
            with safe_open(file, framework="pt") as content:
                metadata = content.metadata() or {}
                keys, logps = content.get_tensor("keys"), content.get_tensor("logps")
        except (SafetensorError, OSError) as error:
            raise self.unfit(f"{file.name} is broken ({str(error).splitlines()[0]})") from None
        if metadata.get("fingerprint") != self.fingerprint:
            raise self.unfit(f"{file.name} belongs to another model")
        if metadata.get("sha256") != _digest(keys, logps):
            raise self.unfit(f"{file.name} was changed after it was written")
        return zip((row.tobytes() for row in keys.numpy()), logps.tolist(), strict=True)

    def write(self, values: Mapping[bytes, float]) -> None:
        """Writes log-probs by key as a new file."""
        if not values:
            return
        keys = torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8).view(-1, 32)
        logps = torch.tensor(list(values.values()), dtype=torch.float64)
        metadata = {"fingerprint": self.fingerprint, "sha256": _digest(keys, logps)}
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.safetensors"
        with written_at_once(self.folder / name, synced=True) as partial:
            partial.write_bytes(save({"keys": keys, "logps": logps}, metadata))

    @contextmanager
    def locked(self, agree: Callable[[bool], bool], leader: bool) -> Iterator[None]:
        """Context in which no other run fills this store; the lock of a killed run is released by the system.

        Args:
            agree: collective that returns on all ranks whether it was true on any. Ranks call it once per second while
                they wait, because a single collective would time out if the other run takes hours.
            leader: whether this rank takes the lock, for all ranks.
        """
        waiting = False
        with Lock(self.folder / "lock") as lock:
            while not agree(leader and lock.take()):
                if leader and not waiting:
                    print(f"waiting for another run, which is writing to {self.folder}", flush=True)
                waiting = True
                time.sleep(1)
            yield

    def unfit(self, reason: str) -> UserError:
        """The error about log-probs in this folder that must not be used."""
        return UserError(
            f"the reference log-probs in {self.folder} cannot be trusted: {reason}; delete that folder, the next run "
            "computes them anew"
        )


def _digest(keys: torch.Tensor, logps: torch.Tensor) -> str:
    return hashlib.sha256(keys.numpy().tobytes() + logps.numpy().tobytes()).hexdigest()
