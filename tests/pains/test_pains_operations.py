"""Pains of the other converters: what goes wrong around the conversion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    LORA,
    ROLE,
    VARIANTS,
    Tensors,
    assert_equal,
    cast,
    cli,
    edit_config,
    own_copy,
    save_ws1,
    state,
    tensors,
)

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]
Merged = Callable[..., Tensors]
ROUTER_BIAS = "e_score_correction_bias"


Made = Callable[[str], Path]
Merged = Callable[..., Tensors]


def test_the_tokenizer_is_not_re_serialised_so_serving_works(
    made: Made, tmp_path: Path, merged: Merged
) -> None:
    """Tokenizer re-serialised so that serving fails; the two values that stop transformers 4 are spelled for both."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    folder = run / ROLE / "huggingface"
    data = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "extra_special_tokens": ["<x>"],
        "old": 1.50,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(data, indent=3) + "\n\n")
    merged(run)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    text = (folder / "tokenizer_config.json").read_text()
    for new, old in (  # what transformers 4 cannot read, and nothing else
        ('"TokenizersBackend"', '"PreTrainedTokenizerFast"'),
        ('"extra_special_tokens"', '"additional_special_tokens"'),
    ):
        assert new in text
        text = text.replace(new, old)
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == text


def test_a_crash_leaves_neither_junk_nor_half_a_model(made: Made, tmp_path: Path) -> None:
    """crash leaves junk or nothing."""
    merge(made("fsdp2_w4"), tmp_path / "out")
    before = state(tmp_path)

    def crash(step: Progress) -> None:
        if step.done:
            raise RuntimeError("crash")

    for variant in ("fsdp2_tied_w4", "lora_w4"):
        with pytest.raises(RuntimeError, match="crash"):
            merge(made(variant), tmp_path / "out", overwrite=True, on_progress=crash)
        assert state(tmp_path) == before


def test_a_full_disk_is_not_found_after_20_minutes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """disk full after 20 minutes: it is found before anything is read or written."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1_000))
    read: list[object] = []
    with pytest.raises(CkptconvError, match="not enough free space") as error:
        merge(made("fsdp2_w4"), tmp_path / "out", on_progress=read.append)
    assert error.value.found == "1,000 bytes free"
    assert (read, list(tmp_path.iterdir())) == ([], [])


def test_errors_do_not_come_only_after_loading_everything(made: Made, tmp_path: Path) -> None:
    """errors only after loading everything: all storages are overwritten, and still the metadata's error comes first."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, vocab_size=999)
    read: list[object] = []
    with pytest.raises(CkptconvError, match="does not match these tensors"):
        merge(run, tmp_path / "out", on_plan=read.append, on_progress=read.append)
    assert read == []
    assert not (tmp_path / "out").exists()


def test_consolidation_is_not_single_threaded(tmp_path: Path) -> None:
    """slow, single-threaded consolidation: several threads write, and the bytes are the same as with one."""
    import threading

    import torch

    whole = torch.randn(3_000, 4_000, generator=torch.Generator().manual_seed(2))
    run = save_ws1({"one": whole, "two": whole[:999]}, {"model_type": "odd"}, tmp_path / "run")
    seen: set[int] = set()

    def look(step: Progress) -> None:
        if step.done:
            seen.add(threading.get_ident())

    merge(run, tmp_path / "many", workers=4, on_progress=look)
    merge(run, tmp_path / "one", workers=1)
    assert len(seen) > 1
    assert state(tmp_path / "many") == state(tmp_path / "one")
    assert tensors(tmp_path / "one")["one"].data == whole.bfloat16().view(torch.int16).numpy().tobytes()


def test_index_and_format_pt_metadata_are_not_missing(made: Made, tmp_path: Path, merged: Merged) -> None:
    """missing index or `format: pt` metadata."""
    from safetensors import safe_open

    found = merged(made("fsdp2_w4"), max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    for name in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_which_base_which_step_did_this_come_from(made: Made, tmp_path: Path) -> None:
    """ "which base, which step did this come from?"."""
    run = own_copy(made("lora_w4"), tmp_path / "my-run")
    edit_config(run, _name_or_path="Qwen/Qwen2-0.5B")
    merge(run, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    assert receipt["base_model"] == "Qwen/Qwen2-0.5B"
    assert (receipt["source"]["step"], receipt["source"]["role"]) == (7, "actor")
    assert receipt["source"]["folder"] == ROLE
    origin = receipt["tensors"]["model.layers.1.mlp.down_proj.weight"]["from"]
    assert [name.rsplit(".", 2)[-2] for name in origin] == ["base_layer", "default", "default"]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("lora_noalpha_w2", *LORA[3:])])
def test_how_do_i_convert_is_one_command_without_flags(made: Made, tmp_path: Path, variant: str) -> None:
    """ "how do I convert?" - it must be one command without flags. Routers stay in float32."""
    ran = cli("merge", made(variant), tmp_path / "out")
    assert ran.code == 0, ran.err
    merge(made(variant), tmp_path / "kept", dtype="keep")
    kept, written = (
        {
            name: t
            for name, t in tensors(tmp_path / folder).items()
            if ROUTER_BIAS not in name and not name.endswith("mlp.gate.weight")
        }
        for folder in ("kept", "out")
    )
    assert_equal(written, cast(kept))
    assert (tmp_path / "out" / "config.json").is_file()
