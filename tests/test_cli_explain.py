"""`ms-resume explain`: why names do not fit, as a person would say it, and the map that makes them fit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import model_names
import numpy as np
import pytest
import test_renames
from command import act, call, example
from model_names import Infos, Model
from runs import tiny_run
from safetensors.numpy import save_file
from test_architecture import loaded_after

from ms_resume.errors import UsageError
from ms_resume.load.names import listing
from ms_resume.load.names.name_map import NameMap
from ms_resume.records import TensorInfo
from ms_resume.state import Arrays

Capture = pytest.CaptureFixture[str]
GOLDEN = Path(__file__).parent / "golden"

TINY = Model(2, 8, 4, 2, 2, 24, 32, qkv_bias=True, dtype="F32")
POLICY = model_names.policy(model_names.mindformers(TINY))
_NUMPY = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64, "U8": np.uint8}


def payload(path: Path, infos: Infos) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(info.shape, _NUMPY[info.dtype]) for name, info in infos.items()}, path)
    return path


def stock_policy(path: Path) -> Path:
    path = path / "train/rank_0/policy_model_rank_0-0_0.safetensors"
    return payload(path, {**POLICY, "epoch_num": TensorInfo("I64", ()), "step_num": TensorInfo("I64", ())})


def names(path: Path, **roles: Infos) -> Path:
    path.write_bytes(listing.encode(roles))
    return path


def lora(model: Model) -> Infos:
    return test_renames.lora(model)[0]


def sharded(model: Model) -> Infos:
    return model_names.policy(test_renames.sharded(model)[0])


CASES: dict[str, tuple[Callable[[Path], Path], dict[str, Infos]]] = {
    "a stock policy for an optimizer": (stock_policy, {"optimizer": model_names.optimizer(POLICY)}),
    "an optimizer for a policy": (
        lambda here: payload(here / "optimizer_rank_0-0_10.safetensors", model_names.optimizer(POLICY)),
        {"policy": POLICY},
    ),
    "an adapter": (lambda here: payload(here / "adapter_model.safetensors", lora(TINY)), {"policy": POLICY}),
    "Hugging Face": (
        lambda here: payload(here / "model.safetensors", model_names.hugging_face(TINY)),
        {"policy": POLICY},
    ),
    "a policy for a reference": (stock_policy, {"ref": model_names.mindformers(TINY)}),
    "shards of another split": (
        lambda here: payload(here / "policy_model_rank_0-0_10.safetensors", sharded(TINY)),
        {"policy": POLICY},
    ),
    "another size": (
        lambda here: payload(here / "model.safetensors", model_names.hugging_face(replace(TINY, layers=3, hidden=16))),
        {"policy": POLICY},
    ),
}


@pytest.mark.parametrize("title", CASES)
def test_the_cause_that_a_person_would_give(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Kept word for word. `GOLDEN=write pytest tests/test_cli_explain.py` writes them anew, to be read before they are
    kept."""
    monkeypatch.chdir(tmp_path)
    make, roles = CASES[title]
    file = make(Path())
    names(Path("names.json"), **roles)
    called = call(capsys, "explain", file, "--against", "names.json")
    golden = GOLDEN / f"explain {title}.txt".replace(" ", "_")
    told = f"{called.out}{called.err}exit code {called.code}\n"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(told)

    assert told == golden.read_text()


def test_the_map_makes_it_fit(tmp_path: Path, capsys: Capture) -> None:
    """Suggested, written, applied; for the role that it was made for, and never over another file."""
    file = payload(tmp_path / "model.safetensors", model_names.hugging_face(TINY))
    net, path = names(tmp_path / "names.json", policy=POLICY), tmp_path / "map.yaml"
    written = act(capsys, "explain", file, "--against", str(net), "--write-map", str(path))
    content = path.read_bytes()
    applied = call(capsys, "explain", file, "--against", str(net), "--name-map", str(path))
    again = act(capsys, "explain", file, "--against", str(net), "--write-map", str(path))

    assert written.code == 30
    assert f"wrote {path}: " in written.out
    assert (applied.code, applied.err) == (0, "")
    assert f"{len(POLICY)} of {len(POLICY)} parameters match\n" in applied.out
    assert (again.code, path.read_bytes()) == (2, content)
    assert "map.yaml: is there already" in again.err
    assert set(NameMap.read(path).roles) == {"policy"}
    assert b"# Hugging Face names in the file, MindFormers names in the net" in content
    assert sorted(os.listdir(tmp_path)) == ["map.yaml", "model.safetensors", "names.json"]


