"""Verify finds what is not as it was saved, and says which file, rank, role, and tensor."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import own_trees
import pytest
import savers
import stock_trees
import xxhash
from runs import tiny_run

from ms_resume import locate, verify, write
from ms_resume.ondisk import ckpt, names, payload, sums
from ms_resume.records import Checkpoint, Position
from ms_resume.settings import Settings
from ms_resume.state import Arrays, read_all
from ms_resume.verify import Finding


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("finished") / "save"
    tiny_run(save).ok()
    return save


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """A finished run of two ranks, whole at 0_5 and 1_0."""
    return Path(shutil.copytree(finished, tmp_path / "save", symlinks=True))


def newest(save: Path) -> Checkpoint:
    checkpoint = locate.latest(save).checkpoint
    assert checkpoint is not None
    return checkpoint


def findings(save: Path, *, deep: bool = False) -> list[tuple[int, str, str]]:
    """(rank, role, tensor) of each."""
    return [(f.rank, f.role, f.tensor) for f in verify.check(newest(save), deep=deep)]


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_one_has_no_findings(save: Path, deep: bool) -> None:
    """Headers, or every byte."""
    assert verify.check(newest(save), deep=deep) == []


@pytest.mark.parametrize("role", ["policy", "optimizer", "ref", "state"])
def test_a_flipped_bit_is_found_by_a_deep_check(save: Path, role: str) -> None:
    """Its tensor is named; headers alone do not show it."""
    path = newest(save).of_rank(1)[role]
    name = next(name for name in payload.read_header(path).tensors if not name.endswith("_num"))
    own_trees.flip_tensor(path, name)

    assert findings(save) == []
    assert findings(save, deep=True) == [(1, role, name)]


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_every_byte_is_digested_once(kind: str, save: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep check is to be as fast as it reads."""
    if kind == "stock":
        save = tmp_path / "stock"
        stock_trees.healthy(save, (0, 5))
    checkpoint, digested = newest(save), []
    headers = [payload.read_header(file.path) for file in checkpoint.files]
    real = xxhash.xxh3_128

    class Counted:
        def __init__(self) -> None:
            self.real = real()
            self.digest, self.hexdigest = self.real.digest, self.real.hexdigest

        def update(self, piece: memoryview) -> None:
            digested.append(len(piece))
            self.real.update(piece)

    monkeypatch.setattr(xxhash, "xxh3_128", Counted)

    assert verify.check(checkpoint, deep=True) == []
    assert sum(digested) == sum(info.end - info.begin for header in headers for info in header.tensors.values())


def test_every_damaged_file_is_reported(save: Path) -> None:
    """One bad file does not hide the next."""
    for rank, role in ((0, "policy"), (1, "optimizer")):
        own_trees.flip_tensor(own_trees.payload_path(save, "1_0", rank, role), "w")

    assert findings(save, deep=True) == [(0, "policy", "w"), (1, "optimizer", "w")]


def test_a_position_tensor_is_checked_without_deep(save: Path) -> None:
    """The 0-d tensors are read anyway."""
    own_trees.flip_tensor(own_trees.payload_path(save, "1_0", 0, "policy"), "epoch_num")

    assert findings(save) == [(0, "policy", "epoch_num")]


def test_another_header_than_the_vote_names(save: Path) -> None:
    """One byte of the padding is enough: the header block is what the vote's digest covers."""
    path = own_trees.payload_path(save, "1_0", 1, "optimizer")
    path.write_bytes(path.read_bytes()[:4000] + b"\t" + path.read_bytes()[4001:])

    [finding] = verify.check(newest(save))

    assert (finding.rank, finding.role) == (1, "optimizer")
    assert "its header has digest" in finding.reason
    assert payload.read_header(path).tensors  # which says nothing of it


def test_a_vote_that_names_another_digest(save: Path) -> None:
    """Every file of the vote that disagrees is found, whoever is wrong."""
    own_trees.edit_vote(save, "1_0", 0, lambda vote: vote["files"][1].update(digest="0" * 32))

    assert findings(save) == [(0, "optimizer", "")]


def test_a_payload_of_the_same_size_from_another_position(save: Path) -> None:
    """A file copied over another: its size is right, its header is not."""
    shutil.copyfile(own_trees.payload_path(save, "0_5", 0, "policy"), own_trees.payload_path(save, "1_0", 0, "policy"))

    assert findings(save) == [(0, "policy", "")]


