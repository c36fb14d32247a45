"""The mapping file: what each rule does to names and to bytes, and what is refused."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import savers
from safetensors.numpy import save_file

from ms_resume import load
from ms_resume.errors import Damaged, NamesMismatch, UsageError
from ms_resume.load.names.name_map import NameMap
from ms_resume.load.names.recipes import Cast, Taken, castable, widens
from ms_resume.load.names.rules import Rule
from ms_resume.load.source import Source
from ms_resume.records import TensorInfo
from ms_resume.state import Arrays, HostTensor, to_array

RULES = "ms_resume_name_map: 1\nrules:\n"


def file_of(path: Path, **arrays: Any) -> Source:
    save_file({name.replace("__", "."): np.asarray(array) for name, array in arrays.items()}, path)
    return Source(path)


def counting(size: int, *shape: int) -> Any:
    return np.arange(size, dtype=np.float32).reshape(shape or (size,))


def read(view: Any, name: str) -> Any:
    """As a load places it: info and value agree."""
    value = view.read(name)
    assert value.info == TensorInfo(view.tensors[name].dtype, view.tensors[name].shape)
    return to_array(value)


class TestNames:
    """Rules that give other names and leave the bytes."""

    @pytest.mark.parametrize(
        ("rules", "names"),
        [
            ("- exact: {a.w: x.y}", "x.y a.b.w c"),
            ("- prefix: {a.: ''}", "w b.w c"),
            ("- add_prefix: p.", "p.a.w p.a.b.w p.c"),
            ("- prefix: {a.: x., a.b.: y.}", "x.w y.w c"),  # the longest that fits
            ("- regex: {'a\\.(.*)': 'z.\\1'}", "z.w z.b.w c"),
            ("- regex: {'(.*)\\.w': '\\1.weight'}", "a.weight a.b.weight c"),
            ("- regex: {'a': 'b', 'c': 'd'}", "!'a' fits no name"),  # the whole name
            ("- regex: {'a\\.b\\..*': 'one', '.*\\.w': 'two'}", "two one c"),  # the first that fits
            ("- copy: {c: d}", "a.w a.b.w c d"),
            ("- prefix: {a.: x.}\n- exact: {x.w: a.w}", "a.w x.b.w c"),  # one after the other
            ("- exact: {a.w: c, c: a.w}", "c a.b.w a.w"),  # at once, so two may be exchanged
        ],
    )
    def test_renaming(self, rules: str, names: str) -> None:
        """Each row: rules, and what `a.w`, `a.b.w` and `c` are after them."""
        tensors = {name: TensorInfo("F32", (n,)) for n, name in enumerate(("a.w", "a.b.w", "c"))}
        if names.startswith("!"):
            with pytest.raises(UsageError, match=names[1:]):
                NameMap.parse(RULES + rules).plan(tensors)
            return
        plan = NameMap.parse(RULES + rules).plan(tensors)

        assert sorted(plan) == sorted(names.split())
        assert all(recipe.info == tensors[recipe.uses[0]] for recipe in plan.values())

    def test_by_role(self) -> None:
        """Rules of a role come after those of all, and are another role's business to nobody else."""
        text = "ms_resume_name_map: 1\nrules:\n- prefix: {a.: b.}\nroles:\n  ref:\n  - prefix: {b.: c.}\n"
        name_map = NameMap.parse(text)
        tensors = {"a.w": TensorInfo("F32", ())}

        assert list(name_map.plan(tensors, "policy")) == ["b.w"]
        assert list(name_map.plan(tensors, "ref")) == ["c.w"]
        assert NameMap.parse(name_map.text()).text() == name_map.text()

    @pytest.mark.parametrize("name", ["a.b", "a/b", "层.权重", "a b", "on", "1", "a'\"b", "a\\1", "(.*)", "~"])
    def test_any_name_survives_the_file(self, name: str) -> None:
        """Dots, slashes, unicode, what YAML takes for a value, what a pattern takes for its own."""
        rules = (Rule("exact", {name: "x"}), Rule("prefix", {"x": name}))
        name_map = NameMap.parse(NameMap(rules).text())

        assert list(name_map.plan({name: TensorInfo("F32", ())})) == [name]


