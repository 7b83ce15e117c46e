"""The MoE layers that DeepSpeed's AutoEP puts into a model of transformers, as the modules that they replaced.

`MODULE.router.gate.weight` was `MODULE.gate.weight`. `MODULE.experts.w1`, `w3` and `w2` are all experts' gate, up and down
projections, (expert, out, in): the module has the first two in one tensor (deepspeed/module_inject/auto_ep_layer.py,
`AutoEPMoELayer`; moe/ep_repack.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckptconv.tensors.view import View, cat

MARK = re.compile(r"^(.*\.\d+\.[^.]+)\.experts\.w1$", re.DOTALL)
END = ".experts.w1"  # of the names that MARK matches
_GATE, _UP, _DOWN = "experts.w1", "experts.w3", "experts.w2"
_ROUTERS = (("router.gate.", "gate."), ("router.", "gate."))


def layers(names: Iterable[str]) -> list[str]:
    """Return the modules that AutoEP replaced, such as `model.layers.0.mlp`."""
    known = set(names)
    found = [match[1] for name in known if (match := MARK.match(name))]
    parts = (
        "router.gate.weight",
        _UP,
        _DOWN,
    )  # without one of them it is no whole layer, and its names stay as they are
    return sorted(module for module in found if all(f"{module}.{part}" in known for part in parts))


def as_modules(tensors: Mapping[str, View]) -> dict[str, tuple[View, tuple[str, ...]]]:
    """Return the class's name -> (tensor, the trained names that it is made of).

    Args:
        tensors: trained name -> view, the experts fused over all ranks.
    """
    found: dict[str, tuple[View, tuple[str, ...]]] = {}
    modules = set(layers(tensors))
    for name, view in tensors.items():
        module = next((module for module in _parents(name) if module in modules), None)
        rest = name.removeprefix(f"{module}.")
        if module is None:
            found[name] = view, (name,)
        elif rest == _GATE:
            up = f"{module}.{_UP}"
            found[f"{module}.experts.gate_up_proj"] = cat([view, tensors[up]], 1), (name, up)
        elif rest == _DOWN:
            found[f"{module}.experts.down_proj"] = view, (name,)
        elif rest != _UP:
            new = next((to + rest.removeprefix(old) for old, to in _ROUTERS if rest.startswith(old)), rest)
            found[f"{module}.{new}"] = view, (name,)
    return found


def _parents(name: str) -> Iterable[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
