"""Dense decoders: Llama and what differs from it by a norm or a name."""

from __future__ import annotations

from ckptconv.models.family import Family
from ckptconv.models.megatron.tables.parts import (
    ATTENTION,
    ENDS,
    FUSED_MLP,
    GEMMA_NORMS,
    GLM4_NORMS,
    MLP,
    MLP_NORM,
    QK_NORM,
)

LLAMA = Family("Llama", ENDS + ATTENTION + MLP_NORM + MLP)
QWEN3 = Family("Qwen3", LLAMA.rules + QK_NORM)
GEMMA2 = Family("Gemma 2", ENDS + ATTENTION + GEMMA_NORMS + MLP)
GEMMA3 = Family("Gemma 3", GEMMA2.rules + QK_NORM)
GLM4 = Family("GLM-4", ENDS + ATTENTION + GLM4_NORMS + MLP_NORM + FUSED_MLP)

DENSE = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,  # with a QKV bias, which {what} covers
    "qwen3": QWEN3,
    "ernie4_5": LLAMA,
    "internlm3": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "glm4": GLM4,
}
