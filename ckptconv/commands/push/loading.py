"""Tells how a pushed model is loaded: its class in transformers or PEFT, and the Hub's tag for its task."""

from __future__ import annotations

from ckptconv.commands.push.folder import ModelFolder

# The suffix of an architecture's name -> (Auto class, pipeline tag).
_HEADS: dict[str, tuple[str, str | None]] = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "ForImageTextToText": ("AutoModelForImageTextToText", "image-text-to-text"),
    "ForTokenClassification": (
        "AutoModelForTokenClassification",
        None,
    ),  # the value head of a critic in verl
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
}


def pipeline(folder: ModelFolder) -> str | None:
    """The Hub's pipeline tag; None if it is not certain."""
    return None if folder.is_adapter else _head(folder)[1]


def snippet(folder: ModelFolder, repo_id: str, base: str | None) -> str:
    """The lines of Python that load the model, as a block of Markdown.

    Args:
        folder: the model folder.
        repo_id: the repository.
        base: the base model of an adapter; None if it is not known.
    """
    if not folder.is_adapter:
        name, _ = _head(folder)
        code = ", trust_remote_code=True" if folder.config.get("auto_map") else ""
        lines = [f"from transformers import {name}", "", f'model = {name}.from_pretrained("{repo_id}"{code})']
    elif base and base == folder.config.get("base_model_name_or_path") and _is_causal(folder):
        name = "AutoPeftModelForCausalLM"
        lines = [f"from peft import {name}", "", f'model = {name}.from_pretrained("{repo_id}")']
    else:
        lines = [
            "from peft import PeftModel",
            "",
            "# base: the model that the adapter was trained on, loaded with transformers",
            f'model = PeftModel.from_pretrained(base, "{repo_id}")',
        ]
    return "\n".join(["```python", *lines, "```", ""])


def _is_causal(folder: ModelFolder) -> bool:
    return bool(folder.config.get("task_type") == "CAUSAL_LM")


def _head(folder: ModelFolder) -> tuple[str, str | None]:
    config = folder.config
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if name.endswith("ForConditionalGeneration"):
        if "vision_config" in config:
            return _HEADS["ForImageTextToText"]
        return ("AutoModelForSeq2SeqLM", None) if config.get("is_encoder_decoder") else ("AutoModel", None)
    return next((head for end, head in _HEADS.items() if name.endswith(end)), ("AutoModel", None))
