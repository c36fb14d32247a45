"""`ms-resume diff`: two checkpoints or two files, tensor by tensor."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import own_trees
import pytest
import stock_trees
from command import call, example
from runs import tiny_run
from safetensors.numpy import save_file
from test_architecture import loaded_after

from ms_resume.load import compare
from ms_resume.load.compare import Difference, Stored
from ms_resume.ondisk import ckpt
from ms_resume.records import TensorInfo

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("run") / "save"
    tiny_run(save).ok()
    return save


def raw(path: Path, dtype: str, array: Any) -> Path:
    """One tensor `w` of any dtype of safetensors, by its bits."""
    data = np.asarray(array).tobytes()
    shape = list(np.asarray(array).shape)
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def bfloat16(values: Any) -> Any:
    """Bits of values that it holds exactly."""
    wide = np.asarray(values, np.float32)
    return (wide.reshape(-1).view(np.uint32) >> 16).astype(np.uint16).reshape(wide.shape)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], Difference(4)),
        ([1, 2, 3, 4], [1, 2, 3, 6], Difference(4, 1, 0, 2.0, 0.5)),
        ([1, 2, 3, 4], [2, 0, 3, 4], Difference(4, 2, 0, 2.0, 0.75)),
        ([NAN, 1], [NAN, 1], Difference(2)),
        ([NAN, 1], [NAN, 2], Difference(2, 1, 0, 1.0, 0.5)),
        ([NAN, 1], [5, 1], Difference(2, 1, 1, None, None)),
        ([NAN, 1], [5, 4], Difference(2, 2, 1, 3.0, 3.0)),
        ([INF, 1], [INF, 1], Difference(2)),
        ([INF, 1], [-INF, 3], Difference(2, 2, 1, 2.0, 2.0)),
        ([0.0], [-0.0], Difference(1, 1, 0, 0.0, 0.0)),
        ([], [], Difference(0)),
        (1.5, 1.0, Difference(1, 1, 0, 0.5, 0.5)),  # 0-d
    ],
)
def test_how_far(one: Any, other: Any, expected: Difference, tmp_path: Path) -> None:
    """Each row: two tensors, and what is said of them, in every float that holds these values exactly."""
    for dtype, to_bits in (
        ("F32", lambda a: np.asarray(a, np.float32)),
        ("F64", lambda a: np.asarray(a, np.float64)),
        ("F16", lambda a: np.asarray(a, np.float16)),
        (
            "BF16",
            lambda a: (
                (np.asarray(a, np.float32).reshape(-1).view(np.uint32) >> 16).astype(np.uint16).reshape(np.shape(a))
            ),
        ),
    ):
        files = [raw(tmp_path / name, dtype, to_bits(side)) for name, side in (("a", one), ("b", other))]

        assert compare.compare(Stored(files[0]), Stored(files[1]), "w") == expected, dtype


def test_two_nans_of_other_bits_are_equal(tmp_path: Path) -> None:
    """Which NaN a kernel makes says nothing."""
    files = [raw(tmp_path / str(bits), "F32", np.array([bits], np.uint32)) for bits in (0x7FC00000, 0xFFC00001)]

    assert compare.compare(Stored(files[0]), Stored(files[1]), "w") == Difference(1)


@pytest.mark.parametrize(
    ("dtype", "one", "other", "largest"),
    [
        ("I64", np.array([2**40], np.int64), np.array([2**40 + 3], np.int64), 3.0),
        ("I8", np.array([-128], np.int8), np.array([127], np.int8), 255.0),
        ("U8", np.array([0], np.uint8), np.array([255], np.uint8), 255.0),
        ("BOOL", np.array([True]), np.array([False]), 1.0),
        ("C64", np.array([3 + 4j], np.complex64), np.array([0], np.complex64), 5.0),
        ("F8_E5M2", np.array([0x3C], np.uint8), np.array([0x40], np.uint8), 1.0),  # 1 and 2
        ("F8_E4M3", np.array([0x38], np.uint8), np.array([0xC0], np.uint8), 3.0),  # 1 and -2
        ("F8_E4M3", np.array([0x01], np.uint8), np.array([0x00], np.uint8), 2.0**-9),
        ("F8_E4M3", np.array([0x7E], np.uint8), np.array([0x00], np.uint8), 448.0),
    ],
)  # fmt: skip  # one row each
def test_other_dtypes(dtype: str, one: Any, other: Any, largest: float, tmp_path: Path) -> None:
    """Whole numbers, flags, complex and eight-bit floats, by their values."""
    files = [raw(tmp_path / name, dtype, side) for name, side in (("a", one), ("b", other))]

    assert compare.compare(Stored(files[0]), Stored(files[1]), "w") == Difference(1, 1, 0, largest, largest)


def test_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whatever the length of a piece, and however a `.ckpt` is cut into slices."""
    rng = np.random.default_rng(7)
    one, other = rng.standard_normal((2, 1000)).astype(np.float32)
    other[:900] = one[:900]
    save_file({"w": one}, tmp_path / "a.safetensors")
    info = TensorInfo("F32", (1000,))
    monkeypatch.setattr(ckpt, "SLICE_BYTES", 1200)
    (tmp_path / "b.ckpt").write_bytes(b"".join(ckpt.encode([("w", info, memoryview(other.tobytes()))])))
    expected = np.abs(one.astype(np.float64) - other)
    for piece in (8, 24, 4096, 1 << 20):
        monkeypatch.setattr(compare, "_PIECE", piece)
        far = compare.compare(Stored(tmp_path / "a.safetensors"), Stored(tmp_path / "b.ckpt"), "w")

        assert (far.differing, far.largest) == (100, expected.max())
        assert far.mean == pytest.approx(expected.mean(), rel=1e-12)


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    """Two tensors of 64 MiB, of which every number differs, in less than one of them."""
    count = 16 << 20
    for name, value in (("a", b"\0\0\0\0"), ("b", b"\0\0\x80\x3f")):
        header = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + value * count)
    peaks = []
    for other in ("a.safetensors", "b.safetensors"):
        code = (
            f"from ms_resume import cli; print(cli.main(['diff', 'a.safetensors', {other!r}]));"
            "import numpy; print(*[line for line in open('/proc/self/status') if 'VmHWM' in line])"
        )
        ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        *_, code_said, peak = ended.stdout.strip().splitlines()
        peaks.append((code_said, int(peak.split()[1])))

    assert [code for code, _ in peaks] == ["0", "32"]
    assert all(peak_kib < 100 << 10 for _, peak_kib in peaks), peaks


