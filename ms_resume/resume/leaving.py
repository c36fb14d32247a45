"""Whether this process was asked to leave, by a signal or a file, and how long it may take.

A thread hears signals as they come, also while the main thread is in a call that does not return: MindSpore compiles
for minutes, and a collective waits for ranks that are gone. The main thread only has the handlers, without which Python
catches no signal; whoever puts other ones in their place, as MindSpore's OnRequestExit does, takes nothing away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ms_resume.errors import ExitCode, UsageError
from ms_resume.ondisk import names
from ms_resume.settings import Settings

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""A scheduler's wish, and Slurm's warning ahead of it."""

TOGETHER_S = 2.0
"""Signals that come within it are one request: a scheduler signals every process, and a launcher passes that on."""

_LAST_WORDS_S = 1.0
"""A log disk that hangs does not keep the rank."""


class Leaving:
    """What one rank was asked. A `Checkpointer` makes its own, unless the trainer hands over one that listens since
    the process began; until it listens a signal ends the process as it always did.

    Args:
        end: Ends the process, whatever its threads do.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, end: Callable[[int], object] = os._exit) -> None:
        self.listening = False
        self._clock, self._end = clock, end
        self._rank, self._grace_s = 0, 0.0
        self._last_words: Callable[[int], object] = lambda code: None
        self._file: Path | None = None
        self._configured = False
        self._found: tuple[int, int] | None = None
        self._unreadable: OSError | None = None
        self._signals: tuple[signal.Signals, ...] = ()
        self._asked_at: float | None = None
        self._signalled_at: float | None = None
        self._number = int(signal.SIGTERM)
        self.has_left = False
        self._timer: threading.Timer | None = None
        self._said: set[str] = set()
        self._lock = threading.RLock()

    def listen(self, *signals: signal.Signals) -> None:
        """Takes each of these signals, SIGTERM and SIGUSR1 where none is given, for a request. What handled them before
        is called, too.

        Raises:
            UsageError: This is not the main thread, which alone may do that.
        """
        chosen = tuple(map(signal.Signals, signals or SIGNALS))
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("signals are listened to in the main thread only", hint="call leave_on there")
        for number in chosen:
            _ear().add(number, self)
        self._signals += chosen
        self.listening = True

    def belongs_to(
        self, save: Path, rank: int, settings: Settings, last_words: Callable[[int], object] = lambda code: None
    ) -> None:
        """This rank of this run: from now on there is a stop file, and a time to leave in.

        A stop file that lies there already asked a run before this one, which has left or died.

        Args:
            last_words: Tells a supervisor the exit code of a rank that ends at once.
        """
        self._rank, self._grace_s, self._last_words = rank, settings.grace_s, last_words
        self._configured = bool(settings.stop_file)
        if rank == 0:
            self._file = Path(settings.stop_file).absolute() if settings.stop_file else save / names.STOP_NOW
            try:
                self._found = _signature(self._file)
            except OSError as error:
                self._unreadable = error
        if self._asked_at is not None:
            self._start_clock()

    def check_file(self) -> str:
        """Returns what to say of the stop file, if anything.

        Raises:
            UsageError: The one that was configured can never be seen.
        """
        if self._file is not None and self._configured:
            wrong = self._unreadable.strerror if self._unreadable is not None else ""
            if not wrong and not self._file.parent.is_dir():
                wrong = f"there is no directory {self._file.parent}"
            if wrong:
                raise UsageError(f"stop file {self._file}: {wrong}", hint="correct MS_RESUME_STOP_FILE, or unset it")
        if self._found is None:
            return ""
        return f"the stop file {self._file} is from before this start: it does not count until it is touched again"

    def wanted(self) -> bool:
        """Whether this rank was asked. Rank 0 looks for the stop file."""
        if self.listening and self._asked_at is None:
            self._look()
        for number in self._signals:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
                self._warn_once(number.name, f"{number.name} was taken away from ms_resume, and asks for nothing now")
        return self._asked_at is not None

    def ask(self, why: str) -> None:
        """Somebody wants this process to leave: only the first one counts."""
        with self._lock:
            if self._asked_at is not None:
                return
            self._asked_at = self._clock()
        grace = f", within {self._grace_s:g} s" if self._grace_s else ""
        self._tell(f"{why}: saves at the next safe point and leaves{grace}; after another signal at once")
        self._start_clock()

    def hear(self, number: int) -> None:
        """A signal has come. A second one does not wait for anything."""
        now, name = self._clock(), signal.Signals(number).name
        if self._signalled_at is None:
            self._signalled_at, self._number = now, number
        self.ask(name)
        if now - self._signalled_at > TOGETHER_S:
            self._at_once(f"{name} again")

    def saved_in(self, seconds: float) -> None:
        """A save took so long: it is said at once where a last one would not be done in time."""
        if self._grace_s and seconds > self._grace_s:
            self._warn_once(
                "grace",
                f"MS_RESUME_GRACE_S is {self._grace_s:g}, but a save took {seconds:.1f} s: asked to leave, this run "
                "tries all the same, and where that is too late goes on from the checkpoint before",
            )

    def left(self) -> None:
        """Everything is saved and closed: whatever ends the process now, it has left as it was asked."""
        self.has_left = True

    def close(self) -> None:
        """The run is over: signals do what they did before."""
        self.listening, self._signals = False, ()
        if self._timer is not None:
            self._timer.cancel()
        if _EAR is not None:
            _EAR.remove(self)

    def _look(self) -> None:
        if self._file is None:
            return
        try:
            found = _signature(self._file)
        except OSError as error:  # a disk that hiccups must not end a run
            self._warn_once("file", f"stop file {self._file}: {error.strerror}")
            return
        if found not in (None, self._found):
            self.ask(f"stop file {self._file}")

    def _start_clock(self) -> None:
        if self._grace_s and self._asked_at is not None:
            left_s = max(self._grace_s - (self._clock() - self._asked_at), 0.0)
            over = f"{self._grace_s:g} s (MS_RESUME_GRACE_S) are over"
            self._timer = threading.Timer(left_s, self._at_once, [over])
            self._timer.daemon = True
            self._timer.start()

    def _at_once(self, why: str) -> None:
        stands = "" if self.has_left else "; a save that is not done does not count, older ones stand as they are"
        self._tell(f"{why}: leaves at once{stands}")
        code = int(ExitCode.LEFT_ON_REQUEST) if self.has_left else 128 + self._number
        speaker = threading.Thread(target=self._last_words, args=[code], daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_S)
        self._end(code)

    def _warn_once(self, of: str, text: str) -> None:
        if of not in self._said:
            self._said.add(of)
            self._tell(f"warning: {text}")

    def _tell(self, text: str) -> None:
        # Not through sys.stderr: the main thread may be inside it, or the process about to end.
        who = f"rank {self._rank}: " if self._rank else ""
        with contextlib.suppress(OSError):
            os.write(2, f"ms_resume: {who}{text}\n".encode())


class _Ear:
    """Where this process hears: Python has one place for it."""

    def __init__(self) -> None:
        self._who: dict[int, list[Leaving]] = {}
        self._before: dict[int, Any] = {}
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        others = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        self._has_thread = others == -1
        if self._has_thread:
            threading.Thread(target=self._listen, name="ms_resume ear", daemon=True).start()
        else:  # asyncio's, for one: then signals are heard when the main thread is back in Python
            signal.set_wakeup_fd(others)
        self._masks = threading.local()
        os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._forget)

    def add(self, number: int, leaving: Leaving) -> None:
        # A process that begins another run after it has left is not at its end.
        self._who[number] = [one for one in self._who.get(number, ()) if not one.has_left] + [leaving]
        if signal.getsignal(number) != self._handle:
            self._before[number] = signal.signal(number, self._handle)

    def remove(self, leaving: Leaving) -> None:
        for number, those in list(self._who.items()):
            self._who[number] = [one for one in those if one is not leaving]
            if not self._who[number] and threading.current_thread() is threading.main_thread():
                self._give_back(number)

    def _give_back(self, number: int) -> None:
        before = self._before.pop(number, None)
        if signal.getsignal(number) == self._handle:
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _listen(self) -> None:
        while heard := os.read(self._heard, 64):
            for number in heard:
                for leaving in tuple(self._who.get(number, ())):
                    leaving.hear(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for leaving in tuple(self._who.get(number, ())):
            # Whoever takes Python's one place for signals after us leaves the thread deaf; but this may be long after
            # the thread has heard of the same signal, so it is no second one.
            leaving.ask(signal.Signals(number).name) if self._has_thread else leaving.hear(number)
        then = self._before.get(number)
        if callable(then) and then is not signal.default_int_handler:
            then(number, frame)

    def _hold(self) -> None:
        """A signal to a child must not arrive before it has forgotten whose pipe it holds."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)

    def _let_go(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _forget(self) -> None:
        """A child that was forked is not the rank: a loader's worker that is told to end has to end, alone."""
        global _EAR
        if self._has_thread:
            signal.set_wakeup_fd(-1)
        for number in tuple(self._before):
            self._give_back(number)
        self._let_go()
        _EAR = None


_EAR: _Ear | None = None


def _ear() -> _Ear:
    global _EAR
    if _EAR is None:
        _EAR = _Ear()
    return _EAR


def _signature(path: Path) -> tuple[int, int] | None:
    """Which file that is, and when it was touched; it is never opened."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
