"""NeMo 2's own importers, on Megatron-Core's GPTModel: for models that no bridge knows.

Real: each importer's `convert_state` with its transforms (nemo/collections/llm/gpt/model) and the functions that apply them
(nemo/lightning/io/state.py), Megatron-Core's modules, and its resharding from TP 1 to the case's parallelism. Not real: the
rest of NeMo, which wants Lightning and a GPU: its configs' bases and its decorators are empty here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bridges
import torch
from bridges import ON_CPU, Loaded, sizes
from safetensors.torch import load_file

# model type -> the file of its importer, the importer, NeMo's config, and the config.json keys of its sizes
MODELS = {
    "phi3": ("phi3mini", "HFPhi3Importer", "Phi3Config"),
    "starcoder2": ("starcoder2", "HFStarcoder2Importer", "Starcoder2Config"),
    "baichuan": ("baichuan", "HFBaichuan2Importer", "Baichuan2Config"),
    "chatglm": ("chatglm", "HFChatGLMImporter", "ChatGLMConfig"),
}
EPSILON = ("rms_norm_eps", "norm_epsilon", "layernorm_epsilon")
WHOLE = Path("../whole")


def by_nemo(case: Any) -> Loaded:
    """The model by NeMo's importer at TP 1, then loaded from Megatron-Core's checkpoint of it at the case's parallelism."""
    import gpu_only  # noqa: F401
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    hf = json.loads(Path(bridges.HF, "config.json").read_text())
    file, importer, config = MODELS[hf["model_type"]]
    module = nemo_module(f"nemo.collections.llm.gpt.model.{file}")
    kind = getattr(module, config)

    def at(**parallel: int) -> None:
        mpu.destroy_model_parallel()
        mpu.initialize_model_parallel(parallel.get("tp", 1), parallel.get("pp", 1))
        model_parallel_cuda_manual_seed(0)

    at()
    whole = gpt(kind, hf, {}, hf_vocabulary(hf))
    state = sys.modules["nemo.lightning.io.state"]._ModelState(load_file(f"{bridges.HF}/model.safetensors"))
    source = getattr(module, importer)
    source.convert_state(source, state, whole)
    if dist.get_rank() == 0:
        shutil.rmtree(WHOLE, ignore_errors=True)
        WHOLE.mkdir()
    dist.barrier()
    dist_checkpointing.save(whole.sharded_state_dict(), str(WHOLE))
    at(tp=case.tp, pp=case.pp)
    padded = -(-hf_vocabulary(hf) // (case.pad or 1)) * (case.pad or 1)
    model = gpt(kind, hf, sizes(case), padded)
    model.load_state_dict(dist_checkpointing.load(model.sharded_state_dict(), str(WHOLE)), strict=False)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(WHOLE)
    given = types.SimpleNamespace(tie_word_embeddings=hf.get("tie_word_embeddings", False))
    return Loaded(None, model.config, given, [model], padded)


def hf_vocabulary(hf: dict[str, Any]) -> int:
    return int(hf["padded_vocab_size"] if "padded_vocab_size" in hf else hf["vocab_size"])


def gpt(kind: Any, hf: dict[str, Any], parallel: dict[str, Any], vocabulary: int) -> Any:
    """Megatron-Core's GPTModel with NeMo's default layers (nemo/collections/llm/gpt/model/base.py)."""
    from megatron.core import mpu
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    heads = hf["num_attention_heads"]
    config = kind(
        num_layers=hf["num_layers"] if "num_layers" in hf else hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["ffn_hidden_size"] if "ffn_hidden_size" in hf else hf["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=hf.get("multi_query_group_num") or hf.get("num_key_value_heads") or heads,
        kv_channels=hf.get("kv_channels") or hf.get("head_dim") or hf["hidden_size"] // heads,
        layernorm_epsilon=next(hf[key] for key in EPSILON if key in hf),
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        **{key: value for key, value in (parallel | ON_CPU).items() if value is not None},
    )
    return GPTModel(
        config,
        transformer_layer_spec=get_gpt_layer_with_transformer_engine_spec(),
        vocab_size=vocabulary,
        max_sequence_length=64,
        pre_process=mpu.is_pipeline_first_stage(),
        post_process=mpu.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=config.share_embeddings_and_output_weights,
        position_embedding_type=config.position_embedding_type,
        rotary_percent=config.rotary_percent,
        rotary_base=config.rotary_base,
    ).bfloat16()


def nemo_module(name: str) -> Any:
    """A file of NeMo, in a package that has nothing else but what that file imports."""
    root = next(Path(path) for path in sys.path if Path(path, "nemo/lightning/io/state.py").is_file())
    for stub in (
        *("nemo", "nemo.utils", "nemo.lightning", "nemo.lightning.pytorch", "nemo.lightning.pytorch.utils"),
        *(
            "nemo.collections",
            "nemo.collections.llm",
            "nemo.collections.llm.utils",
            "nemo.collections.llm.gpt",
        ),
        *("nemo.collections.llm.gpt.model", "nemo.collections.llm.gpt.model.base"),
    ):
        sys.modules.setdefault(stub, types.ModuleType(stub))
    import logging

    from megatron.core.transformer.transformer_config import TransformerConfig

    @dataclass
    class GPTConfig(TransformerConfig):  # the fields of NeMo's that an importer sets
        position_embedding_type: str = "rope"
        rotary_base: float = 10000.0
        rotary_percent: float = 1.0
        seq_length: int = 64
        share_embeddings_and_output_weights: bool = False
        make_vocab_size_divisible_by: int = 1

    modules: dict[str, Any] = sys.modules
    modules["nemo.utils"].logging = logging
    modules["nemo.lightning.pytorch.utils"].extract_dtypes = lambda named: {
        key: value.dtype for key, value in named
    }
    modules["nemo.lightning.pytorch.utils"].dtype_from_hf = None
    state = modules["nemo.lightning.io.state"] = loaded("nemo.lightning.io.state", root)
    base = modules["nemo.collections.llm.gpt.model.base"]
    base.GPTConfig, base.GPTModel = GPTConfig, type("GPTModel", (), {})
    base.torch_dtype_from_mcore_config = modules["nemo.collections.llm.utils"].Config = dict

    class ModelConnector:
        def __class_getitem__(cls, _: Any) -> type:
            return cls

    def unchanged(*_: Any) -> Any:
        return lambda kind: kind

    lightning = modules["nemo.lightning"]
    lightning.OptimizerModule = lightning.teardown = None
    lightning.io = types.SimpleNamespace(
        model_importer=unchanged,
        model_exporter=unchanged,
        ModelConnector=ModelConnector,
        **{name: getattr(state, name) for name in ("apply_transforms", "state_transform", "TransformCTX")},
    )
    return loaded(name, root)


def loaded(name: str, root: Path) -> Any:
    """Run one file of NeMo as the module of that name."""
    spec = importlib.util.spec_from_file_location(name, root / f"{name.replace('.', '/')}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with contextlib.suppress(ImportError):
        spec.loader.exec_module(module)
    return module
