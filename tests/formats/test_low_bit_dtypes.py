"""Every dtype of safetensors 0.8 and of torch's zip files is copied byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptconv
from ckptconv.errors import CkptconvError

_TORCH = (
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
)
_EVERY = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_CONFIG = {
    "model_type": "no_such_model",
    "auto_map": {"AutoModel": "modeling_own.Own"},
    "architectures": ["Own"],
}


def _codes(dtype: str, rows: int = 6) -> torch.Tensor:
    return torch.randint(0, 120, (rows, 8), dtype=torch.uint8).view(getattr(torch, dtype))


def _bytes(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (e["dtype"], e["shape"], data[8 + length :][slice(*e["data_offsets"])])
        for name, e in header.items()
    }


def _merge(folder: Path, out: Path, **options: object) -> Path:
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "modeling_own.py").write_text("class Own: ...\n")
    ckptconv.merge(folder, out, verify=True, **options)
    assert ckptconv.verify(out, against=folder).ok is not False
    return out / "model.safetensors"


def _written(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A safetensors file of these (dtype, shape, bytes), in the order that safetensors itself keeps."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_every_dtype_of_safetensors_is_copied_byte_for_byte(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {
        f"w.{code}": (
            code,
            [3, 8],
            bytes(i % 2 if code == "BOOL" else (17 * i) % 59 for i in range(3 * bits)),
        )
        for code, bits in _EVERY.items()
    }
    _written(folder / "model.safetensors", tensors)
    with safe_open(folder / "model.safetensors", "np") as reader:  # safetensors accepts the file
        assert set(reader.keys()) == set(tensors)
    assert _bytes(_merge(folder, tmp_path / "out")) == tensors


def test_torchs_low_bit_dtypes_from_safetensors_are_read_by_torch_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {dtype: _codes(dtype) for dtype in _TORCH}
    save_file(tensors, folder / "model.safetensors")
    before = _bytes(folder / "model.safetensors")
    made = _merge(folder, tmp_path / "out", max_shard_size="1GB")
    assert _bytes(made) == before
    for name, tensor in load_file(made).items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.shape == tensors[name].shape
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8))


def test_torchs_low_bit_dtypes_from_a_zip_file_are_copied_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {dtype: _codes(dtype) for dtype in _TORCH}
    torch.save(tensors, folder / "pytorch_model.bin")
    made = load_file(_merge(folder, tmp_path / "out"))
    assert set(made) == set(tensors)
    for name, tensor in made.items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.shape == tensors[name].shape
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8))


def test_four_bit_values_whose_last_dim_ends_within_a_byte_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    _written(folder / "model.safetensors", {"w": ("F4", [4, 3], bytes(6))})
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    with pytest.raises(CkptconvError, match="ends within a byte"):
        ckptconv.merge(folder, tmp_path / "out")


def test_codes_are_not_cast(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": _codes("float4_e2m1fn_x2")}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    with pytest.raises(CkptconvError, match="quantized weights cannot be cast"):
        ckptconv.merge(folder, tmp_path / "out", dtype="bf16")


def test_the_same_dtypes_in_a_dcp_folder_are_copied_as_they_are(tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "config"
    dtypes = (*_TORCH, "uint16", "uint32", "uint64", "complex64")
    tensors = {f"{dtype}.weight": _codes(dtype) for dtype in dtypes}
    dcp.save(dict(tensors), checkpoint_id=run, no_dist=True)
    config.mkdir()
    (config / "config.json").write_text(json.dumps(_CONFIG))
    (config / "modeling_own.py").write_text("class Own: ...\n")
    ckptconv.merge(run, tmp_path / "out", config=config)
    assert ckptconv.verify(tmp_path / "out", against=run).ok is not False
    written = _bytes(tmp_path / "out/model.safetensors")
    for name, tensor in tensors.items():
        assert written[name][2] == tensor.view(torch.uint8).numpy().tobytes(), name
