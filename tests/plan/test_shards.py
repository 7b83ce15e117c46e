"""Files are laid out as safetensors' own writer lays them out, and cut as save_pretrained cuts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import _TYPES, save_file

from ckptconv.errors import CkptconvError
from ckptconv.plan.shards import INDEX, OutFile, in_bytes, index, out_file, shards
from ckptconv.tensors.dtypes import from_safetensors, itemsize, to_safetensors
from ckptconv.tensors.view import View, stored

DTYPES = [name for code in sorted(_TYPES) if (name := from_safetensors(code))]
NAMES = {
    "plain": "model.layers.0.weight",
    "quotes": "a \"quoted\" \\ name / with 'all'",
    "control characters": "tab\t newline\n return\r bell\x07 delete\x7f nul\x00",
    "unicode": "größe.权重.🙂.\u2028",
    "combining": "e\u0301",
    "empty": "",
    "slash": "folder/name",
}


def tensor(dtype: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random bytes as a tensor of any dtype."""
    count = torch.Size(shape).numel() * itemsize(dtype)
    raw = torch.randint(
        0, 2 if dtype == "bool" else 256, (count,), generator=torch.Generator().manual_seed(seed)
    )
    return raw.to(torch.uint8).view(getattr(torch, dtype)).reshape(shape)


def views(tensors: dict[str, torch.Tensor]) -> dict[str, View]:
    return {
        name: stored("source", 0, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
    }


def filled(file: OutFile, tensors: dict[str, torch.Tensor]) -> bytes:
    """The file as a copier would write it."""
    content = bytearray(file.nbytes)
    content[: len(file.header)] = file.header
    for name, start in file.offsets.items():
        raw = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        content[start : start + len(raw)] = raw
    return bytes(content)


def safetensors_writes(tensors: dict[str, torch.Tensor], path: Path) -> bytes:
    save_file(tensors, path, metadata={"format": "pt"})
    return path.read_bytes()


def same_file(tensors: dict[str, torch.Tensor], path: Path) -> bool:
    return filled(out_file("m.safetensors", views(tensors)), tensors) == safetensors_writes(tensors, path)


# --- one file


def test_all_dtypes_are_ordered_as_safetensors_orders_them(tmp_path: Path) -> None:
    assert len(DTYPES) >= 15
    tensors = {f"{n}.{dtype}": tensor(dtype, 3, 5, seed=n) for n in range(2) for dtype in DTYPES}
    assert same_file(tensors, tmp_path / "m")


def test_every_dtype_of_torch_and_safetensors_that_is_known_has_its_code() -> None:
    for code, dtype in _TYPES.items():
        name = str(dtype).removeprefix("torch.")
        assert from_safetensors(code) in (name, None)
        assert from_safetensors(code) is None or (to_safetensors(name), itemsize(name)) == (
            code,
            dtype.itemsize,
        )


@pytest.mark.parametrize("case", NAMES)
def test_names_are_escaped_as_safetensors_escapes_them(case: str, tmp_path: Path) -> None:
    assert same_file({NAMES[case]: tensor("float32", 2)}, tmp_path / "m")


def test_names_are_ordered_by_their_bytes(tmp_path: Path) -> None:
    names = ["b", "a", "B", "a.10", "a.2", "z", "ä", "\uffff", "\U00010000", *NAMES.values()]
    assert same_file({name: tensor("int16", n + 1) for n, name in enumerate(names)}, tmp_path / "m")


def test_scalars_and_empty_tensors_have_their_place(tmp_path: Path) -> None:
    tensors = {
        "scalar": tensor("float64"),
        "empty": torch.empty(0, 7),
        "empty too": torch.empty(3, 0, 2, dtype=torch.int64),
        "one": tensor("bool", 1, 1, 1),
        "many": tensor("bfloat16", 9, 3),
    }
    assert same_file(tensors, tmp_path / "m")


@pytest.mark.parametrize("length", range(8))
def test_the_header_is_padded_to_eight(length: int, tmp_path: Path) -> None:
    assert same_file({"x" * length: tensor("uint8", 3)}, tmp_path / "m")


def test_no_tensors_make_an_empty_file(tmp_path: Path) -> None:
    assert same_file({}, tmp_path / "m")


def test_the_header_is_this() -> None:
    file = out_file(
        "m.safetensors", {"b": stored("f", 0, (2, 3), "bfloat16"), "a": stored("f", 0, (), "int8")}
    )
    text = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},'
        b'"a":{"dtype":"I8","shape":[],"data_offsets":[12,13]}}'
    )
    assert file.header[8:].rstrip(b" ") == text
    assert int.from_bytes(file.header[:8], "little") == len(file.header) - 8
    assert len(file.header) % 8 == 0
    assert file.offsets == {"b": len(file.header), "a": len(file.header) + 12}
    assert file.nbytes == len(file.header) + 13