class TestBytes:
    """Rules that make tensors of others. Every value is looked at."""

    def test_split(self, tmp_path: Path) -> None:
        """Sizes that differ, along the first axis; the parts of a bias alike."""
        source = file_of(tmp_path / "a.safetensors", l__0__qkv__w=counting(24, 6, 4), l__0__qkv__b=counting(6))
        rules = (
            r"- split: 'l\.(\d+)\.qkv\.(.*)'"
            + "\n  into: ['\\1.q.\\2', '\\1.k.\\2', '\\1.v.\\2']\n  sizes: [4, 1, 1]\n"
        )
        view = NameMap.parse(RULES + rules).apply(source)

        assert {name: info.shape for name, info in view.tensors.items()} == {
            "0.q.w": (4, 4), "0.k.w": (1, 4), "0.v.w": (1, 4), "0.q.b": (4,), "0.k.b": (1,), "0.v.b": (1,),
        }  # fmt: skip  # one row each
        assert np.concatenate([read(view, f"0.{n}.w") for n in "qkv"]).tolist() == counting(24, 6, 4).tolist()
        assert [read(view, f"0.{n}.b").tolist() for n in "qkv"] == [[0, 1, 2, 3], [4], [5]]

    def test_split_along_another_axis_in_equal_parts(self, tmp_path: Path) -> None:
        """Without sizes the parts are equal."""
        source = file_of(tmp_path / "a.safetensors", w=counting(12, 2, 6))
        view = NameMap.parse(RULES + "- split: w\n  into: [a, b]\n  axis: 1\n").apply(source)

        assert [read(view, name).tolist() for name in "ab"] == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]

    def test_interleaved_groups(self, tmp_path: Path) -> None:
        """Megatron's linear_qkv: for each key-value group its queries, its key, its value."""
        source = file_of(tmp_path / "a.safetensors", w=counting(8))
        rules = "- split: w\n  into: [q, k, v]\n  sizes: [4, 2, 2]\n  groups: 2\n"
        view = NameMap.parse(RULES + rules).apply(source)
        back = NameMap.parse(RULES + rules + "- fuse: [q, k, v]\n  into: w\n  groups: 2\n").apply(source)

        assert [read(view, name).tolist() for name in "qkv"] == [[0, 1, 4, 5], [2, 6], [3, 7]]
        assert read(back, "w").tolist() == counting(8).tolist()

    def test_fuse(self, tmp_path: Path) -> None:
        """In the order of the rule, for each layer by itself."""
        arrays = {f"{n}__{part}": counting(2, 1, 2) + 10 * n + place for n in (0, 1) for place, part in enumerate("ba")}
        source = file_of(tmp_path / "a.safetensors", **arrays)
        rules = r"- fuse: ['(\d)\.b', '(\d)\.a']" + "\n  into: '\\1.ba'\n"
        view = NameMap.parse(RULES + rules).apply(source)

        assert [read(view, f"{n}.ba").tolist() for n in (0, 1)] == [[[0, 1], [1, 2]], [[10, 11], [11, 12]]]

    def test_stack_and_unstack(self, tmp_path: Path) -> None:
        """Experts in the order of their numbers, of which 10 comes after 9."""
        source = file_of(tmp_path / "a.safetensors", **{f"e__{n}__w": counting(2) + n for n in range(11)})
        stack = r"- stack: 'e\.(?P<n>\d+)\.w'" + "\n  into: e.w\n"
        whole = NameMap.parse(RULES + stack).apply(source)
        again = NameMap.parse(RULES + stack + "- unstack: e.w\n  into: 'f.{n}'\n").apply(source)

        assert read(whole, "e.w")[:, 0].tolist() == list(range(11))
        assert read(again, "f.10").tolist() == [10, 11]

    def test_transpose(self, tmp_path: Path) -> None:
        """The last two axes; of one dimension there is nothing to exchange."""
        source = file_of(tmp_path / "a.safetensors", w=counting(6, 2, 3), e=counting(12, 2, 3, 2), b=counting(2))
        view = NameMap.parse(RULES + "- transpose: [w, e]\n").apply(source)

        assert read(view, "w").tolist() == counting(6, 2, 3).T.tolist()
        assert read(view, "e").tolist() == counting(12, 2, 3, 2).transpose(0, 2, 1).tolist()
        with pytest.raises(UsageError, match=r"'b' of shape \[2\] cannot be transposed"):
            NameMap.parse(RULES + "- transpose: b\n").apply(source)

    def test_bfloat16_is_moved_as_it_is(self) -> None:
        """NumPy has no bfloat16: bits are moved, not values."""
        bits = np.arange(6, dtype=np.uint16).reshape(2, 3) + 0x3F80
        held = HostTensor("BF16", (2, 3), memoryview(bits.tobytes()))
        plan = NameMap.parse(RULES + "- transpose: w\n").plan({"w": held.info})

        assert plan["w"].info == TensorInfo("BF16", (3, 2), 0, 12)
        assert plan["w"].make(lambda name: held).tolist() == bits.T.tolist()

    def test_zero_sizes_and_numbers(self, tmp_path: Path) -> None:
        """0-d and empty tensors go through rules like others."""
        source = file_of(tmp_path / "a.safetensors", s=np.float16(1.5), z=np.zeros((0, 3), np.float32))
        rules = "- cast: {s: F32}\n- transpose: z\n- add_prefix: n.\n"
        view = NameMap.parse(RULES + rules).apply(source)

        assert (read(view, "n.s").shape, float(read(view, "n.s"))) == ((), 1.5)
        assert read(view, "n.z").shape == (3, 0)


