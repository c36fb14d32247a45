"""Renames of every kind, injected into the parameters of real models: the suggested name map mends them.

What is true is known here, because it was injected here: not only must each name be found, it must be made of the right
tensor, the right part of it, the right way round. `pytest -s` prints how many of each kind were mended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import model_names
import pytest
import quickest
from model_names import MODELS, Infos, Model

from ms_resume.load.names.causes import diagnose
from ms_resume.load.names.likeness import nearest
from ms_resume.load.names.match import match
from ms_resume.load.names.name_map import NameMap
from ms_resume.load.names.recipes import Cast, Cut, Joined, Picked, Recipe, Stacked, Taken, Transposed
from ms_resume.records import TensorInfo

Truth = dict[str, Any]
"""For each name of the net that was injected, what it is made of: `said` of its recipe."""

Injected = tuple[Infos, Infos, Truth]
"""File, net, truth."""

LEAST = 0.95

LAYERS = 6
"""More say the same again, and take longer."""


def said(recipe: Recipe) -> Any:
    """A recipe as a plain value."""
    match recipe:
        case Taken():
            return recipe.name
        case Cut():
            return ("cut", said(recipe.of), recipe.axis, recipe.begin, recipe.end, recipe.groups)
        case Joined():
            return ("join", tuple(map(said, recipe.of)), recipe.axis, recipe.groups)
        case Stacked():
            return ("stack", tuple(map(said, recipe.of)))
        case Picked():
            return ("pick", said(recipe.of), recipe.index)
        case Transposed():
            return ("turn", said(recipe.of))
        case Cast():
            return ("cast", said(recipe.of), recipe.dtype)
    raise AssertionError(recipe)


def renamed(net: Infos, to: Callable[[str], str]) -> Injected:
    """A file in which each name is `to` of the net's."""
    file = {to(name): info for name, info in net.items()}
    assert len(file) == len(net)
    return file, net, {name: to(name) for name in net if to(name) != name}


def both_ways(net: Infos, to: Callable[[str], str]) -> list[Injected]:
    """The file has the new names, or the net has."""
    file, _, _ = renamed(net, to)
    back = {to(name): name for name in net}
    return [renamed(net, to), (net, file, {name: old for name, old in back.items() if name != old})]


def replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def to(name: str) -> str:
        for pattern, new in pairs:
            name = re.sub(pattern, new, name)
        return name

    return to


def lists(model: Model) -> list[Infos]:
    """As Hugging Face and as MindFormers names it, as a policy, and with an optimizer's state."""
    named = model_names.mindformers(model)
    return [model_names.hugging_face(model), named, model_names.optimizer(model_names.policy(named))]


def with_shifts(infos: Infos) -> Infos:
    """Norms with a shift, as in a LayerNorm."""
    norms = {name: info for name, info in infos.items() if "norm" in name and name.endswith("weight")}
    return {**infos, **{f"{name.removesuffix('weight')}bias": info for name, info in norms.items()}}


def prefixes(model: Model) -> list[Injected]:
    made = []
    for infos in lists(model)[:2]:
        for prefix in ("grpo_model_train.policy_model.", "network.", "a.b.c."):
            made += both_ways(infos, lambda name, prefix=prefix: prefix + name)
        made += both_ways(infos, replaced((r"^model\.", "transformer.")))
        made += both_ways(infos, replaced((r"^model\.", "")))
    made += both_ways(lists(model)[2], replaced((r"grpo_model_train\.policy_model\.", "")))
    return made


def wrappers(model: Model) -> list[Injected]:
    made = []
    for infos in lists(model)[1:]:
        for old, new in (
            (r"(layers\.\d+)\.", r"\1._backbone."),
            (r"\.attention\.", ".attention._orig_mod."),
            (r"(^|\.)model\.", r"\1model.module."),
            (r"\.(wo|w2)\.", r".\1.base_layer."),
        ):
            made += both_ways(infos, replaced((old, new)))
    return made


def norms(model: Model) -> list[Injected]:
    made = []
    for infos in lists(model)[:2]:
        old = replaced((r"(norm\w*)\.weight$", r"\1.gamma"), (r"(norm\w*)\.bias$", r"\1.beta"))
        made += both_ways(with_shifts(infos), old)
    return made


