"""to_module against transformers' own modules, and which form a model's names are in."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.meta_models import REFUSED
from support.more_models import ALL, built

from ckptconv.errors import CkptconvError
from ckptconv.models.hub_names import to_hub
from ckptconv.models.module_names import _ONE_WAY, form, to_module
from ckptconv.models.naming import to_hub as named
from ckptconv.tensors.view import View, stored

DEEPSEEK = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
TURNED = "qwen3_vl_moe"  # its experts lie turned in some folders, and no name says in which


@pytest.mark.parametrize("model_type", sorted(ALL))
def test_hub_tensors_become_what_the_module_holds(model_type: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _, module, config = built(model_type, tmp_path)
    hub = {name: array for file in tmp_path.glob("*.safetensors") for name, array in load_file(file).items()}
    hub |= {
        name: t.value.reshape(t.shape) for name, t in to_hub(module, config).tensors.items()
    }  # tied ones too
    if hub.keys() == module.keys():
        assert {form(hub, config), form(module, config)} == ({"hub"} if model_type == TURNED else {""})
    else:
        assert (form(hub, config), form(module, config)) == ("hub", "module")
    if model_type == TURNED:
        with pytest.raises(CkptconvError, match="may be transposed"):
            to_module(hub, config)
        return
    found = to_module(hub, config).tensors
    assert found.keys() == module.keys()
    for name, array in module.items():
        assert np.array_equal(found[name].value.reshape(found[name].shape), array), name


@pytest.mark.skipif(not os.environ.get("CKPTCONV_SLOW"), reason="builds 1,900 model classes: CKPTCONV_SLOW=1")
def test_the_form_of_every_model_class_is_told_and_the_way_back_is_right_or_refused() -> None:
    from tools import make_table

    checked = 0
    for cls in make_table._model_classes():
        try:
            model = make_table._on_meta(cls)
        except Exception:
            continue
        model.config.architectures = [cls.__name__]
        config = json.loads(model.config.to_json_string())
        module = {name: stored("f", 0, tuple(t.shape), "float32") for name, t in model.state_dict().items()}
        if cls.__name__ in REFUSED:
            with pytest.raises(CkptconvError, match=f"unknown (operation|kind): {REFUSED[cls.__name__]}"):
                to_hub(module, config)
            continue
        hub = {n: stored("f", 0, t.shape, "float32") for n, t in to_hub(module, config).tensors.items()}
        if hub.keys() != module.keys():
            assert (form(hub, config), form(module, config)) == ("hub", "module"), cls
        try:
            found = {name: t.shape for name, t in to_module(hub, config).tensors.items()}
        except CkptconvError:
            continue
        assert found == {name: view.shape for name, view in module.items()}, cls
        checked += 1
    assert checked > 1700


def _experts(count: int = 3) -> dict[str, View]:
    shapes = {"gate": (5, 7), "up": (5, 7), "down": (7, 5)}
    return {
        f"model.layers.0.mlp.experts.{e}.{part}_proj.weight": stored("f", 0, shape, "bfloat16")
        for e in range(count)
        for part, shape in shapes.items()
    }


def test_experts_go_in_the_order_of_their_numbers() -> None:
    found = to_module(_experts(12), DEEPSEEK)
    sources = found.tensors["model.layers.0.mlp.experts.down_proj"].sources
    assert [int(name.split(".")[5]) for name in sources] == list(range(12))
    assert sorted(found.rules) == [
        "1 x mlp.experts.{expert}.down_proj.weight -> mlp.experts.down_proj",
        "1 x mlp.experts.{expert}.{gate,up}_proj.weight -> mlp.experts.gate_up_proj",
    ]


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        (("1.up",), "some pieces needed"),
        (("0.up", "1.up", "2.up"), "some pieces needed"),
        (("1.gate", "1.up", "1.down"), "gives other names"),  # experts 0 and 2 would become 0 and 1
    ],
)
def test_what_is_not_whole_is_not_fused(lost: tuple[str, ...], says: str) -> None:
    held = {n: v for n, v in _experts().items() if not any(f".{one}_proj" in n for one in lost)}
    with pytest.raises(CkptconvError, match=says):
        to_module(held, DEEPSEEK)


def test_quantized_folders_keep_their_names() -> None:
    config: dict[str, Any] = DEEPSEEK | {"quantization_config": {"quant_method": "fp8"}}
    fused = {"model.layers.0.mlp.experts.gate_up_proj": stored("f", 0, (3, 10, 7), "float8_e4m3fn")}
    assert list(named("hub", fused, config).tensors) == list(fused)
    assert len(named("hub", fused, DEEPSEEK).tensors) == 6


@pytest.mark.parametrize("model_type", _ONE_WAY)
def test_a_way_back_that_is_not_known_is_refused(model_type: str) -> None:
    with pytest.raises(CkptconvError, match=model_type):
        to_module({"a": stored("f", 0, (2,), "float32")}, {"model_type": model_type})