def test_no_map_where_none_would_help(tmp_path: Path, capsys: Capture) -> None:
    """Exit 2, and no file."""
    file = payload(tmp_path / "adapter_model.safetensors", lora(TINY))
    net = names(tmp_path / "names.json", policy=POLICY)
    called = act(capsys, "explain", file, "--against", str(net), "--write-map", str(tmp_path / "map.yaml"))
    fits = act(capsys, "explain", net, "--against", str(net), "--write-map", str(tmp_path / "map.yaml"))

    assert (called.code, fits.code) == (2, 2)
    assert "no mapping of names would mend this" in called.err
    assert "there is nothing to mend" in fits.err
    assert not (tmp_path / "map.yaml").exists()


def test_keys(tmp_path: Path, capsys: Capture) -> None:
    """The whole report for scripts, whether it fits or not."""
    file = payload(tmp_path / "a.safetensors", {"x.w": TensorInfo("F32", (2,)), "b": TensorInfo("F16", (2,))})
    net = names(tmp_path / "names.json", policy={"w": TensorInfo("F32", (2,)), "b": TensorInfo("F32", (2,))})
    called = call(capsys, "explain", file, "--against", str(net), "--json")
    fits = call(capsys, "explain", net, "--against", str(net), "--json")

    assert (called.code, called.json["exit_code"], called.json["error"]) == (30, 30, "NamesMismatch")
    assert called.json["missing"] == ["w"]
    assert called.json["unexpected"] == ["x.w"]
    assert called.json["wrong_dtype"] == [["b", "F16", "F32"]]
    assert called.json["nearest"] == {"w": "x.w"}
    assert [cause["kind"] for cause in called.json["causes"]] == ["prefix", "dtype"]
    assert called.json["name_map"].startswith("ms_resume_name_map: 1\n")
    assert fits.code == 0
    assert set(called.json) - set(fits.json) == {"error", "exit_code", "message", "hint"}
    assert (fits.json["clean"], fits.json["role"]) == (True, "policy")


def test_what_the_caller_allows(tmp_path: Path, capsys: Capture) -> None:
    """The same words as a load's."""
    file = payload(tmp_path / "a.safetensors", {n: TensorInfo("F16", (2,)) for n in ("a", "lora.b")})
    net = names(tmp_path / "names.json", policy={n: TensorInfo("F32", (2,)) for n in ("a", "head.c")})
    words = ["--against", str(net), "--allow-missing", "head.*", "--allow-unexpected", "lora.*"]

    assert call(capsys, "explain", file, *words).code == 30
    called = call(capsys, "explain", file, *words, "--widen")
    assert (called.code, "1 of 2 parameters match, 1 of them in another dtype" in called.out) == (0, True)


def test_narrowing_is_by_name(tmp_path: Path, capsys: Capture) -> None:
    """A pattern and the dtype, as a load's `narrow`; what has no pattern is refused still."""
    file = payload(tmp_path / "a.safetensors", {n: TensorInfo("F32", (2,)) for n in ("a.w", "b.w")})
    net = names(tmp_path / "names.json", policy={n: TensorInfo("BF16", (2,)) for n in ("a.w", "b.w")})

    def code(*words: str) -> int:
        return call(capsys, "explain", file, "--against", str(net), *words).code

    assert code("--narrow", "*=BF16") == code("--narrow", "a.*=BF16", "--narrow", "b.w=BF16") == 0
    assert code("--narrow", "a.*=BF16") == code("--narrow", "*=F16") == code("--widen") == 30
    for wrong, told in (("BF16", "expected PATTERN=DTYPE"), ("=BF16", "expected PATTERN=DTYPE"), ("*=B", "no dtype")):
        called = call(capsys, "explain", file, "--against", str(net), "--narrow", wrong)
        assert (called.code, told in called.err) == (2, True)


