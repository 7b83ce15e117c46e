"""Without a reference: the model class that the config names says what has to be there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.verify_tools import NORM, Made, Q, edit_config, only_wrong, problems, rewrite, states

from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import Layer, Verified, verify
from ckptconv.errors import ExitCode
from ckptconv.plan import Options


@pytest.mark.parametrize(
    "variant", ["fsdp2_w4", "critic_w2", "qwen3_moe_w4", "fsdp2_untied_but_config_tied_w4"]
)
def test_alone(made: Made, merged_once: Callable[[str], Path], variant: str) -> None:
    for target in (merged_once(variant), made(variant)):
        result = verify(target)
        only_wrong(result)
        assert list(states(result))[:4] == ["loads", "names", "shapes", "dtypes"]
        assert None not in states(result).values()


def test_alone_with_the_modules_names(made: Made, tmp_path: Path) -> None:
    merge(made("qwen3_moe_w4"), tmp_path / "out", options=Options(layout="module"))
    result = verify(tmp_path / "out")
    only_wrong(result)
    assert result.layers[0].notes == ("the names are those of the module",)


def test_alone_with_a_missing_layer(merged: Callable[[str], Path]) -> None:
    out = merged("fsdp2_w4")
    edit_config(out, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    result = verify(out)
    only_wrong(result, "names")
    assert len(problems(result, "names")) == 12
    assert all(name.startswith("model.layers.2.") for name in problems(result, "names"))


def test_alone_with_other_shapes(merged: Callable[[str], Path]) -> None:
    out = merged("fsdp2_w4")
    edit_config(out, intermediate_size=38)
    result = verify(out)
    only_wrong(result, "shapes")
    assert len(problems(result, "shapes")) == 6


def test_alone_untied_under_a_tied_config(merged: Callable[[str], Path]) -> None:
    out = merged("fsdp2_untied_but_config_tied_w4")
    edit_config(out, tie_word_embeddings=True)
    result = verify(out)
    only_wrong(result, "names")
    assert "tie_word_embeddings" in problems(result, "names")["lm_head.weight"]


def test_alone_without_a_head(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    rewrite(out, lambda tensors: tensors.__delitem__("lm_head.weight"))
    only_wrong(verify(out), "names")
    edit_config(out, tie_word_embeddings=True)
    only_wrong(verify(out))


def test_alone_with_value_heads(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    rewrite(out, lambda tensors: tensors.update({"v_head.summary.weight": tensors["lm_head.weight"][:1]}))
    only_wrong(verify(out))
    critic = copied("critic_w2", "hub")
    edit_config(critic, architectures=["Qwen2ForCausalLM"])
    result = verify(critic)
    only_wrong(result, "names")
    assert {"score.weight", "score.bias", "lm_head.weight"} == set(problems(result, "names"))


def test_alone_with_code_of_its_own(copied: Callable[..., Path], tmp_path: Path) -> None:
    out = copied("fsdp2_w4", "hub")
    (out / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    mine = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    edit_config(out, auto_map=mine)
    only_wrong(verify(out))
    edit_config(out, model_type="mine", architectures=["Mine"])
    result = verify(out)
    only_wrong(result)
    assert states(result)["loads"] is None
    assert "brings its own code" in result.layers[0].found
    assert not (tmp_path / "ran").exists()


def test_alone_with_a_model_type_that_transformers_does_not_know(made: Made) -> None:
    result = verify(made("smalldims_w4"))
    only_wrong(result)
    assert states(result)["loads"] is None
    assert "does not know the model type 'odd'" in result.layers[0].found


def test_alone_with_a_config_that_does_not_load(copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    edit_config(out, architectures=["Qwen2ForDreams"])
    assert "Qwen2ForDreams" in verify(out).layers[0].found
    edit_config(out, architectures=["Qwen2ForCausalLM"], model_type="qwen2000")
    only_wrong(verify(out), "loads")
    edit_config(out, model_type="qwen2", layer_types=["no_such_attention"] * 2)
    only_wrong(verify(out), "loads")
    (out / "config.json").unlink()
    only_wrong(verify(out), "loads")


def test_strange_values(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q][:] = 0
        tensors[Q][3] = -0.0
        tensors["lm_head.weight"][:] = 0.25
        tensors[NORM][:] = 1
        tensors["model.layers.0.self_attn.q_proj.bias"][:] = 0

    rewrite(out, change)
    result = verify(out)
    only_wrong(result, "sanity")
    assert set(problems(result, "sanity")) == {Q, "lm_head.weight"}
    sanity = result.layer("sanity")
    assert sanity is not None
    assert len(sanity.notes) == 2, "norms of ones and biases of zeros are normal"


def test_an_adapter_whose_tensors_have_no_elements_is_a_no(made: Made, copied: Callable[..., Path]) -> None:
    """PEFT's save_pretrained under ZeRO-3 writes shape [0] where the parameters were not gathered."""
    from safetensors.numpy import load_file, save_file

    out = copied("lora_w4", "adapter")
    weights = out / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.empty(0, np.float32) for name in tensors}, weights, metadata={"format": "pt"})
    result = verify(out)
    only_wrong(result, "sanity")
    assert set(problems(result, "sanity")) == set(tensors)
    assert "has no elements" in next(iter(problems(result, "sanity").values()))
    only_wrong(verify(out, against=out), "sanity")


def test_a_yes_needs_something_that_was_checked() -> None:
    unchecked = Layer("integrity", None, "", "there is nothing to check the files against")
    assert not Verified(Path("x"), None, (unchecked,)).ok
    assert Verified(Path("x"), None, (unchecked,)).code is ExitCode.FAILED
    assert Verified(Path("x"), None, (unchecked, Layer("sanity", True, "", "1 float tensor"))).ok


def test_a_folder_compared_with_itself_is_not_called_equal(made: Made) -> None:
    hub = made("fsdp2_w4") / "hub"
    result = verify(hub, against=hub)
    assert states(result)["values"] is None
    assert (result.compared, result.equal) == (0, 0)
