"""A table of readers, from what tools/readers/read.py saw: `python tools/readers/report.py MODELS`.

The exit code is 1 if a folder was misread in silence: a reader that says nothing and computes other logits or tokens, and
is not among those that _KNOWN explains.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

_ALIKE = "; save_pretrained's folder: the same"
_SILENT = ("logits differ", "tokens are equal", "the tokenizer makes")
# (reader, family) -> why other logits come out; docs/readers.md has the sources.
_KNOWN = {
    ("ctranslate2", "gemma2"): "it has no soft caps",
    ("ctranslate2", "gemma3"): "it does not scale the positions of layers with full attention",
    ("ctranslate2", "llama_scaled"): "its converter drops the scaling's factor",
    ("transformers", "gemma2"): "4.57.6 leaves out the soft cap unless attn_implementation is eager",
    ("peft", "gemma2"): "4.57.6 leaves out the soft cap unless attn_implementation is eager",
    ("llama.cpp", "gpt_oss"): "it rounds the ends of YaRN's range in spite of truncate: false",
    ("llama.cpp", "qwen2_moe"): "its code never normalises the weights of the chosen experts",
    ("llama.cpp", "stablelm"): "its converter writes no rotary base",
    ("vllm", "deepseek_v3"): "its CPU kernel takes the queries' shape for another",
}


def rows(models: Path) -> tuple[list[str], list[str]]:
    """The lines of the table, and the folders that were misread in silence without an explanation."""
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for file in sorted(models.glob("*/read-*.json")):
        version, said = json.loads(file.read_text())
        said = said.replace(f"{models.resolve()}/", "").replace(f"{models.resolve().parent}/", "")
        found[file.stem.removeprefix("read-")][file.parent.name] = (version, said)
    lines, silent = ["| reader | equal | stops | other |", "|---|---|---|---|"], []
    for label, seen in sorted(found.items()):
        version = max(version for version, _ in seen.values())  # one that crashed has none
        equal = [name for name, (_, said) in seen.items() if not said]
        stops = [(name, said) for name, (_, said) in seen.items() if _stops(said)]
        other = []
        for name, (_, said) in seen.items():
            if said and not _stops(said):
                why = _KNOWN.get((label.split("-")[0], name))
                other.append(f"{name}: {said.removesuffix(_ALIKE)}" + (f" ({why})" if why else ""))
                if why is None and any(each in said for each in _SILENT):
                    silent.append(f"{label} {name}: {said}")
        cells = [
            f"{label} {version}",
            f"{len(equal)} of {len(seen)}: {', '.join(equal)}",
            _short(stops),
            "; ".join(other),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in cells) + " |")
    return lines, silent


def _stops(said: str) -> bool:
    """True if the reader says that it cannot read the folder that was merged."""
    return "stops" in said.partition("; save_pretrained's folder")[0]


def _short(stops: list[tuple[str, str]]) -> str:
    """What (family, text) say, with the families that say the same together.

    What becomes of save_pretrained's folder is named only where it is another thing.
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for name, text in stops:
        said, _, alike = text.removesuffix(_ALIKE).partition("; save_pretrained's folder: ")
        said = said.removeprefix("its converter ").removeprefix("stops: ")
        if said.startswith("ValueError: No conversion is registered"):
            said = "no converter for the class"
        by_text[said[:100] + (f" (save_pretrained's folder: {alike[:60]})" if alike else "")].append(name)
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in by_text.items())


def main() -> None:
    """Print the table."""
    lines, silent = rows(Path(sys.argv[1]))
    print("\n" + "\n".join(lines))  # after an empty line, or it is no table in Markdown
    if silent:
        raise SystemExit("misread in silence: " + "; ".join(silent))


if __name__ == "__main__":
    main()
