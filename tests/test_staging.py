"""The host copy: every tensor once, digested, in the order of its files, and nothing of the next step in it."""

from __future__ import annotations

import itertools
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import savers

from ms_resume import locate, verify, write
from ms_resume.errors import UsageError
from ms_resume.ondisk import direct, names, payload
from ms_resume.records import Position, TensorInfo
from ms_resume.state import Arrays, HostTensor, from_array, infos, read_all, scalar
from ms_resume.write import staging
from ms_resume.write.staging import Staging


@pytest.fixture(autouse=True, params=[0, 1 << 20], ids=["in threads", "at once"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "FEW", request.param)


def reads(**roles: Arrays) -> dict[str, dict[str, staging.Read]]:
    return {role: {name: partial(arrays.read, name) for name in arrays} for role, arrays in roles.items()}


def nets(seed: int = 0, **more: np.ndarray) -> tuple[Arrays, Arrays]:
    """A policy, and an optimizer that has its weights; of all widths, odd lengths, and one without items."""
    random = np.random.default_rng(seed)
    weights = {
        "w": random.standard_normal((301, 7), dtype=np.float32),
        "half": random.standard_normal(1001).astype(np.float16),
        "bytes": random.integers(0, 255, 13, np.uint8),
        "empty": np.zeros((0, 5), np.float32),
        "turned": random.standard_normal((40, 30)).T,
    } | more
    moments = {"adam_m.w": random.standard_normal((301, 7), dtype=np.float32), "step": np.array(7)}
    return Arrays(weights), Arrays({**weights, **moments})


def staged_in(policy: Arrays, optimizer: Arrays, shared: frozenset[str] | None = None) -> staging.Staged:
    roles = {"policy": policy.infos(), "optimizer": optimizer.infos()}
    buffer = Staging(roles, frozenset(policy) if shared is None else shared)
    return buffer.take(reads(policy=policy, optimizer=optimizer))


@pytest.mark.parametrize("shared", [True, False])
def test_every_tensor_is_copied_and_digested(shared: bool) -> None:
    policy, optimizer = nets()
    staged = staged_in(policy, optimizer, None if shared else frozenset())
    for role, arrays in (("policy", policy), ("optimizer", optimizer)):
        held = {name: bytes(tensor.data) for name, tensor in read_all(arrays).items()}

        assert {name: bytes(tensor.data) for name, tensor in staged.tensors(role).items()} == held
        assert staged.digests(role) == {name: payload.digest_of(data) for name, data in held.items()}


def test_shared_weights_are_read_once() -> None:
    """All but those of odd lengths, behind which nothing would be aligned."""
    policy, optimizer = nets(half2=np.ones(200_000, np.float16))
    asked: list[str] = []

    def counting(role: str, arrays: Arrays, name: str) -> HostTensor:
        asked.append(f"{role} {name}")
        return arrays.read(name)

    buffer = Staging({"policy": policy.infos(), "optimizer": optimizer.infos()}, frozenset(policy))
    roles = {"policy": policy, "optimizer": optimizer}
    counted = {role: {name: partial(counting, role, of, name) for name in of} for role, of in roles.items()}
    buffer.take(counted).wait()

    assert len(asked) == len(set(asked))
    assert not {"optimizer half2", "optimizer turned"} & set(asked)
    assert 400_000 < buffer.plan.size < 500_000


@pytest.mark.parametrize("seed", range(5))
def test_a_run_lies_in_memory_as_in_its_file(seed: int) -> None:
    """Modulo a block, for each file it goes into; no two overlap; each tensor is aligned to its items."""
    draw = np.random.default_rng(seed)
    kinds = [draw.choice([np.float32, np.float16, np.int64]) for _ in range(9)]
    more = {f"x{n}": np.zeros(int(draw.integers(0, 3000)), kind) for n, kind in enumerate(kinds)}
    policy, optimizer = nets(seed, **more)
    plan = staging.plan({"policy": policy.infos(), "optimizer": optimizer.infos()}, frozenset(policy))
    spans = sorted((run.start, run.start + run.end - run.begin) for run in plan.runs)

    assert all(run.start % direct.BLOCK == run.begin % direct.BLOCK for run in plan.runs)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= plan.size
    for placed in plan.placed.values():
        ends = [0] + [info.end for info in placed.values()]
        assert [info.begin for info in placed.values()] == ends[:-1]
    for info in plan.placed["optimizer"].values():
        assert info.begin % payload.item_bytes(info.dtype) == 0 or info.begin == info.end


def test_pieces_make_up_the_data_part() -> None:
    policy, optimizer = nets(w2=np.random.default_rng(1).standard_normal(5_000_000).astype(np.float32))
    staged = staged_in(policy, optimizer)
    for role in ("policy", "optimizer"):
        pieces = sorted(staged.pieces(role))
        content = b"".join(bytes(view) for _, view in pieces)
        held = staged.tensors(role)

        assert [at for at, _ in pieces] == [sum(len(v) for _, v in pieces[:n]) for n in range(len(pieces))]
        for name, info in staged.placed(role).items():
            assert content[info.begin : info.end] == bytes(held[name].data)


@pytest.mark.parametrize("change", ["shape", "dtype", "name"])
def test_what_changes_while_a_job_runs(change: str) -> None:
    """Nothing is padded or cut: one error, with both sides."""
    policy, optimizer = nets()
    buffer = Staging({"policy": policy.infos(), "optimizer": optimizer.infos()})
    if change == "name":
        optimizer["new"] = np.zeros(3)
        with pytest.raises(UsageError, match="came or went"):
            buffer.take(reads(policy=policy, optimizer=optimizer))
        return
    policy["w"] = policy["w"].T.copy() if change == "shape" else policy["w"].astype(np.float64)
    with pytest.raises(UsageError, match=r"'w' is F.* now, it was F32"):
        buffer.take(reads(policy=policy, optimizer=optimizer)).wait()


def test_more_than_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before anything is allocated, with the way out."""
    monkeypatch.setattr(staging, "available_bytes", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"3\.7 GiB is needed for saving, 0\.0 GiB") as caught:
        Staging({"policy": {"w": TensorInfo("F32", (1000, 1000, 1000))}})
    assert "MS_RESUME_STAGING=0" in caught.value.hint


def test_memory_is_counted() -> None:
    assert 1 << 20 < staging.available_bytes() < 1 << 60


@pytest.mark.parametrize("file_format", ["safetensors", "ckpt"])
@pytest.mark.parametrize("large", [True, False])
def test_a_staged_save_is_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str, large: bool
) -> None:
    """Whole to its last byte, and tensor by tensor what a save without a buffer writes."""
    if large:
        monkeypatch.setattr(direct, "LARGE", 0)
    policy, optimizer = nets()
    numbers = {"epoch_num": scalar(0), "step_num": scalar(2)}
    held = {"policy": {**read_all(policy), **numbers}, "optimizer": read_all(optimizer)}
    rest = {"ref": {"w": from_array(np.ones(5))}, "state": {"global_step": scalar(2)}}
    buffer = Staging({role: infos(tensors) for role, tensors in held.items()}, frozenset(policy))
    for step, staged in ((1, False), (2, True)):
        who = savers.writer(tmp_path, savers.open_attempt(tmp_path, "0_1" if staged else "", by=_author(tmp_path)))
        numbers["step_num"] = held["policy"]["step_num"] = scalar(step)
        taken = buffer.take({r: {n: partial(t.__getitem__, n) for n in t} for r, t in held.items()})
        snapshot = write.Snapshot(
            Position(0, step),
            step,
            rest if staged else {**held, **rest},
            file_format=file_format,
            staged={"policy": taken, "optimizer": taken} if staged else {},
        )
        write.save(who, snapshot, savers.ABOUT, None)
    found = {str(c.position): c for c in locate.every(tmp_path)}

    assert [verify.check(found[position], deep=True) for position in ("0_1", "0_2")] == [[], []]  # type: ignore[arg-type]
    if file_format == "safetensors":
        for role in ("policy", "optimizer", "ref"):
            first, second = (
                payload.read_header(names.payload(tmp_path, role, 0, Position(0, step))).digests for step in (1, 2)
            )
            assert {**first, "step_num": ""} == {**second, "step_num": ""}


def _author(save: Path) -> str | None:
    from ms_resume.ondisk import attempts

    records = attempts.read_all(save)
    return records[-1].attempt if records else None


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="no huge pages on this machine")
def test_the_buffer_lies_in_huge_pages() -> None:
    """A save of 1 GiB takes a quarter less time with them."""
    before = huge_kib()
    buffer = staging._allocate(64 << 20)

    assert huge_kib() - before >= 32 << 10
    buffer.close()


def huge_kib() -> int:
    return sum(map(int, re.findall(r"^AnonHugePages:\s*(\d+)", Path("/proc/self/smaps").read_text(), re.MULTILINE)))


def test_a_child_has_no_copy_of_the_buffer() -> None:
    """The next save would copy each page for it, and the machine would need the memory twice."""
    buffer = staging._allocate(1 << 20)
    buffer[:4] = b"mine"
    if (pid := os.fork()) == 0:
        os._exit(buffer[:4] != b"\0\0\0\0")

    assert os.waitpid(pid, 0)[1] == 0
    assert buffer[:4] == b"mine"
    buffer.close()