def cast(old: str, new: str, bits: Any) -> list[int]:
    """Bits of one dtype to bits of another."""
    array = np.asarray(bits)
    tensor = HostTensor(old, array.shape, memoryview(array.tobytes()))
    made = Cast(Taken("w", tensor.info), new).make(lambda name: tensor)
    return list(np.asarray(made).reshape(-1).tolist())


class TestCast:
    """Values, bfloat16 among them."""

    @pytest.mark.parametrize(
        ("value", "bits"),
        [
            (1.0, 0x3F80), (-2.5, 0xC020), (0.0, 0), (-0.0, 0x8000), (float("inf"), 0x7F80),
            (1.0 + 2**-8, 0x3F80),  # half way: to the even one
            (1.0 + 2**-8 + 2**-20, 0x3F81),
            (1.0 + 3 * 2**-8, 0x3F82),
            (3.0e38, 0x7F62),
        ],
    )  # fmt: skip  # value and its bits
    def test_to_bfloat16(self, value: float, bits: int) -> None:
        """Round half to even, from float32 and float64 alike."""
        assert cast("F32", "BF16", np.array([value], np.float32)) == [bits]
        assert cast("F64", "BF16", np.array([value], np.float64)) == [bits]

    def test_double_rounding(self) -> None:
        """A float64 just above half way is above it, although as float32 it is half way."""
        value = 1.0 + 2.0**-8 + 2.0**-40
        assert np.float32(value) == np.float32(1.0 + 2.0**-8)

        assert cast("F64", "BF16", np.array([value])) == [0x3F81]

    def test_nan_stays_one(self) -> None:
        """Even one whose upper bits are all zero."""
        for bits in (0x7F800001, 0x7FC00000, 0xFFFFFFFF):
            (made,) = cast("F32", "BF16", np.array([bits], np.uint32))
            assert made & 0x7F80 == 0x7F80
            assert made & 0x7F

    def test_every_bfloat16_comes_back(self) -> None:
        """Widening loses nothing: all 65,536."""
        bits = np.arange(65536, dtype=np.uint16)
        wide = np.array(cast("BF16", "F32", bits), np.uint32)
        numbers = ~np.isnan(wide.view(np.float32))

        assert (np.array(cast("F32", "BF16", wide), np.uint16) == bits)[numbers].all()

    def test_every_float16_comes_back(self) -> None:
        """As NumPy has it."""
        bits = np.arange(65536, dtype=np.uint16)
        wide = np.array(cast("F16", "F32", bits), np.uint32).view(np.float32)

        assert np.array_equal(wide, bits.view(np.float16).astype(np.float32), equal_nan=True)

    @pytest.mark.parametrize(
        ("old", "new", "values"),
        [
            ("F32", "F16", np.array([1.0, 70000.0], np.float32)),
            ("F32", "BF16", np.array([3.4e38], np.float32)),
            ("F64", "F32", np.array([1e300])),
            ("I64", "I32", np.array([2**40])),
            ("I32", "U8", np.array([-1], np.int32)),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, old: str, new: str, values: Any) -> None:
        """Rounding was asked for; infinity and other numbers were not."""
        with pytest.raises(NamesMismatch, match=f"w: 1 of {len(values)} values do not fit {new}"):
            cast(old, new, values)

    def test_quantised_values_are_no_numbers(self) -> None:
        """They need their scales; a rule that would cast them is refused before anything is read."""
        with pytest.raises(UsageError, match="F8_E4M3, which cannot be cast to BF16"):
            NameMap.parse(RULES + "- cast: {w: BF16}\n").plan({"w": TensorInfo("F8_E4M3", (2,))})

    def test_widening_is_never_narrowing(self) -> None:
        """No two dtypes widen each other."""
        kinds = "F64 F32 F16 BF16 I8 I16 I32 I64 U8 U16 U32 U64 BOOL F8_E4M3".split()
        pairs = {(old, new) for old in kinds for new in kinds if widens(old, new)}

        assert not {(new, old) for old, new in pairs} & pairs
        assert all(castable(old, new) for old, new in pairs)


# -- what is refused

REFUSED: list[tuple[str, str]] = [
    ("", "is no name map"),
    ("[]", "is no name map"),
    ("just text", "is no name map"),
    ("{a: b", "cannot be read as YAML"),
    ("\x00", "cannot be read as YAML"),
    ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ("ms_resume_name_map: 2\nrules: [{exact: {a: b}}]", "is no name map"),
    ("ms_resume_name_map: 1\n", "without a rule"),
    ("ms_resume_name_map: 1\nrules: {a: b}", "expected a list"),
    ("ms_resume_name_map: 1\nrule: []", "unknown key 'rule'"),
    ("ms_resume_name_map: 1\nroles: {critic: []}", "expected rules by role"),
    (RULES + "- rename: {a: b}", "rule 1: .* expected one of exact, prefix"),
    (RULES + "- {exact: {a: b}, prefix: {a: b}}", "rule 1: .* expected one of exact, prefix"),
    (RULES + "- exact: [a, b]", r"rule 1 \(exact\): .* is not a mapping"),
    (RULES + "- exact: {a: 1}", r"rule 1 \(exact\): 1 is not text \(quote it\)"),
    (RULES + "- exact: {1: a}", r"rule 1 \(exact\): 1 is not text"),
    (RULES + "- exact: {a: x, a: y}", "'a' stands twice in one mapping"),
    (RULES + "- prefix: {'': a}", "an empty beginning"),
    (RULES + "- add_prefix: ''", "an empty beginning"),
    (RULES + "- regex: {'(': x}", "'\\(' is no regular expression"),
    (RULES + "- split: a", "has nothing, needs into"),
    (RULES + "- split: a\n  into: x", "'x' is not a list"),
    (RULES + "- split: a\n  into: [x, y]\n  axis: -1", "-1 is not a whole number from 0"),
    (RULES + "- split: a\n  into: [x, y]\n  size: [1, 1]", "has into, size, needs into, may have sizes, axis, groups"),
    (RULES + "- stack: 'e.(.*)'\n  into: e", "has no group"),
    (RULES + "- unstack: e\n  into: e", "so all would get one name"),
    (RULES + "- cast: {a: F31}", "'F31' is no dtype"),
    (RULES + "- cast: {a: F8_E4M3}", "'F8_E4M3' is no dtype to cast to"),
    (RULES + "- <<: {exact: {a: b}}", "cannot be read as YAML"),
    ("a: &a [x]\nb: *a\n", "by an alias"),
]


@pytest.mark.parametrize(("text", "told"), REFUSED)
def test_what_is_no_name_map(text: str, told: str, tmp_path: Path) -> None:
    """One error that names the file, and the rule."""
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"(?s)map.yaml: .*{told}") as caught:
        NameMap.read(path)

    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: &a [*a]", "- " * 50_000, "{" * 5000], ids=["deep", "ring", "list", "map"]
)
def test_a_file_that_is_made_to_hurt(text: str, tmp_path: Path) -> None:
    """An error like any other."""
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        NameMap.read(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """A directory, nothing, or one that is too long."""
    (tmp_path / "long.yaml").write_bytes(b"#" * (5 << 20))
    for name in ("", "nowhere.yaml"):
        with pytest.raises(UsageError, match="is not a file, expected a name map"):
            NameMap.read(tmp_path / name)
    with pytest.raises(Damaged, match="at most"):
        NameMap.read(tmp_path / "long.yaml")


COLLIDING: list[tuple[str, str]] = [
    ("- exact: {a: b}", "'a' and 'b' both become 'b'|'b' and 'a' both become 'b'"),
    ("- regex: {'.': x}", "'a' and 'b' both become 'x'"),
    ("- prefix: {a: ''}", "'a' gets an empty name"),
    ("- copy: {a: b}", "both become 'b'"),
    ("- exact: {z: y}", "'z' fits no name"),
    ("- exact: {z: y, x: w, a: c}", r"'z' \(and 1 more\) fits no name"),
    ("- prefix: {q.: ''}", "'q.' fits no name"),
    ("- regex: {'a': 'x', '(z).*': '\\1'}", "fits no name"),
    ("- regex: {'a': '\\1'}", "does not fit its pattern"),
    ("- copy: {z: y}", "'z' fits no name"),
    ("- split: z\n  into: [x, y]", "'z' fits no name"),
    ("- split: a\n  into: [b, y]", "both become 'b'"),
    (
        "- split: a\n  into: [x, y]\n  sizes: [3, 2]",
        r"'a' of shape \[4, 3\] cannot be split into \[3, 2\] along axis 0",
    ),
    ("- split: a\n  into: [x, y, z]", r"cannot be split into \[1, 1, 1\]"),
    ("- split: a\n  into: [x, y]\n  groups: 4", r"cannot be split into \[2, 2\] in 4 groups"),
    ("- split: a\n  into: [x, y]\n  axis: 5", "has no axis 5"),
    ("- fuse: [a, z]\n  into: x", "'z' fits no name"),
    ("- fuse: [a, b]\n  into: c", "cannot be fused along axis 0"),
    ("- fuse: [a, d]\n  into: x", "cannot be fused along axis 0"),  # another dtype
    ("- fuse: ['[ab]', c]\n  into: x", "both become part 1"),
    ("- fuse: ['([ab])', '(c)']\n  into: 'x\\1'", "lacks its part"),
    ("- stack: '(?P<n>[ab])'\n  into: x", "finds 'a', which is no number"),
    ("- stack: 'e(?P<n>\\d)'\n  into: x", "not numbered from 0"),
    ("- transpose: z", "'z' fits no name"),
    ("- cast: {z: F32}", "'z' fits no name"),
]


@pytest.mark.parametrize(("rules", "told"), COLLIDING)
def test_mappings_that_collide_or_point_nowhere(rules: str, told: str) -> None:
    """One error that names the rule, the tensors, and the file it was applied to."""
    tensors = {
        "a": TensorInfo("F32", (4, 3)), "b": TensorInfo("F32", (2, 2)), "c": TensorInfo("F32", (4, 3)),
        "d": TensorInfo("F16", (4, 3)), "e1": TensorInfo("F32", (1,)), "e2": TensorInfo("F32", (1,)),
    }  # fmt: skip  # one table
    with pytest.raises(UsageError, match=rf"(?s)rule 1 .*({told}).*applied to f\.safetensors") as caught:
        NameMap.parse(RULES + rules).plan(tensors, of="f.safetensors")

    assert caught.value.fields["rule"] == 1


# -- as a source


def test_a_load_through_a_map_is_verified(tmp_path: Path) -> None:
    """Loading takes it for any other source; a flipped bit of a tensor that another one is made of is found."""
    vote = savers.save(savers.writer(tmp_path, savers.open_attempt(tmp_path)), "0_5", value=2.0)
    (policy,) = (file for file in vote.files if file.role == "policy")
    name_map = NameMap.parse(RULES + "- split: w\n  into: [top, bottom]\n")
    live = {"policy": Arrays(top=np.zeros((1, 3), np.float32), bottom=np.zeros((1, 3), np.float32))}
    source = name_map.apply(Source(tmp_path / policy.path, policy), "policy")
    load.settle({"policy": source}, live)
    load.place({"policy": source}, live)

    assert live["policy"]["bottom"].tolist() == [[2.0] * 3]
    own_trees.flip_tensor(tmp_path / policy.path, "w")
    with pytest.raises(Damaged, match="tensor 'w'"):
        name_map.apply(Source(tmp_path / policy.path, policy), "policy").read("top")


class Counting:
    """A source that counts what is read."""

    def __init__(self, source: Source) -> None:
        self.path, self.tensors, self.bytes = source.path, source.tensors, source.bytes
        self.digests: dict[str, str] = {"w": "d"}
        self.values: dict[str, Any] = {"a": 1}
        self.reads: Counter[str] = Counter()
        self._source = source
        self._lock = threading.Lock()

    def read(self, name: str) -> HostTensor:
        with self._lock:
            self.reads[name] += 1
        return self._source.read(name)


def test_what_many_are_made_of_is_read_once(tmp_path: Path) -> None:
    """Sixty-four experts in one tensor, by four threads; digests are those of tensors that are as they were."""
    source = Counting(file_of(tmp_path / "a.safetensors", e=counting(128, 64, 2), w=counting(2)))
    view = NameMap.parse(RULES + "- unstack: e\n  into: 'e.{n}'\n- add_prefix: x.\n").apply(source)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda name: read(view, name).tolist(), [f"x.e.{n}" for n in range(64)]))

    assert made == counting(128, 64, 2).tolist()
    assert source.reads["e"] == 1
    assert (view.digests, view.values, view.path) == ({"x.w": "d"}, {"a": 1}, source.path)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    """Whatever each makes of what they share."""
    source = file_of(tmp_path / "a.safetensors", **{f"w{n}": counting(64, 8, 8) + n for n in range(8)})
    rules = "".join(f"- split: w{n}\n  into: [a{n}, b{n}]\n" for n in range(8))
    view = NameMap.parse(RULES + rules).apply(source)
    names = [f"{part}{n}" for n in range(8) for part in "ab"] * 8
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda name: read(view, name), names))

    for name, array in zip(names, made, strict=True):
        half = slice(0, 4) if name[0] == "a" else slice(4, 8)
        assert np.array_equal(array, (counting(64, 8, 8) + int(name[1]))[half])


def test_a_list_without_shapes_can_be_mapped() -> None:
    """For `explain` against names alone."""
    tensors = {"qkv": TensorInfo("", ()), "a": TensorInfo("", ()), "b": TensorInfo("", ())}
    rules = "- split: qkv\n  into: [q, k, v]\n- fuse: [a, b]\n  into: ab\n- transpose: q\n- cast: {k: F32}\n"
    plan = NameMap.parse(RULES + rules).plan(tensors)

    assert sorted(plan) == ["ab", "k", "q", "v"]
    assert {recipe.info.dtype for recipe in plan.values()} == {""}
