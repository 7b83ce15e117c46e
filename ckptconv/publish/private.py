"""Takes out of texts and tables what tells about this machine: absolute paths, and with them user names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# An absolute path of two parts or more, one below the home folder, a drive's, or a file's URL.
_PATH = re.compile(
    r"(?<![\w./~:-])(?:file://[^\s'\"<>|]+|~[\w.-]*/[^\s'\",;<>|()]+|/(?:[^\s/'\",;<>|()]+/)+[^\s'\",;<>|()]*|[A-Za-z]:\\[^\s'\",;<>|]+)"
)
# A place in an object store tells the name of a bucket and of folders in it.
_STORE = re.compile(r"(?<![\w./~:-])(?:s3|gs|az)://[^\s'\",;<>|()]+")
# Keys whose values are texts for a tokenizer, not about the machine.
_TEXTS = ("added_tokens_decoder", "chat_template", "auto_map", "vocab", "merges", "id2label", "label2id")


def without_paths(text: str) -> str:
    """A text in which of each absolute path only the last part remains: "in /home/ann/run/x.pt" -> "in x.pt".

    The same holds for addresses in object stores: "in s3://bucket/run/x.pt" -> "in x.pt".
    """

    def last(found: re.Match[str]) -> str:
        return re.split(r"[/\\]", found[0].rstrip("/\\:."))[-1]

    return _PATH.sub(last, _STORE.sub(last, text))


def is_local(value: object) -> bool:
    """True for a text that is an absolute path and nothing else."""
    return isinstance(value, str) and "\n" not in value and _PATH.fullmatch(value.strip()) is not None


def local_paths(table: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every absolute path in a table of JSON, as (its key in dots, the path). Texts of a tokenizer are not searched."""
    if isinstance(table, dict):
        for name, value in table.items():
            if name not in _TEXTS:
                yield from local_paths(value, f"{key}.{name}" if key else str(name))
    elif isinstance(table, list):
        for number, value in enumerate(table):
            yield from local_paths(value, f"{key}[{number}]")
    elif is_local(table):
        yield key, table


def without_local_paths(table: Any) -> Any:
    """A table of JSON without the entries that are absolute paths."""
    if isinstance(table, dict):
        return {
            name: value if name in _TEXTS else without_local_paths(value)
            for name, value in table.items()
            if name in _TEXTS or not is_local(value)
        }
    if isinstance(table, list):
        return [without_local_paths(value) for value in table if not is_local(value)]
    return table
