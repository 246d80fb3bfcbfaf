"""Lightning's FSDPStrategy without GPUs."""

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


class OnCPU(FSDPStrategy):
    """Tells torch, whose FSDP runs on CPUs, the device; Lightning refuses its own class there, but no other."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        options = {"mixed_precision": self.mixed_precision_config, "sharding_strategy": self.sharding_strategy}
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options, **self.kwargs)
