"""FSDP2 for methods: weights, gradients and optimizer states are spread over the ranks, a decoder layer at a time."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from upo.callbacks.checkpoint_io import bytes_of
from upo.errors import UserError
from upo.models.checkpoint_files import check_resumable, load
from upo.models.head import layers
from upo.models.policy import Policy
from upo.models.reference import Reference
from upo.models.reference_source import weights_hash
from upo.models.stored_reference import StoredReference
from upo.parallel.sharding import check, named, receive, single_errors
from upo.runtime.atomic_files import partial_of, put_in_place, sync
from upo.runtime.checksums import ENDING, as_text, sha256_of, sums_file
from upo.runtime.collectives import first_on_node, sum_over_ranks
from upo.runtime.disk import check_room, free_bytes, told_when_full


class Sharded(ModelParallelStrategy):
    """Shards policy, reference and value heads over all ranks; a step stays what it is on one device.

    Only rank 0 loads or draws weights: the other ranks make shapes and get each layer from it, to keep their shard.
    Checkpoints are folders with a file a rank; one that was killed while it was written is not there.
    """

    def __init__(
        self,
        shard_size: PositiveInt | None = None,
        param_dtype: Literal["bfloat16"] | None = "bfloat16",
        reshard_after_forward: bool = True,
        reduce_each_microbatch: bool = False,
        cpu_offload: bool = False,
    ):
        """
        Args:
            shard_size: ranks that hold one copy of the weights together; null: all. On several nodes the devices of one
                make a copy each node: less traffic between nodes, more memory.
            param_dtype: what layers compute in. Masters, optimizer states and sums of gradients keep `policy.dtype`
                (float32 at least for the sums); null: everything in `policy.dtype`.
            reshard_after_forward: free a layer's weights after its forward pass and gather them again for the backward
                one; false is faster and holds the whole policy in `param_dtype` on each device.
            reduce_each_microbatch: sum gradients over ranks after every micro-batch instead of once a step: more
                traffic, but no device holds a whole float32 gradient (4 bytes a parameter) in steps of several.
            cpu_offload: weights and optimizer states live, and are updated, in CPU memory. Slow.
        """
        super().__init__()
        self.shard_size, self.reduce_each_microbatch, self.cpu_offload = shard_size, reduce_each_microbatch, cpu_offload
        self.param_dtype = None if param_dtype is None else getattr(torch, param_dtype)
        self.reshard_after_forward = reshard_after_forward
        self.trained: list[FSDPModule] = []
        """The policy, then the heads beside it."""

    # ---- set-up ------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        ranks = self.num_nodes * self.num_processes
        shards = self.shard_size or ranks
        if ranks == 1 or shards == 1:
            raise UserError(
                "Sharded spreads a model over several devices, this run has one for each copy; raise trainer.devices "
                "(and shard_size), or remove trainer.strategy"
            )
        if ranks % shards:
            raise UserError(f"Sharded.shard_size={shards} must divide the number of devices, {ranks}")
        self._data_parallel_size, self._tensor_parallel_size = ranks, 1
        if self.cpu_offload and self.root_device.type == "cuda":
            self._process_group_backend = "cpu:gloo,cuda:nccl"  # norms of gradients are summed where they live
        super().setup_environment()
        shape, names = ((ranks,), ("shard",)) if shards == ranks else ((ranks // shards, shards), ("copy", "shard"))
        self.mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Weights on rank 0, shapes on the others."""
        with super().tensor_init_context(empty_init=self.global_rank > 0):
            yield

    def setup(self, trainer: pl.Trainer) -> None:
        if not self.trained:
            self._shard(trainer, trainer.lightning_module)
        super().setup(trainer)

    def _shard(self, trainer: pl.Trainer, method: Any) -> None:
        reference: Reference | None = method.reference
        check(method, trainer.callbacks)  # type: ignore[attr-defined]
        reduce_dtype = torch.promote_types(method.policy.dtype, torch.float32)
        mixed = MixedPrecisionPolicy(self.param_dtype, reduce_dtype, cast_forward_inputs=False)
        if isinstance(reference, StoredReference):
            model = reference.load_model()
            reference.weights_sha256 = self.broadcast(self.global_rank == 0 and weights_hash(model))
        self.trained = [self._shard_policy(method.policy, self.reshard_after_forward, mp_policy=mixed)]
        if reference is not None and (model := reference.load_model()) and model.holder is not method.policy:
            # Without a backward pass nothing but the end of a forward pass frees it.
            self._shard_policy(model.holder, True, None if reference.dtype else self.param_dtype)
        for head in method.children():
            if head is not method.policy and any(True for _ in head.parameters()):
                receive(head, self.root_device)
                self.trained.append(fully_shard(head, mesh=self.mesh, reshard_after_forward=False))
        receive(method, self.root_device)  # its buffers: were one without values, Lightning would empty every tensor
        torch.set_rng_state(self.broadcast(torch.get_rng_state()))  # ranks that made shapes have drawn nothing

    def _shard_policy(
        self, policy: Policy, reshard: bool, dtype: torch.dtype | None = None, **options: Any
    ) -> FSDPModule:
        """Each decoder layer is a group; embeddings, head and what else there is make the last one.

        Args:
            dtype: of the stored weights; null leaves them.
        """
        found = layers(policy.model)
        if not found:
            kind = policy.model.config.model_type
            raise UserError(f"{kind} does not say what its layers are; take trainer.strategy: ddp")
        attention = policy.model.config.get_text_config()._attn_implementation
        known = (getattr(policy, "head", None), policy.packable, attention, policy.base_sha256)
        policy.head, policy.packable, attention, policy.base_sha256 = self.broadcast(known)
        policy.model.set_attn_implementation(attention)
        offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if self.cpu_offload else OffloadPolicy()
        for module in (*found, policy):
            receive(module, self.root_device, dtype)
            if len({p.dtype for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)}) > 1:
                raise UserError(
                    "Sharded trains a layer in one dtype, and an adapter's matrices are float32; set policy.dtype: "
                    "float32, or drop policy.adapter.modules_to_save"
                )
            fully_shard(module, mesh=self.mesh, reshard_after_forward=reshard, offload_policy=offload, **options)
        assert isinstance(policy, FSDPModule)
        policy.reshards = reshard
        return policy

    def shard_reference(self, reference: Reference | None) -> None:
        """Shards what training has let go, a stored reference's model, to evaluate with it."""
        if not isinstance(reference, StoredReference):
            return
        if self.global_rank:
            reference.weights_sha256 = None  # rank 0 compares the weights; the others have shapes
        with self.tensor_init_context():
            holder = reference.load_model().holder
        if not isinstance(holder, FSDPModule):
            self._shard_policy(holder, True, None if reference.dtype else self.param_dtype)

    def model_to_device(self) -> None:
        """What is sharded lies where it belongs."""
        assert self.model is not None
        self.model._device = self.root_device  # type: ignore[assignment]
        for child in self.model.children():
            if not isinstance(child, FSDPModule):
                child.to(self.root_device)
        for name, x in self.model.named_buffers(recurse=False):
            setattr(self.model, name, x.to(self.root_device))

    # ---- a step ------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._gather_heads()
        self._reduce_gradients(self.reduce_each_microbatch)
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self._gather_heads()
        return super().validation_step(*args, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Of the last micro-batch: those before it are not Lightning's."""
        self._reduce_gradients(True)
        return super().backward(*args, **kwargs)

    def _gather_heads(self) -> None:
        """Some ranks ask them more often than others, e.g. not for dummies; that must not be a collective."""
        for head in self.trained[1:]:
            head.unshard()

    def _reduce_gradients(self, now: bool) -> None:
        for module in self.trained:
            module.set_requires_gradient_sync(now)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A folder, or the file of a run that was not sharded; what an adapter run left out stays as it is."""
        path = Path(self.broadcast(checkpoint_path))
        if first_on_node():
            check_resumable(path)  # PyTorch's own reader of folders would run what is in them
        self.barrier()
        if path.is_dir():
            with single_errors():
                return super().load_checkpoint(path, weights_only=True)
        assert self.model is not None
        content = load(path, mmap=True)
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, content.pop("state_dict"), options=whole)
        names = {p: name for name, p in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, content.pop("optimizer_states"), strict=True):
            order = [names[p] for group in optimizer.param_groups for p in group["params"]]
            set_optimizer_state_dict(self.model, optimizer, named(state, order), options=whole)
        return content

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        partial = partial_of(path)
        size = sum_over_ranks(torch.tensor(bytes_of(checkpoint), device=self.root_device))
        check_room(path, float(size), free=self.broadcast(free_bytes(path)))
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        try:
            with told_when_full(path), single_errors():
                super().save_checkpoint(checkpoint, partial, storage_options)
                self.barrier()
                self._write_sums(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.barrier()
        if self.is_global_zero:
            sync(partial)
            put_in_place(partial, path)  # which may be a link to another one, or a file: a run's that was not sharded
            sums_file(path).unlink(missing_ok=True)
            sync(path.parent)
        self.barrier()

    def _write_sums(self, folder: Path) -> None:
        """Of what this rank has written; rank 0 has written what is nobody's part as well."""
        files = sorted(file for file in folder.iterdir() if file.suffix != ENDING)
        parts = {file: re.match(r"__(\d+)_", file.name) for file in files}
        own = [file for file, part in parts.items() if (int(part[1]) if part else 0) == self.global_rank]
        (folder / f"{self.global_rank}{ENDING}").write_text(as_text({file.name: sha256_of(file) for file in own}))
