"""The parameters of real models, names and shapes, from their public configurations; and other trainers' names of them.

`hugging_face` gives what `transformers` saves, `mindformers` what MindFormers' networks hold. Sizes are those of the
models' config.json; nothing here is read by the toolkit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ms_resume.records import TensorInfo

Infos = dict[str, TensorInfo]


@dataclass(frozen=True)
class Model:
    """A decoder. With `experts` it is DeepSeek's: latent attention, and experts from layer `dense_layers` on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    qkv_bias: bool = False
    tied: bool = False
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_dim: int = 0
    experts: int = 0
    expert_size: int = 0
    shared_size: int = 0
    dense_layers: int = 0
    scores_bias: bool = False
    dtype: str = "BF16"


MODELS = {
    "Qwen2.5-0.5B": Model(24, 896, 14, 2, 64, 4864, 151936, qkv_bias=True, tied=True),
    "Qwen2.5-7B": Model(28, 3584, 28, 4, 128, 18944, 152064, qkv_bias=True),
    "Llama-2-7B": Model(32, 4096, 32, 32, 128, 11008, 32000),
    "Llama-3-8B": Model(32, 4096, 32, 8, 128, 14336, 128256),
    "DeepSeek-V2-Lite": Model(
        27, 2048, 16, 16, 0, 10944, 102400, kv_rank=512, rope_dim=64, nope_dim=128, v_dim=128, experts=64,
        expert_size=1408, shared_size=2816, dense_layers=1,
    ),
    "DeepSeek-V3": Model(
        8, 7168, 128, 128, 0, 18432, 129280, q_rank=1536, kv_rank=512, rope_dim=64, nope_dim=128, v_dim=128, experts=32,
        expert_size=2048, shared_size=2048, dense_layers=3, scores_bias=True,
    ),  # 61 layers and 256 experts, cut short: names and shapes of each are as they are
}  # fmt: skip  # one model each


def shortened(model: Model, layers: int, experts: int = 4) -> Model:
    return replace(model, layers=layers, experts=min(model.experts, experts))


