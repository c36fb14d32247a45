"""The supervisor's log: JSON lines in `<LOG_DIR>/supervisor.jsonl`, and `TIMESTAMP LEVEL [module] message` for people.

Time is UTC with milliseconds. Each record goes to the system when it is written, so a crash of this process loses none.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import platform
import sys
import time
from pathlib import Path

_NAME = "ms_resume.supervisor"
_FILE_BYTES = 10 << 20
_FILES = 5


def open_log(log_dir: Path, job_id: str) -> logging.Logger:
    """A log for one supervisor. What is logged may carry `extra={"said": {"attempt": ..., "rank": ...}}`."""
    logger = logging.Logger(_NAME)  # not the global one: a process may have several supervisors after one another
    lines = logging.handlers.RotatingFileHandler(
        log_dir / "supervisor.jsonl", maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8"
    )
    lines.setFormatter(AsJson(job_id))
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(AsText())
    logger.addHandler(lines)
    logger.addHandler(console)
    return logger


def close_log(log: logging.Logger) -> None:
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)


class AsText(logging.Formatter):
    """One line a record; an error says on which node."""

    def format(self, record: logging.LogRecord) -> str:
        said = " | ".join(record.getMessage().splitlines())
        where = f" (node {platform.node()})" if record.levelno >= logging.ERROR else ""
        return f"{_utc(record)} {record.levelname} [{record.module}] {said}{where}"


class AsJson(logging.Formatter):
    def __init__(self, job_id: str) -> None:
        super().__init__()
        self._job_id = job_id

    def format(self, record: logging.LogRecord) -> str:
        said = getattr(record, "said", {})
        return json.dumps(
            {
                "time": _utc(record),
                "level": record.levelname,
                "module": record.module,
                "message": record.getMessage(),
                "node": platform.node(),
                "rank": None,
                "attempt": None,
                "job_id": self._job_id,
                "position": None,
                **said,
            }
        )


def _utc(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
