"""A recovery's YAML file is the failed one, byte for byte, but for two values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ms_resume.errors import UsageError
from ms_resume.recover import text

NEW = {"output_dir": "/data/out_recovery_20250115_143022", "resume_from_checkpoint": "/data/out/checkpoint-15000"}


def rewritten(path: Path, content: str, changes: dict[str, str] = NEW) -> str:
    path.write_bytes(content.encode())
    return text.replaced(text.read(path), changes, after="output_dir")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


SAMPLE = """\
### 模型 model
model_name_or_path: Qwen/Qwen2.5-0.5B   # 基座

### output
output_dir:   "/data/out"    # where it goes
logging_steps: 10
dataset: [identity, "alpaca_en_demo"]
lora_target:
- q_proj
-   v_proj     # odd, and kept

deepspeed: examples/deepspeed/ds_z3_config.json
resume_from_checkpoint: null
learning_rate: 1.0e-4
note: >-
  two
  lines
"""


def test_every_other_byte_stays(path: Path) -> None:
    """Comments, spaces, quotes, the order; both values are written as they were."""
    assert rewritten(path, SAMPLE) == SAMPLE.replace('"/data/out"', f'"{NEW["output_dir"]}"').replace(
        "resume_from_checkpoint: null", f"resume_from_checkpoint: {NEW['resume_from_checkpoint']}"
    )


OUT = NEW["output_dir"]
RESUME = f"resume_from_checkpoint: {NEW['resume_from_checkpoint']}"
WAYS = [
    # what is there                                       and what becomes of it
    ("output_dir: /data/out\n", f"output_dir: {OUT}\n{RESUME}\n"),
    ("output_dir: /data/out", f"output_dir: {OUT}\n{RESUME}"),
    ("output_dir: /data/out # x\r\na: 1\r\n", f"output_dir: {OUT} # x\r\n{RESUME}\r\na: 1\r\n"),
    ("  output_dir: /data/out\n  a: 1\n", f"  output_dir: {OUT}\n  {RESUME}\n  a: 1\n"),
    ("output_dir: '/data/out'\n", f"output_dir: '{OUT}'\n{RESUME}\n"),
    ("output_dir: x\nresume_from_checkpoint:\n", f"output_dir: {OUT}\n{RESUME}\n"),
    ("output_dir: x\nresume_from_checkpoint:  # no\n", f"output_dir: {OUT}\n{RESUME}  # no\n"),
    ("output_dir: x\nresume_from_checkpoint: true\n", f"output_dir: {OUT}\n{RESUME}\n"),
    ("resume_from_checkpoint: ~\noutput_dir: x\n", f"{RESUME}\noutput_dir: {OUT}\n"),
    ("output_dir: >-\n  /data/out\n\na: 1\n", f"output_dir: {OUT}\n{RESUME}\n\na: 1\n"),
    ("{output_dir: /data/out, a: 1}\n", f"{{output_dir: {OUT}, {RESUME}, a: 1}}\n"),
    ("{a: {output_dir: no}, output_dir: x}", f"{{a: {{output_dir: no}}, output_dir: {OUT}, {RESUME}}}"),
    ("a:\n  output_dir: no\noutput_dir: x\n", f"a:\n  output_dir: no\noutput_dir: {OUT}\n{RESUME}\n"),
    ("---\noutput_dir: x\n...\n", f"---\noutput_dir: {OUT}\n{RESUME}\n...\n"),
    ("output_dir: !!str x\n", f"output_dir: !!str {OUT}\n{RESUME}\n"),
    ("output_dir: &out x\nb: *out\n", f"output_dir: &out {OUT}\n{RESUME}\nb: *out\n"),
    ("a: &dir /d\noutput_dir: *dir\n", f"a: &dir /d\noutput_dir: {OUT}\n{RESUME}\n"),
    ("a: &dir /d\noutput_dir: *dir # x\nb: 1\n", f"a: &dir /d\noutput_dir: {OUT} # x\n{RESUME}\nb: 1\n"),
    ("d: &d {a: 1}\n<<: *d\noutput_dir: x\n", f"d: &d {{a: 1}}\n<<: *d\noutput_dir: {OUT}\n{RESUME}\n"),
    ("d: &d {resume_from_checkpoint: y}\n<<: *d\noutput_dir: x\n",
     f"d: &d {{resume_from_checkpoint: y}}\n<<: *d\noutput_dir: {OUT}\n{RESUME}\n"),
    ("\ufeffoutput_dir: x\n", f"\ufeffoutput_dir: {OUT}\n{RESUME}\n"),
]  # fmt: skip  # one table


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_ways_to_write_it(path: Path, before: str, after: str) -> None:
    """Byte for byte; and it says what it should."""
    assert rewritten(path, before) == after

    found = yaml.safe_load(after)
    assert {key: found[key] for key in NEW} == NEW


@pytest.mark.parametrize(
    "value",
    [
        "/数据/输出",
        "/a b/c",
        "/it's",
        '/say "x"',
        "/a: b",
        "/a #b",
        "C:\\x",
        "-x",
        "/tab\there",
        "/new\nline",
        "/😀",
        "2024_1",
        "/a,b]",
    ],
)
@pytest.mark.parametrize("before", ["output_dir: x\n", "output_dir: 'x'\n", 'output_dir: "x"\n', "{output_dir: x}\n"])
def test_any_path_can_be_written(path: Path, before: str, value: str) -> None:
    """In the quotes that stood there, and in others where it needs them."""
    changes = {"output_dir": value, "resume_from_checkpoint": value + "/checkpoint-1"}

    assert yaml.safe_load(rewritten(path, before, changes)) == changes


BAD = [
    # content                                       what is said
    (
        b"output_dir: x\n\ta: 1\n",
        "line 2, column 1: found character '\\t' that cannot start any token\n  -> a tab stands there",
    ),
    (b"output_dir: [x\n", "no YAML, line 2"),
    (b"output_dir: x\n  a: b: c\n", "no YAML, line 2"),
    (b"output_dir: x\noutput_dir: y\n", "'output_dir' is there twice, lines 1 and 2"),
    (b"a: *nowhere\n", "no YAML, line 1, column 4: found undefined alias"),
    (b"a: 1\n---\noutput_dir: x\n", "no YAML, line 2"),
    (b"", "holds nothing, expected `key: value` lines"),
    (b"- output_dir\n", "holds a list, expected"),
    (b"just words\n", "holds a str, expected"),
    (
        "# 中文\noutput_dir: x\n".encode("gbk"),
        "line 1 is no UTF-8 (byte 0xd6)\n  -> where it was written in GBK: `iconv",
    ),
    (b"a: !!python/object/apply:os.system ['touch /tmp/pwned']\n", "could not determine a constructor"),
    (b"a: \x00\n", "no YAML: special characters are not allowed"),
    (b"[" * 1000, "no configuration"),
    (b"a: 2025-99-99\n", "no configuration: month must be in 1..12"),
    (b"x" * (1 << 20) + b"x", "at most 1048576 are read"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_what_is_no_training(path: Path, content: bytes, said: str) -> None:
    """One error each, with the line and what to do."""
    path.write_bytes(content)

    with pytest.raises(UsageError) as caught:
        text.read(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\n", "has no output_dir"),
        ("output_dir:\n", "output_dir is None, expected a path"),
        ("output_dir: 2024\n", "output_dir is 2024, expected a path"),
        ("output_dir: [a]\n", "output_dir is ['a'], expected a path"),
        ("output_dir: ''\n", "output_dir is '', expected a path"),
    ],
)
def test_an_output_dir_that_is_none(path: Path, content: str, said: str) -> None:
    path.write_text(content)

    with pytest.raises(UsageError) as caught:
        text.string(text.read(path), "output_dir")
    assert said in caught.value.message


def test_an_output_dir_from_a_merge(path: Path) -> None:
    """It has no place of its own in the text."""
    with pytest.raises(UsageError, match="output_dir comes from elsewhere in the file"):
        rewritten(path, "d: &d {output_dir: x}\n<<: *d\n")


def test_what_laughs(path: Path) -> None:
    """A few lines that mean a billion: nothing is made of them."""
    lines = [
        "a0: &a0 [x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
        "output_dir: x\n",
    ]

    assert "checkpoint-15000" in rewritten(path, "\n".join(lines))


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        text.read(path)
    path.mkdir()
    with pytest.raises(UsageError, match="a directory, expected a file"):
        text.read(path)


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    """A person gave it."""
    (tmp_path / "real.yaml").write_text("output_dir: x\n")
    path.symlink_to("real.yaml")

    assert text.read(path).path == path