def hugging_face(model: Model) -> Infos:
    """As `AutoModelForCausalLM.save_pretrained` names them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocabulary, model.hidden)}
    for number in range(model.layers):
        layer = f"model.layers.{number}."
        shapes[f"{layer}input_layernorm.weight"] = (model.hidden,)
        shapes |= {f"{layer}self_attn.{name}": shape for name, shape in _attention(model).items()}
        shapes[f"{layer}post_attention_layernorm.weight"] = (model.hidden,)
        shapes |= {f"{layer}mlp.{name}": shape for name, shape in _feed_forward(model, number).items()}
    shapes["model.norm.weight"] = (model.hidden,)
    if not model.tied:
        shapes["lm_head.weight"] = (model.vocabulary, model.hidden)
    return {name: TensorInfo(model.dtype, shape) for name, shape in shapes.items()}


def _attention(model: Model) -> dict[str, tuple[int, ...]]:
    if model.kv_rank:
        return _latent_attention(model)
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        shapes[f"{name}.weight"] = (size, model.hidden)
        if model.qkv_bias:
            shapes[f"{name}.bias"] = (size,)
    return {**shapes, "o_proj.weight": (model.hidden, q)}


def _latent_attention(model: Model) -> dict[str, tuple[int, ...]]:
    q = model.heads * (model.nope_dim + model.rope_dim)
    shapes: dict[str, tuple[int, ...]] = {"q_proj.weight": (q, model.hidden)}
    if model.q_rank:
        shapes = {
            "q_a_proj.weight": (model.q_rank, model.hidden),
            "q_a_layernorm.weight": (model.q_rank,),
            "q_b_proj.weight": (q, model.q_rank),
        }
    return {
        **shapes,
        "kv_a_proj_with_mqa.weight": (model.kv_rank + model.rope_dim, model.hidden),
        "kv_a_layernorm.weight": (model.kv_rank,),
        "kv_b_proj.weight": (model.heads * (model.nope_dim + model.v_dim), model.kv_rank),
        "o_proj.weight": (model.hidden, model.heads * model.v_dim),
    }


def _feed_forward(model: Model, number: int) -> dict[str, tuple[int, ...]]:
    if not model.experts or number < model.dense_layers:
        return _gated("", model.hidden, model.intermediate)
    shapes: dict[str, tuple[int, ...]] = {"gate.weight": (model.experts, model.hidden)}
    if model.scores_bias:
        shapes["gate.e_score_correction_bias"] = (model.experts,)
    for expert in range(model.experts):
        shapes |= _gated(f"experts.{expert}.", model.hidden, model.expert_size)
    return shapes | _gated("shared_experts.", model.hidden, model.shared_size)


def _gated(prefix: str, hidden: int, size: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (size, hidden),
        f"{prefix}up_proj.weight": (size, hidden),
        f"{prefix}down_proj.weight": (hidden, size),
    }


_TO_MINDFORMERS = [
    ("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight"),
    ("model.norm.weight", "model.norm_out.weight"),
    (".input_layernorm.", ".attention_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".self_attn.q_a_proj.", ".attention.q2l_proj."),
    (".self_attn.q_a_layernorm.", ".attention.lq_norm."),
    (".self_attn.q_b_proj.", ".attention.l2q_proj."),
    (".self_attn.kv_a_proj_with_mqa.", ".attention.kv2l."),
    (".self_attn.kv_a_layernorm.", ".attention.lkv_norm."),
    (".self_attn.kv_b_proj.", ".attention.lkv2kv."),
    (".self_attn.k_proj.", ".attention.wk."),
    (".self_attn.v_proj.", ".attention.wv."),
    (".self_attn.o_proj.", ".attention.wo."),
    (".mlp.gate.weight", ".feed_forward.routed_experts.router.dense.weight"),
    (".mlp.gate.e_score_correction_bias", ".feed_forward.routed_experts.router.router.topk_bias"),
    (".mlp.experts.", ".feed_forward.routed_experts.ffn."),
    (".mlp.", ".feed_forward."),
    (".gate_proj.", ".w1."),
    (".down_proj.", ".w2."),
    (".up_proj.", ".w3."),
]


def to_mindformers(name: str, *, latent: bool) -> str:
    """MindFormers' name of a Hugging Face parameter; its DeepSeek keeps `q_proj`."""
    for old, new in [*_TO_MINDFORMERS, (".self_attn.q_proj.", ".attention.q_proj." if latent else ".attention.wq.")]:
        name = name.replace(old, new)
    return name


def mindformers(model: Model) -> Infos:
    """As MindFormers' networks name them, each expert by itself."""
    return {to_mindformers(name, latent=bool(model.kv_rank)): info for name, info in hugging_face(model).items()}


def experts_stacked(model: Model) -> tuple[Infos, dict[str, list[str]]]:
    """As MindFormers holds experts: one tensor, transposed. And what each is made of, by Hugging Face's names."""
    infos, made_of = mindformers(model), {}
    for name, info in list(infos.items()):
        before, found, after = name.partition(".routed_experts.ffn.")
        if not found:
            continue
        number, _, rest = after.partition(".")
        whole = f"{before}{found}{rest}"
        made_of.setdefault(whole, [""] * model.experts)[int(number)] = name
        infos[whole] = TensorInfo(info.dtype, (model.experts, info.shape[1], info.shape[0]))
        del infos[name]
    return infos, made_of


def policy(infos: Infos, prefix: str = "grpo_model_train.policy_model.") -> Infos:
    """As MindRLHF's policy has them."""
    return {prefix + name: info for name, info in infos.items()}


def optimizer(infos: Infos, first: str = "adam_m", second: str = "adam_v") -> Infos:
    """As an optimizer that registers the weights has them, moments in float32."""
    moments = {
        f"{kind}.{name}": TensorInfo("F32", info.shape) for kind in (first, second) for name, info in infos.items()
    }
    return {**infos, **moments, "global_step": TensorInfo("I32", (1,))}
