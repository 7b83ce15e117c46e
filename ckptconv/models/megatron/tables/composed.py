"""Models that see or hear: a language model of a known table, and towers and projectors around it.

One entry says where the language model is on the Hub and which prefixes the trainers give the other modules. mcore-bridge
holds them in `visual` (mcore-bridge, model/mm_gpt_model.py); Megatron-Bridge and slime have a prefix for each model.
Sources: Megatron-Bridge, models/*_vl, qwen_omni, qwen_audio, ministral3; mcore-bridge, model/mm_gpts;
slime, slime_plugins/models/qwen3_5_vl.py.
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Family, Same
from ckptconv.models.megatron.composed import ByConfig, Composed, Form, under
from ckptconv.models.megatron.listed import by_source, proven
from ckptconv.models.megatron.tables.dense import DENSE, EXAONE4, GEMMA3, GLM4, LLAMA, QWEN3
from ckptconv.models.megatron.tables.gemma4 import GEMMA4, GEMMA4_TEXT
from ckptconv.models.megatron.tables.hybrid import HYBRID, QWEN3_5, QWEN3_5_MOE
from ckptconv.models.megatron.tables.latent import LATENT_ATTENTION
from ckptconv.models.megatron.tables.mamba import MAMBA
from ckptconv.models.megatron.tables.moe import GLM4_MOE, LLAMA4, MINIMAX_M3, MOE, QWEN3_MOE
from ckptconv.models.megatron.tables.parts import experts, stacked_experts
from ckptconv.models.megatron.tables.step import STEP3P5
from ckptconv.models.megatron.tables.towers import (
    EXAONE_TOWER,
    QWEN2_5_MCORE_TOWER,
    QWEN3_MCORE_TOWER,
    SIGLIP,
    nemotron_modules,
    tower,
)
from ckptconv.models.rules import Swap

TEXT = {**DENSE, **MOE, **LATENT_ATTENTION, **HYBRID, **GEMMA4, **MAMBA}
# Every language model by its own model type. The further names are those of nested configs.
LANGUAGES: dict[str, Family | ByConfig] = {
    **{name: listed.table for name, listed in TEXT.items() if not isinstance(listed.table, Composed)},
    "qwen3_vl_text": QWEN3,
    "glm4v_text": GLM4,
    "glm46v_text": GLM4,
    "glm4v_moe_text": GLM4_MOE,
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "qwen2_5_omni_text": LLAMA,
    "qwen3_omni_moe_text": QWEN3_MOE,
    "qwen3_asr_text": QWEN3,
    "exaone4_5_text": EXAONE4,
    "gemma4": GEMMA4_TEXT,
}
# The Hub keeps Qwen3-VL's experts of a layer in one tensor, (in, out) each.
QWEN3_VL_EXPERTS = Family("Qwen3-VL-MoE", stacked_experts("mlp", Swap(1, 2)) + QWEN3.rules + experts("mlp"))

INSIDE = "model.language_model."  # the Hub's prefixes of a language model
OWN = "language_model.model."
OWN_HEAD = "language_model.lm_head."
THINKER = "thinker.model."
QWEN_FORM = tower("visual.visual.", "visual.")
QWEN3_FORMS = (
    QWEN3_MCORE_TOWER,
    tower("visual.visual.", "model.visual."),
    tower("vision_model.", "model.visual."),
)
QWEN3_5_FORMS = (
    QWEN3_MCORE_TOWER,
    under({"visual.visual.": "model.visual."}),
    under({"model.visual.": "model.visual."}),
    under({"vision_model.": "model.visual."}),
)
GLM_FORMS = (
    under({"visual.visual.": "model.visual."}),
    under({"visual.": "model.visual."}),
)
SIGLIP_NAMES = "vision_tower.vision_model."
GEMMA3_FORM = (
    *tower(SIGLIP_NAMES, SIGLIP_NAMES, SIGLIP),
    Changed(
        "multi_modal_projector.proj.weight",
        "multi_modal_projector.mm_input_projection_weight",
        Swap(0, 1),
    ),
    Same("multi_modal_projector.mm_soft_embed_norm.weight", "multi_modal_projector.mm_soft_emb_norm.weight"),
)


def as_named(*modules: str) -> tuple[Form, Form]:
    """Return both forms of modules with one name on the Hub: inside mcore-bridge's `visual`, and as they are."""
    return (
        under({f"visual.{module}.": f"{module}." for module in modules}),
        under({f"{module}.": f"{module}." for module in modules}),
    )