def moments(model: Model) -> list[Injected]:
    weights = model_names.policy(model_names.mindformers(model))
    kinds = (("adam_m", "adam_v"), ("moment1", "moment2"), ("exp_avg", "exp_avg_sq"), ("moments1", "moments2"))
    made = []
    for first, second in kinds:
        for third, fourth in kinds:
            if first != third:
                file, net = (model_names.optimizer(weights, *pair) for pair in ((first, second), (third, fourth)))
                truth = {f"{third}.{name}": f"{first}.{name}" for name in weights}
                made.append((file, net, truth | {f"{fourth}.{name}": f"{second}.{name}" for name in weights}))
    return made


def words(model: Model) -> list[Injected]:
    """Other words, which nobody has a list of: shape, company and likeness must do."""
    made = []
    for infos in lists(model)[:2]:
        for pairs in (
            [(r"self_attn|attention\b", "self_attention_block")],
            [(r"\b(q|k|v|o)_proj\b", r"\1_projection"), (r"\bw([qkvo])\b", r"w\1_lin")],
            [(r"^model\.layers\.(\d+)\.", r"net/block_\1/")],
            [(r"input_layernorm", "in_norm"), (r"post_attention_layernorm", "post_norm")],
            [(r"attention_norm", "norm_attention"), (r"ffn_norm", "norm_ffn")],
        ):
            made += [injected for injected in both_ways(infos, replaced(*pairs)) if injected[2]]
    return made


def fused(infos: Infos, parts: tuple[str, ...], whole: str) -> tuple[Infos, Truth, Truth]:
    """With several tensors in one; what each of the parts then is, and what each whole is."""
    made, cuts, joins = dict(infos), {}, {}
    for name in infos:
        found = re.fullmatch(rf"(.*)\.{parts[0]}(\.weight|\.bias)", name)
        names = [f"{found[1]}.{part}{found[2]}" for part in parts] if found else []
        if not found or not all(one in infos for one in names):
            continue
        into, begin = f"{found[1]}.{whole}{found[2]}", 0
        for one in names:
            cuts[one] = ("cut", into, 0, begin, begin + infos[one].shape[0], 1)
            begin += infos[one].shape[0]
            del made[one]
        made[into] = TensorInfo(infos[name].dtype, (begin, *infos[name].shape[1:]))
        joins[into] = ("join", tuple(names), 0, 1)
    return made, cuts, joins


def fusions(model: Model) -> list[Injected]:
    made = []
    here, there = lists(model)[:2]
    for infos, parts, wholes in (
        (here, ("q_proj", "k_proj", "v_proj"), ("qkv_proj", "query_key_value")),
        (there, ("wq", "wk", "wv"), ("w_qkv", "linear_qkv")),
        (here, ("gate_proj", "up_proj"), ("gate_up_proj",)),
        (there, ("w1", "w3"), ("w_gate_hidden",)),
    ):
        for whole in wholes:
            file, cuts, joins = fused(infos, parts, whole)
            if cuts:
                made += [(file, infos, cuts), (infos, file, joins)]
    return made


def transposed(model: Model) -> list[Injected]:
    """All matrices of the layers; or those of the feed-forward, where the others are not all square: by square ones
    nothing can be told, and all of Llama-2's attention is."""
    made = []
    attention_tells = model.kv_rank or model.kv_heads < model.heads
    for infos in lists(model)[:2]:
        patterns = [r".*layers\..*\.weight", r".*\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight"]
        for chosen in patterns[: 2 if attention_tells else 1]:
            names = [name for name, info in infos.items() if re.fullmatch(chosen, name) and len(info.shape) == 2]
            turned = {name: TensorInfo(infos[name].dtype, infos[name].shape[::-1]) for name in names}
            made.append(({**infos, **turned}, infos, {name: ("turn", name) for name in names}))
    return made


def tied(model: Model) -> list[Injected]:
    made = []
    for infos, embedding in zip(
        lists(replace(model, tied=False))[:2], ("embed_tokens.weight", "tok_embeddings."), strict=True
    ):
        source = next(name for name in infos if embedding in name)
        file = {name: info for name, info in infos.items() if name != "lm_head.weight"}
        made.append((file, infos, {"lm_head.weight": source}))
    return made


def dialects(model: Model) -> list[Injected]:
    here, there = lists(model)[:2]
    made = both_ways(here, lambda name: model_names.to_mindformers(name, latent=bool(model.kv_rank)))
    if model.experts:
        stacked, parts = model_names.experts_stacked(model)
        back = {model_names.to_mindformers(name, latent=True): name for name in here}
        truth = {name: back[name] for name in there if name in stacked}
        truth |= {whole: ("turn", ("stack", tuple(back[part] for part in of))) for whole, of in parts.items()}
        made.append((here, stacked, truth))
        made.append(
            (stacked, there, {p: ("turn", ("pick", w, n)) for w, of in parts.items() for n, p in enumerate(of)})
        )
    return made


