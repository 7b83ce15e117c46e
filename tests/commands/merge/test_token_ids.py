"""Special tokens and tokenizers beyond the rows of the embedding are reported; others pass in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import ROLE, edit_config, own_copy

from ckptconv import merge
from ckptconv.commands.merge import token_ids

Made = Callable[[str], Path]


def _run(made: Made, tmp_path: Path) -> tuple[Path, Path, int]:
    """A run of its own, the folder with its small files, and the rows of its embedding."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    beside = run / ROLE / "huggingface"
    return run, beside, json.loads((beside / "config.json").read_text())["vocab_size"]


def _notes(run: Path, tmp_path: Path) -> list[str]:
    planned = merge(run, tmp_path / "out", dry_run=True).plan.notes
    return [note for note in planned if "embedding has" in note]


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_special_token_without_a_row_is_reported(made: Made, tmp_path: Path, file: str, key: str) -> None:
    run, beside, rows = _run(made, tmp_path)

    def noted(value: Any) -> list[str]:
        if file == "config.json":
            edit_config(run, **{key: value})
        else:
            (beside / file).write_text(json.dumps({key: value}))
        return _notes(run, tmp_path)

    for fine in (None, -1, 0, rows - 1, [0, rows - 1]):
        assert noted(fine) == []
    for beyond in (rows, [0, rows]):
        assert noted(beyond) == [f"{file} states {key} {rows}, and the model's embedding has {rows} rows"]


def _tokenizer(kind: str, count: int, added: list[int]) -> Any:
    """A tokenizer that the library itself writes."""
    tokenizers = pytest.importorskip("tokenizers")
    names = {chr(0x4E00 + number): number for number in range(count)}
    models = {
        "BPE": lambda: tokenizers.models.BPE(names, [("一", "丁")] if "一丁" in names else []),
        "WordLevel": lambda: tokenizers.models.WordLevel(names, unk_token="一"),
        "WordPiece": lambda: tokenizers.models.WordPiece(names, unk_token="一"),
        "Unigram": lambda: tokenizers.models.Unigram([(name, -1.0) for name in names], unk_id=0),
    }
    tokenizer = tokenizers.Tokenizer(models[kind]())
    tokenizer.add_special_tokens([f'<|"id": {number}|>' for number in added])
    return tokenizer


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "WordPiece", "Unigram"])
@pytest.mark.parametrize("pretty", [True, False])
def test_a_tokenizer_with_more_tokens_than_rows_is_reported(
    made: Made, tmp_path: Path, kind: str, pretty: bool
) -> None:
    run, beside, rows = _run(made, tmp_path)
    path = beside / "tokenizer.json"

    def noted(count: int, added: list[int]) -> list[str]:
        _tokenizer(kind, count, added).save(str(path), pretty=pretty)
        return _notes(run, tmp_path)

    assert noted(rows, []) == []
    assert noted(rows - 1, [10**6]) == []  # the number is in the token's text; its id is the next one
    (note,) = noted(rows, [1])
    assert note.startswith(f"tokenizer.json has ids up to {rows}, and the model's embedding has {rows} rows")
    if kind != "Unigram":  # a list without ids
        (note,) = noted(rows + 3, [])
        assert f"ids up to {rows + 2}" in note


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json"])
def test_a_vocabulary_without_tokenizer_json_is_read_too(made: Made, tmp_path: Path, name: str) -> None:
    run, beside, rows = _run(made, tmp_path)
    (beside / name).write_text(json.dumps({"a": 0, "b": rows - 1}))
    assert _notes(run, tmp_path) == []
    (beside / name).write_text(json.dumps({"a": 0, "b": rows}, indent=2))
    (note,) = _notes(run, tmp_path)
    assert note.startswith(f"{name} has ids up to {rows}")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"added_tokens": 3, "normalizer": null}', b'"merges"', b"\xff" * 9]
)
def test_a_tokenizer_of_another_form_is_left_to_its_reader(
    made: Made, tmp_path: Path, content: bytes
) -> None:
    run, beside, _ = _run(made, tmp_path)
    (beside / "tokenizer.json").write_bytes(content)
    assert _notes(run, tmp_path) == []


def test_a_large_tokenizer_costs_little(tmp_path: Path) -> None:
    import time

    path = tmp_path / "tokenizer.json"
    merges = ",".join(f'["{number:07}","x"]' for number in range(300_000))
    path.write_text(
        '{"added_tokens": [], "normalizer": null, "model": {"vocab": {"a": 7}, "merges": [' + merges + "]}}"
    )
    assert path.stat().st_size > 4_500_000
    times = []
    for _ in range(5):
        begun = time.process_time()
        assert token_ids._highest(path) == 7
        times.append(time.process_time() - begun)
    assert min(times) < 0.01
