"""Which files beside the weights belong to a model: an allow-list, since anything may lie next to a checkpoint.

Everything else (credentials, keys, logs) stays where it is and is reported. Python files are taken where a config names
them (`auto_map`), where such a file imports them, and where they have one of transformers' names for custom code. Nothing
is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.tensors.look import opened

# Sources: transformers/tokenization_utils_base.py, utils/__init__.py and the vocab_files_names of its tokenizers;
# transformers/models/*/processing_*.py; sentence_transformers/SentenceTransformer.py and its models; mistral-common
# (tekken.json, params.json); modelscope (configuration.json); llama.cpp and vLLM read no others.
_KNOWN = re.compile(
    r"^(?:"
    r"config\.json|generation_config\.json|configuration\.json|params\.json|model_index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|tekken\.json"
    r"|(?:vocab|dict|vocabulary|bpe|merges|emoji)[\w.-]*\.(?:json|txt|bpe|codes|model)|\w+_vocab\.json|byte_maps\.json"
    r"|normalizer\.json|word_(?:shape|pronunciation)\.json|speaker_embeddings_path\.json"
    r"|[\w.-]+\.(?:spm|tiktoken|jinja)|[\w.-]*(?:tokenizer|spiece|sentencepiece|spm|bpe|ice_text)[\w.-]*\.model"
    r"|chat_template\.json|additional_chat_templates/[^/]+\.jinja|custom_generate/[\w./-]+\.(?:py|txt|md)"
    r"|(?:[\w-]+_)?(?:pre)?processor_config\.json|(?:[\w-]+_)?feature_extractor_config\.json|audio_tokenizer_config\.json"
    r"|quantize_config\.json|quant_config\.json|hf_quant_config\.json"
    r"|modules\.json|config_sentence_transformers\.json|sentence_\w+_config\.json|sparse_config\.json"
    r"|[1-9]\d*_[A-Za-z]\w*/[\w.-]+\.(?:json|txt|model)"
    r"|README\.md|(?:LICEN[CS]E|NOTICE|Notice|License|COPYING|USE_POLICY|CITATION)(?:[._-][\w.-]+)?"
    r")$"
)
# transformers' names for the modules of custom code (docs/source/en/custom_models.md and its own packages).
_CODE = re.compile(
    r"(?:modeling|modelling|configuration|tokenization|processing|image_processing|video_processing|audio_processing"
    r"|feature_extraction|generation|modular|quantization|vision)_\w+\.py$"
)
_IMPORTS = re.compile(r"^\s*(?:from\s+\.(?P<of>[\w.]*)\s+import\s+(?P<names>[\w, ()*]+))", re.MULTILINE)
_MOST_CODE = 4 << 20  # bytes of one Python file that is searched for imports


def is_known(path: str) -> bool:
    """True if a file with this path, relative to the model folder, may be a part of the model. Any Python file may be."""
    return _KNOWN.match(path) is not None or path.endswith(".py")


def known_files(folder: Path, paths: Iterable[str]) -> set[str]:
    """Those of the files that are part of the model.

    Args:
        folder: the model folder.
        paths: the paths of the files in it, relative to it.
    """
    paths = set(paths)
    known = {path for path in paths if _KNOWN.match(path)}
    code = {path for path in paths if path.endswith(".py")} - known
    if not code:
        return known
    todo = {path for path in code if _CODE.match(PurePosixPath(path).name)}
    todo |= {path for path in _stated(folder, known) if path in code}
    while todo:
        path = todo.pop()
        known.add(path)
        todo |= {other for other in _imported(folder, path) if other in code and other not in known}
    return known


def named_code(config: Mapping[str, Any], of_others: bool = False) -> set[str]:
    """The files of code that a config names in `auto_map`, relative to its folder, such as `modeling_x.py`.

    Args:
        config: the content of a config.
        of_others: whether the names of files in other repositories (`org/name--modeling_x.Class`) are among them.
    """
    texts = {text for text in _texts(config.get("auto_map")) if of_others or "--" not in text}
    modules = {text.rpartition("--")[2].rpartition(".")[0] for text in texts}
    return {module.replace(".", "/") + ".py" for module in modules if module}


def _stated(folder: Path, known: set[str]) -> Iterator[str]:
    """The files of the modules that the configs name, such as `modeling_x.ForCausalLM` in `auto_map`."""
    for name in sorted(known):
        if name.endswith("config.json") and "/" not in name:
            try:
                config = read_table(folder / name)
            except CkptconvError:
                continue
            yield from named_code(config, of_others=True)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _imported(folder: Path, path: str) -> Iterator[str]:
    """The files that one Python file may import by a relative import. The text is searched, never run."""
    try:
        with opened(folder / path, "Python code") as file:
            text = file.read(0, min(_MOST_CODE, file.nbytes)).decode("utf-8", "replace")
    except CkptconvError:
        return
    for found in _IMPORTS.finditer(text):
        here = PurePosixPath(path).parent
        module = found["of"]
        while module.startswith("."):
            here, module = here.parent, module[1:]
        inside = here / module.replace(".", "/") if module else here
        names = re.findall(r"\w+", found["names"])
        for each in (inside, *(inside / name for name in names)):
            yield f"{each}.py"
            yield f"{each}/__init__.py"
