"""What the builds with one changed key do not show: configs that are built as well, and rules that derive does not find.

A rule is compared with every build of its class; a rule that a build contradicts is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Rules = tuple[tuple[str, Any], ...]

# Model types that transformers loads with a class of another type, under their own config and their own names on the Hub.
# Source: transformers 5.24, models/auto/modeling_auto.py.
BORROWED = ("exaone", "glmga", "internlm3", "iquestcoder", "sarvam_mla", "sarvam_moe")

_SPARSE = r"(router\.classifier\.weight|experts\.expert_\.\*\*)$"


@dataclass(frozen=True)
class Shown:
    """What is declared for the classes of a package.

    Args:
        bases: changes of the config; each is built, and each effective key is changed on top of it.
        when: (regular expression of a name pattern, where its tensors are); see ckptconv.models.skeleton.Group.
        dims: (regular expression of a name pattern, {dim: expression}); see ckptconv.models.skeleton.Member.
    """

    bases: tuple[dict[str, Any], ...] = ()
    when: Rules = ()
    dims: Rules = ()


def shown(package: str, root: tuple[str, ...] = ()) -> Shown:
    """What is declared for a package.

    Args:
        package: the package of transformers, such as "t5".
        root: the path of the language model's part of the config.
    """
    declare = _DECLARED.get(package)
    return declare(lambda *names: [*root, *names]) if declare else Shown()


Key = Callable[..., list[str]]


def _product(*features: list[Any], factor: int = 1) -> list[Any]:
    return [factor, list(features), []]


def _blocks(key: Key, *, every: bool = False, step: bool = False) -> Shown:
    """T5 and its kin: a block's attention, cross-attention and MLP are its layers 0, 1 and 2.

    Args:
        key: makes a path.
        every: every block has a relative attention bias; else the first one has.
        step: some blocks have experts in place of the MLP.
    """
    first = ["all", [["at", -1, 0], *([] if every else [["at", 0, 0]])]]
    gated = _either(key("is_gated_act"), ["text", key("feed_forward_proj"), "gated"])
    rules: list[tuple[str, Any]] = []
    for tower, mlp in (("encoder", 1), ("decoder", 2)):
        here = rf"^(transformer\.)?{tower}\.block\..*"
        place = ["at", -1, mlp]
        sparse = ["all", [place, ["outer", ["step", key(f"{tower}_sparse_step"), 1]]]]
        rules += [
            (rf"{here}\.mlp\.router\.classifier\.bias$", ["all", [sparse, ["if", key("router_bias")]]]),
            (rf"{here}\.mlp\.{_SPARSE}", sparse),
            (rf"{here}\.mlp\.w[io]\.", ["all", [place, ["not", sparse]]]),
            (rf"{here}\.DenseReluDense\.wi_[01]\.", ["all", [place, gated]]),
            (rf"{here}\.DenseReluDense\.wi\.", ["all", [place, ["not", gated]]]),
            (rf"{here}\.DenseReluDense\.wo\.", place),
            (rf"{here}\.EncDecAttention\.", ["at", -1, 1]),
        ]
        for kind, name in (("Local", "local"), ("TransientGlobal", "transient-global")):
            stated = ["text", key("encoder_attention_type"), name]
            rules += [
                (rf"{here}\.{kind}SelfAttention\..*relative_attention_bias", ["all", [first, stated]]),
                (rf"{here}\.{kind}SelfAttention\.", ["all", [["at", -1, 0], stated]]),
            ]
        rules += [
            (rf"{here}\.SelfAttention\.relative_attention_bias", first),
            (rf"{here}\.SelfAttention\.", ["at", -1, 0]),
        ]
    bases: list[dict[str, Any]] = [{"num_layers": 6, "num_decoder_layers": 3}]
    if step:
        bases = [
            {"num_layers": n, "num_decoder_layers": m, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 2}
            for n, m in ((6, 8), (3, 5))
        ]  # fmt: skip
    else:
        bases.append({"feed_forward_proj": "gated-gelu"})
    return Shown(tuple(bases), tuple(rules))


def _either(first: list[str], otherwise: Any) -> Any:
    """The key where it is stated, else the condition."""
    return [
        "any",
        [["all", [["stated", first], ["if", first]]], ["all", [["not", ["stated", first]], otherwise]]],
    ]


def _longt5(key: Key) -> Shown:
    plain = _blocks(key)
    return Shown((*plain.bases, {"encoder_attention_type": "transient-global"}), plain.when)


def _nllb_moe(key: Key) -> Shown:
    rules = []
    for tower in ("encoder", "decoder"):
        here = rf"\b{tower}\.layers\.\*\.ffn\."
        sparse = ["step", key(f"{tower}_sparse_step"), -1]
        rules += [
            (rf"{here}router\.classifier\.bias$", ["all", [sparse, ["if", key("router_bias")]]]),
            (rf"{here}{_SPARSE}", sparse),
            (rf"{here}fc\d\.", ["not", sparse]),
        ]
    bases = (
        {"encoder_layers": 6, "decoder_layers": 7, "encoder_sparse_step": 2, "decoder_sparse_step": 3},
        {"encoder_layers": 3, "decoder_layers": 5, "encoder_sparse_step": 1, "decoder_sparse_step": 0},
    )
    return Shown(bases, tuple(rules))


_TOWERS = (
    ("vision_config", "vision_tower|embed_vision|vision_embedder"),
    ("audio_config", "audio_tower|embed_audio"),
)


def _gemma4(key: Key) -> Shown:
    """Layers of two kinds with heads of two sizes; the last layers may reuse the keys and values of others.

    transformers ignores the keys and values that a file has for a layer which reuses others', so they may be there.
    """
    hidden, heads, double = key("hidden_size"), key("num_attention_heads"), key("use_double_wide_mlp")
    wide, grouped = key("global_head_dim"), key("num_global_key_value_heads")
    own = [
        "before",
        [_product(["v", key("num_hidden_layers")]), _product(["v", key("num_kv_shared_layers")], factor=-1)],
    ]
    full = ["list", key("layer_types"), {"full_attention": True, "sliding_attention": False}]
    valued = ["not", ["all", [full, ["if", key("attention_k_eq_v")]]]]
    by_layer = ["stated", key("per_layer_config")]
    fewer = ["all", [full, ["if", key("attention_k_eq_v")], ["stated", grouped]]]

    def widths(*others: list[Any], groups: bool = False) -> dict[str, Any]:
        """The cases of a dim that is a head's width, times others."""
        count, other = (
            (["layer", key("num_key_value_heads")], ["v", key("num_key_value_heads")]) if groups else ((), ())
        )
        plain, single = ([*others, *([each] if each else [])] for each in (count, other))
        return {
            "cases": [
                [by_layer, [_product(*plain, ["layer", key("head_dim")])]],
                *([[fewer, [_product(["v", grouped], ["v", wide])]]] if groups else []),
                [full, [_product(*single, ["v", wide])]],
                ["always", [_product(*single, ["v", key("head_dim")])]],
            ]
        }

    inner = {
        "cases": [
            [["all", [["if", double], ["not", own]]], [_product(["v", key("intermediate_size")], factor=2)]],
            ["always", [_product(["v", key("intermediate_size")])]],
        ]
    }
    queries, values = widths(["v", heads]), widths(groups=True)
    language = r"^(?!.*(vision|audio|encoder)).*\blayers\.\*\."
    here = rf"{language}self_attn\."
    biased = ["if", key("attention_bias")]
    shared = ["not", own]
    when = (
        *((rf"^[^*]*\b({names})\b(?!.*std_)[^*]*(\.\*\*)?$", ["stated", [part]]) for part, names in _TOWERS),
        (rf"{here}k_(proj\.weight|norm)", ["may", own, "always"]),
        (rf"{here}k_proj\.bias", ["may", ["all", [own, biased]], ["all", [["any", [own, shared]], biased]]]),
        (rf"{here}v_proj\.weight", ["may", ["all", [own, valued]], ["any", [shared, valued]]]),
        (
            rf"{here}v_proj\.bias",
            ["may", ["all", [own, valued, biased]], ["all", [["any", [shared, valued]], biased]]],
        ),
    )
    dims = (
        (rf"{here}q_proj\.weight$", {0: queries}),
        (rf"{here}q_proj\.bias$", {0: queries}),
        (rf"{here}[kv]_proj\.", {0: values}),
        (rf"{here}[qk]_norm\.weight$", {0: widths()}),
        (rf"{here}o_proj\.weight$", {0: [_product(["v", hidden])], 1: queries}),
        (rf"{language}mlp\.(gate|up)_proj\.weight$", {0: inner}),
        (rf"{language}mlp\.down_proj\.weight$", {1: inner}),
    )
    kinds = [f"{'full' if n in (1, 4, 5) else 'sliding'}_attention" for n in range(6)]
    bases = (
        {"num_hidden_layers": 6, "layer_types": kinds, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
         "global_head_dim": 320},
        {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 40,
         "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "num_global_key_value_heads": 2,
         "global_head_dim": 384},
        {"num_hidden_layers": 6, "layer_types": kinds, "num_kv_shared_layers": 2, "attention_k_eq_v": True,
         "attention_bias": True, "global_head_dim": 192},
    )  # fmt: skip
    return Shown(bases, when, dims)


