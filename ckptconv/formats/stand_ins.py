"""Inert stand-ins for every class and function that a checkpoint's pickle may name. Nothing unpickled is ever executed.

The unpickler (`unpickle.py`) resolves its globals here, by exact (module, name), and nowhere else. A known name becomes a
small record. Every other name becomes an `Inert` class, which keeps arguments and state and runs nothing. An unknown
object in an unused part of a checkpoint is therefore harmless, and one in a used part is named in the error.

Sources of the layouts: torch/_utils.py and torch/_tensor.py (`_rebuild_*`), torch/distributed/tensor/_dtensor_spec.py,
torch/distributed/device_mesh.py, torch/distributed/_shard/sharded_tensor/ (torch 2.4 to 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import whole_numbers
from ckptconv.formats.inert import Fields, Inert, check_few
from ckptconv.tensors.dtypes import from_storage, known

_LONGEST_NAME = 1000


class PlainDict(dict):  # type: ignore[type-arg]
    """Stand-in for collections.OrderedDict. A dict keeps the order; attributes such as `_metadata` are dropped.

    Python 3 pickles an OrderedDict as a call without arguments, followed by the items.
    """

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class Dtype(NamedTuple):
    """Stand-in for a torch dtype or a storage class: the name of the dtype."""

    name: str


class Storage(NamedTuple):
    """A storage that a persistent id names: its key in the .pt file, its dtype and its number of elements."""

    key: str
    dtype: str
    numel: int


class TensorRecord(NamedTuple):
    """The result of torch._utils._rebuild_tensor_v2: a strided window on a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class WrapperRecord(NamedTuple):
    """A tensor subclass that wraps other tensors.

    Attributes:
        kind: of its class.
        state: its pickled fields (a DTensor has them).
        raw: its state as pickled (a ShardedTensor needs it).
    """

    kind: str
    state: dict[str, Any]
    raw: Any


class Emulated:
    """Stand-in for a known function. A pickle can call it, but cannot set its state."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        check_few(len(args))
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise CkptconvError("a pickle tries to change a function", kind=Kind.DAMAGED)


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    _grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> TensorRecord:
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        raise CkptconvError(
            "a tensor is conjugated or negated lazily",
            hint="save x.resolve_conj().resolve_neg()",
            kind=Kind.UNSUPPORTED,
        )
    if len(shape) != len(stride):
        raise CkptconvError("a pickled tensor has different numbers of strides and dims", kind=Kind.DAMAGED)
    if not isinstance(storage, Storage):
        raise CkptconvError("a pickled tensor is not made of a storage, sizes and strides", kind=Kind.DAMAGED)
    whole_numbers((offset,), "a pickled tensor's offset")
    sizes, steps = whole_numbers(shape, "a pickled shape"), whole_numbers(stride, "a pickled stride")
    return TensorRecord(storage, offset, sizes, steps)


def _rebuild_tensor_of_bytes(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRecord:
    """Rebuild a tensor whose dtype has no storage class (float8, uint16, ...): untyped storage, dtype as an argument."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise CkptconvError(
            "a tensor has an unknown dtype", found=getattr(dtype, "kind", dtype), kind=Kind.UNSUPPORTED
        )
    return _rebuild_tensor(storage._replace(dtype=dtype.name), offset, shape, stride, grad, hooks, metadata)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _wrapper(*args: Any) -> Any:
    return args


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    if function is _WRAPPER:
        parts = state if isinstance(state, tuple) else (state,)  # a (dict, slots) pair: DTensor has slots
        tables = [part for part in parts if isinstance(part, dict)]
        check_few(sum(map(len, tables)))
        fields = {key: value for table in tables for key, value in table.items()}
        return WrapperRecord(str(getattr(kind, "kind", type(kind).__name__)), fields, state)
    if isinstance(function, Emulated):
        return function(*args)
    return Inert(function, kind, args, state)


