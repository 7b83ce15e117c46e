"""Recognise the entries of a distributed checkpoint that are not the model: optimizers, schedulers, loaders, counters, …

Two things identify them: the keys of the state dict that lead to them, which trainers choose (torchtitan: optimizer,
lr_scheduler, dataloader, train_state; Megatron, accelerate, recipes: optim, sched, rng ...), and the form of an optimizer's
state dict, which has `state` next to `param_groups` (torch/distributed/checkpoint/state_dict.py, nested or flattened).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptconv.tensors.names import MODULE, WRAPPERS

Keys = tuple[str | int, ...]

_STATES = {
    "optimizer": {"opt", "optim", "optims", "optimizer", "optimizers"},
    "scheduler": {"scheduler", "schedulers", "sched", "lrscheduler"},
    "data loader": {"dataloader", "dataloaders", "loader", "sampler", "dataset"},
    "random state": {"rng", "random"},
    "loss scaler": {"scaler"},
}
# Weaker words, and the words that may accompany them. A key that has other words too (`embed_tokens`) is not a counter.
_COUNTERS = {
    *(
        "train",
        "trainer",
        "training",
        "progress",
        "step",
        "steps",
        "epoch",
        "epochs",
        "iteration",
        "iterations",
    ),
    *("callbacks", "loops", "metrics", "args", "config", "hparams", "tokens", "ntokens", "timer", "stats"),
}
_FILLERS = {"state", "states", "dict", "lr", "global", "last", "num", "seen", "current", "total", "best"}
_AROUND = {"app", "state_dict", "checkpoint", MODULE, *WRAPPERS}
_MODEL = {*_AROUND, "model"}
# The states that torch's optimizers keep for each parameter (torch/optim); used if no key above names an optimizer.
_SLOTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_inf"}


def states_of(paths: Mapping[str, Keys]) -> dict[str, str]:
    """Return stored name -> kind of state, for every entry that does not belong to a model."""
    optimizers = {
        path[:depth]
        for path in paths.values()
        for depth, key in enumerate(path)
        if str(key).split(".")[0] == "param_groups"
    }
    found = {}
    for name, path in paths.items():
        reason = _of_optimizer(path, optimizers) or _by_words(path)
        if reason is None and name.endswith("_extra_state"):
            reason = "Transformer Engine state"
        if reason:
            found[name] = reason
    return found


def _of_optimizer(path: Keys, optimizers: set[Keys]) -> str | None:
    for depth, key in enumerate(path):
        if path[:depth] in optimizers and str(key).split(".")[0] in ("state", "param_groups"):
            return "optimizer"
    last = str(path[-1]).split(".")
    return "optimizer" if last[-1] in _SLOTS and len(path) + len(last) > 2 else None


def _by_words(path: Keys) -> str | None:
    """Return the kind that the keys name. In a flat name only the first segment counts; deeper ones are a module's."""
    keys = [str(key) for key in path[:-1]]
    for key in keys:
        if reason := _meaning(key):
            return reason
    if all(key in _AROUND for key in keys):
        segments = [key for key in str(path[-1]).split(".")[:-1] if key not in _MODEL]
        return _meaning(segments[0]) if segments else None
    return None


def _meaning(key: str) -> str | None:
    words = set(re.findall("[a-z]+", key.lower()))
    for reason, known in _STATES.items():
        if words & known:
            return reason
    return "trainer state" if words & _COUNTERS and words <= _COUNTERS | _FILLERS else None
