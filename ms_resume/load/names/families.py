"""Names that differ in their numbers only, taken together; and words of which trainers mean the same.

A model of ten thousand parameters has a few dozen families: what is said of a family is said of each layer at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ms_resume.records import TensorInfo

NUMBER = "\0"
"""Stands in a template for a number between other characters than letters and digits."""

_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")

Numbers = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """The names of one template, by their numbers."""

    template: str
    members: Mapping[Numbers, str]
    infos: Mapping[Numbers, TensorInfo]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.template.split("."))

    @cached_property
    def meaning(self) -> tuple[str, ...]:
        return meaning(self.template)

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """The one shape of all its members, None where they differ or are not known."""
        shapes = {info.shape if info.dtype else None for info in self.infos.values()}
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def known(self) -> bool:
        return all(info.dtype for info in self.infos.values())

    def __len__(self) -> int:
        return len(self.members)

    def __str__(self) -> str:
        """As people write it: `model.layers.*.mlp`."""
        return self.template.replace(NUMBER, "*") if len(self.members) > 1 else next(iter(self.members.values()))


def families(infos: Mapping[str, TensorInfo], names: Iterable[str] | None = None) -> dict[str, Family]:
    """By template; of `names`, or of all."""
    found: dict[str, tuple[dict[Numbers, str], dict[Numbers, TensorInfo]]] = {}
    for name in infos if names is None else names:
        numbers = tuple(_NUMBER.findall(name))
        members, held = found.setdefault(_NUMBER.sub(NUMBER, name) if numbers else name, ({}, {}))
        members[numbers], held[numbers] = name, infos[name]
    return {template: Family(template, *both) for template, both in found.items()}


def module_of(name: str) -> str:
    """The part of the model that a name is told under: up to its first number, else all but its last part."""
    template = _NUMBER.sub(NUMBER, name)
    head, counted, _ = template.partition(NUMBER)
    if counted:
        return head.rstrip("._/") or "*"
    return ".".join(name.split(".")[:-1]) or name


_SAME = {
    "attn": "self_attn self_attention attention attn",
    "q": "q_proj wq query linear_q to_q q_lin query_proj",
    "k": "k_proj wk key linear_k to_k k_lin key_proj",
    "v": "v_proj wv value linear_v to_v v_lin value_proj",
    "qkv": "qkv_proj w_qkv wqkv Wqkv query_key_value linear_qkv c_attn qkv in_proj",
    "kv": "kv_proj w_kv wkv linear_kv key_value",
    "o": "o_proj wo out_proj linear_proj to_out",
    "mlp": "mlp feed_forward ffn",
    "gate": "gate_proj w1 linear_gate",
    "up": "up_proj w3 linear_up",
    "down": "down_proj w2 linear_fc2 dense_4h_to_h linear_down",
    "gateup": "gate_up_proj w_gate_hidden linear_fc1 dense_h_to_4h w13 gate_up",
    "norm1": "input_layernorm attention_norm ln_1 input_norm norm1",
    "norm2": "post_attention_layernorm ffn_norm pre_mlp_layernorm ln_2 norm2",
    "final": "norm norm_out final_layernorm ln_f final_norm",
    "embed": "embed_tokens tok_embeddings word_embeddings wte token_embedding embedding_table",
    "head": "lm_head output_layer embed_out head output",
    "layers": "layers layer blocks block h",
    "weight": "weight gamma embedding_weight",
    "bias": "bias beta",
    "qa": "q_a_proj q2l_proj wq_a linear_q_down_proj",
    "qanorm": "q_a_layernorm lq_norm",
    "qb": "q_b_proj l2q_proj wq_b linear_q_up_proj",
    "kva": "kv_a_proj_with_mqa kv2l wkv_a linear_kv_down_proj",
    "kvanorm": "kv_a_layernorm lkv_norm",
    "kvb": "kv_b_proj lkv2kv wkv_b linear_kv_up_proj",
    "shared": "shared_experts shared_expert",
    "scores": "e_score_correction_bias topk_bias expert_bias",
    "m": "adam_m moment1 moments1 exp_avg",
    "v2": "adam_v moment2 moments2 exp_avg_sq",
    "vmax": "vhat max_exp_avg_sq",
}
_WORDS = {word: meant for meant, words in _SAME.items() for word in words.split()}
_WRAPPERS = frozenset(
    "model module network net backbone _backbone _orig_mod base_model transformer decoder language_model policy_model "
    "grpo_model_train _fsdp_wrapped_module _checkpoint_wrapped_module embedding".split()
)
_PHRASES = [
    (re.compile(pattern), said)
    for pattern, said in (
        (r"\brouted_experts\.ffn\b", "experts"),
        (r"\b(routed_experts\.)?router(\.router|\.dense)?(?=\.)", "router"),
        (r"\b(mlp|feed_forward|block_sparse_moe)\.gate(?=\.)", "mlp.router"),
        (r"\bembedding\.word_embeddings\b", "word_embeddings"),
        (r"^embedding_table$", "embed_tokens.weight"),
    )
]


@lru_cache(maxsize=65536)
def meaning(template: str) -> tuple[str, ...]:
    """What a template says, part by part, in words of our own and without wrappers."""
    template = template.replace("/", ".").replace(f"_{NUMBER}", f".{NUMBER}")
    for pattern, said in _PHRASES:
        template = pattern.sub(said, template)
    return tuple(_WORDS.get(part, part) for part in template.split(".") if part not in _WRAPPERS) or (template,)


FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gateup": ("gate", "up")}
"""What lies in one tensor here and in several there, in this order."""

DIALECTS = {
    "Hugging Face": "self_attn q_proj gate_proj embed_tokens input_layernorm post_attention_layernorm",
    "MindFormers": "attention wq w_qkv feed_forward tok_embeddings attention_norm ffn_norm q2l_proj kv2l",
    "Megatron (mcore)": "self_attention linear_qkv linear_fc1 linear_fc2 word_embeddings pre_mlp_layernorm",
}


def dialect(found: Iterable[Family]) -> str:
    """Whose names these are, nothing where that is not plain."""
    words = {part for family in found for part in family.parts}
    told = {name: len(words & set(marks.split())) for name, marks in DIALECTS.items()}
    best = max(told, key=lambda name: told[name])
    return best if told[best] >= 3 and list(told.values()).count(told[best]) == 1 else ""


OPTIMIZERS = {
    "nn.AdamWeightDecay": ("adam_m", "adam_v"),
    "nn.Adam": ("moment1", "moment2"),
    "nn.Lamb or an offloaded AdamWeightDecay": ("moments1", "moments2"),
    "an Adam of experimental.optim or mint.optim": ("exp_avg", "exp_avg_sq"),
    "nn.Momentum": ("moments",),
    "nn.SGD": ("accum", "stat"),
    "mint.optim.SGD": ("momentum_buf",),
}
"""By the first parts of the names of their state."""

_STATE = frozenset(word for words in OPTIMIZERS.values() for word in words) | {"vhat", "max_exp_avg_sq"}
_SCALARS = frozenset(
    "global_step learning_rate beta1_power beta2_power momentum state_step step_t current_iterator_step "
    "last_overflow_iterator_step scale_sense".split()
)


def is_state(name: str) -> bool:
    """Whether an optimizer keeps it beside the weights."""
    first = name.partition(".")[0]
    return first in _STATE or first in _SCALARS or first.startswith("learning_rate_group_")


def optimizer_of(names: Iterable[str]) -> str:
    """Whose state this is, nothing where there is none or of several."""
    first = {name.partition(".")[0] for name in names}
    found = [kind for kind, words in OPTIMIZERS.items() if set(words) <= first]
    return found[0] if len(found) == 1 else ""


def is_adapter(name: str) -> bool:
    """Whether it is LoRA's."""
    return re.search(r"(^|[._])lora_(a|b|embedding|magnitude)", name, re.IGNORECASE) is not None


def is_quantised(name: str, info: TensorInfo) -> bool:
    """By dtype, or by the names that GPTQ, AWQ and MindSpore's golden stick give."""
    last = name.rpartition(".")[2]
    return info.dtype.startswith("F8") or last in (
        "qweight", "qzeros", "g_idx", "weight_scale_inv", "dequant_scale", "input_zp", "quant_bias",
    )  # fmt: skip  # one list