class _Size(Emulated):
    """Stand-in for torch.Size, which a large pickle calls hundreds of thousands of times."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_remembered_size)

    def __call__(self, values: Any = ()) -> tuple[int, ...]:  # type: ignore[override]
        try:
            return _remembered_size(values)
        except TypeError:  # a list is not hashable
            return whole_numbers(values, "a torch.Size")


@lru_cache(maxsize=4096)  # a hundred thousand parts have the same few sizes, and nearly the same offsets
def _remembered_size(values: Any) -> tuple[int, ...]:
    return whole_numbers(values, "a torch.Size")


def _set(values: Any = ()) -> Any:
    """Emulate builtins.set, which protocols before 4 call with a list of the items. The list is returned unchanged."""
    return values if isinstance(values, list) else []


def _member(owner: Any, name: Any) -> Any:
    """Emulate builtins.getattr, with which old protocols pickle nested classes and enums; the result is a stand-in."""
    if not isinstance(name, str):
        raise CkptconvError("an attribute's name is not a string", kind=Kind.DAMAGED)
    return named(owner.kind if hasattr(owner, "kind") else type(owner).__name__, name)


def named(module: str, name: str) -> Any:
    """Return the stand-in for a global.

    Raises:
        CkptconvError: the module and the name together have more than 1,000 characters.
    """
    if len(module) + len(name) > _LONGEST_NAME:
        raise CkptconvError(
            "a pickle names a class with too long a name", found=f"{module}.{name}"[:80], kind=Kind.DAMAGED
        )
    return stand_in(module, name)


_WRAPPER = Emulated(_wrapper)
_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): PlainDict,
    ("collections", "defaultdict"): Emulated(lambda *_: PlainDict()),
    ("torch", "Size"): _Size(),
    ("torch._utils", "_rebuild_tensor_v2"): Emulated(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Emulated(_rebuild_tensor_of_bytes),
    ("torch._utils", "_rebuild_parameter"): Emulated(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Emulated(_rebuild_parameter),
    ("torch._utils", "_rebuild_wrapper_subclass"): _WRAPPER,
    ("torch._tensor", "_rebuild_from_type_v2"): Emulated(_rebuild_from_type),
    ("builtins", "getattr"): Emulated(_member),
    ("__builtin__", "getattr"): Emulated(_member),
    ("builtins", "set"): Emulated(_set),
    ("__builtin__", "set"): Emulated(_set),
}

# Classes that torch moved between its versions: (module, name) -> the kind that the backends use.
_KINDS: dict[tuple[str, str], str] = {
    (module, name): name
    for name, modules in {
        "DTensor": ("torch.distributed.tensor", "torch.distributed._tensor.api", "torch.distributed._tensor"),
        "DTensorSpec": (
            "torch.distributed.tensor._dtensor_spec",
            "torch.distributed._tensor._dtensor_spec",
            "torch.distributed._tensor.placement_types",
        ),
        "TensorMeta": (
            "torch.distributed.tensor._dtensor_spec",
            "torch.distributed._tensor._dtensor_spec",
            "torch.distributed._tensor.placement_types",
        ),
        "ShardOrderEntry": ("torch.distributed.tensor._dtensor_spec",),
        "DeviceMesh": ("torch.distributed.device_mesh", "torch.distributed._tensor.device_mesh"),
        "_MeshLayout": ("torch.distributed._mesh_layout",),
        "_FlatLayout": ("torch.distributed._mesh_layout",),
        "Replicate": (
            "torch.distributed.tensor.placement_types",
            "torch.distributed._tensor.placement_types",
        ),
        "_StridedShard": (
            "torch.distributed.tensor.placement_types",
            "torch.distributed._tensor.placement_types",
        ),
        "Partial": ("torch.distributed.tensor.placement_types", "torch.distributed._tensor.placement_types"),
        "ShardedTensor": ("torch.distributed._shard.sharded_tensor.api",),
        "ShardedTensorMetadata": ("torch.distributed._shard.sharded_tensor.metadata",),
        "TensorProperties": ("torch.distributed._shard.sharded_tensor.metadata",),
        "ShardMetadata": ("torch.distributed._shard.metadata",),
        "ChunkShardingSpec": ("torch.distributed._shard.sharding_spec.chunk_sharding_spec",),
        "EnumerableShardingSpec": ("torch.distributed._shard.sharding_spec.api",),
        "Tensor": ("torch",),
        "Parameter": ("torch.nn.parameter",),
    }.items()
    for module in modules
}
for _module in ("torch.distributed.tensor.placement_types", "torch.distributed._tensor.placement_types"):
    _KINDS[_module, "Shard"] = "Shard"
_KINDS["torch.distributed._shard.sharded_tensor.shard", "Shard"] = "LocalShard"

# torch/distributed/checkpoint: metadata.py, planner.py and filesystem.py.
_FIELDS = {
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.planner", "WriteItem"),
    ("torch.distributed.checkpoint.planner", "TensorWriteData"),
}


@lru_cache(maxsize=4096)
def stand_in(module: str, name: str) -> Any:
    """Return what the unpickler uses for a global. Nothing is imported."""
    if (module, name) in _CALLS:
        return _CALLS[module, name]
    if module in ("torch", "torch.storage"):
        dtype = from_storage(name) or (name if known(name) else None)
        if dtype:
            return Dtype(dtype)
    if (module, name) in _FIELDS:
        return type("Fields", (Fields,), {})
    kind = _KINDS.get((module, name), f"{module}.{name}")
    return type("Inert", (Inert,), {"kind": kind, "__slots__": ()})
