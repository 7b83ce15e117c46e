"""tokenizer_config.json: values that one transformers generation cannot read, in a spelling that both read.

Seen with transformers 4.57.6: it knows no class TokenizersBackend, which is transformers 5's name for
PreTrainedTokenizerFast, and it wants a JSON object in extra_special_tokens, where transformers 5 writes a list; the list
is what both read as additional_special_tokens.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError
from ckptconv.formats.json import parse_json
from ckptconv.tensors.look import read_bytes

TOKENIZER_CONFIG = "tokenizer_config.json"
_CLASS, _EXTRA, _ADDITIONAL = "tokenizer_class", "extra_special_tokens", "additional_special_tokens"
_NEW, _OLD = "TokenizersBackend", "PreTrainedTokenizerFast"


class Respelled(NamedTuple):
    """A tokenizer_config.json for both generations.

    Args:
        content: the content of the file.
        summary: what was changed, for the user.
    """

    content: bytes
    summary: str


def for_both(path: Path) -> Respelled | None:
    """The file's content with those values respelled and every other byte as it was; None if there is none of them.

    Args:
        path: a tokenizer_config.json. One that is not a JSON object is copied as it is: transformers reports it.
    """
    data = read_bytes(path)
    try:
        config = parse_json(data, path)
    except CkptconvError:
        return None
    if not isinstance(config, dict):
        return None
    wanted, changes = _respelled(config)
    if not changes:
        return None
    text = _edited(data.decode("utf-8"), config)
    if _parsed(text) != wanted:  # the names are also elsewhere in the file
        text = json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
    return Respelled(text.encode("utf-8", "surrogatepass"), " and ".join(changes) + ", for transformers 4")


def misread(config: dict[str, Any]) -> list[str]:
    """What transformers 4 cannot read in a parsed tokenizer_config.json."""
    found = []
    if config.get(_CLASS) == _NEW:
        found.append(f"{_CLASS} is {_NEW}, a class that transformers 4 does not have")
    if isinstance(config.get(_EXTRA), list):
        found.append(f"{_EXTRA} is a list, and transformers 4 wants an object")
    return found


def _respelled(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    new, changes = dict(config), []
    if config.get(_CLASS) == _NEW:
        new[_CLASS] = _OLD
        changes.append(f"{_NEW} is written as {_OLD}")
    if isinstance(config.get(_EXTRA), list) and config.get(_ADDITIONAL, config[_EXTRA]) == config[_EXTRA]:
        new = {_ADDITIONAL if key == _EXTRA else key: value for key, value in new.items()}
        changes.append(f"the list {_EXTRA} as {_ADDITIONAL}")
    return new, changes


def _edited(text: str, config: dict[str, Any]) -> str:
    """The text with the first mention of each changed; the caller compares what it then means."""
    text = re.sub(rf'("{_CLASS}"\s*:\s*)"{_NEW}"', rf'\1"{_OLD}"', text, count=1)
    if isinstance(config.get(_EXTRA), list) and _ADDITIONAL not in config:
        text = re.sub(rf'"{_EXTRA}"(\s*:\s*\[)', rf'"{_ADDITIONAL}"\1', text, count=1)
    return text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
