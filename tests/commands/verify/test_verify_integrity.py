"""Damaged files are found by checksums, header laws, index and receipt."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.verify_tools import NORM, Made, Q, only_wrong, poke, problems, views

from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import verify
from ckptconv.errors import CkptconvError
from ckptconv.plan import Options


def test_a_flipped_bit_in_a_rank_file_is_found_by_its_crc(made: Made, copied: Callable[..., Path]) -> None:
    damaged = copied("fsdp2_w4")
    file = poke(views(damaged)[Q], (50, 0), flip=0x40)
    result = verify(damaged, against=made("fsdp2_w4") / "hub")
    only_wrong(result, "integrity", "values")
    (said,) = problems(result, "integrity").items()
    assert said[0] == Q
    assert "rank 3" in said[1]
    assert Path(file).name in said[1]
    assert result.differences[0].stored_rank == (3,)
    only_wrong(verify(damaged), "integrity")


def test_rank_files_saved_without_crcs(tmp_path: Path) -> None:
    import torch

    from ckptconv.commands.verify.integrity import check_rank_files
    from ckptconv.tensors.checkpoint import Checkpoint, RankFile

    path = tmp_path / "model_world_size_1_rank_0.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    files = (RankFile(0, str(path), path.stat().st_size),)
    found = check_rank_files(Checkpoint("fsdp", "", tmp_path, 1, files, {}), None)
    assert not found.problems
    assert "cannot be checked" in found.unchecked[0]
    assert not found.seen, "nothing was checked, so nothing is counted"


def test_records_without_a_crc_are_not_counted_as_checked(tmp_path: Path) -> None:
    """torch.serialization.skip_data writes no CRC for the storages, whose bytes are filled in afterwards."""
    import torch

    from ckptconv.formats.torch_zip import open_torch_zip

    state = {"model.embed_tokens.weight": torch.ones(8, 4), "model.norm.weight": torch.ones(4)}
    path = tmp_path / "pytorch_model.bin"
    with torch.serialization.skip_data():
        torch.save(state, path)
    with open(path, "r+b") as file:
        for entry in open_torch_zip(str(path)).entries.values():
            file.seek(entry.start)
            file.write(np.linspace(1, 2, entry.nbytes // 4, dtype=np.float32).tobytes())
    (tmp_path / "config.json").write_text('{"architectures": ["Odd"], "model_type": "odd"}')
    layer = verify(tmp_path).layer("integrity")
    assert layer is not None
    assert layer.ok is None
    stated = [info for info in zipfile.ZipFile(path).infolist() if info.file_size]
    held = sum(bool(info.CRC) for info in stated)
    assert 0 < held == len(stated) - 2
    assert layer.found == f"{held} of {len(stated)} checksums in 1 rank file"
    assert layer.notes == (
        "2 entries in 1 rank file were saved without a CRC: their bytes cannot be checked",
    )


def test_a_truncated_model_folder_is_a_no(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = verify(out, against=made("fsdp2_w4"))
    only_wrong(result, "integrity")
    assert "truncated" in problems(result, "integrity")["model.safetensors"]


def test_index_and_receipt_laws(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(made("fsdp2_w4"), out, options=Options(max_shard_size="20KB"))
    index = out / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["metadata"]["total_size"] += 1
    index.write_text(json.dumps(data))
    receipt = out / "ckptconv.json"
    stated = json.loads(receipt.read_text())
    stated["tensors"]["model.gone.weight"] = stated["tensors"].pop(NORM)
    receipt.write_text(json.dumps(stated))
    result = verify(out)
    only_wrong(result, "integrity")
    assert set(problems(result, "integrity")) == {index.name, "model.gone.weight", NORM}
    data["weight_map"][NORM] = "model-00001-of-00001.safetensors"
    index.write_text(json.dumps(data))
    only_wrong(verify(out), "integrity")


def test_a_lost_shard_is_a_no(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(made("fsdp2_w4"), out, options=Options(max_shard_size="20KB"))
    sorted(out.glob("*.safetensors"))[1].unlink()
    only_wrong(verify(out), "integrity")


def test_what_cannot_be_answered_raises(made: Made, copied: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="no such folder"):
        verify(tmp_path / "nothing")
    with pytest.raises(CkptconvError, match="no such folder"):
        verify(made("fsdp2_w4") / "hub", against=tmp_path / "nothing")
    broken = copied("fsdp2_w4")
    next(broken.rglob("*rank_2.pt")).unlink()
    with pytest.raises(CkptconvError, match="rank 2 of 4 is missing"):
        verify(broken)