def test_a_file_in_a_subfolder_has_bare_names(tmp_path: Path) -> None:
    tensors = {"lora_adapter/a.weight": tensor("float32", 3, 2)}
    file = out_file("lora_adapter/adapter_model.safetensors", views(tensors))
    (tmp_path / "m").write_bytes(filled(file, tensors))
    with safe_open(tmp_path / "m", "pt") as opened:
        assert opened.keys() == ["a.weight"]
        assert torch.equal(
            opened.get_tensor("a.weight").view(torch.int32),
            tensors["lora_adapter/a.weight"].view(torch.int32),
        )


# --- several files


def a_model() -> dict[str, torch.Tensor]:
    """Tensors of many sizes in the order in which a model names them."""
    tensors = {"model.embed_tokens.weight": tensor("float32", 101, 18)}
    for layer in range(12):
        tensors[f"model.layers.{layer}.up"] = tensor("bfloat16", 54, 18 + layer, seed=layer)
        tensors[f"model.layers.{layer}.norm"] = tensor("float32", 18, seed=layer)
    return tensors | {"steps": tensor("int64"), "lm_head.weight": tensor("float32", 101, 18, seed=1)}


@pytest.mark.parametrize("size", [3000, "3KB", "7.5kb", " 0.01 MB ", "1TB", 10**9, 1])
def test_files_and_index_are_those_of_huggingface_hub(size: int | str, tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    tensors = a_model()
    save_torch_state_dict(tensors, tmp_path, max_shard_size=size)
    files = shards(views(tensors), size)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != INDEX}
    assert {file.name: filled(file, tensors) for file in files} == found
    text = index(files, views(tensors))
    assert (text is None) == (len(files) == 1) == (not (tmp_path / INDEX).exists())
    if text is not None:
        ours, theirs = json.loads(text), json.loads((tmp_path / INDEX).read_text())
        assert ours["weight_map"] == theirs["weight_map"]
        assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]


def test_save_pretrained_writes_the_same_bytes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=101, hidden_size=18, intermediate_size=54, num_hidden_layers=2, tie_word_embeddings=False,
        num_attention_heads=3, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    tensors = model.state_dict()
    files = shards(views(tensors), "10KB")
    assert len(files) > 2
    assert index(files, views(tensors)) == (tmp_path / INDEX).read_bytes()
    for file in files:
        assert filled(file, tensors) == (tmp_path / file.name).read_bytes()


@pytest.mark.parametrize("size", ["", "5", "5XB", "GB", "five GB", "1,5GB", "nanGB", "1e3GB", "5G5", 5.5])
def test_text_that_is_not_a_size_is_refused(size: object) -> None:
    with pytest.raises(CkptconvError, match="is not a size") as error:
        shards({"a": stored("f", 0, (2,), "int8")}, size)  # type: ignore[arg-type]
    assert error.value.wanted == "a number with a unit, such as 5GB or 256MiB"


@pytest.mark.parametrize("size", ["infGB", "-5GB", "0GB", "0.1B", 0, -1])
def test_a_size_below_one_byte_is_refused(size: int | str) -> None:
    with pytest.raises(CkptconvError, match="is not a size"):
        shards({"a": stored("f", 0, (2,), "int8")}, size)


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        ("5GB", 5 * 10**9), ("5G", 5 * 10**9), ("5 gb", 5 * 10**9), ("1.5K", 1500), ("7B", 7), (7, 7),
        ("256MiB", 256 * 2**20), ("1GiB", 2**30), ("2TB", 2 * 10**12),
    ],
)  # fmt: skip
def test_a_size_has_a_unit_of_a_thousand_or_of_1024(size: int | str, nbytes: int) -> None:
    assert in_bytes(size) == nbytes
