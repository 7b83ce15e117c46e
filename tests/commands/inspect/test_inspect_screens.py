"""What `inspect` shows of real checkpoints, letter for letter, on wide and narrow terminals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, Ran, cli, process, unpacked
from support.snapshots import check

Made = Callable[[str], Path]

# A name, the folder, and what is asked of it. The folder's parent is where the command runs.
SCREENS: dict[str, tuple[str, tuple[str, ...]]] = {
    "verl_fsdp": ("verl_fsdp2_w4/run", ()),
    "verl_fsdp_critic": ("verl_fsdp2_w4/run/global_step_1/critic", ()),
    "verl_lora": ("verl_lora_w2/run", ()),
    "hsdp": ("torch_2_8/fsdp2_hsdp_w4", ()),
    "fsdp_tp": ("torch_2_8/fsdp2_tp_w4", ()),
    "megatron": ("megatron/qwen3_moe_tp2pp2ep2:run", ()),
    "megatron_ranks": ("megatron/mixtral_mlm_legacy:run", ()),
    "megatron_fsdp": ("megatron_fsdp/qwen3_moe_fsdp_ep2:run", ()),
    "vision": ("megatron/qwen2_5_vl_tp2:run", ()),
    "dcp": ("torchtitan_0_3:llama/run", ()),
    "deepspeed": ("deepspeed_z3_bf16_w4:run", ()),
    "huggingface": ("verl_lora_w2/base", ()),
    "tensor_fsdp": ("verl_fsdp2_w4/run", ("--tensor", "layers.1...down_proj.weight")),
    "tensor_hsdp": ("torch_2_8/fsdp2_hsdp_w4", ("--tensor", "*weight")),
    "tensor_fsdp_tp": ("torch_2_8/fsdp2_tp_w4", ("--tensor", "*")),
    "tensor_megatron": ("megatron/qwen3_moe_tp2pp2ep2:run", ("--tensor", "layers.1.self_attention")),
    "tensor_flat": ("deepspeed_z3_bf16_w4:run", ("--tensor", "*")),
    "tensor_huggingface": ("verl_lora_w2/base", ("--tensor", "layers.1.mlp")),
    "tree_vision": ("megatron/qwen2_5_vl_tp2:run", ("--tree",)),
    "tree_megatron": ("megatron/deepseek_v3_tp2pp2ep2:run", ("--tree",)),
    "tree_depth": ("verl_lora_w2/base", ("--depth", "2", "--sort", "size")),
}
WIDTHS = (60, 80, 120, 200)
ONE_WIDTH = 100  # what --tensor and --tree are kept at; the screens are kept at all of WIDTHS


def folder(name: str) -> Path:
    """`PACKED:INSIDE` or a folder of fixtures."""
    packed, _, inside = name.partition(":")
    return unpacked(packed) / inside if inside else FIXTURES / name


def shown(name: str, monkeypatch: pytest.MonkeyPatch, columns: int, *more: str) -> Ran:
    where, asked = SCREENS[name]
    path = folder(where)
    monkeypatch.chdir(path.parent)
    return cli("inspect", path.name, *asked, *more, columns=columns)


CASES = [
    (name, columns)
    for name, (_, asked) in SCREENS.items()
    for columns in ((ONE_WIDTH,) if asked else WIDTHS if name in ("verl_fsdp", "megatron") else (80, 120))
]


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_the_screen(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = shown(name, monkeypatch, columns)
    assert (ran.code, ran.err) == (0, "")
    check(f"{name}_{columns}", ran.out)


@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("columns", WIDTHS)
def test_every_screen_fits_its_terminal_and_shortens_names_in_their_middle(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, wide = shown(name, monkeypatch, columns), shown(name, monkeypatch, 1_000)
    assert max(map(len, ran.out.splitlines())) <= columns
    assert "…" not in wide.out
    whole = wide.out.split()
    for short in re.findall(r"\S*…\S*", ran.out):
        begin, _, end = short.partition("…")
        assert any(word.startswith(begin) and word.endswith(end) for word in whole), short


def test_a_peft_adapter(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made("lora_w4"))
    ran = cli("inspect", "adapter", columns=100)
    assert "PEFT adapter" in ran.out
    assert re.search(r"LoRA +on 14 modules, r 5, alpha 7, without base weights", ran.out)
    assert re.search(r"saved +peft \d", ran.out)
    assert "--base DIR" in ran.out, "what a merge of it wants"


@pytest.mark.parametrize("name", ["verl_fsdp", "tensor_hsdp", "tree_vision"])
def test_colour_is_left_out_for_pipes_and_no_color_and_the_letters_stay(name: str) -> None:
    where, asked = SCREENS[name]
    words = ("inspect", folder(where), *asked)
    plain = process(*words, COLUMNS="120").out
    force = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "120"}
    coloured = process(*words, **force).out
    without = process(*words, **force, NO_COLOR="1").out
    assert "\x1b" not in plain
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", coloured)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", without)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", without) == plain
