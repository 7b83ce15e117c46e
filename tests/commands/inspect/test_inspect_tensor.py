"""`inspect --tensor`: every rank's part is where it is said to be, and the picture shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.helpers import FIXTURES, ROLE, assert_one_error, cli, parse, tensors, unpacked

from ckptconv import inspect
from ckptconv.commands.inspect import Match, Part
from ckptconv.show.ranks import glyph
from ckptconv.show.split import split
from ckptconv.tensors.dtypes import itemsize

Made = Callable[[str], Path]


def bytes_of(part: Part, item: int) -> bytes:
    """What lies at the place that a part names, read without ckptconv."""
    with open(part.file, "rb") as file:
        file.seek(part.start)
        return file.read(part.nbytes)


def rebuilt(match: Match, copies: bool = False) -> np.ndarray:
    """The tensor from its parts, each read from its file as one contiguous piece; parts must not overlap."""
    kind = f"u{itemsize(match.dtype)}"
    flat = np.zeros(int(np.prod(match.shape)), kind)
    seen = np.zeros(flat.size, int)
    index = np.arange(flat.size).reshape(match.shape)
    for part in match.parts:
        if part.copy != copies:
            continue
        data = np.frombuffer(bytes_of(part, itemsize(match.dtype)), kind)
        if part.run:
            here = np.arange(part.run[0], part.run[1] + 1)
        else:
            here = index[
                tuple(slice(o, o + n) for o, n in zip(part.offsets, part.sizes, strict=True))
            ].ravel()
        flat[here] = data
        seen[here] += 1
    assert (seen == 1).all()
    return flat.reshape(match.shape)


TRUE = {
    "fsdp": ("verl_fsdp2_w4/run", "verl_fsdp2_w4/truth/global_step_2/actor/truth.safetensors"),
    "hsdp": ("torch_2_8/fsdp2_hsdp_w4", "torch_2_8/truth.safetensors"),
    "fsdp_tp": ("torch_2_8/fsdp2_tp_w4", "torch_2_8/truth.safetensors"),
    "sharded_tensor": ("torch_2_4/fsdp1_w2", "torch_2_4/truth.safetensors"),
    "zero_2": ("deepspeed_z2_fp32_w4:run", "deepspeed_z2_fp32_w4:truth.safetensors"),
    "zero_2_fp16": ("deepspeed_z2_fp16_w3:run", "deepspeed_z2_fp16_w3:truth.safetensors"),
    "zero_3": ("deepspeed_z3_bf16_w4:run", "deepspeed_z3_bf16_w4:truth.safetensors"),
}


def place(name: str) -> Path:
    packed, _, inside = name.partition(":")
    return unpacked(packed) / inside if inside else FIXTURES / name


@pytest.mark.parametrize("case", TRUE)
def test_every_part_lies_where_it_is_said_to_lie(case: str) -> None:
    run, truth = map(place, TRUE[case])
    whole = parse(truth.read_bytes())
    matches = inspect(run, tensor="*").matches
    assert matches is not None
    assert sum(len(match.names) for match in matches) == len(inspect(run).rows) or len(matches) > 5
    for match in matches:
        name = match.names[0]
        assert rebuilt(match).tobytes() == whole[name].data, name
        assert match.shape == whole[name].shape


def test_copies_are_said_and_lie_where_they_are_said_to_lie() -> None:
    whole = parse((FIXTURES / "torch_2_8" / "truth.safetensors").read_bytes())
    matches = inspect(FIXTURES / "torch_2_8" / "fsdp2_hsdp_w4", tensor="embed").matches or ()
    (match,) = matches
    assert [(part.rank, part.copy) for part in match.parts] == [(0, False), (2, True), (1, False), (3, True)]
    assert rebuilt(match, copies=True).tobytes() == whole["embed.weight"].data
    assert [part.coordinate for part in match.parts[:2]] == [{"ddp": 0, "fsdp": 0}, {"ddp": 1, "fsdp": 0}]


def drawn(match: Match, width: int = 100) -> tuple[str, list[str]]:
    """The picture: what is said above it, and its lines without the numbers at their left."""
    said, *lines = (str(line) for line in split(match, width))
    edge = min(re.match(r" *\d* ", line).end() for line in lines)  # type: ignore[union-attr]
    return said.strip(), [line[edge:] for line in lines]


def cells(match: Match) -> np.ndarray:
    """The rank of every element."""
    flat = np.full(int(np.prod(match.shape)), -1)
    index = np.arange(flat.size).reshape(match.shape)
    for part in match.parts:
        if not part.copy:
            box = tuple(slice(o, o + n) for o, n in zip(part.offsets, part.sizes, strict=True))
            flat[range(part.run[0], part.run[1] + 1) if part.run else index[box].ravel()] = part.rank
    return flat.reshape(match.shape)


def match_of(run: Path, name: str) -> Match:
    (match,) = inspect(run, tensor=name).matches or ()
    return match


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("torch_2_8/fsdp2_tp_w4", "blocks.0.down.weight"),  # rows and columns
        ("torch_2_8/fsdp2_tp_w4", "blocks.0.up.weight"),  # rows, ranks out of order
        ("deepspeed_z3_bf16_w4:run", "frozen.weight"),  # runs that end in the middle of a row
        ("deepspeed_z2_fp32_w4:run", "conv.weight"),  # runs in three dims
    ],
)
def test_a_small_picture_shows_every_element(run: str, name: str) -> None:
    match = match_of(place(run), name)
    grid = cells(match).reshape(match.shape[0], -1)
    assert len(set(grid.ravel())) > 1
    assert drawn(match)[1] == ["".join(glyph(rank) for rank in row) for row in grid.tolist()]


def test_a_vector_is_one_line() -> None:
    match = match_of(FIXTURES / "torch_2_8" / "fsdp2_tp_w4", "blocks.0.up.bias")
    assert drawn(match) == ("elements →", ["0002211133"])


def test_a_large_flat_tensor_shows_where_each_run_begins() -> None:
    match = match_of(place("deepspeed_z3_bf16_w4:run"), "embed.weight")
    _, lines = drawn(match)
    grid = cells(match)
    changes = {row for row in range(23) if len(set(grid[row].tolist())) > 1}
    shown = {line for line in lines if len(set(line)) > 1}
    assert shown == {"".join(glyph(rank) for rank in grid[row].tolist()) for row in changes}


def test_experts_in_three_dims(made: Made) -> None:
    match = match_of(made("qwen3_moe_w4"), "layers.0.mlp.experts.gate_up_proj")
    assert len(match.shape) == 3
    said, lines = drawn(match)
    assert said == "dim 0 ↓ dim 2 →"
    experts = [len({part.rank for part in match.parts if part.offsets[0] <= e < part.offsets[0] + part.sizes[0]})
               for e in range(match.shape[0])]  # fmt: skip
    assert experts == [1] * match.shape[0] == [1] * len(lines)


def test_cuts_along_three_dims_say_what_is_drawn() -> None:
    parts = tuple(
        Part(
            rank,
            {},
            (4 * (rank // 4), 3 * (rank // 2 % 2), 5 * (rank % 2)),
            (4, 3, 5),
            None,
            240,
            f"{rank}",
            0,
        )
        for rank in range(8)
    )
    match = Match("experts", ("experts",), (8, 6, 10), "float32", "", 1920, parts)
    said, lines = drawn(match)
    assert said == "dim 0 ↓ dim 1 →   (where dim 2 begins; it is cut too)"
    assert lines == ["000222"] * 4 + ["444666"] * 4


@pytest.mark.parametrize("ranks", [8, 64, 512, 4096])
def test_many_ranks_still_make_a_small_picture(ranks: int) -> None:
    parts = tuple(Part(r, {}, (3 * r, 0), (3, 1000), None, 12_000, f"{r}", 0) for r in range(ranks))
    match = Match("w", ("w",), (3 * ranks, 1000), "float32", "", 12_000 * ranks, parts)
    said, lines = drawn(match, 60)
    assert ("each line shows its middle row" in said) == (ranks > 24)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 60
    assert len({line[0] for line in lines}) >= min(ranks, 12)


PATTERNS = {
    "model.layers.1.mlp.up_proj.weight": 1,
    "*.up_proj.weight": 2,
    "up_proj.weight": 2,
    "mlp.*_proj.weight": 6,
    "layers.1": 12,
    "layers.1...": 12,
    "layers.1…": 12,
    "layers.1...proj.weight": 7,
    "model.layers.[01].mlp.up_proj.weight": 2,
    "layers.?.mlp.up_proj.*": 2,
    "...norm.weight": 5,
    "*": 27,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str) -> None:
    matches = inspect(FIXTURES / "verl_fsdp2_w4" / "run", tensor=pattern).matches or ()
    assert sum(len(match.names) for match in matches) == PATTERNS[pattern]


@pytest.mark.parametrize("pattern", ["layers.1", "layers.1...", "layers.1.*", "1.self_attn"])
def test_a_number_in_a_pattern_is_a_whole_number(pattern: str) -> None:
    from ckptconv.commands.inspect.match import matcher

    fits = matcher(pattern)
    assert fits("model.layers.1.self_attn.q_proj.weight")
    assert not fits("model.layers.10.self_attn.q_proj.weight")
    assert not fits("model.layers.21.self_attn.q_proj.weight") or pattern == "layers.2"


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    ran = cli("inspect", FIXTURES / "verl_fsdp2_w4" / "run", "--tensor", "layers.1.self_atn.qproj.weight")
    assert_one_error(ran, "no tensor's name matches layers.1.self_atn.qproj.weight")
    hint = ran.err.split("nearest: ")[1]
    assert hint.startswith("model.layers.0.self_attn.q_proj.weight")
    assert_one_error(cli("inspect", FIXTURES / "verl_fsdp2_w4" / "run", "--tensor", ""), "empty")


def test_the_table_has_rank_mesh_offsets_sizes_bytes_file_and_use() -> None:
    out = cli("inspect", FIXTURES / "torch_2_8" / "fsdp2_hsdp_w4", "--tensor", "embed", columns=100).out
    assert re.search(r"^rank +mesh +offsets +sizes +bytes +file *$", out, re.MULTILINE)
    row = r"^ +3 +ddp1 fsdp1 +15, 0 +14×7 +392 B +copy +model_world_size_4_rank_3\.pt$"
    assert re.search(row, re.sub(" +$", "", out, flags=re.MULTILINE), re.MULTILINE)


def test_json_has_every_part_of_every_match() -> None:
    run = place("deepspeed_z3_bf16_w4:run")
    found = json.loads(cli("inspect", run, "--tensor", "*", "--json").out)
    names = {name for match in found["matches"] for name in match["names"]}
    assert names == set(parse((place("deepspeed_z3_bf16_w4:truth.safetensors")).read_bytes()))
    (embed,) = (match for match in found["matches"] if match["pattern"] == "embed.weight")
    assert [part["run"] for part in embed["parts"]] == [[0, 57], [58, 115], [116, 173], [174, 229]]
    assert {"rank", "coordinate", "offsets", "sizes", "nbytes", "file", "start", "copy"} <= set(
        embed["parts"][0]
    )


def test_a_model_folder_says_file_and_byte(made: Made) -> None:
    hub = made("fsdp2_w4") / "hub"
    (match,) = inspect(hub, tensor="lm_head").matches or ()
    (part,) = match.parts
    with open(part.file, "rb") as file:
        file.seek(part.start)
        assert file.read(part.nbytes) == tensors(hub)["lm_head.weight"].data
    assert f"from byte {part.start:,}" in cli("inspect", hub, "--tensor", "lm_head").out


def test_a_rank_file_of_a_role_is_named_from_its_folder(made: Made) -> None:
    out = cli("inspect", made("fsdp2_w4"), "--tensor", "lm_head", columns=200).out
    assert str(made("fsdp2_w4") / ROLE) not in out
    assert "model_world_size_4_rank_3.pt" in out
