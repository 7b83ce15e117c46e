"""Mamba-2 layers in rank files: every part of in_proj and conv1d is cut over the tensor parallel ranks on its own."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from support.helpers import unpacked  # noqa: E402

from ckptconv import CkptconvError  # noqa: E402
from ckptconv.backends import open_checkpoint  # noqa: E402

MIXER = "decoder.layers.0.mixer."
HEADS, INNER, STATE, HIDDEN = 2, 14, 5, 8


def layer(**changed: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """One rank's Mamba layer. changed: shapes to replace, by the name's first word."""
    shapes = {
        "in_proj.weight": (2 * (INNER + STATE) + HEADS, HIDDEN),
        "conv1d.weight": (INNER + 2 * STATE, 1, 4),
        "conv1d.bias": (INNER + 2 * STATE,),
        "out_proj.weight": (HIDDEN, INNER),
        "norm.weight": (INNER,),
        "A_log": (HEADS,),
        "D": (HEADS,),
        "dt_bias": (HEADS,),
    }
    shapes |= {name: changed[name.split(".")[0]] for name in shapes if name.split(".")[0] in changed}
    return {f"{MIXER}{name}": torch.zeros(shape) for name, shape in shapes.items() if shape}


def save(ranks: list[dict[str, torch.Tensor]], run: Path) -> Path:
    """Rank files as Megatron-LM names them. Each rank's values differ, as those of a model do."""
    for tp, tensors in enumerate(ranks):
        folder = run / "iter_0000010" / f"mp_rank_{tp:02d}"
        folder.mkdir(parents=True)
        model = {name: tensor + tp + 1 for name, tensor in tensors.items()}
        norm = {"decoder.final_norm.weight": torch.ones(HIDDEN)}
        torch.save({"model": model | norm, "iteration": 10}, folder / "model_optim_rng.pt")
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    return run


def test_each_part_of_in_proj_is_joined_over_the_ranks(tmp_path: Path) -> None:
    found = open_checkpoint(save([layer(), layer()], tmp_path)).tensors
    rows = {part: found[f"{MIXER}in_proj.weight.{part}"].view.shape[0] for part in ("z", "x", "B", "C", "dt")}
    assert rows == {"z": 2 * INNER, "x": 2 * INNER, "B": 2 * STATE, "C": 2 * STATE, "dt": 2 * HEADS}
    assert found[f"{MIXER}conv1d.bias.B"].view.shape == (2 * STATE,)
    assert found[f"{MIXER}out_proj.weight"].view.shape == (HIDDEN, 2 * INNER)
    assert f"{MIXER}in_proj.weight" not in found


def test_the_convolution_of_newer_releases_has_another_name(tmp_path: Path) -> None:
    newer = {name.replace("conv1d.", "conv1d_"): tensor for name, tensor in layer().items()}
    found = open_checkpoint(save([newer, newer], tmp_path)).tensors
    assert found[f"{MIXER}conv1d.weight.x"].view.shape == (2 * INNER, 1, 4)


def test_a_mamba_layer_whose_shapes_do_not_fit_is_refused(tmp_path: Path) -> None:
    run = save([layer(in_proj=(2 * (INNER + STATE) + HEADS + 1, HIDDEN))], tmp_path)
    with pytest.raises(CkptconvError, match="tensors of a Mamba layer do not fit together"):
        open_checkpoint(run)


@pytest.mark.parametrize("absent", ["conv1d", "A_log", "out_proj"])
def test_a_mamba_layer_that_is_not_whole_is_refused(absent: str, tmp_path: Path) -> None:
    run = save([layer(**{absent: ()})], tmp_path)
    with pytest.raises(CkptconvError, match="a Mamba layer is not whole"):
        open_checkpoint(run)


def test_rank_files_and_torch_dist_hold_the_same_names() -> None:
    """Both fixtures hold one model; only the vocabulary of one of them has padding."""
    stored = open_checkpoint(unpacked("megatron/nemotron_h_mtp_mb") / "run").tensors
    ranks = open_checkpoint(unpacked("megatron/nemotron_h_mlm_legacy") / "run").tensors
    assert {name.replace("mtp_model_layer", "transformer_layer") for name in ranks} == {
        name.replace("mtp_model_layer", "transformer_layer") for name in stored
    }
