"""Refuses adapters that are not LoRA, and kinds of LoRA that the stored tensors are not enough to merge.

Sources: peft/utils/peft_types.py and peft/mapping.py (names and prefixes), peft/tuners/lora/config.py (settings).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind

_HINT = "merge it with PEFT first (merge_and_unload, save_pretrained)"
# The beginning of a segment of a tensor's name -> the kind of adapter.
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
_MARKS = re.compile("|".join(_OTHERS))  # one search excludes most names
# Names that look like LoRA but are not known. Models also have modules of their own that are called adapter: X-MOD's
# adapter_modules, OneFormer's adapter_1.
_LEFT = re.compile(
    r"\.lora_|lora_magnitude_vector|\.adapter_(?!modules\.|layer_norm\.|\d+\.)|\.(?:linear_\w+|router)\.adapter\."
)
# LoRA settings with which the factors alone do not give the update -> the name of the method.
_SETTINGS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which works on some tokens only",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer replication",
}
# Values of init_lora_weights with which PEFT changes the base weights when it creates the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_adapter_config(meta: Mapping[str, Any]) -> bool:
    """True for the content of PEFT's adapter_config.json."""
    return "peft_type" in meta


def check_name(name: str) -> None:
    """Refuse a tensor of an adapter that is not LoRA, or of a kind that is not known.

    Raises:
        CkptconvError: names the kind.
    """
    wrapped = name.startswith("base_model.")  # without it, the name may be one of the model itself
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
    """Refuse settings of an adapter that is not LoRA, or that cannot be merged.

    Args:
        meta: the checkpoint's LoRA settings.
        onto_base: the adapter is merged into the original base model (--base).

    Raises:
        CkptconvError: names the setting.
    """
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
            f"the adapter was initialised with {how}, which changes the base weights, so the original ones do not fit",
            found=f"init_lora_weights {how}",
            hint="convert it with PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)",
            kind=Kind.UNSUPPORTED,
        )