@pytest.mark.parametrize(
    ("mark", "scalars", "said"),
    [
        ({"position": (0, 5)}, {}, "its positions differ: name 1_0, header 0_5, tensors 1_0"),
        ({}, {"epoch_num": 7}, "its positions differ: name 1_0, header 1_0, tensors 7_0"),
        ({"attempt": "000009-0123456789abcdef"}, {}, "is the policy of attempt 000009-0123456789abcdef"),
        ({"role": "ref"}, {}, "is the ref of attempt"),
    ],
)
def test_a_header_and_a_vote_that_tell_different_stories(
    mark: dict[str, object], scalars: dict[str, int], said: str, save: Path
) -> None:
    """All digests hold, and still the file is not what it should be; the message gives every version."""
    from ms_resume.records import Position

    if isinstance(at := mark.get("position"), tuple):
        mark = {**mark, "position": Position(*at)}
    own_trees.forge(save, "1_0", 0, "policy", mark=mark, scalars=scalars)

    [finding] = verify.check(newest(save), deep=True)

    assert said in finding.reason


def test_a_file_without_our_mark_is_not_the_voted_one(save: Path) -> None:
    """A stock file of the same size and name in the place of ours."""
    path = own_trees.payload_path(save, "1_0", 0, "policy")
    path.unlink()
    stock_trees.add(save, "policy", [0], (1, 0))
    own_trees.edit_vote(save, "1_0", 0, lambda vote: vote["files"][0].update(bytes=path.stat().st_size))

    [finding] = verify.check(newest(save))

    assert "has no ms_resume mark, the vote names it as ours" in finding.reason


def test_a_file_that_cannot_be_read_is_a_finding(save: Path) -> None:
    """It went away after it was located."""
    checkpoint = newest(save)
    path = own_trees.payload_path(save, "1_0", 1, "state")
    path.unlink()

    assert verify.check(checkpoint) == [Finding(str(path), 1, "state", f"{path}: No such file or directory")]


def test_progress_comes_to_the_bytes_of_all_tensors(save: Path) -> None:
    """What a bar would show: the data parts of all files."""
    counted: list[int] = []
    checkpoint = newest(save)

    verify.check(checkpoint, deep=True, progress=counted.append)

    headers = [payload.read_header(file.path) for file in checkpoint.files]
    assert sum(counted) == sum(header.file_bytes - header.data_start for header in headers)


def test_findings_become_one_reason(save: Path) -> None:
    """The first, how many more, and all ranks."""
    checkpoint = newest(save)
    some = [
        Finding("a", 1, "policy", "a: bad"),
        Finding("b", 0, "ref", "b: bad"),
        Finding("c", 1, "ref", "c: bad"),
    ]

    rejection = verify.rejection(checkpoint, some)

    assert rejection is not None
    assert (rejection.reason, rejection.ranks, rejection.kind) == ("a: bad (and 2 more)", (0, 1), "damaged")
    assert verify.rejection(checkpoint, []) is None


def not_finite(save: Path) -> list[Finding]:
    return verify.check(newest(save), finite=True)


def bits(dtype: str, pattern: int) -> bytes:
    return pattern.to_bytes(payload.item_bytes(dtype), "little")


@pytest.mark.parametrize(
    ("dtype", "pattern", "nan", "infinite"),
    [
        # dtype, the bits of one number, and what it is
        ("F16", 0x7C00, 0, 1), ("F16", 0xFC00, 0, 1), ("F16", 0x7C01, 1, 0), ("F16", 0xFFFF, 1, 0),
        ("F16", 0x7BFF, 0, 0), ("F16", 0xFBFF, 0, 0), ("F16", 0x03FF, 0, 0), ("F16", 0x8000, 0, 0),
        ("BF16", 0x7F80, 0, 1), ("BF16", 0xFF80, 0, 1), ("BF16", 0x7F81, 1, 0), ("BF16", 0xFFC0, 1, 0),
        ("BF16", 0x7F7F, 0, 0), ("BF16", 0xFF7F, 0, 0), ("BF16", 0x7C00, 0, 0),
        ("F32", 0x7F800000, 0, 1), ("F32", 0xFF800000, 0, 1), ("F32", 0x7F800001, 1, 0), ("F32", 0xFFC00000, 1, 0),
        ("F32", 0x7F7FFFFF, 0, 0), ("F32", 0xFF7FFFFF, 0, 0),
        ("F64", 0x7FF0 << 48, 0, 1), ("F64", 0xFFF0 << 48, 0, 1), ("F64", (0x7FF0 << 48) + 1, 1, 0),
        ("F64", (0x7FF0 << 48) - 1, 0, 0), ("F64", (0xFFF0 << 48) - 1, 0, 0),
    ],
)  # fmt: skip  # one table
def test_what_is_not_finite(dtype: str, pattern: int, nan: int, infinite: int) -> None:
    """Between the largest numbers of either sign, in a row that pieces cut anywhere."""
    width = payload.item_bytes(dtype)
    exponent = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0 << 48}[dtype]
    largest = [bits(dtype, exponent - 1), bits(dtype, exponent - 1 | 1 << 8 * width - 1)]
    row = memoryview(b"".join([*largest * 5000, bits(dtype, pattern), *largest * 5000]))

    for cut in (0, 1, 16384, 40001, len(row)):
        counter = sums.NotFinite(dtype)
        counter.update(row[:cut])
        counter.update(row[cut:])
        assert (counter.nan, counter.infinite) == (nan, infinite)