def in_model(*modules: str) -> tuple[Form, Form]:
    """Return both forms of modules that the Hub has inside `model.`."""
    return (
        under({f"visual.{module}.": f"model.{module}." for module in modules}),
        under({f"{module}.": f"model.{module}." for module in modules}),
    )


def in_thinker(*modules: str) -> tuple[Form, Form]:
    """Return both forms of a thinker's modules: mcore-bridge's, and Megatron-Bridge's with its `audio_model`."""
    own = {f"thinker.{module.replace('tower', 'model')}.": f"thinker.{module}." for module in modules}
    return under({f"visual.{module}.": f"thinker.{module}." for module in modules}), under(own)


def around(
    name: str,
    body: str,
    head: str,
    *forms: Form,
    language: Family | None = None,
    prefixes: tuple[str, ...] = ("language_model.",),
) -> Composed:
    """Return a model around any language model that has a table; `Composed` has the arguments."""
    return Composed(name, LANGUAGES, body, head, forms, language, prefixes)


QWEN2_5_FORMS = (QWEN_FORM, tower("visual.", "visual."), QWEN2_5_MCORE_TOWER)
OMNI = ("language_model.", "thinker.language_model.")
LANGUAGE_ALONE = ("language_model.", "")  # slime trains Qwen3.5's language model without its tower
THINKER_HEAD = "thinker.lm_head."
# The talker and the vocoder are not in any of these checkpoints; --base brings them.
QWEN2_OMNI = around(
    "Qwen2.5-Omni", THINKER, THINKER_HEAD, *in_thinker("visual", "audio_tower"), prefixes=OMNI
)
QWEN3_OMNI = around("Qwen3-Omni", THINKER, THINKER_HEAD, *in_thinker("visual", "audio_tower"), prefixes=OMNI)
QWEN3_ASR = around("Qwen3-ASR", THINKER, THINKER_HEAD, *in_thinker("audio_tower"), prefixes=OMNI)
GLMV = around("GLM-V", INSIDE, "lm_head.", *GLM_FORMS)
MISTRAL3 = around("Mistral 3", OWN, OWN_HEAD, *as_named("vision_tower", "multi_modal_projector"))

STEP_FORM = under({f"{module}.": f"{module}." for module in ("vision_model", "vit_large_projector")})
MINIMAX_M3_FORM = (
    *under(
        {
            f"{module}.": f"{module}."
            for module in ("vision_tower", "multi_modal_projector", "patch_merge_mlp")
        }
    ),
    Same("lightning_indexers.{layer}.{part}.weight", OWN + "layers.{layer}.self_attn.index_{part}.weight"),
)

NEMOTRON_VL = around(
    "Nemotron VL",
    "language_model.backbone.",
    OWN_HEAD,
    nemotron_modules("llava_model."),
    nemotron_modules(""),
    prefixes=("llava_model.language_model.", "language_model."),
)

LLAVA_ONEVISION = around("LLaVA-OneVision 1.5", "model.", "lm_head.", *as_named("visual"))

