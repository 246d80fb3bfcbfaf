"""Collectives without ranks, and the whole tensor of a shard."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from upo.runtime.collectives import whole


def test_the_whole_tensor_of_a_shard():
    plain = torch.arange(6.0).view(3, 2)
    assert whole(plain) is plain
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard = distribute_tensor(plain, init_device_mesh("cpu", (1,)), [Shard(0)])
        assert isinstance(shard, DTensor) and not isinstance(whole(shard), DTensor)
        assert torch.equal(whole(shard), plain)
    finally:
        dist.destroy_process_group()