@pytest.mark.parametrize("role", ["policy", "optimizer", "ref"])
@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
def test_a_checkpoint_that_is_not_finite(role: str, file_format: str, tmp_path: Path) -> None:
    """Which file, rank, role, and tensor, and how many; by a deep check alone it is what was saved."""
    attempt = savers.open_attempt(tmp_path)
    taken = savers.snapshot("0_5", file_format=file_format)
    weights = np.array([np.nan, 1, -np.inf, np.inf, np.inf, 0], np.float32)
    taken.held[role].update(read_all(Arrays(w=weights, count=np.full(9, -1, np.int32))))
    taken.held["state"].update(read_all(Arrays({"best.loss": np.array([np.inf], np.float32)})))
    write.save(savers.writer(tmp_path, attempt), taken, savers.ABOUT, None)
    path = names.payload(tmp_path, role, 0, Position(0, 5), file_format)

    assert verify.check(newest(tmp_path), deep=True) == []
    [finding] = not_finite(tmp_path)
    assert finding == Finding(str(path), 0, role, f"{path}: tensor 'w': 1 NaN and 3 infinite values", "w", "not finite")


def test_damage_hides_what_is_not_finite(tmp_path: Path) -> None:
    """Numbers that were not saved so are no news."""
    attempt = savers.open_attempt(tmp_path)
    taken = savers.snapshot("0_5", value=np.inf)
    write.save(savers.writer(tmp_path, attempt), taken, savers.ABOUT, None)
    own_trees.flip_tensor(names.payload(tmp_path, "policy", 0, Position(0, 5)), "w")

    assert [(f.role, f.kind) for f in not_finite(tmp_path)] == [("policy", "damaged"), ("optimizer", "not finite")]


class TestThreads:
    """Large payloads are read by one thread for each core."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        """Two ranks, 24 tensors of 1.5 MiB in each policy file."""
        attempt = savers.open_attempt(tmp_path, world_size=2)
        for rank in (0, 1):
            taken = savers.snapshot("0_5")
            large = {f"w{n:02}": np.full(393_216, rank + n, np.float32) for n in range(24)}
            taken.held["policy"].update(read_all(Arrays(large)))
            write.save(savers.writer(tmp_path, attempt, rank), taken, savers.ABOUT, None)
        return tmp_path

    def test_every_damaged_tensor_is_found_in_order(self, save: Path) -> None:
        """The last byte of the last piece counts as well, and each time the answer is the same."""
        for rank, name in ((0, "w23"), (1, "w17"), (1, "w02"), (0, "w03")):
            path = own_trees.payload_path(save, "0_5", rank, "policy")
            header = payload.read_header(path)
            own_trees.flip(path, header.data_start + header.tensors[name].end - 1)
        said = [verify.check(newest(save), deep=True) for _ in range(5)]

        assert [(f.rank, f.tensor) for f in said[0]] == [(0, "w03"), (0, "w23"), (1, "w02"), (1, "w17")]
        assert said == [said[0]] * 5

    def test_memory_does_not_grow_with_the_files(self, save: Path) -> None:
        """Pieces in buffers that each thread uses again: nothing of the size of a tensor is allocated."""
        checkpoint = newest(save)
        verify.check(checkpoint, deep=True)
        tracemalloc.start()
        verify.check(checkpoint, deep=True, finite=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert peak < 1 << 20

    def test_threads_work_at_the_same_time(self, save: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each waits at its first piece until the other one has come to its own."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        both, met = threading.Barrier(2), threading.local()

        def meet(count: int) -> None:
            if not hasattr(met, "done"):
                met.done = both.wait(20)

        assert verify.check(newest(save), deep=True, progress=meet) == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    def test_an_error_of_a_thread_reaches_the_caller(
        self, save: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is the third piece's. The other thread's next one is its last, as nobody but the one that failed has told
        it by then; none is left behind."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        pieces, stopped_before_the_end = itertools.count(1), []

        class Threads(sums.Threads):
            def __init__(self) -> None:
                super().__init__()
                threads.append(self)

            def end(self) -> None:
                stopped_before_the_end.append(self._stopped.is_set())
                super().end()

        threads: list[Threads] = []
        monkeypatch.setattr(sums, "Threads", Threads)

        def fail(count: int) -> None:
            if (piece := next(pieces)) == 3:
                raise error
            if piece > 3:
                assert threads[0]._stopped.wait(20)

        with pytest.raises(error):
            verify.check(newest(save), deep=True, progress=fail)
        assert stopped_before_the_end == [True]
        assert next(pieces) <= 5
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("ms_resume read")]

    def test_ctrl_c_ends_it(self, save: Path) -> None:
        """While the main thread waits for the others, each of which goes on when it is told to end, and does."""
        script = (
            "import signal, sys; from pathlib import Path; from ms_resume import locate, verify\n"
            "from ms_resume.ondisk import sums\n"
            "class Threads(sums.Threads):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        threads.append(self)\n"
            "threads, sums.Threads = [], Threads\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
            "checkpoint = locate.latest(Path(sys.argv[1])).checkpoint\n"
            "slow = lambda count: (print('reading', flush=True), threads[0]._stopped.wait(60))\n"
            "verify.check(checkpoint, deep=True, progress=slow)\n"
        )
        words, pipe = [sys.executable, "-c", script, str(save)], subprocess.PIPE
        with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            try:
                said, errors = process.communicate(timeout=30)
            finally:
                process.kill()

        assert "KeyboardInterrupt" in errors
        assert 1 <= (first + said).count("reading") <= len(os.sched_getaffinity(0))


class TestCkpt:
    """Payloads on request in MindSpore's own format: their digest is that of the whole file."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        settings = Settings(save_format="ckpt", keep_last=0, heartbeat_s=0)
        tiny_run(tmp_path / "save", settings=settings).ok()
        return tmp_path / "save"

    def test_whole(self, save: Path) -> None:
        """Policy and optimizer are `.ckpt`, state never is."""
        suffixes = {role: path.suffix for role, path in newest(save).of_rank(0).items()}

        assert suffixes == {"policy": ".ckpt", "optimizer": ".ckpt", "ref": ".ckpt", "state": ".safetensors"}
        assert findings(save, deep=True) == []

    def test_a_flipped_bit(self, save: Path) -> None:
        """In the last byte of a tensor, before the CRC: only the digest shows it."""
        own_trees.flip(newest(save).of_rank(1)["policy"], -18)

        assert findings(save) == []
        assert findings(save, deep=True) == [(1, "policy", "")]


