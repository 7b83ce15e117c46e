"""Load pickles as inert stand-ins, after `pickle_scan` has checked them. No other module loads pickles."""

from __future__ import annotations

import copyreg
import io
import pickle
import threading
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.inert import Inert
from ckptconv.formats.pickle_scan import check_pickle, tuples_in
from ckptconv.formats.stand_ins import Dtype, Storage, named

_SHALLOW = 4000  # nested tuples; every thread's stack has room to hash that many
_STACK_EACH = 256  # bytes of stack that the hash of one nested tuple takes
_ONE_AT_A_TIME = threading.Lock()  # threading.stack_size is global to the process


class SafeUnpickler(pickle.Unpickler):
    """An unpickler that resolves every global to a stand-in and every persistent id to a `Storage` record."""

    def find_class(self, module: str, name: str) -> Any:
        return named(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        # ("storage", storage class, key, location, number of elements): torch/serialization.py, persistent_id
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
            _, dtype, key, _, numel = pid
            if isinstance(dtype, Dtype) and isinstance(key, str) and type(numel) is int and numel >= 0:
                return Storage(key, dtype.name, numel)
            if isinstance(dtype, type) and issubclass(dtype, Inert) and dtype.kind.endswith("Storage"):
                raise CkptconvError(
                    "a tensor has an unknown dtype",
                    found=dtype.kind,
                    kind=Kind.UNSUPPORTED,
                )
        raise CkptconvError(
            "a persistent id is not a torch storage", found=type(pid).__name__, kind=Kind.DAMAGED
        )


def safe_load(data: bytes, where: str) -> Any:
    """Unpickle bytes into stand-ins.

    Args:
        data: the pickle.
        where: the file, for the error message.

    Raises:
        CkptconvError: the pickle is damaged, cut off, or asks for too much memory.
    """
    copyreg.clear_extension_cache()  # the C unpickler reads this cache before it calls find_class
    try:
        check_pickle(data)
        return _load(data)
    except CkptconvError as error:
        raise error.within(where=where) from error
    except (MemoryError, RecursionError) as error:
        raise CkptconvError(
            "a pickle asks for more memory than a checkpoint needs", where=where, kind=Kind.DAMAGED
        ) from error
    except Exception as error:
        raise CkptconvError(
            f"a pickle cannot be read: {type(error).__name__}: {error}", where=where, kind=Kind.DAMAGED
        ) from error
    finally:
        copyreg.clear_extension_cache()


def _load(data: bytes) -> Any:
    """Unpickle; where tuples may nest deeply, do so in a thread with a larger stack.

    The hash of a tuple is computed by recursion in C, one level for each nested tuple.
    """
    deepest = tuples_in(data)
    if deepest <= _SHALLOW:
        return SafeUnpickler(io.BytesIO(data)).load()
    found: list[Any] = []
    failed: list[BaseException] = []

    def load() -> None:
        try:
            found.append(SafeUnpickler(io.BytesIO(data)).load())
        except BaseException as error:
            failed.append(error)

    with _ONE_AT_A_TIME:
        before = threading.stack_size((1 << 20) + deepest * _STACK_EACH)
        try:
            thread = threading.Thread(target=load)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