def together(model: Model) -> list[Injected]:
    """A Hugging Face file with its own prefix and fused projections, for a MindRLHF policy with `gamma`."""
    net = model_names.policy(model_names.mindformers(model))
    gamma = replaced((r"(norm\w*)\.weight$", r"\1.gamma"))
    file, cuts, _ = fused(model_names.hugging_face(model), ("gate_proj", "up_proj"), "gate_up_proj")
    file = {f"base.{name}": info for name, info in file.items()}
    back = {model_names.to_mindformers(n, latent=bool(model.kv_rank)): n for n in model_names.hugging_face(model)}
    truth = {}
    for name in model_names.mindformers(model):
        old = back[name]
        made_of = ("cut", "base." + cuts[old][1], *cuts[old][2:]) if old in cuts else f"base.{old}"
        truth[gamma("grpo_model_train.policy_model." + name)] = made_of
    return [(file, {gamma(name): info for name, info in net.items()}, truth)]


KINDS: dict[str, Callable[[Model], list[Injected]]] = {
    "prefix": prefixes,
    "wrapper": wrappers,
    "gamma, beta": norms,
    "moments": moments,
    "other words": words,
    "fused, split": fusions,
    "transposed": transposed,
    "tied": tied,
    "dialect": dialects,
    "together": together,
}


def mended(file: Infos, net: Infos, truth: Truth) -> int:
    """How many of the injected names the suggested map makes of the right tensor; the file is read back as text."""
    diagnosis = diagnose(file, net)
    if diagnosis.name_map is None:
        return 0
    plan = NameMap.parse(diagnosis.name_map.text()).plan(file)
    untouched = [name for name in net if name not in truth and name in file]
    if any(name not in plan or said(plan[name]) != name for name in untouched):
        return 0  # what was right is not any more
    return sum(name in plan and said(plan[name]) == wanted for name, wanted in truth.items())


@pytest.mark.parametrize("kind", KINDS)
def test_injected_renames_are_mended(kind: str) -> None:
    """At least 95 % in every list of every model."""
    figures: dict[str, tuple[int, int]] = {}
    for title, model in MODELS.items():
        short = model_names.shortened(model, layers=min(model.layers, LAYERS), experts=8)
        done = [(mended(*injected), len(injected[2])) for injected in KINDS[kind](short)]
        assert all(right >= LEAST * count > 0 for right, count in done), (title, done)
        figures[title] = (sum(right for right, _ in done), sum(count for _, count in done))
    right, count = (sum(values) for values in zip(*figures.values(), strict=True))
    print(f"\n{kind}: {right} of {count} renames mended ({100 * right / count:.1f} %)", end="")


NAMED = model_names.mindformers(model_names.shortened(MODELS["Qwen2.5-7B"], layers=4))
GAMMA = replaced((r"(norm\w*)\.weight$", r"\1.gamma"))
STATE = model_names.optimizer(NAMED)
NORMS = ("attention_norm", "ffn_norm", "norm_out")

SHORT: list[tuple[Infos, Infos, list[dict[str, Any]]]] = [
    (model_names.policy(NAMED), NAMED, [{"prefix": {"grpo_model_train.policy_model.": ""}}]),
    (NAMED, model_names.policy(NAMED), [{"add_prefix": "grpo_model_train.policy_model."}]),
    (renamed(NAMED, GAMMA)[0], NAMED, [{"regex": {r"(.*\.)?gamma(\..*)?": r"\1weight\2"}}]),
    (
        NAMED,
        renamed(NAMED, GAMMA)[0],  # not every weight: each norm by its name
        [{"regex": {rf"(.*\.)?{norm}\.weight(\..*)?": rf"\1{norm}.gamma\2" for norm in NORMS}}],
    ),
    (
        STATE,
        model_names.optimizer(NAMED, "exp_avg", "exp_avg_sq"),
        [{"prefix": {"adam_m.": "exp_avg.", "adam_v.": "exp_avg_sq."}}],
    ),
    (
        renamed(STATE, replaced((r"(layers\.\d+)\.", r"\1._backbone.")))[0],
        STATE,
        [{"regex": {r"(.*\.)?_backbone\.(.*)": r"\1\2"}}],
    ),
]  # fmt: skip  # one case each


@pytest.mark.parametrize(("file", "net", "rules"), SHORT)
def test_a_map_is_as_short_as_it_may_be(file: Infos, net: Infos, rules: list[dict[str, Any]]) -> None:
    """A person reads it before a long run."""
    name_map = diagnose(file, net).name_map

    assert name_map is not None
    assert [rule.said for rule in name_map.rules] == rules