def test_everything(tmp_path: Path, capsys: Capture) -> None:
    """--all has a line for each name."""
    net = names(tmp_path / "names.json", policy=POLICY)
    file = payload(tmp_path / "model.safetensors", model_names.hugging_face(TINY))
    out = call(capsys, "explain", file, "--against", str(net), "--all").out

    assert len(re.findall(r"^missing  ", out, re.MULTILINE)) == len(POLICY)
    assert len(re.findall(r"^unexpected  \S+ +-$", out, re.MULTILINE)) == len(POLICY)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("run") / "save"
    tiny_run(save).ok()
    return save


class TestSides:
    """What may be given as A and B."""

    def test_checkpoints(self, run: Path, capsys: Capture) -> None:
        """The newest, one by position, another role or rank; the same on both sides fits."""
        assert call(capsys, "explain", run, "--against", f"{run}@0_5").code == 0
        assert call(capsys, "explain", f"{run}@1_0", "--against", str(run), "--rank", "1").code == 0
        called = call(capsys, "explain", run, "--against", str(run), "--role", "optimizer")
        assert re.search(r"^file  .*save@1_0, optimizer of rank 0 \(\d tensors\)$", called.out, re.MULTILINE)
        called = call(capsys, "explain", run, "--against", str(run), "--rank", "7")
        assert (called.code, "no policy of rank 7, there is optimizer of rank 0" in called.err) == (20, True)
        called = call(capsys, "explain", f"{run}@3_3", "--against", str(run))
        assert (called.code, "no position 3_3" in called.err) == (10, True)

    def test_the_role_that_the_net_is(self, run: Path, tmp_path: Path, capsys: Capture) -> None:
        """Of a checkpoint that role's payload is looked at, whichever way it is named."""
        shown = call(capsys, "explain", run, "--against", str(run), "--role", "optimizer", "--json").json
        path = next(run.glob("optimizer/rank_0/*-1_0.safetensors"))
        for word in (str(run), f"{run}@1_0"):
            called = call(capsys, "explain", word, "--against", str(path), "--json")
            assert (called.code, called.json["role"], called.json["total"]) == (0, "optimizer", shown["total"])

    def test_a_checkpoint_of_another_role(self, run: Path, tmp_path: Path, capsys: Capture) -> None:
        """An optimizer's payload for a policy's net is called that."""
        payload_path = next(run.glob("optimizer/rank_0/*.safetensors"))
        called = call(capsys, "explain", payload_path, "--against", str(run), "--json")

        assert called.json["causes"][0]["kind"] == "role"
        assert "an optimizer's file for a net of weights" in called.json["causes"][0]["text"]

    def test_a_live_net(self, tmp_path: Path, capsys: Capture) -> None:
        """Dumped by its trainer, of each role, once."""
        live = Arrays(w=np.zeros((2, 3), np.float32), s=np.int32(1), z=np.zeros(0, np.float16))
        listing.dump(tmp_path / "net.json", policy=live, ref=Arrays(w=np.zeros(1)))

        assert listing.read(tmp_path / "net.json")["policy"] == live.infos()
        with pytest.raises(UsageError, match="is there already"):
            listing.dump(tmp_path / "net.json", policy=live)
        called = call(capsys, "explain", tmp_path / "net.json", "--against", str(tmp_path / "net.json"))
        assert (called.code, "holds policy, ref, expected one role" in called.err) == (2, True)
        words = ["--against", str(tmp_path / "net.json"), "--role", "ref"]
        assert call(capsys, "explain", tmp_path / "net.json", *words).code == 0

    @pytest.mark.parametrize(
        ("content", "held"),
        [
            ("a.b\n# a comment\n\nc/d  F32 [2, 3]\n层  BF16  []\n", {"a.b": "?", "c/d": "F32 (2, 3)", "层": "BF16 ()"}),
            ('["a", "b"]', {"a": "?", "b": "?"}),
            ('[{"name": "a", "dtype": "F16", "shape": [0]}, {"name": "b"}]', {"a": "F16 (0,)", "b": "?"}),
            ('{"metadata": {}, "weight_map": {"a": "x.safetensors"}}', {"a": "?"}),
            ('{"role": null, "tensors": [{"name": "a", "dtype": "U8", "shape": [1], "digest": 0}]}', {"a": "U8 (1,)"}),
        ],
    )  # fmt: skip  # one row each
    def test_lists(self, content: str, held: dict[str, str], tmp_path: Path) -> None:
        """Text, JSON, an index, the output of `show --json`; without dtype and shape a name is only a name."""
        path = tmp_path / "names"
        path.write_text(content)
        (found,) = listing.read(path).values()

        assert {n: f"{i.dtype} {i.shape}" if i.dtype else "?" for n, i in found.items()} == held

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"a\na\n", "'a' stands in it twice"),
            (b'["a", "a"]', "'a' stands in it twice"),
            (b'{"roles": {"policy": [{"name": "a"}, {"name": "a"}]}}', "'a' stands in it twice"),
            (b'{"weight_map": {"a": "x", "a": "y"}}', "an object has a name twice"),
            (b"a F32\n", "expected `name` or `name DTYPE [SHAPE]`"),
            (b"a F31 [1]\n", "'a' has dtype 'F31'"),
            (b'[{"name": "a", "dtype": "F32", "shape": [-1]}]', "'a' has dtype 'F32' and shape [-1]"),
            (b'[{"name": "a", "dtype": "F32", "shape": 3}]', "'a' has dtype 'F32' and shape 3"),
            (b'[{"dtype": "F32"}]', "has no name"),
            (b'[""]', "a name is empty"),
            (b"[1]", "has no name"),
            (b'{"a": 1}', "expected a list"),
            (b"{", "is no list of names"),
            (b"caf\xe9\n", "is no list of names"),
            (b"[]", "no name in it"),
            (b"# nothing\n", "no name in it"),
            (b'{"roles": {"policy": []}}', "no name in it"),
            (b'{"roles": {}}', "holds nothing"),
            (b"", "0 bytes, no tensor in it|neither a safetensors file"),
        ],
    )  # fmt: skip  # one row each
    def test_what_is_no_list(self, content: bytes, told: str, tmp_path: Path, capsys: Capture) -> None:
        """Exit 2 that says which name."""
        path = tmp_path / "names"
        path.write_bytes(content)
        net = names(tmp_path / "net.json", policy=POLICY)
        called = call(capsys, "explain", net, "--against", str(path))

        assert called.code == 2
        assert re.search("|".join(map(re.escape, told.split("|"))), called.err), called.err

    @pytest.mark.parametrize("word", ["nowhere", "nowhere@0_5", "fifo"])
    def test_what_is_not_there(self, word: str, tmp_path: Path, capsys: Capture) -> None:
        """A pipe is not waited for."""
        os.mkfifo(tmp_path / "fifo")
        net = names(tmp_path / "net.json", policy=POLICY)
        called = call(capsys, "explain", net, "--against", str(tmp_path / word))

        assert called.code == 2
        assert "\n  -> " in called.err

    def test_what_could_be_given_is_said(self, tmp_path: Path, capsys: Capture) -> None:
        """To `diff` no list of names."""
        for command in ("explain", "diff"):
            words = ["--against", "nowhere"] if command == "explain" else ["nowhere"]
            said = call(capsys, command, tmp_path / "a", *words).err
            assert "expected a .safetensors or .ckpt file, a save directory, " in said
            assert ("a Hugging Face directory, or a list of names" in said) == (command == "explain")

    def test_damaged_and_empty_payloads(self, tmp_path: Path, capsys: Capture) -> None:
        """A cut one is damaged, one without a tensor is a wrong file."""
        net = names(tmp_path / "net.json", policy=POLICY)
        cut = payload(tmp_path / "a.safetensors", POLICY)
        cut.write_bytes(cut.read_bytes()[:-1])
        empty = payload(tmp_path / "b.safetensors", {})

        assert call(capsys, "explain", cut, "--against", str(net)).code == 21
        called = call(capsys, "explain", empty, "--against", str(net))
        assert (called.code, "b.safetensors: no tensor in it" in called.err) == (2, True)

    def test_quantised(self, tmp_path: Path, capsys: Capture) -> None:
        """Eight-bit floats, and what GPTQ leaves: the cause, and no map."""
        net = names(tmp_path / "net.json", policy={"a.weight": TensorInfo("BF16", (4, 4))})
        eight = {"a.weight": TensorInfo("F8_E4M3", (4, 4)), "a.weight_scale_inv": TensorInfo("F32", (1, 1))}
        gptq = {"a.qweight": TensorInfo("I32", (1, 4)), "a.scales": TensorInfo("F16", (1, 4))}
        for number, infos in enumerate((eight, gptq)):
            file = names(tmp_path / f"{number}.json", policy=infos)
            report = call(capsys, "explain", file, "--against", str(net), "--json").json

            assert (report["causes"][0]["kind"], report["name_map"]) == ("quantised", None)