def _gemma4_assistant(key: Key) -> Shown:
    """Gemma 4 without keys of its own: every layer reuses those of the model that it assists."""
    target = _gemma4(key)
    kinds = target.bases[0]["layer_types"]
    own = {"num_hidden_layers": 6, "num_kv_shared_layers": 6, "layer_types": kinds, "global_head_dim": 320}
    return Shown((own, {**own, "attention_bias": True, "global_head_dim": 192}), target.when, target.dims)


def _llama(key: Key) -> Shown:
    return Shown(({"attention_bias": True, "mlp_bias": True},))


def _ernie4_5_vl_moe(key: Key) -> Shown:
    """The widths of text's and vision's experts in a list, whose ratio of 3 in the default config is no rule."""
    return Shown(({"moe_intermediate_size": [320, 192]},))


def _minimax_m3_vl(key: Key) -> Shown:
    return Shown(({"mlp_layer_types": ["dense", "sparse", "sparse", "dense"]},))


def _sapiens2(key: Key) -> Shown:
    width = [_product(["v", key("head_dim")], ["item", key("num_key_value_heads_per_layer")])]
    bases = (
        {"num_hidden_layers": 6, "num_first_full_attention_layers": 1, "num_last_full_attention_layers": 2},
        {"num_hidden_layers": 5, "num_first_full_attention_layers": 2, "num_last_full_attention_layers": 0},
    )
    return Shown(bases, (), ((r"\.attn\.w[kv]\.", {0: width}),))