@pytest.mark.parametrize("kind", ["prefix", "wrapper", "gamma, beta", "moments", "dialect"])
def test_names_without_shapes(kind: str) -> None:
    """A list of names is enough for what names tell."""
    for title in ("Qwen2.5-7B", "DeepSeek-V3"):
        for file, net, truth in KINDS[kind](model_names.shortened(MODELS[title], layers=4)):
            if all(isinstance(made_of, str) for made_of in truth.values()):  # not stacked, which shapes tell
                bare = [dict.fromkeys(side, TensorInfo("", ())) for side in (file, net)]
                assert mended(*bare, truth) >= LEAST * len(truth)


def test_a_map_does_not_claim_more_than_names() -> None:
    """MindFormers' converter reorders DeepSeek's rotary rows: said before the map, and in its own line."""
    model = model_names.shortened(MODELS["DeepSeek-V3"], layers=4)
    text = str(match(model_names.hugging_face(model), model_names.mindformers(model)))
    back = str(match(model_names.mindformers(model), model_names.hugging_face(model)))
    plain = str(match(model_names.hugging_face(MODELS["Llama-3-8B"]), model_names.mindformers(MODELS["Llama-3-8B"])))

    for one in (text, back):
        assert "likely cause: DeepSeek's rotary rows" in one
        assert re.search(r"a name map finds \d+ of these \d+ parameters, but not their order:", one)
    assert "rotary" not in plain
    assert "a name map mends 290 of these 290 parameters:" in plain


def test_moe_at_full_size() -> None:
    """Five thousand names of DeepSeek-V2-Lite, from Hugging Face's to MindFormers' with stacked experts."""
    injected = dialects(MODELS["DeepSeek-V2-Lite"])[2]
    count, took_s = quickest.of(lambda: mended(*injected), 10)

    assert len(injected[0]) > 5000
    assert count == len(injected[2])
    assert took_s < 10


# -- what no mapping mends


