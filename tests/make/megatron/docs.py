"""Writes the lists of Megatron families in README.md and docs/megatron.md from the tables; a test compares them.

Run it with ckptconv's own Python: python tests/make/megatron/docs.py
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from ckptconv.models.megatron.tables import FAMILIES

ROOT = Path(__file__).resolve().parents[3]
START, END = "<!-- families: made by tests/make/megatron/docs.py -->", "<!-- /families -->"


def readme() -> str:
    """The list in README.md: first what real checkpoints have confirmed, then the rest."""
    proven = [one.title for one in FAMILIES.values() if one.writers]
    others = [one.title for one in FAMILIES.values() if not one.writers]
    text = (
        f"{len(FAMILIES)} Megatron families ([docs/megatron.md](docs/megatron.md#families)). Exact on checkpoints of "
        f"a real writer ({len(proven)}): {', '.join(proven)}. By a trainer's source ({len(others)}; `merge` says so): "
        f"{', '.join(others)}. All with value heads and LoRA; adding another is "
        "[a table of a few lines](docs/adding-a-model.md)."
    )
    return "\n".join(textwrap.wrap(text, 128, break_long_words=False, break_on_hyphens=False))


def table() -> str:
    """The table of docs/megatron.md."""
    rows = ["| model_type | model | exact on checkpoints of | by source |", "|---|---|---|---|"]
    for model_type, one in FAMILIES.items():
        rows.append(f"| `{model_type}` | {one.title} | {', '.join(one.writers)} | {one.source} |")
    return "\n".join(rows)


def renewed(text: str, part: str) -> str:
    """The text with what stands between the marks replaced."""
    return re.sub(f"(?<={START}\n).*?(?={END})", lambda _: part + "\n", text, flags=re.DOTALL)


def main() -> None:
    for path, part in ((ROOT / "README.md", readme()), (ROOT / "docs" / "megatron.md", table())):
        path.write_text(renewed(path.read_text(), part))


if __name__ == "__main__":
    main()
