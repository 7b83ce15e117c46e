"""CUDA and NCCL on a CPU, and Transformer Engine with it: patches torch from outside, and no file of Megatron's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch._dynamo  # builds its table of torch's functions before they are patched
import torch.distributed as dist

CPU = torch.device("cpu")
RNG_STATE = torch.arange(16, dtype=torch.uint8)  # CUDA's are 16 bytes: seed and offset


class Nothing:
    """A stream or an event."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *args: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class NoCuda(torch.overrides.TorchFunctionMode):
    """Reads "cuda" as "cpu" in every call of torch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = CPU
        return function(*(CPU if is_cuda(each) else each for each in args), **kwargs)


def is_cuda(value: Any) -> bool:
    """Whether a positional argument names a CUDA device."""
    return isinstance(value, (str, torch.device)) and str(value).startswith("cuda")


def patch() -> None:
    """Everything that checkpoint code asks of CUDA, NCCL and old numpy."""
    import te  # noqa: F401  (before anything of Megatron)

    cuda = torch.cuda
    np.product = getattr(np, "product", np.prod)  # Megatron-Core up to 0.13
    cuda.current_device = lambda: CPU
    for name in (
        "set_device",
        "synchronize",
        "empty_cache",
        "manual_seed",
        "manual_seed_all",
        "set_rng_state",
    ):
        setattr(cuda, name, lambda *args, **kwargs: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *args, **kwargs: 0)
    cuda.get_rng_state = lambda *args, **kwargs: RNG_STATE.clone()
    cuda.Stream = cuda.Event = Nothing
    cuda.stream = cuda.current_stream = lambda *args: Nothing()
    cuda.FloatTensor, cuda.IntTensor = torch.FloatTensor, torch.IntTensor
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.cuda = lambda self, *args, **kwargs: self

    kind = torch.Tensor.type  # optimizers compare it with "torch.cuda.FloatTensor"

    def type_of(self: torch.Tensor, dtype: Any = None, **kwargs: Any) -> Any:
        if dtype is None:
            return "torch.cuda." + kind(self).rsplit(".", 1)[1]
        return kind(self, dtype, **kwargs)

    torch.Tensor.type = type_of

    start, scatter = dist.init_process_group, dist.scatter

    def gloo(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        return start("gloo", *args, **kwargs)

    def contiguous(tensor: torch.Tensor, scatter_list: Any = None, *args: Any, **kwargs: Any) -> Any:
        return scatter(tensor, scatter_list and [each.contiguous() for each in scatter_list], *args, **kwargs)

    dist.init_process_group = dist.distributed_c10d.init_process_group = gloo
    dist.scatter = dist.distributed_c10d.scatter = contiguous  # gloo reads memory, whatever its strides

    import megatron.core.tensor_parallel.random as rng

    rng._get_cuda_rng_state = lambda *args, **kwargs: RNG_STATE.clone()
    rng._set_cuda_rng_state = lambda *args, **kwargs: None
    NoCuda().__enter__()


patch()