def sizes(model: Model) -> tuple[Infos, Infos]:
    return model_names.hugging_face(model), model_names.hugging_face(
        replace(model, hidden=model.hidden // 2, intermediate=model.intermediate // 2, heads=model.heads // 2)
    )


def depths(model: Model) -> tuple[Infos, Infos]:
    return model_names.mindformers(model), model_names.mindformers(replace(model, layers=model.layers + 2))


def lora(model: Model) -> tuple[Infos, Infos]:
    net = model_names.hugging_face(model)
    file = {}
    for name, info in net.items():
        if "_proj" in name and name.endswith(".weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            file[f"{stem}.lora_A.weight"] = TensorInfo("F32", (8, info.shape[1]))
            file[f"{stem}.lora_B.weight"] = TensorInfo("F32", (info.shape[0], 8))
    return file, net


def sharded(model: Model, by: int = 2) -> tuple[Infos, Infos]:
    """Columns of q, k, v, gate and up, rows of o and down, words of the embedding."""
    net = model_names.mindformers(model)
    file = {}
    for name, info in net.items():
        shape = list(info.shape)
        if len(shape) == 2 and re.search(r"\.(wo|w2)\.", name):
            shape[1] //= by
        elif re.search(r"\.(wq|wk|wv|w1|w3|q_proj|l2q_proj|lkv2kv)\.|embed|lm_head", name):
            shape[0] //= by
        file[name] = replace(info, shape=tuple(shape))
    return file, net


def vocabularies(model: Model) -> tuple[Infos, Infos]:
    return model_names.hugging_face(model), model_names.hugging_face(replace(model, vocabulary=model.vocabulary + 64))


def policies(model: Model) -> tuple[Infos, Infos]:
    weights = model_names.policy(model_names.mindformers(model))
    return weights, model_names.optimizer(weights)


def other_optimizers(model: Model) -> tuple[Infos, Infos]:
    weights = model_names.mindformers(model)
    momentum = {f"moments.{name}": info for name, info in weights.items()}
    return model_names.optimizer(weights), {**weights, **momentum, "global_step": TensorInfo("I32", (1,))}


HOPELESS: list[tuple[Callable[[Model], tuple[Infos, Infos]], str]] = [
    (sizes, "size"),
    (depths, "size"),
    (lora, "lora"),
    (sharded, "tensor-parallel"),
    (vocabularies, "vocabulary"),
    (policies, "role"),
    (other_optimizers, "optimizer"),
]


@pytest.mark.parametrize(("inject", "kind"), HOPELESS)
@pytest.mark.parametrize("title", MODELS)
def test_what_no_mapping_mends(inject: Callable[[Model], tuple[Infos, Infos]], kind: str, title: str) -> None:
    """The cause is named first, and no map is suggested."""
    short = model_names.shortened(MODELS[title], layers=4)
    diagnosis = diagnose(*inject(short))

    assert diagnosis.causes[0].kind == kind
    assert diagnosis.name_map is None


def test_another_size_under_other_names() -> None:
    """Hugging Face's 0.5B for MindFormers' 7B: it is the size that is wrong."""
    file = model_names.hugging_face(MODELS["Qwen2.5-0.5B"])
    net = model_names.mindformers(MODELS["Qwen2.5-7B"])
    diagnosis = diagnose(file, net)

    assert (diagnosis.causes[0].kind, diagnosis.name_map) == ("size", None)
    assert "has 24 layers, the net 28" in diagnosis.causes[0].text
    assert "[896] in the file and [3584] in the net" in diagnosis.causes[0].text


# -- speed


def shuffled(number: int) -> str:
    """A name without a family: words from a small lexicon, as different as names are."""
    words = "alpha beta gamma delta layer block attn mlp gate proj norm weight bias scale shift embed head".split()
    picked = [words[(number * step + step) % len(words)] for step in (3, 5, 7, 11)]
    return f"{picked[0]}.{picked[1]}_x{number:x}.{picked[2]}.{picked[3]}"


@pytest.mark.parametrize("kind", ["layers", "no families"])
def test_nearest_of_ten_thousand(kind: str) -> None:
    """Ten thousand names against ten thousand in less than 2 s of one processor."""
    if kind == "layers":
        net = [f"model.layers.{n // 10}.attention.part_{n % 10}.weight" for n in range(10_000)]
        file = [name.replace("attention", "self_attn") for name in net]
    else:
        net = [shuffled(n) for n in range(10_000)]
        file = [f"net.{name}" for name in net]
    found, took_s = quickest.of(lambda: nearest(net, file), 2)

    right = sum(found.get(name) == wanted for name, wanted in zip(net, file, strict=True))
    assert right >= 0.95 * len(net)
    print(f"\nnearest, {kind}: {took_s:.2f} s, {right} of {len(net)} right", end="")
    assert took_s < 2


def test_a_whole_report_on_ten_thousand() -> None:
    """Fates, causes, map: also in seconds where no two names have a family in common."""
    file = {f"net.{shuffled(n)}": TensorInfo("F32", (n % 7 + 1,)) for n in range(10_000)}
    net = {shuffled(n): TensorInfo("F32", (n % 7 + 1,)) for n in range(10_000)}
    report, took_s = quickest.of(lambda: match(file, net), 5)

    assert report.diagnosis.name_map is not None
    assert match(_mapped(report.diagnosis.name_map, file), net).clean
    print(f"\nreport: {took_s:.2f} s", end="")
    assert took_s < 5
    assert len(str(report).splitlines()) < 30


def _mapped(name_map: NameMap, file: Mapping[str, TensorInfo]) -> Infos:
    return {name: recipe.info for name, recipe in name_map.plan(file).items()}


def test_what_is_alike_but_not_plain_is_left() -> None:
    """Two of one shape and no word in common with either: no guess."""
    square = TensorInfo("F32", (4, 4))
    file = {f"x.{n}.{part}": square for n in range(2) for part in "pq"}
    net = {f"y.{n}.{part}": square for n in range(2) for part in "rs"}
    assert diagnose(file, net).name_map is None

    named = model_names.mindformers(MODELS["Llama-3-8B"])
    other = replaced(("attention_norm", "in_norm"), ("ffn_norm", "post_norm"))  # by letters in_norm is ffn_norm
    for injected in both_ways(named, other):
        assert diagnose(injected[0], injected[1]).name_map is None


def test_figures_by_cause_are_complete() -> None:
    """Every kind that the report knows a map for was injected above."""
    kinds = set()
    for title in ("Qwen2.5-7B", "DeepSeek-V2-Lite"):
        short = model_names.shortened(MODELS[title], layers=2, experts=2)
        for inject in KINDS.values():
            for file, net, _ in inject(short):
                kinds |= {cause.kind for cause in diagnose(file, net).causes}

    assert kinds >= {
        "prefix", "wrapper", "norms", "moments", "fused", "split", "transposed", "tied", "dialect", "renamed",
    }  # fmt: skip  # one list