def test_names_that_would_move_the_cursor(tmp_path: Path, capsys: Capture) -> None:
    """Escaped, wherever a report shows them, and in what is written."""
    file = names(tmp_path / "a.json", policy={"x.a\x1b[2J.w": TensorInfo("F32", (2,))})
    net = names(tmp_path / "b.json", policy={"a\x1b[2J.w": TensorInfo("F32", (2,))})
    path = tmp_path / "map.yaml"
    called = act(capsys, "explain", file, "--against", str(net), "--all", "--write-map", str(path))

    assert "\x1b" not in called.out + called.err
    assert "\x1b" not in path.read_text()
    assert call(capsys, "explain", file, "--against", str(net), "--name-map", str(path)).code == 0


def test_neither_mindspore_nor_numpy(tmp_path: Path) -> None:
    """With a report, a cause, and a map."""
    file = payload(tmp_path / "model.safetensors", model_names.hugging_face(TINY))
    net = names(tmp_path / "names.json", policy=POLICY)
    words = ["explain", str(file), "--against", str(net), "--write-map", str(tmp_path / "map.yaml")]

    quiet = "import os, sys; told, sys.stderr = sys.stderr, open(os.devnull, 'w')"
    ran = f"from ms_resume import cli; assert cli.main({words}) == 30; sys.stderr = told"
    assert loaded_after(f"{quiet}; {ran}") == set()


