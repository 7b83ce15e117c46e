"""The files of a tokenizer and of a processor, which training may change together with an adapter."""

from __future__ import annotations

import re
from pathlib import Path

from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.publish.assets import assets_of
from ckptconv.tensors.look import is_file, opened

# Source: transformers/tokenization_utils_base.py (*_FILE) and the vocab_files_names of its tokenizers.
_VOCABULARY = re.compile(
    r"^(?:tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(?:json|txt|bpe)|"
    r"merges\.txt|(?:tokenizer|spiece|sentencepiece|sentencepiece\.bpe|source|target)\.(?:model|spm)|[\w.-]+\.tiktoken|"
    r"tekken\.json|tokenization_\w+\.py)$"
)
_WORDS = re.compile(
    r"^(?:tokenizer\.json|vocab\..*|.*\.(?:model|spm|tiktoken)|tekken\.json)$"
)  # these files hold the vocabulary itself
_TEMPLATE = re.compile(r"^(?:chat_template\.(?:jinja|json)|additional_chat_templates/[^/]+\.jinja)$")
_PROCESSOR = re.compile(r"^(?:\w*processor_config\.json|video_preprocessor_config\.json)$")
_CONFIG = "tokenizer_config.json"
_MOST_ADDED = 4 << 20  # bytes of tokenizer.json that are read for its added tokens
_ID = re.compile(r'"id":\s*([0-9]{1,9})')


def tokenizer_files(folder: Path) -> list[str]:
    """The names of a folder's tokenizer, chat template and processor files, relative to it."""
    names = [path.relative_to(folder).as_posix() for path in assets_of(folder)]
    return [n for n in names if _VOCABULARY.match(n) or _TEMPLATE.match(n) or _PROCESSOR.match(n)]


def is_tokenizer_file(name: str) -> bool:
    """True for a file that holds a vocabulary, such as tokenizer.json or tokenizer.model."""
    return _WORDS.match(name) is not None


def replaced_by(own: list[str], folder: Path, names: list[str]) -> list[str]:
    """The tokenizer files that no longer apply once a folder's own files replace some of them.

    A tokenizer is replaced as a whole, since an added_tokens.json of the old one would change the new one. A chat template
    file has precedence over a template in tokenizer_config.json, so it is dropped if the new config has a template.

    Args:
        own: the new files.
        folder: the folder that holds them.
        names: the old files.
    """
    replaced = set(own)
    if any(_WORDS.match(name) for name in own):
        replaced |= {name for name in names if _VOCABULARY.match(name)}
    if any(_TEMPLATE.match(name) for name in own) or (_CONFIG in own and _has_template(folder / _CONFIG)):
        replaced |= {name for name in names if _TEMPLATE.match(name)}
    return [name for name in names if name in replaced]


def added_ids(folder: Path) -> set[int]:
    """The ids of the tokens that were added to a folder's tokenizer, by tokenizer.json; empty if there is none.

    The list is before the vocabulary in the file (tokenizers/src/tokenizer/serialization.rs), so only its beginning is read.
    """
    path = folder / "tokenizer.json"
    if not is_file(path):
        return set()
    with opened(path, "a tokenizer") as file:
        text = file.read(0, min(_MOST_ADDED, file.nbytes)).decode("utf-8", "replace")
    listed = text.partition('"added_tokens"')[2].partition('"normalizer":')[0]
    return {int(number) for number in _ID.findall(listed)}


def _has_template(path: Path) -> bool:
    try:
        return bool(read_table(path).get("chat_template"))
    except CkptconvError:
        return False
