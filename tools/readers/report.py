"""The table of docs/readers.md, from what tools/readers/read.py saw: `python tools/readers/report.py MODELS [--write]`.

With --write it replaces the lines between the two marks in docs/readers.md. The exit code is 1 if a folder was misread in
silence: a reader that says nothing and computes other logits or tokens, and is not among those that _KNOWN explains.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/readers.md"
_MARKS = ("<!-- made by tools/readers/report.py -->", "<!-- end -->")
_SILENT = ("logits differ", "tokens are equal", "the tokenizer makes")
# (reader, family) -> whose fault it is that other logits come out.
_KNOWN = {
    ("ctranslate2", "gemma2"): "its converter does not know the caps of Gemma 2's logits",
    ("ctranslate2", "gemma3"): "its converter reads the rotary bases of transformers 4 alone",
    (
        "ctranslate2",
        "llama_scaled",
    ): "its converter reads rope_scaling, which transformers 5 no longer gives it",
}


def rows(models: Path) -> tuple[list[str], list[str]]:
    """The lines of the table, and the folders that were misread in silence without an explanation."""
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for file in sorted(models.glob("*/read-*.json")):
        version, said = json.loads(file.read_text())
        found[file.stem.removeprefix("read-")][file.parent.name] = (version, said)
    lines, silent = ["| reader | read alike | stops | other |", "|---|---|---|---|"], []
    for label, seen in sorted(found.items()):
        version = next(iter(seen.values()))[0]
        equal = [name for name, (_, said) in seen.items() if not said]
        stops = [f"{name}: {said}" for name, (_, said) in seen.items() if "stops" in said]
        other = []
        for name, (_, said) in seen.items():
            if said and "stops" not in said:
                why = _KNOWN.get((label.split("-")[0], name))
                other.append(f"{name}: {said}" + (f" ({why})" if why else ""))
                silent += (
                    [f"{label} {name}: {said}"] if why is None and any(s in said for s in _SILENT) else []
                )
        cells = [
            f"{label} {version}",
            f"{len(equal)} of {len(seen)}: {', '.join(equal)}",
            _short(stops),
            "; ".join(other),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in cells) + " |")
    return lines, silent


def _short(texts: list[str]) -> str:
    """The texts, with those that say the same together."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        name, _, said = text.partition(": ")
        said = said.removeprefix("its converter ").removeprefix("stops: ")
        if said.startswith("ValueError: No conversion is registered"):
            said = "no converter for the class"
        by_text[said[:110]].append(name)
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in by_text.items())


def main() -> None:
    """Print the table, or write it into the page."""
    lines, silent = rows(Path(sys.argv[1]))
    print("\n".join(lines))
    if "--write" in sys.argv:
        page = PAGE.read_text("utf-8")
        before, _, rest = page.partition(_MARKS[0])
        _, _, after = rest.partition(_MARKS[1])
        table = "\n".join(lines)
        PAGE.write_text(f"{before}{_MARKS[0]}\n\n{table}\n\n{_MARKS[1]}{after}", encoding="utf-8")
    if silent:
        raise SystemExit("misread in silence: " + "; ".join(silent))


if __name__ == "__main__":
    main()