def test_the_example_in_the_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """It prints what the help says."""
    monkeypatch.chdir(tmp_path)
    prefix = "model.layers.0"
    shapes = {"self_attn.q_proj": (4, 4), "mlp.gate_proj": (6, 4), "input_layernorm": (4,)}
    payload(Path("model.safetensors"), {f"{prefix}.{n}.weight": TensorInfo("F32", s) for n, s in shapes.items()})
    meant = {"attention.wq": (4, 4), "feed_forward.w1": (6, 4), "attention_norm": (4,)}
    names(Path("names.json"), policy={f"{prefix}.{n}.weight": TensorInfo("F32", s) for n, s in meant.items()})
    words, pattern = example("explain")
    called = act(capsys, *words)
    whole = "\n".join("(?s:.*)" if line.strip("\\ ") == ".*" else line for line in pattern.splitlines())

    assert re.fullmatch(whole, called.out.rstrip("\n"))


def test_json_of_an_error_has_the_report(tmp_path: Path, capsys: Capture) -> None:
    """One object on standard output."""
    net = names(tmp_path / "net.json", policy=POLICY)
    file = names(tmp_path / "file.json", policy={"a": TensorInfo("F32", ())})

    assert json.loads(call(capsys, "explain", file, "--against", str(net), "--json").out)["clean"] is False


def test_a_hugging_face_directory(tmp_path: Path, capsys: Capture) -> None:
    """All of its shards, though their weights are spread over them."""
    held = model_names.hugging_face(TINY)
    half = sorted(held)[: len(held) // 2]
    shards = {"a.safetensors": half, "b.safetensors": sorted(held.keys() - set(half))}
    for file, those in shards.items():
        payload(tmp_path / "model" / file, {name: held[name] for name in those})
    index = {"weight_map": {name: file for file, those in shards.items() for name in those}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    net = names(tmp_path / "net.json", policy=POLICY)
    single = payload(tmp_path / "model.safetensors", held)

    said = [
        call(capsys, "explain", str(what), "--against", str(net), "--json").json
        for what in (tmp_path / "model", single)
    ]
    assert said[0]["causes"] == said[1]["causes"]
    assert (said[0]["missing"], said[0]["mended"]) == (said[1]["missing"], said[1]["mended"])
