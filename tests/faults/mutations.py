"""The write path with one thing wrong, many times: each entry takes away or swaps one sync, rename, order, or check.

`old` stands in the file exactly once; `looks` are parts of the campaign that notice, the quickest first.
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """A narrow run of the campaign: one part, of the scenarios and cases whose names contain these texts."""

    part: str
    scenario: str = ""
    case: str = ""
    share: int = 100


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    looks: tuple[Look, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def _power(scenario: str) -> Look:
    return Look("power_model", scenario)


def _dying(scenario: str, case: str = "killed before") -> Look:
    return Look("dying", scenario, case)


def _failing(scenario: str, case: str = "fails with EIO") -> Look:
    return Look("failing", scenario, case)


def _zombie(scenario: str, case: str = "goes on after the successor") -> Look:
    return Look("interleaving", scenario, case)


def _between(scenario: str) -> Look:
    """Both in the middle of something, drawn at random: more of them than the campaign has, of one scenario."""
    return Look("interleaving", scenario, "goes on at", 2000)


def _slow(scenario: str) -> Look:
    return Look("interleaving", scenario, "while rank 0 prunes")


def _standing(scenario: str) -> Look:
    return Look("standing", scenario)


def _taken(scenario: str) -> Look:
    return Look("interleaving", scenario, "of the start after the successor's")


def _late(scenario: str) -> Look:
    return Look("interleaving", scenario, "saves twice")


def _two(case: str) -> Look:
    return Look("two_writers", case)


SAVE, SAVE_2 = "a save, with retention, 1 rank", "a save, with retention, 2 ranks"
REF, REF_2 = "a save with a new reference, 1 rank", "a save with a new reference, 2 ranks"
CKPT = "a save as .ckpt, 1 rank"
UNCACHED = "a save past the page cache, 1 rank"
TORN, TORN_2 = "a torn position saved again, 1 rank", "a torn position saved again, 2 ranks"
ABANDONED, ABANDONED_2 = "an abandoned position saved again, 1 rank", "an abandoned position saved again, 2 ranks"
FIRST, FIRST_2 = "the first save of all, 1 rank", "the first save of all, 2 ranks"
START, BACK, RESTORE, REPAIR = "a start, 1 rank", "going back, 1 rank", "restore, 1 rank", "repair, 1 rank"
STOCK, IN_TURN = "the first save into a stock directory, 1 rank", "a save after stock and ours in turn, 1 rank"

ATOMIC = "ondisk/atomic.py"
DIRECT = "ondisk/direct.py"
WRITE = "write/__init__.py"
FILES = "write/files.py"
COMMIT = "commit.py"
REMOVAL = "removal.py"
OWNERSHIP = "ownership.py"
RETENTION = "retention.py"
OURS = "layouts/ours.py"
SESSION = "resume/session.py"
REPAIR_PY = "repair.py"
CHECKPOINTER = "resume/checkpointer.py"
SAVER = "resume/saver.py"


def _in(file: str, *entries: tuple[str, str, str, tuple[Look, ...]]) -> list[Mutant]:
    return [Mutant(name, file, old, new, looks) for name, old, new, looks in entries]


MUTANTS: list[Mutant] = [
    *_in(
        ATOMIC,
        (
            "publish does not sync the directory",
            "            _discard(part)\n            raise\n    sync_dir(path.parent)\n\n\ndef share",
            "            _discard(part)\n            raise\n\n\ndef share",
            (_power(SAVE),),
        ),
        (
            "publish syncs the directory before the name is there",
            "    with _reported(part, \"publish\"):\n        try:\n            _place(part, path)\n        except OSError:\n"
            "            _discard(part)\n            raise\n    sync_dir(path.parent)\n",
            "    sync_dir(path.parent)\n    with _reported(part, \"publish\"):\n        try:\n            _place(part, path)\n"
            "        except OSError:\n            _discard(part)\n            raise\n",
            (_power(SAVE),),
        ),
        (
            "publish replaces what stands there",
            "            _place(part, path)\n        except OSError:\n            _discard(part)\n            raise\n    sync_dir",
            "            os.replace(part, path)\n        except OSError:\n            _discard(part)\n            raise\n    sync_dir",
            (_two("start of 1 stopped before"), _zombie(SAVE)),
        ),
        (
            "publish leaves its temp file when the name cannot be given",
            "            _place(part, path)\n        except OSError:\n            _discard(part)\n            raise",
            "            _place(part, path)\n        except OSError:\n            raise",
            (_failing(SAVE),),
        ),
        (
            "publish writes under the name itself",
            "    part = names.part(path, attempt)\n    _write_part(part, content)\n    with _reported(part, \"publish\"):\n"
            "        try:\n            _place(part, path)\n",
            "    part = names.part(path, attempt)\n    if path.exists():\n        raise FileExistsError\n    _write_part(path, content)\n"
            "    with _reported(part, \"publish\"):\n        try:\n            pass\n",
            (_dying(SAVE, "in the middle"), _dying(START, "in the middle")),
        ),
        (
            "share does not sync the directory",
            "        _link(path, other)\n    sync_dir(other.parent)\n",
            "        _link(path, other)\n",
            (_power("a save that replicas share, 2 ranks"),),
        ),
        (
            "replace does not sync the directory",
            "        _replace(part, path)\n    sync_dir(path.parent)\n",
            "        _replace(part, path)\n",
            (_power(SAVE),),
        ),
        (
            "replace writes under the name itself",
            "    part = names.part(path, attempt)\n    _write_part(part, [content])\n    with _reported(path, \"replace\"):\n        _replace(part, path)\n",
            "    _write_part(path, [content])\n",
            (_dying(SAVE),),
        ),
        (
            "replace removes the old file first",
            "    with _reported(path, \"replace\"):\n        _replace(part, path)\n",
            "    with _reported(path, \"replace\"):\n        path.unlink(missing_ok=True)\n        _replace(part, path)\n",
            (_dying(SAVE),),
        ),
        (
            "point does not sync the directory",
            "        _replace(part, link)\n    sync_dir(link.parent)\n",
            "        _replace(part, link)\n",
            (_power(SAVE),),
        ),
        (
            "point removes the old link first",
            "        os.symlink(target, part)\n        _replace(part, link)\n",
            "        os.symlink(target, part)\n        link.unlink(missing_ok=True)\n        _replace(part, link)\n",
            (_dying(SAVE),),
        ),
        (
            "make_dirs trusts that a directory that is there is on disk",
            "    if not missing:\n        _sync_dir_where_readable(path.parent)\n",
            "",
            (_power("directories that nobody synced, then a save, 1 rank"),),
        ),
        (
            "make_dirs does not sync what it makes",
            "str(step)) from error\n        sync_dir(step.parent)\n",
            "str(step)) from error\n",
            (_power(FIRST),),
        ),
        (
            "make_dirs fails when another process was faster",
            "step.mkdir(exist_ok=True)",
            "step.mkdir()",
            (_two("no directory"),),
        ),
        (
            "rename does not sync the directory",
            "        os.rename(source, target)\n    sync_dir(source.parent)\n",
            "        os.rename(source, target)\n",
            (_power(SAVE),),
        ),
        (
            "remove does not sync the directory",
            "    for directory in {path.parent for path in paths}:\n        _sync_dir_unless_gone(directory)\n",
            "",
            (_power(SAVE),),
        ),
        (
            "remove fails when the file is gone already",
            "        with _reported(path, \"remove\"):\n            path.unlink(missing_ok=True)\n",
            "        with _reported(path, \"remove\"):\n            path.unlink()\n",
            (_zombie(SAVE), _zombie(START), _two("race")),
        ),
        (
            "a sync fails when the emptied directory is gone already",
            "        if error.fields[\"errno\"] != errno.ENOENT:  # another process removed the emptied directory in between\n            raise\n",
            "        raise\n",
            (_two("start meanwhile, files aside"),),
        ),
        (
            "put_aside fails when the file is gone already",
            "            os.rename(path, aside)\n        except FileNotFoundError:\n            return False\n",
            "            os.rename(path, aside)\n        except ZeroDivisionError:\n            return False\n",
            (_dying(SAVE),),
        ),
        (
            "give_back does not sync the directories",
            "    for directory in dict.fromkeys((path.parent, aside.parent)):\n        _sync_dir_unless_gone(directory)\n    return True\n",
            "    return True\n",
            (_power("lie aside, 1 rank"),),
        ),
        (
            "give_back replaces what stands there",
            "            _place(aside, path, never_nameless=True)\n        except FileNotFoundError:",
            "            os.rename(aside, path)\n        except FileNotFoundError:",
            (_dying("an older .ckpt lies aside"),),
        ),
        (
            "give_back fails when the file was given back already",
            "            _place(aside, path, never_nameless=True)\n        except FileNotFoundError:\n            return False\n",
            "            _place(aside, path, never_nameless=True)\n        except ZeroDivisionError:\n            return False\n",
            (_two("start meanwhile, files aside"),),
        ),
        (
            "no directory is synced",
            "        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)\n        try:\n            os.fsync(fd)\n",
            "        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)\n        try:\n            pass\n",
            (_power(SAVE),),
        ),
        (
            "no file is synced",
            "        return _synced(fd)\n",
            "        return True\n",
            (_power(SAVE),),
        ),
        (
            "a failed sync of a file is no failure",
            "            raise\n        return False\n    return True\n\n\ndef _place",
            "            raise\n    return True\n\n\ndef _place",
            (_power("whose first sync failed, 1 rank"),),
        ),
        (
            "a failed sync of a file is tried again on the same file",
            "            raise\n        return False\n    return True\n\n\ndef _place",
            "            raise\n        os.fsync(fd)\n    return True\n\n\ndef _place",
            (_power("whose first sync failed, 1 rank"),),
        ),
        (
            "after a failed sync the same file is cut and written again",
            "    part.unlink(missing_ok=True)  # it may be a second link to a published file: truncating it would truncate that one\n"
            "    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL",
            "    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC",
            (_power("whose first sync failed, 1 rank"),),
        ),
        (
            "the file of a failed sync is in the way of the next one",
            "    part.unlink(missing_ok=True)  # it may be",
            "    # it may be",
            (_failing(START),),
        ),
        (
            "what could not be written stays behind",
            "                raise OSError(errno.EIO, \"fsync failed twice\", str(part))\n        except BaseException:  # also what the content itself raises while it comes to be\n            _discard(part)\n",
            "                raise OSError(errno.EIO, \"fsync failed twice\", str(part))\n        except BaseException:\n",
            (_failing(SAVE),),
        ),
        (
            "a short write is taken for a whole one",
            "    while view:\n        view = view[os.write(fd, view[: 1 << 30]) :]",
            "    if view:\n        view = view[os.write(fd, view[: 1 << 30]) :]",
            (_failing(SAVE, "writes half"),),
        ),
        (
            "a name that another file has counts as given",
            "        if not os.path.samestat(os.stat(path), os.stat(other)):\n            raise\n",
            "        pass\n",
            (_two("start of 1 stopped before"), _zombie(SAVE)),
        ),
        (
            "a lost reply makes a file stand in its own way",
            "        if not os.path.samestat(os.stat(path), os.stat(other)):\n            raise\n",
            "        raise\n",
            (_dying("where replies are lost, 1 rank"),),
        ),
        (
            "no name without hard links",
            "        if error.errno not in _NO_LINKS:\n            raise\n",
            "        raise\n",
            (_dying("without hard links, 1 rank"),),
        ),
        (
            "a rename in place of a link replaces what stands there",
            "_RENAME_NOREPLACE = 1",
            "_RENAME_NOREPLACE = 0",
            (_zombie("without hard links, 1 rank"),),
        ),
        (
            "the temp file keeps its name beside the final one",
            "        sync_dir(path.parent)\n    _discard(part)",
            "        sync_dir(path.parent)\n    pass",
            (_dying(SAVE),),
        ),
        (
            "what is given back may lose both its names",
            "    if never_nameless:\n        sync_dir(path.parent)\n",
            "",
            (_power("restore where files lie aside, 1 rank"),),
        ),
        (
            "a failed replace leaves its temp file",
            "        os.replace(part, path)\n    except OSError:\n        _discard(part)\n",
            "        os.replace(part, path)\n    except OSError:\n",
            (_failing(SAVE),),
        ),
    ),
    *_in(
        DIRECT,
        (
            "what comes before whole blocks is not written",
            "        _write_all(self.fd, view[:head], offset)\n",
            "",
            (_dying(UNCACHED),),
        ),
        (
            "what comes behind whole blocks is not written",
            "        _write_all(self.fd, view[head + body :], offset + head + body)\n",
            "",
            (_dying(UNCACHED),),
        ),
        (
            "what a short direct write leaves is not written",
            "            _write_all(fd, view[count:], offset + count)\n            return\n",
            "            return\n",
            (_failing(UNCACHED, "writes half"),),
        ),
        (
            "what a short write leaves is not written",
            "        count = os.pwrite(fd, view[:_MOST_AT_ONCE], offset)\n        view, offset = view[count:], offset + count\n",
            "        os.pwrite(fd, view[:_MOST_AT_ONCE], offset)\n        return\n",
            (_failing(UNCACHED, "writes half"), _failing(SAVE, "writes half")),
        ),
        (
            "a thread's error is forgotten",
            "            written.result()\n",
            "            written.exception()\n",
            (_failing(UNCACHED),),
        ),
        (
            "what threads write is not waited for",
            "        for written in [pool.submit(file.write, view, offset) for offset, view in _cut(pieces)]:\n            written.result()\n",
            "        for offset, view in _cut(pieces):\n            pool.submit(file.write, view, offset)\n        pool.shutdown(wait=False, cancel_futures=True)\n",
            (_failing(UNCACHED),),
        ),
    ),
    *_in(
        WRITE,
        (
            "a save does not ask whether the position stands already",
            "    if standing := commit.standing_vote(writer, snapshot.position):",
            "    if standing := None:",
            (_dying("its own attempt saves again, 1 rank"),),
        ),
        (
            "a save retracts nothing",
            "    commit.retract(writer, snapshot.position, paths.values())\n",
            "",
            (_dying(ABANDONED_2), _dying(TORN_2), _dying(TORN), _zombie(TORN_2)),
        ),
        (
            "meta.json before the vote",
            "        commit.cast(writer, vote)\n    return Saved(vote, True, sum(file.bytes for file in written), (*warnings, *_record_meta(writer, vote)))",
            "        warned = _record_meta(writer, vote)\n        commit.cast(writer, vote)\n    return Saved(vote, True, sum(file.bytes for file in written), tuple(warned))",
            (_dying(SAVE),),
        ),
        (
            "a save does not touch meta.json",
            "sum(file.bytes for file in written), (*warnings, *_record_meta(writer, vote)))",
            "sum(file.bytes for file in written), ())",
            (_dying(SAVE),),
        ),
        (
            "a save that failed keeps what did fit",
            "                for path in paths.values():\n                    commit.clear(writer, path, proven=True)\n",
            "                pass\n",
            (_failing(SAVE),),
        ),
        (
            "a save whose vote has its name takes its payloads away",
            "        if not names.vote(writer.save, snapshot.position, writer.rank).exists():  # else it may count: its sync failed\n",
            "        if True:\n",
            (_failing(SAVE),),
        ),
    ),
    *_in(
        FILES,
        (
            "a reference is named again whatever it holds",
            "    return named if same_layout and dict(header.digests) == digests_of(tensors) else None",
            "    return named",
            (_dying(REF),),
        ),
    ),
    *_in(
        COMMIT,
        (
            "a vote of an older attempt counts as this one's",
            "    mine = (vote.attempt, vote.world_size) == (writer.attempt.attempt, writer.world_size)\n    return vote if mine and",
            "    return vote if",
            (_dying(ABANDONED),),
        ),
        (
            "a standing vote counts without its files",
            "    return vote if mine and all(in_place(writer.save, file) for file in vote.files) else None",
            "    return vote if mine else None",
            (_dying("its own attempt saves again after a loss, 1 rank"),),
        ),
        (
            "a file is in its place whatever its header says",
            "    return (header.file_bytes, header.digest) == (file.bytes, file.digest)",
            "    return header.file_bytes == file.bytes",
            (_dying("its own attempt saves again after a loss, 1 rank"),),
        ),
        (
            "a checkpoint is complete by the votes of any attempt",
            "        rank for rank, other in found.items() if (other.attempt, other.world_size) == (vote.attempt, vote.world_size)\n",
            "        rank for rank in found\n",
            (_dying(ABANDONED_2),),
        ),
        (
            "a checkpoint is complete by one vote",
            "    return same >= set(range(vote.world_size))",
            "    return bool(same)",
            (_dying(ABANDONED_2),),
        ),
        (
            "the old vote stays while its files go",
            "    removal.retire(writer, vote_path)\n    here",
            "    here",
            (_dying(TORN_2), _dying(ABANDONED_2), _zombie(TORN)),
        ),
        (
            "a file that nothing proves ours is removed",
            "    removal.retire(writer, path, keep_as=None if ours else names.superseded(path, writer.attempt.attempt))",
            "    removal.retire(writer, path)",
            (_dying("a stock position saved again"),),
        ),
        (
            "publish does not ask who owns the directory",
            "        atomic.make_dirs(path.parent)\n        assert_owner(writer)\n        try:\n            give()",
            "        atomic.make_dirs(path.parent)\n        try:\n            give()",
            (_zombie(SAVE), _zombie(TORN), _zombie(FIRST)),
        ),
        (
            "publish gives up when a file is in the way",
            "        except FileExistsError:\n            clear(writer, path)\n",
            "        except FileExistsError:\n            raise\n",
            (_between(TORN), _between(ABANDONED), _between(SAVE)),
        ),
        (
            "publish has no patience",
            "_PATIENCE = 3",
            "_PATIENCE = 1",
            (_between(TORN), _between(ABANDONED), _between(SAVE)),
        ),
        (
            "publish gives up when the directory was taken away",
            "            if error.fields[\"errno\"] != errno.ENOENT:\n                raise  # else such a worker renamed the directory away\n",
            "            raise\n",
            (_standing("whose vote directory is taken away"),),
        ),
        (
            "meta.json of the weights before that of the moments",
            '_META_ORDER = ("ref", "optimizer", "policy")',
            '_META_ORDER = ("ref", "policy", "optimizer")',
            (_dying(SAVE),),
        ),
        (
            "meta.json of the moments before that of the reference",
            '_META_ORDER = ("ref", "optimizer", "policy")',
            '_META_ORDER = ("optimizer", "ref", "policy")',
            (_dying(REF),),
        ),
        (
            "who writes meta.json is not asked",
            "                atomic.make_dirs(path.parent)\n                assert_owner(writer)\n                atomic.replace",
            "                atomic.make_dirs(path.parent)\n                atomic.replace",
            (_zombie(SAVE),),
        ),
        (
            "a meta.json that cannot be written ends the save",
            "        except (DiskError, OSError) as error:\n            said",
            "        except ZeroDivisionError as error:\n            said",
            (_failing(SAVE),),
        ),
        (
            "latest is moved by whoever was superseded",
            "            assert_owner(writer)\n            atomic.point",
            "            atomic.point",
            (_zombie(SAVE),),
        ),
        (
            "latest is not moved",
            "            atomic.point(link, target, writer.attempt.attempt)\n",
            "            pass\n",
            (_dying(SAVE),),
        ),
    ),
    *_in(
        REMOVAL,
        (
            "a removal does not ask again after it renamed",
            "    assert_owner(writer)\n    if keep_as is None:",
            "    if keep_as is None:",
            (_zombie(TORN), _zombie(SAVE)),
        ),
        (
            "a removal asks twice and then renames",
            "    aside = names.retired(path, writer.attempt.attempt)\n    try:\n        if not atomic.put_aside(path, aside):\n            return\n",
            "    aside = path\n    try:\n        pass\n",
            (_zombie(TORN), _zombie(SAVE)),
        ),
        (
            "a full disk keeps what is to go",
            "        if error.fields[\"errno\"] not in _FULL or keep_as is not None:\n            raise\n",
            "        raise\n",
            (Look("full_disk", "", "xfs"), _failing(SAVE, "ENOSPC")),
        ),
        (
            "what lies aside is not given back where an older file stands",
            "    if author is not None and home.exists() and not _not_older(home, author):\n",
            "    if False:\n",
            (_standing("has the place of one aside"),),
        ),
        (
            "an older file takes the name of the one that lies aside",
            "        atomic.put_aside(home, names.retired(home, author))\n",
            "        atomic.put_aside(home, names.retired(home, author_of(home, home.name) or author))\n",
            (_standing("has the place of one aside"),),
        ),
        (
            "what lies aside is not given back where its directory is gone",
            "    atomic.make_dirs(home.parent)\n",
            "",
            (_dying("restore where files lie aside, 1 rank"),),
        ),
        (
            "a start fails where another one gave back the same file",
            "    except FileExistsError:\n        return False\n\n\ndef _live",
            "    except ZeroDivisionError:\n        return False\n\n\ndef _live",
            (_dying("an older .ckpt lies aside"), _two("start meanwhile, files aside")),
        ),
        (
            "what is live is cleared with the rest",
            "        wanted = author is None or (_live(line, author, found.home) and not _not_older(found.home, author))\n",
            "        wanted = author is None\n",
            (_taken(TORN), _taken(ABANDONED)),
        ),
        (
            "what lies aside is never cleared",
            "            assert_owner(writer)\n            atomic.remove(found.path)\n",
            "            pass\n",
            (_dying(ABANDONED), _dying(TORN)),
        ),
        (
            "votes that lie aside in a directory stay there",
            "    for directory in filter(_was_taken, commits):",
            "    for directory in ():",
            (_dying("restore where files lie aside, 1 rank"),),
        ),
    ),
    *_in(
        OWNERSHIP,
        (
            "the name of commits is not made durable",
            "    for directory in (names.commits(surveyed.save), names.attempts(surveyed.save)):",
            "    for directory in (names.attempts(surveyed.save),):",
            (_power("directories that nobody synced, then a first save, 1 rank"),),
        ),
        (
            "the name of commits/attempts is not made durable",
            "    for directory in (names.commits(surveyed.save), names.attempts(surveyed.save)):\n        atomic.make_dirs(directory)",
            "    for directory in (names.commits(surveyed.save),):\n        names.attempts(surveyed.save).mkdir(parents=True, exist_ok=True)\n        atomic.make_dirs(directory)",
            (_power("directories that nobody synced, then a first save, 1 rank"),),
        ),
        (
            "the loser of a race reports a broken disk",
            "        if isinstance(error, DiskError) and error.fields[\"errno\"] != errno.ENOENT:\n            raise ",
            "        if isinstance(error, DiskError):\n            raise ",
            (_two("start of 1 stopped before"),),
        ),
        (
            "a disk error at the start is taken for a lost race",
            "        if isinstance(error, DiskError) and error.fields[\"errno\"] != errno.ENOENT:\n            raise ",
            "        if False:\n            raise ",
            (_failing(START),),
        ),
        (
            "a start does not look for a living owner",
            "    if alive:\n        raise DirectoryInUse(\n            f\"{save}: attempt",
            "    if False:\n        raise DirectoryInUse(\n            f\"{save}: attempt",
            (_two("a start while a job of 1"),),
        ),
        (
            "any process of the owner's pid is the owner",
            "_start_of(owner.pid) == owner.pid_start",
            "_start_of(owner.pid) is not None",
            (_two("another process of the pid of a job of 1"),),
        ),
        (
            "a dead owner that nobody waited for is alive",
            "len(fields) > 19 and fields[0] not in \"ZX\" else None",
            "len(fields) > 19 else None",
            (_two("before call 1 of a save of 1"),),
        ),
        (
            "a pid of before the last boot is looked up",
            "    here = (owner.boot_id, owner.pid_namespace) == (_boot_id(), _pid_namespace())",
            "    here = owner.pid_namespace == _pid_namespace()",
            (_two("a job of 1 rebooted"),),
        ),
        (
            "a pid of another container is looked up",
            "    here = (owner.boot_id, owner.pid_namespace) == (_boot_id(), _pid_namespace())",
            "    here = owner.boot_id == _boot_id()",
            (_two("a job of 1 in another container"),),
        ),
        (
            "a heartbeat that is gone is one that moved",
            "        if _read_proc(str(path)) not in (first, \"\"):",
            "        if _read_proc(str(path)) != first:",
            (_two("ends while its heartbeat is watched"),),
        ),
        (
            "a heartbeat is watched for half a beat",
            "time.monotonic() + 2.5 * _interval_s(first)",
            "time.monotonic() + 0.5 * _interval_s(first)",
            (_two("a job of 1 rebooted, it runs"), _two("a job of 1 rebooted")),
        ),
        (
            "a heartbeat may say any pace",
            "    return said if 0 < said <= _SLOWEST_BEAT_S else _USUAL_BEAT_S",
            "    return said",
            (_two("what is left of a heartbeat"),),
        ),
        (
            "a heartbeat that cannot be read stops the start",
            "    except (IndexError, ValueError):\n        said = 0.0",
            "    except ZeroDivisionError:\n        said = 0.0",
            (_two("what is left of a heartbeat"),),
        ),
        (
            "a process's name must be text",
            "read_text(errors=\"replace\")",
            "read_text()",
            (_two("named by half a character"),),
        ),
        (
            "a superseded worker goes on",
            "    if newest != writer.attempt.ordinal:\n        raise Superseded(",
            "    if False:\n        raise Superseded(",
            (_two("a job of 1 runs and is taken over"), _zombie(SAVE)),
        ),
        (
            "a worker whose record is gone goes on",
            "        if record.exists():\n            return  # a",
            "        if True:\n            return  # a",
            (_two("the record of a job of 1 is gone"),),
        ),
    ),
    *_in(
        RETENTION,
        (
            "retention keeps one checkpoint",
            "NEVER_FEWER_THAN = 2\n",
            "NEVER_FEWER_THAN = 1\n",
            (_standing("a save that keeps one"),),
        ),
        (
            "retention keeps one less than was asked for",
            "    oldest_kept = complete[:keep][-1]",
            "    oldest_kept = complete[: keep - 1][-1]",
            (_standing("a save that keeps one"),),
        ),
        (
            "a torn checkpoint counts among those that are kept",
            "    complete = sorted((entry.position for entry in standing if entry.complete), reverse=True)",
            "    complete = sorted((entry.position for entry in standing), reverse=True)",
            (_standing("failed on a rank"),),
        ),
        (
            "retention takes a save that is under way",
            "        and (entry.position < oldest_kept or entry.position in surplus or _is_garbage(entry, newest_of))",
            "        and (entry.position < oldest_kept or entry.position in surplus or entry.state == \"torn\")",
            (_slow(SAVE_2),),
        ),
        (
            "a torn position that its attempt left behind stays for ever",
            "        and (entry.position < oldest_kept or entry.position in surplus or _is_garbage(entry, newest_of))",
            "        and (entry.position < oldest_kept or entry.position in surplus)",
            (_standing("failed on a rank"),),
        ),
        (
            "retention relies on votes that are not on disk",
            "            atomic.sync_dir(names.vote_dir(writer.save, position))\n",
            "            pass\n",
            (_power("votes of a dead and of a slow rank, 2 ranks"), _power("pruned on the word of a rank that died, 2 ranks")),
        ),
        (
            "retention prunes first and then syncs the votes that it relies on",
            "    for position in complete if gone else ():\n        if position not in gone:  # what retention relies on, whoever made it\n"
            "            atomic.sync_dir(names.vote_dir(writer.save, position))\n    for position in gone:\n        _retire(writer, surveyed, position)\n",
            "    for position in gone:\n        _retire(writer, surveyed, position)\n    for position in complete if gone else ():\n        if position not in gone:\n"
            "            atomic.sync_dir(names.vote_dir(writer.save, position))\n",
            (_power("votes of a dead and of a slow rank, 2 ranks"), _power("pruned on the word of a rank that died, 2 ranks")),
        ),
        (
            "retention takes what meta.json names",
            "            protected.add(named)\n",
            "            pass\n",
            (_standing("whose meta.json cannot be written"),),
        ),
        (
            "a file that another vote names goes with its position",
            "            if relative not in kept and _proven",
            "            if _proven",
            (_dying(SAVE),),
        ),
        (
            "a file goes whoever wrote it",
            "            if relative not in kept and _proven(path, named.get(relative), int(deleted_by)):",
            "            if relative not in kept:",
            (_standing("where stock has saved"),),
        ),
        (
            "the payloads of a deleted position stay",
            "                removal.retire(writer, path)\n                removed += 1\n",
            "                pass\n",
            (_dying(SAVE),),
        ),
        (
            "the vote of a deleted position goes before its payloads",
            "        vote = directory / f\"rank_{writer.rank}.json\"\n        named = _files_of(vote)\n",
            "        vote = directory / f\"rank_{writer.rank}.json\"\n        named = _files_of(vote)\n        atomic.remove(vote)\n",
            (_dying(CKPT), _dying(SAVE)),
        ),
        (
            "the vote of a deleted position goes while a payload lies aside",
            "        if vote.exists() and not any(removal.holds(writer, writer.save / relative) for relative in named):\n",
            "        if vote.exists():\n",
            (_failing(CKPT, "grow"),),
        ),
        (
            "payloads of a deleted position go by the vote alone",
            "        for relative in sorted(named.keys() | _own_payloads(writer, position)):",
            "        for relative in sorted(named):",
            (_standing("failed on a rank"),),
        ),
        (
            "temp files stay",
            "            atomic.remove(path)\n            removed += 1\n    return removed\n\n\ndef _by",
            "            pass\n    return removed\n\n\ndef _by",
            (_dying(SAVE),),
        ),
        (
            "temp files of a newer attempt go",
            "        if parsed and parsed[1] != writer.attempt.attempt and ordinal_of(parsed[1]) <= writer.attempt.ordinal:",
            "        if parsed and parsed[1] != writer.attempt.attempt:",
            (_between(START), _taken(TORN)),
        ),
        (
            "temp files of a start that lost its race stay",
            "ordinal_of(parsed[1]) <= writer.attempt.ordinal:",
            "ordinal_of(parsed[1]) < writer.attempt.ordinal:",
            (_dying(START),),
        ),
        (
            "temp files of votes stay",
            "        found += [path for path in _listing(directory, names.parse_part) if path.name.startswith(f\".{vote}.\")]\n",
            "        pass\n",
            (_dying(SAVE),),
        ),
        (
            "temp files of records and of latest stay",
            "        found += [p for d in (writer.save, names.attempts(writer.save)) for p in _listing(d, names.parse_part)]\n",
            "        pass\n",
            (_dying(START),),
        ),
        (
            "an emptied directory goes while its payloads are there",
            "        if saved_again or emptied not in surveyed.payloads:\n",
            "        if True:\n",
            (_standing("failed on a rank"),),
        ),
        (
            "an emptied directory stays for ever",
            "            atomic.remove_dir_if_empty(directory)\n    return gone\n",
            "            pass\n    return gone\n",
            (_standing("failed on a rank"),),
        ),
    ),
    *_in(
        OURS,
        (
            "a position counts without the votes of all ranks",
            "    absent = (rank for rank in range(world_size) if rank not in group)\n",
            "    absent = ()\n",
            (_dying(SAVE_2),),
        ),
        (
            "a position counts with votes of two attempts",
            "        groups[vote.attempt, vote.world_size][rank] = vote",
            "        groups[found[min(found)].attempt, vote.world_size][rank] = vote",
            (_dying(TORN_2), _dying(ABANDONED_2)),
        ),
        (
            "a position counts without its files",
            "    if rejection := _check_files(survey.save, position, group):\n        return replace(rejection, attempt=attempt)\n",
            "",
            (_standing("whose file was cut"),),
        ),
        (
            "a file counts whatever its size is",
            "    if size != file.bytes:\n        return \"damaged\"",
            "    if False:\n        return \"damaged\"",
            (_standing("whose file was cut"),),
        ),
        (
            "a position counts although its attempt was left behind",
            "    if not survey.line.holds(attempt, position):\n        return Rejection",
            "    if False:\n        return Rejection",
            (_dying(BACK),),
        ),
    ),
    *_in(
        "ondisk/attempts.py",
        (
            "an attempt stays live beyond where it was left",
            "        bound = min(bound, origin.position) if bound else origin.position\n",
            "",
            (_dying(BACK),),
        ),
        (
            "a bound leaves out the position itself",
            "        return bound is None or position <= bound",
            "        return bound is None or position < bound",
            (_dying(BACK),),
        ),
        (
            "the line ends where a record was lost",
            "    while name is not None and name not in bounds:\n        bounds[name] = bound\n        record = by_name.get(name)",
            "    while name in by_name and name not in bounds:\n        bounds[name] = bound\n        record = by_name.get(name)",
            (_standing("the loss of a record"),),
        ),
    ),
    *_in(
        "ondisk/meta.py",
    ),
    *_in(
        "verify.py",
        (
            "a file is loaded whatever its header says",
            "        if header.digest != expected.digest:\n            said",
            "        if False:\n            said",
            (_standing("a start where a payload is another one"),),
        ),
    ),
    *_in(
        SESSION,
        (
            "a start does not look whether another job owns the directory",
            "    check = attempts.newest_ordinal if request.take_over else ownership.check_free",
            "    check = attempts.newest_ordinal",
            (_two("a start while a job of 1"),),
        ),
        (
            "a start chooses before it gives back what lies aside",
            "    _on_each_disk(job, lambda: removal.put_back(job.save))\n    _on_each_disk(job, lambda: _check_unused(job, request))",
            "    _on_each_disk(job, lambda: _check_unused(job, request))",
            (_standing("a fresh start where the votes lie aside"),),
        ),
        (
            "a start takes what it located at its word",
            "        if not removal.put_back(save):\n            return found",
            "        return found",
            (_standing("while the newest votes are taken"),),
        ),
        (
            "a start that found nothing does not look again",
            "            if removal.put_back(save):\n                continue\n            raise",
            "            raise",
            (_standing("while the only payload is taken"),),
        ),
        (
            "a start with a record does not give back what lies aside",
            "        _on_each_disk(job, lambda: removal.put_back(job.save))\n        agree.together(job.group, lambda: _check_stands(job, loaded))\n",
            "        agree.together(job.group, lambda: _check_stands(job, loaded))\n",
            (_taken(TORN), _taken(ABANDONED)),
        ),
        (
            "a start with a record does not look whether its checkpoint stands",
            "        agree.together(job.group, lambda: _check_stands(job, loaded))\n    except",
            "    except",
            (_late(SAVE),),
        ),
        (
            "a start that gives way leaves its record",
            "            atomic.remove(names.attempt_record(job.save, attempt.ordinal))\n",
            "            pass\n",
            (_late(SAVE),),
        ),
        (
            "a start leaves meta.json as it is",
            "        commit.record_meta(writer, loaded.mine.files)\n",
            "        pass\n",
            (_standing("going back, and what is named"),),
        ),
        (
            "a start sweeps no temp files",
            "    retention.sweep_temp_files(writer)\n",
            "",
            (_dying(START),),
        ),
        (
            "a start sweeps nothing that lies aside",
            "    removal.sweep(writer)\n",
            "",
            (_dying(ABANDONED), _dying(TORN)),
        ),
        (
            "a start beats only when its record is there",
            "        beating.append(Heartbeat(job.save, after + 1, job.settings.heartbeat_s))\n",
            "        pass\n",
            (_two("of a start elsewhere takes long"),),
        ),
        (
            "a start that lost its race takes the winner's heartbeat away",
            "            heartbeat.stop(remove=not isinstance(error, DirectoryInUse))",
            "            heartbeat.stop()",
            (_two("start of 1 stopped before"),),
        ),
    ),
    *_in(
        REPAIR_PY,
        (
            "restore does not look for a living owner",
            "    after = ownership.check_free(save)\n",
            "    after = max((record.ordinal for record in survey.take(save).records), default=0)\n",
            (_two("restore while a job of 1"),),
        ),
        (
            "restore relies on a record that is not on disk",
            "        _sync_records(surveyed)\n    else",
            "        pass\n    else",
            (_power("restored again after a death, 1 rank"),),
        ),
        (
            "restore gives back nothing that lies aside",
            "    removal.put_back(save)\n    return after",
            "    return after",
            (_dying("lie aside, 1 rank"),),
        ),
        (
            "restore brings back what is not whole",
            "        judged = verify.headers(judged) or judged\n",
            "        pass\n",
            (_standing("restore of what is not whole"),),
        ),
        (
            "restore leaves meta.json as it is",
            "        _record(writer, checkpoint.of_rank(writer.rank))\n    if checkpoint.votes",
            "        pass\n    if checkpoint.votes",
            (_standing("restore, and what is named"),),
        ),
        (
            "repair keeps no copy of what was broken",
            "    kept = names.broken(path)\n    try:\n        atomic.publish(kept, [content], writer.attempt.attempt)\n",
            "    kept = names.broken(path)\n    try:\n        pass\n",
            (_standing("repair, and what is kept"),),
        ),
        (
            "repair writes nothing",
            "        _record(writer, {role: path for role, path in checkpoint.of_rank(writer.rank).items() if role in due})\n",
            "        pass\n",
            (_standing("repair, and what is kept"),),
        ),
    ),
    *_in(
        SAVER,
        (
            "a reference is named again from a checkpoint that is not complete",
            "            return commit.complete(self._job.save, vote)\n",
            "            return True\n",
            (_slow(REF_2), _dying(REF_2)),
        ),
    ),
    *_in(
        CHECKPOINTER,
        (
            "a save may lie before the one that the run went on from",
            "        if self._origin is not None and position < self._origin:",
            "        if False:",
            (_standing("a save before the one that the run began with"),),
        ),
    ),
]  # fmt: skip

EQUIVALENT: list[tuple[str, str]] = [
    ("a heartbeat is cut before it is written", "a reader does not take an empty one for a beat, nor for a death"),
    ("open_attempt does not look for a newer record", "the exclusive publish of the next ordinal refuses as well"),
    ("a save does not ask who owns the directory", "retract asks before it changes anything"),
    ("a newer attempt's file is cleared like an older one's", "retire asks who owns the directory, twice"),
    ("a reference is named again although another file stands there", "in_place asks the same before the vote"),
    ("the reference is not looked at again before the vote", "it narrows a window; a start gives back what was taken"),
    ("the files in the way go before the vote", "either way the position is not whole until the new vote"),
    ("the files that an old vote names stay", "they are nobody's, and go with their position"),
    ("what lies aside is given back whoever wrote it", "what is dead stays dead by the records"),
    ("latest that cannot be moved ends the save", "retention's caller turns the error into a warning"),
    (
        "a removal does not ask before it renames",
        "it narrows a window: what was taken is asked for again before it goes",
    ),
    ("what lies aside takes the place of a newer file", "of one place no two attempts on the line have a file"),
    ("what lies aside is cleared without asking", "it is not live; that it became so takes two workers slow to die"),
    ("a start opens its record without looking", "it looks again with the record, and takes it back"),
    ("votes of a dead attempt hide the live ones", "the position is not whole either way: `ls` gives another reason"),
    ("retention before latest", "what latest pointed to is one of the two that stay"),
    ("no room for a file is no error", "the writes fail as well"),
    ("the line of records takes no minimum of two bounds", "no attempt saves before the position that it went on from"),
]
"""What was tried and cannot be noticed, with the reason."""