class TestCheckpoints:
    """All ranks and roles of two positions."""

    def test_equal_to_itself(self, run: Path, capsys: Capture) -> None:
        """Exit 0 only then."""
        called = call(capsys, "diff", run, f"{run}@1_0", "--all")

        assert (called.code, called.err) == (0, "")
        assert "0 changed, 0 only in A, 0 only in B\n" in called.out
        assert re.search(r"^1 +state +equal +- +- +- +\S", called.out, re.MULTILINE)

    def test_two_positions(self, run: Path, capsys: Capture) -> None:
        """What training changed, by rank and role; the reference did not."""
        called = call(capsys, "diff", f"{run}@0_5", str(run), "--json")
        report = called.json
        verdicts = {(row["rank"], row["role"], row["name"]): row["verdict"] for row in report["tensors"]}

        assert (called.code, report["exit_code"], report["error"], report["equal"]) == (32, 32, "Different", False)
        assert verdicts[0, "policy", "w"] == verdicts[1, "optimizer", "adam_m.w"] == "changed"
        assert {verdict for (_, role, _), verdict in verdicts.items() if role == "ref"} == {"equal"}
        assert not {name for _, _, name in verdicts} & {"epoch_num", "step_num"}
        assert any(name.startswith("(plain values) ") for _, _, name in verdicts)
        assert report["counts"] == {kind: list(verdicts.values()).count(kind) for kind in report["counts"]}

    def test_one_role_of_one_rank(self, run: Path, capsys: Capture) -> None:
        """As chosen; nothing to choose from is an error."""
        rows = call(capsys, "diff", run, str(run), "--role", "policy", "--rank", "1", "--json").json["tensors"]
        assert {(row["rank"], row["role"]) for row in rows} == {(1, "policy")}
        assert call(capsys, "diff", run, str(run), "--rank", "9").code == 2

    def test_a_payload_that_one_lacks(self, run: Path, tmp_path: Path, capsys: Capture) -> None:
        """Two ranks against one."""
        stock_trees.healthy(tmp_path / "two", (0, 5))
        stock_trees.healthy(tmp_path / "one", (0, 5), ranks=[0])
        called = call(capsys, "diff", tmp_path / "two", str(tmp_path / "one"))

        assert called.code == 32
        assert re.search(r"^1 +policy +only in A .*\(the payload\)$", called.out, re.MULTILINE)
        assert "0 changed, 3 only in A, 0 only in B" in called.err

    def test_a_checkpoint_and_a_file(self, run: Path, capsys: Capture) -> None:
        """The file against the payload that --role and --rank choose."""
        path = own_trees.payload_path(run, "1_0", 1, "optimizer")

        assert call(capsys, "diff", path, str(run), "--role", "optimizer", "--rank", "1").code == 0
        assert call(capsys, "diff", path, f"{run}@0_5", "--role", "optimizer", "--rank", "1").code == 32

    def test_damage(self, run: Path, tmp_path: Path, capsys: Capture) -> None:
        """A flipped bit is no difference but damage, named."""
        path = tmp_path / "a.safetensors"
        path.write_bytes(own_trees.payload_path(run, "1_0", 0, "policy").read_bytes())
        own_trees.flip_tensor(path, "w")
        called = call(capsys, "diff", path, str(run))

        assert called.code == 21
        assert "tensor 'w': its bytes have digest" in called.err

    def test_the_example_in_the_help(self, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        """It prints what the help says."""
        monkeypatch.chdir(run.parent)
        words, pattern = example("diff")
        called = call(capsys, *words)
        whole = "\n".join("(?s:.*)" if line == ".*" else line for line in pattern.splitlines())

        assert re.fullmatch(whole, called.out.rstrip("\n"))


def test_files_that_differ_in_all_ways(tmp_path: Path, capsys: Capture) -> None:
    """Values, dtype, shape, and what one of them lacks; what is not finite is counted."""
    ones = np.ones(4, np.float32)
    save_file({"a": ones, "b": ones, "c": ones, "d": ones, "e": ones, "n": ones}, tmp_path / "one.safetensors")
    save_file(
        {
            "a": ones,
            "b": np.array([1, 1, 1, 3], np.float32),
            "c": ones.astype(np.float16),
            "d": ones.reshape(2, 2),
            "f": ones,
            "n": np.array([1, 1, NAN, 2], np.float32),
        },
        tmp_path / "other.safetensors",
    )
    called = call(capsys, "diff", tmp_path / "one.safetensors", str(tmp_path / "other.safetensors"))

    assert called.code == 32
    assert called.out.splitlines()[2:] == [
        "verdict        largest  mean   differ  tensor",
        "changed        2        0.5    25 %    b",
        "another dtype  -        -      -       c (F32[4] in A, F16[4] in B)",
        "another shape  -        -      -       d (F32[4] in A, F32[2, 2] in B)",
        "only in A      -        -      -       e",
        "only in B      -        -      -       f",
        "changed        1        0.333  50 %    n (1 not finite)",
        "1 equal, 4 changed, 1 only in A, 1 only in B",
    ]


def test_what_is_no_payload(tmp_path: Path, capsys: Capture) -> None:
    """Exit 2; a list of names has no values."""
    save_file({"a": np.ones(1)}, tmp_path / "a.safetensors")
    (tmp_path / "names.json").write_text('["a"]')
    for word in ("names.json", "nowhere", "nowhere@0_5"):
        assert call(capsys, "diff", tmp_path / "a.safetensors", str(tmp_path / word)).code == 2


def test_without_mindspore(tmp_path: Path) -> None:
    """And with NumPy only when there is something to compare."""
    save_file({"a": np.ones(1)}, tmp_path / "a.safetensors")
    words = ["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors")]

    assert loaded_after(f"from ms_resume import cli; assert cli.main({words}) == 0") <= {"numpy"}
    assert loaded_after("from ms_resume.cli import diff, explain") == set()
