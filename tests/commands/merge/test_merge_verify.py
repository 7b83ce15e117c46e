"""merge --verify: what was written is read again by safetensors, and a fault is found before the folder appears."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.helpers import cli

from ckptconv.commands.merge.check import _boxes
from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.copy import output_file
from ckptconv.errors import CkptconvError, ExitCode
from ckptconv.plan import Options

Made = Callable[[str], Path]
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("fsdp2_w4", Options()),
        ("fsdp2_tp_uneven_w4", Options(dtype="keep", max_shard_size="20KB")),
        ("qwen3_moe_w4", Options(layout="module")),
        ("lora_w4", Options(lora="both")),
        ("buffers_w2", Options()),
    ],
)
def test_what_was_written_is_the_source(made: Made, tmp_path: Path, variant: str, options: Options) -> None:
    seen: list[Progress] = []
    config = None
    if variant == "buffers_w2":
        config = made(variant) / "global_step_7" / "actor" / "huggingface"

    result = merge(
        made(variant),
        tmp_path / "out",
        options=options,
        config=config if config and config.is_dir() else None,
        verify=True,
        on_progress=seen.append,
    )
    assert result.checked == len(result.plan.outputs)
    writes = [step for step in seen if step.phase == "write"]
    assert writes[-1].done == writes[-1].total == result.plan.nbytes
    checks = [step for step in seen if step.phase == "check"]
    assert [step.done for step in checks].count(0) == 1
    nbytes = sum(output.nbytes for output in result.plan.outputs.values())
    assert checks[-1].done == checks[-1].total == nbytes, "every byte"
    assert {step.what for step in checks[1:]} == {Path(file.name).name for file in result.plan.files}


def flip(monkeypatch: pytest.MonkeyPatch, file: str, place: Callable[[int], int]) -> None:
    """The writer flips one bit of what it writes to a file; place: of the first block's size, the byte of it."""
    write = output_file.OutputFile.write
    done: list[int] = []

    def wrong(self: Any, data: np.ndarray, offset: int) -> None:
        if not done and self.path.name.startswith(file) and offset and data.nbytes > 1000:
            done.append(offset)
            data[place(data.nbytes)] ^= 0x10
        write(self, data, offset)

    monkeypatch.setattr(output_file.OutputFile, "write", wrong)


@pytest.mark.parametrize("dtype", ["keep", "auto"])
def test_one_flipped_bit_is_found_and_nothing_appears(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    merge(made("fsdp2_w4"), tmp_path / "whole", options=Options(dtype=dtype))
    flip(monkeypatch, "model", lambda nbytes: nbytes - 1)
    merge(made("fsdp2_w4"), tmp_path / "unseen", options=Options(dtype=dtype), workers=1)
    monkeypatch.undo()
    assert (tmp_path / "whole/model.safetensors").read_bytes() != (
        tmp_path / "unseen/model.safetensors"
    ).read_bytes(), "the fault is real, and a merge that does not look does not see it"
    flip(monkeypatch, "model", lambda nbytes: nbytes - 1)
    with pytest.raises(CkptconvError, match="does not match the checkpoint") as raised:
        merge(made("fsdp2_w4"), tmp_path / "out", options=Options(dtype=dtype), workers=1, verify=True)
    assert raised.value.code is ExitCode.NO
    assert "lm_head.weight, element [100, 26] in model.safetensors" in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["unseen", "whole"], "neither the folder nor its work folder"


def test_the_folder_of_before_stays(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    merge(made("fsdp2_w4"), out)
    before = (out / "model.safetensors").read_bytes()
    flip(monkeypatch, "model", lambda nbytes: 0)
    with pytest.raises(CkptconvError, match="does not match the checkpoint"):
        merge(made("fsdp2_w4"), out, verify=True, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before


def test_headers_and_index_are_checked(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptconv.commands.merge import small_files

    small = small_files.write

    def wrong(work: Path, *rest: Any) -> list[str]:
        names = small(work, *rest)
        index = work / "model.safetensors.index.json"
        index.write_text(index.read_text().replace('"lm_head.weight"', '"lm_head.wait"'))
        return names

    monkeypatch.setattr(small_files, "write", wrong)
    with pytest.raises(CkptconvError, match="does not match the checkpoint") as raised:
        merge(made("fsdp2_w4"), tmp_path / "out", verify=True, options=Options(max_shard_size="20KB"))
    assert "lm_head.wait is listed in" in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 3), (3, 4, 5), (2, 9, 1), (1, 1, 50)])
@pytest.mark.parametrize("most", [1, 2, 7, 20, 1000])
def test_a_tensor_is_read_in_pieces_that_are_all_of_it(shape: tuple[int, ...], most: int) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape)
    pieces = [array[slices].reshape(-1) for slices, _ in _boxes(shape, most)]
    assert all(len(piece) <= most for piece in pieces)
    assert np.array_equal(np.concatenate(pieces), array.reshape(-1))


def test_it_is_said(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("fsdp2_w4"), tmp_path / "out", "--verify")
    assert ran.code == 0
    said = "Checked   1 file: all 27 tensors match the checkpoint bit for bit"
    assert said in ran.err.splitlines()
    ran = cli("merge", made("fsdp2_w4"), tmp_path / "json", "--verify", "--json")
    assert '"checked_tensors": 27' in ran.out


def test_the_commands_exit_code_is_no(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(monkeypatch, "model", lambda nbytes: 5)
    ran = cli("merge", made("fsdp2_w4"), tmp_path / "out", "--verify")
    assert ran.code == 1
    assert "nothing was published" in ran.flat
    assert not (tmp_path / "out").exists()


def test_float8_and_scalars(tmp_path: Path) -> None:
    """dtypes that numpy has no name for, by a folder that is merged again."""
    import torch
    from safetensors.torch import save_file

    source = tmp_path / "source"
    source.mkdir()
    tensors = {
        "a": torch.randn(5, 3).to(torch.float8_e4m3fn),
        "b": torch.randn(4).to(torch.float8_e5m2),
        "c": torch.tensor(2.5, dtype=torch.bfloat16),
        "d": torch.zeros(0, 3),
        "e": torch.arange(6).reshape(2, 3),
        "f": torch.tensor([True, False]),
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text("{}")
    assert merge(source, tmp_path / "out", verify=True).checked == 6