def _rf_detr(key: Key) -> Shown:
    width = [
        _product(["v", key("backbone_config", "hidden_size")], ["len", key("backbone_config", "out_indices")])
    ]
    bases = ({"backbone_config": {"num_hidden_layers": 6, "out_indices": [1, 3, 6]}},)
    return Shown(
        bases, (), ((r"^(model\.)?backbone\..*projector\.stages\.0\.0\.cv1\.conv\.weight$", {1: width}),)
    )


_DECLARED: dict[str, Callable[[Key], Shown]] = {
    "t5": _blocks,
    "mt5": _blocks,
    "umt5": lambda key: _blocks(key, every=True),
    "longt5": _longt5,
    "switch_transformers": lambda key: _blocks(key, step=True),
    "nllb_moe": _nllb_moe,
    "gemma4": _gemma4,
    "gemma4_assistant": _gemma4_assistant,
    "gemma4_unified": _gemma4,
    "gemma4_unified_assistant": _gemma4_assistant,
    "exaone": _llama,
    "internlm3": _llama,
    "iquestcoder": _llama,
    "ernie4_5_vl_moe": _ernie4_5_vl_moe,
    "minimax_m3_vl": _minimax_m3_vl,
    "sapiens2": _sapiens2,
    "rf_detr": _rf_detr,
}