class TestStock:
    """Stock files carry no digest: what stands twice is compared."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Path:
        stock_trees.f1(tmp_path / "save")
        return tmp_path / "save"

    @pytest.mark.parametrize("deep", [False, True])
    def test_whole(self, save: Path, deep: bool) -> None:
        """Policy and optimizer hold the same weights."""
        assert verify.check(newest(save), deep=deep) == []

    def test_weights_of_two_generations(self, save: Path) -> None:
        """The optimizer file of 5 under the name of 10: its weights are not the policy's."""
        for rank in (0, 1):
            path = stock_trees.payload_path(save, "optimizer", rank, (0, 10))
            path.unlink()
            stock_trees.payload_path(save, "optimizer", rank, (0, 5)).rename(path)

        assert findings(save) == []
        assert findings(save, deep=True) == [(0, "optimizer", "model.norm"), (1, "optimizer", "model.norm")]

    def test_a_cut_file(self, save: Path) -> None:
        """Found by its header."""
        checkpoint = newest(save)
        path = stock_trees.payload_path(save, "ref", 1, (0, 10))
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])

        assert [(f.rank, f.role) for f in verify.check(checkpoint)] == [(1, "ref")]

    @pytest.mark.parametrize("role", ["policy", "optimizer"])
    def test_another_role_under_the_name_of_a_reference(self, save: Path, role: str) -> None:
        """It parses, and its weights have the right names: what else it holds tells."""
        checkpoint = newest(save)
        path = stock_trees.payload_path(save, "ref", 0, (0, 10))
        path.unlink()
        shutil.copyfile(stock_trees.payload_path(save, role, 0, (0, 10)), path)
        [finding] = verify.check(checkpoint)

        assert (finding.rank, finding.role) == (0, "ref")
        assert "so it is another role's file" in finding.reason

    def test_a_reference_that_has_lost_its_crc(self, save: Path) -> None:
        """A `.ckpt` that was cut where a record ends parses, and nothing says how many parameters it should hold."""
        for role in stock_trees.DIRECTORIES:
            for rank in (0, 1):
                path = stock_trees.payload_path(save, role, rank, (0, 10))
                arrays = read_all(Arrays(stock_trees.tensors(role, rank, (0, 10))))
                content = b"".join(ckpt.encode((name, tensor.info, tensor.data) for name, tensor in arrays.items()))
                path.with_suffix(".ckpt").write_bytes(content)
                path.unlink()
        assert verify.check(newest(save), deep=True) == []
        path = stock_trees.payload_path(save, "ref", 1, (0, 10)).with_suffix(".ckpt")
        path.write_bytes(path.read_bytes()[:-17])

        [finding] = verify.check(newest(save), deep=True)

        assert (finding.rank, finding.role, finding.path) == (1, "ref", str(path))
        assert "has no CRC, other files of its position have one" in finding.reason
