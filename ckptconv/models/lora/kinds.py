"""Adapters that are not LoRA, and kinds of LoRA that cannot be merged from what is stored: refused by name.

Source: peft/utils/peft_types.py and peft/mapping.py (names and prefixes), peft/tuners/lora/config.py (settings).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind

_HINT = "merge it with PEFT first (merge_and_unload, save_pretrained)"
# What a tensor's name has in it -> whose it is.
_OTHERS = {
    "lora_E": "AdaLoRA",
    "lora_ranknum": "AdaLoRA",
    "weight_magnitude": "Megatron-Bridge's DoRA",
    "trainable_tokens_": "trainable tokens",
    "vera_lambda_": "VeRA",
    "pvera_lambda_": "PVeRA",
    "ia3_": "IA3",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "hra_": "HRA",
    "hira_": "HiRA",
    "miss_": "MiSS",
    "bone_": "Bone",
    "c3a_": "C3A",
    "road_": "RoAd",
    "shira_": "SHiRA",
    "vblora_": "VB-LoRA",
    "unilora_": "Uni-LoRA",
    "randlora_": "RandLoRA",
    "xlora_": "X-LoRA",
    "gralora_": "GraLoRA",
    "glora_": "GLoRA",
    "delora_": "DeLoRA",
    "tinylora_": "TinyLoRA",
    "fourierft_": "FourierFT",
    "waveft_": "WaveFT",
    "ln_tuning_": "LN tuning",
    "poly_": "Poly",
    "osf_": "OSF",
    "adaption_prompt": "adaption prompts",
    "prompt_encoder": "prompt tuning",
    "prompt_embeddings": "prompt tuning",
}
_MARKS = re.compile("|".join(_OTHERS))  # one look at a name tells most of them apart from all of these
# LoRA-like, and not understood; other models have modules that are called adapter too.
_LEFT = re.compile(r"\.lora_|lora_magnitude_vector|\.adapter_|\.(?:linear_\w+|router)\.adapter\.")
# LoRA settings that make more of an adapter than its factors -> what they are called.
_SETTINGS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which works on some tokens only",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer replication",
}
# init_lora_weights that change the base weights when the adapter is made.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_adapter_config(meta: Mapping[str, Any]) -> bool:
    """True for what PEFT's own adapter_config.json holds."""
    return "peft_type" in meta


def check_name(name: str) -> None:
    """Raise for a tensor of an adapter that is no LoRA, or of a kind that is not understood."""
    wrapped = name.startswith("base_model.")  # other models may have such names for their own
    for segment in name.split(".") if _MARKS.search(name) else ():
        for mark, kind in _OTHERS.items():
            if segment.startswith(mark) and (wrapped or ".adapter." in name or mark.startswith("lora_")):
                raise CkptconvError(
                    f"{name} is a tensor of {kind}, which is not supported", hint=_HINT, kind=Kind.UNSUPPORTED
                )
    if _LEFT.search(name):
        raise CkptconvError(
            f"{name} is an adapter of a kind that is not plain LoRA", hint=_HINT, kind=Kind.UNSUPPORTED
        )


def check_config(meta: Mapping[str, Any], onto_base: bool) -> None:
    """Raise for settings that are not LoRA's, or not enough to merge by. onto_base: the original weights are used."""
    kind = meta.get("peft_type")
    if kind is not None and str(kind).upper() != "LORA":
        raise CkptconvError(
            f"an adapter of PEFT's type {kind} is not supported",
            wanted="LORA",
            hint=_HINT,
            kind=Kind.UNSUPPORTED,
        )
    for key, feature in _SETTINGS.items():
        if meta.get(key):
            raise CkptconvError(
                f"{feature} is not supported",
                found=f"{key} in the adapter's config",
                hint=_HINT,
                kind=Kind.UNSUPPORTED,
            )
    how = str(meta.get("init_lora_weights")).lower()
    if onto_base and how.startswith(_CHANGES_BASE):
        raise CkptconvError(
            f"the adapter began with {how}, which changes the base weights; the original ones do not fit it",
            found=f"init_lora_weights {how}",
            hint="convert it with PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)",
            kind=Kind.UNSUPPORTED,
        )
