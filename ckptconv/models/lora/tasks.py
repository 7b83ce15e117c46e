"""The tasks of PEFT whose models have a head of their own, and the names of these heads.

Sources: peft/utils/peft_types.py, TaskType; peft/peft_model.py, PeftModelForSequenceClassification and
PeftModelForTokenClassification; transformers, the heads of its ...ForSequenceClassification and ...ForTokenClassification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

HEADS = ("score.", "classifier.")  # how the names of a head's tensors begin


class HeadTask(NamedTuple):
    """A task whose model has a head of its own.

    Args:
        key: the task's name in our facts; "" if there is no such task.
        called: its name for the user.
    """

    key: str = ""
    called: str = ""


_TASKS = {
    "SEQ_CLS": HeadTask("sequence", "sequence classification"),
    "TOKEN_CLS": HeadTask("token", "token classification"),
}
_CLASSES = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}


def stated_task(meta: Mapping[str, Any]) -> HeadTask:
    """Return the task that adapter_config.json states by task_type."""
    return _TASKS.get(str(meta.get("task_type")), HeadTask())


def task_of(meta: Mapping[str, Any]) -> HeadTask:
    """Return the task by task_type, or else by the class that was adapted, which PEFT writes then (auto_mapping)."""
    mapping = meta.get("auto_mapping")
    if meta.get("task_type") is not None or not isinstance(mapping, dict):
        return stated_task(meta)
    adapted = str(mapping.get("base_model_class"))
    return next((_TASKS[task] for end, task in _CLASSES.items() if adapted.endswith(end)), HeadTask())
