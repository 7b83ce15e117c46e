"""tokenizer_config.json for both generations of transformers: two values are respelled, every other byte stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptconv.publish.tokenizer_config import for_both


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What transformers 5 saves."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "é": 2, "<one>": 3, "<two>": 4}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", additional_special_tokens=["<one>", "<two>"]
    )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path / "tokenizer_config.json"


def test_the_class_and_the_list_are_respelled_and_every_other_byte_stays(saved: Path) -> None:
    text = saved.read_text()
    assert '"TokenizersBackend"' in text
    assert '"extra_special_tokens": [' in text
    found = for_both(saved)
    assert found is not None
    old = text.replace("TokenizersBackend", "PreTrainedTokenizerFast").replace(
        '"extra_special_tokens"', '"additional_special_tokens"'
    )
    assert found.content.decode() == old
    assert "TokenizersBackend is written as PreTrainedTokenizerFast" in found.summary


def test_transformers_5_makes_the_same_tokenizer_of_it(saved: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    before = AutoTokenizer.from_pretrained(tmp_path)
    found = for_both(saved)
    assert found is not None
    saved.write_bytes(found.content)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert type(after) is type(before)
    assert after.special_tokens_map == before.special_tokens_map
    assert after.all_special_tokens == before.all_special_tokens
    assert "<two>" in after.all_special_tokens
    assert after("a é <two>")["input_ids"] == before("a é <two>")["input_ids"]


def test_a_name_that_is_also_elsewhere_in_the_file_changes_only_where_it_is_the_class(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    inner = {"tokenizer_class": "TokenizersBackend"}
    file.write_text(json.dumps({"before": inner, "tokenizer_class": "TokenizersBackend"}))
    found = for_both(file)
    assert found is not None
    assert json.loads(found.content) == {"before": inner, "tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    "text", ['{"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {}}', "[1]", "{"]
)
def test_a_file_that_both_generations_read_alike_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(text)
    assert for_both(file) is None