COMPOSED = {
    "qwen2_vl": proven(
        "Qwen2-VL", around("Qwen2-VL", "model.", "lm_head.", QWEN_FORM, language=LLAMA), "mcore-bridge"
    ),
    "qwen2_5_vl": proven(
        "Qwen2.5-VL",
        around("Qwen2.5-VL", "model.", "lm_head.", *QWEN2_5_FORMS, language=LLAMA),
        "mbridge",
        "Megatron-Bridge",
        "mcore-bridge",
    ),
    "qwen3_vl": proven(
        "Qwen3-VL",
        around("Qwen3-VL", INSIDE, "lm_head.", *QWEN3_FORMS, language=QWEN3),
        "Megatron-Bridge",
        "mcore-bridge",
    ),
    "qwen3_vl_moe": proven(
        "Qwen3-VL-MoE",
        around("Qwen3-VL-MoE", INSIDE, "lm_head.", *QWEN3_FORMS, language=QWEN3_VL_EXPERTS),
        "Megatron-Bridge",
        "mcore-bridge",
    ),
    "qwen3_5": proven(
        "Qwen3.5 / Qwen3.6",
        around("Qwen3.5", INSIDE, "lm_head.", *QWEN3_5_FORMS, prefixes=LANGUAGE_ALONE),
        "mcore-bridge",
    ),
    "qwen3_5_moe": proven(
        "Qwen3.5-MoE / Qwen3.6-MoE",
        around("Qwen3.5-MoE", INSIDE, "lm_head.", *QWEN3_5_FORMS, prefixes=LANGUAGE_ALONE),
        "mcore-bridge",
    ),
    "gemma3": proven(
        "Gemma 3",
        around("Gemma 3 (vision)", OWN, "lm_head.", GEMMA3_FORM, language=GEMMA3),
        "Megatron-Bridge",
    ),
    "glm4v": proven("GLM-4.1V", GLMV, "mcore-bridge"),
    "glm4v_moe": proven("GLM-4.5V / GLM-4.6V", GLMV, "mcore-bridge"),
    "glm46v": proven("GLM-4.6V-Flash", GLMV, "mcore-bridge"),
    "internvl_chat": proven(
        "InternVL 2.5 / 3 / 3.5",
        around("InternVL", OWN, OWN_HEAD, *as_named("vision_model", "mlp1")),
        "mcore-bridge",
    ),
    "internvl": proven(
        "InternVL (transformers)",
        around("InternVL", OWN, OWN_HEAD, *as_named("vision_tower", "multi_modal_projector")),
        "mcore-bridge",
    ),
    "kimi_vl": proven(
        "Kimi-VL",
        around("Kimi-VL", OWN, OWN_HEAD, *as_named("vision_tower", "multi_modal_projector")),
        "mcore-bridge",
    ),
    "kimi_k25": proven(
        "Kimi-K2.5",
        around("Kimi-K2.5", OWN, OWN_HEAD, *as_named("vision_tower", "mm_projector")),
        "mcore-bridge",
    ),
    "qwen2_5_omni": proven("Qwen2.5-Omni", QWEN2_OMNI, "mcore-bridge"),
    "qwen3_omni_moe": proven("Qwen3-Omni", QWEN3_OMNI, "mcore-bridge"),
    "qwen3_asr": by_source("Qwen3-ASR", QWEN3_ASR, "mcore-bridge, model/mm_gpts/qwen3_asr.py"),
    "qwen2_audio": proven(
        "Qwen2-Audio",
        around("Qwen2-Audio", OWN, OWN_HEAD, *as_named("audio_tower", "multi_modal_projector")),
        "Megatron-Bridge",
    ),
    "llama4": proven(
        "Llama 4",
        around("Llama 4", OWN, OWN_HEAD, *as_named("vision_model", "multi_modal_projector"), language=LLAMA4),
        "mcore-bridge",
    ),
    "mistral3": proven("Mistral 3 / Ministral 3", MISTRAL3, "Megatron-Bridge"),
    "ovis2_5": proven(
        "Ovis 2.5",
        around("Ovis 2.5", "llm.model.", "llm.lm_head.", *as_named("visual_tokenizer", "vte")),
        "mcore-bridge",
    ),
    "llava_onevision1_5": proven("LLaVA-OneVision 1.5", LLAVA_ONEVISION, "mcore-bridge"),
    "llavaonevision1_5": by_source(
        "LLaVA-OneVision 1.5 (as published)", LLAVA_ONEVISION, "mcore-bridge, model/mm_gpts/llava.py"
    ),
    "minicpmv4_6": proven(
        "MiniCPM-V 4.6",
        around("MiniCPM-V 4.6", INSIDE, "lm_head.", *in_model("vision_tower", "merger")),
        "mcore-bridge",
    ),
    "minimax_m3_vl": proven(
        "MiniMax-M3",
        around("MiniMax-M3", OWN, OWN_HEAD, MINIMAX_M3_FORM, language=MINIMAX_M3),
        "Megatron-Bridge",
    ),
    "gemma4": proven(
        "Gemma 4",
        around(
            "Gemma 4",
            INSIDE,
            "lm_head.",
            *in_model("vision_tower", "embed_vision", "audio_tower", "embed_audio"),
        ),
        "Megatron-Bridge",
    ),
    "step3p7": by_source(
        "Step-3.7",
        around("Step-3.7", "model.", "lm_head.", STEP_FORM, language=STEP3P5),
        "Megatron-Bridge, stepfun/step37_bridge.py",
    ),
    "NemotronH_Nano_VL_V2": by_source(
        "Nemotron Nano VL", NEMOTRON_VL, "Megatron-Bridge, nemotron_vl/nemotron_vl_bridge.py"
    ),
    **{
        f"NemotronH_{size}_Omni_Reasoning_V3": by_source(
            f"Nemotron {size} Omni", NEMOTRON_VL, "Megatron-Bridge, nemotron_omni/nemotron_omni_bridge.py"
        )
        for size in ("Nano", "Super")
    },
    "exaone4_5": proven(
        "Exaone 4.5",
        around("Exaone 4.5", INSIDE, "lm_head.", EXAONE_TOWER, language=EXAONE4),
        "Megatron-Bridge",
    ),
}
