"""Open the arrays of an Orbax checkpoint with tensorstore, and check that every chunk is in the database.

Orbax stores Zarr 2 arrays, or Zarr 3 with `use_zarr3`, in one OCDBT database, or each in a folder of its own without
`use_ocdbt`. The keys of all chunks are looked up first: Orbax writes chunks of zeros too (`store_data_equal_to_fill_value`),
so that one that is absent was lost. Sources: tensorstore's documentation of the drivers `ocdbt`,
`zarr` and `zarr3`; orbax/checkpoint/_src/serialization/tensorstore_utils.py, orbax/checkpoint/_src/metadata/tree.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptconv.backends.orbax.decoded import DecodedArray, Scratch, said
from ckptconv.backends.orbax.layout import METADATA
from ckptconv.backends.orbax.tree import read_tree
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.tensors.boxes import Shape
from ckptconv.tensors.dtypes import known


def tensorstore() -> Any:
    """The module.

    Raises:
        CkptconvError: it is not installed.
    """
    try:
        import tensorstore
    except ImportError as error:
        raise CkptconvError(
            "an Orbax checkpoint is read with tensorstore, which is not installed",
            hint="pip install 'ckptconv[orbax]'",
            kind=Kind.ENVIRONMENT,
        ) from error
    return tensorstore


class Database:
    """An open checkpoint.

    Args:
        folder: the folder that holds `_METADATA`.
        ocdbt: the arrays are in an OCDBT database.
        zarr3: they are Zarr 3 arrays.

    Raises:
        CkptconvError: tensorstore is not installed.
    """

    def __init__(self, folder: Path, ocdbt: bool, zarr3: bool) -> None:
        self._ts, self._folder, self._zarr3 = tensorstore(), folder, zarr3
        disk = {"driver": "file", "path": f"{folder.absolute()}/"}
        self._store = {"driver": "ocdbt", "base": disk} if ocdbt else disk
        self._scratch = Scratch(folder)

    def opened(self, names: Iterable[str]) -> dict[str, DecodedArray]:
        """Open arrays.

        Args:
            names: their names in the database.

        Returns:
            Name -> array, in the same order.

        Raises:
            Incomplete: an array or a chunk of one is not in the database.
            CkptconvError: an array has a dtype that is not known, or the database is damaged.
        """
        present = self._keys()
        return {name: self._decoded(name, array, present) for name, array in self._open(names)}

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The sizes of arrays in bytes, decoded, by name. Raises as `opened` does."""
        return {name: array.size * array.dtype.numpy_dtype.itemsize for name, array in self._open(names)}

    def _open(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield each name and tensorstore's array; all are asked for at once."""
        driver = "zarr3" if self._zarr3 else "zarr"
        asked = {}
        for name in names:
            spec = {
                "driver": driver,
                "kvstore": self._store | {"path": self._prefix(name)},
                "fill_missing_data_reads": False,
            }
            asked[name] = self._ts.open(spec, open=True, read=True)
        for name, future in asked.items():
            try:
                array = future.result()
            except Exception as error:  # tensorstore raises ValueError for what is absent or damaged
                raise _unreadable(self._folder / name, error) from error
            yield name, array

    def _prefix(self, name: str) -> str:
        return f"{name}/" if self._store["driver"] == "ocdbt" else f"{self._folder.absolute()}/{name}/"

    def _keys(self) -> frozenset[str]:
        try:
            store = self._ts.KvStore.open(self._store).result()
            return frozenset(key.decode("utf-8", "replace") for key in store.list().result())
        except Exception as error:
            raise _unreadable(self._folder, error) from error

    def _decoded(self, name: str, array: Any, present: frozenset[str]) -> DecodedArray:
        dtype = array.dtype.name
        if not known(dtype):
            raise CkptconvError(
                "an array has a dtype that is not supported",
                where=self._folder / name,
                found=dtype,
                kind=Kind.UNSUPPORTED,
            )
        chunk: Shape = tuple(array.chunk_layout.read_chunk.shape or ())  # None for a scalar
        made = DecodedArray(self._folder, name, array, chunk, dtype, self._scratch)
        metadata = array.spec().to_json()["metadata"]
        for box in made.boxes if made.nbytes else ():
            at = [low // step for low, step in zip(box.offsets, chunk, strict=True)]
            if f"{name}/{self._key(at, metadata)}" not in present:
                raise Incomplete(
                    f"chunk {at} of an array is missing",
                    where=self._folder / name,
                    found="other chunks of it",
                    hint="copy the step again, with the folders ocdbt.process_N of all processes",
                )
        return made

    def _key(self, at: list[int], metadata: Mapping[str, Any]) -> str:
        if not self._zarr3:
            return metadata.get("dimension_separator", ".").join(map(str, at)) or "0"
        encoding = metadata.get("chunk_key_encoding", {})
        separator = encoding.get("configuration", {}).get("separator", "/")
        return separator.join(["c", *map(str, at)])


def again(folder: str, name: str) -> DecodedArray:
    """Open one array of a checkpoint, in another process."""
    tree = read_tree(Path(folder) / METADATA)
    return Database(Path(folder), tree.ocdbt, tree.zarr3).opened([name])[name]


def _unreadable(where: Path, error: Exception) -> CkptconvError:
    return CkptconvError(
        "the database of arrays cannot be read",
        where=where,
        found=said(error),
        hint="copy the step again, with the folders ocdbt.process_N of all processes",
        kind=Kind.DAMAGED,
    )
