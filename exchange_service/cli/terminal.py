"""Questions at a terminal. A pasted answer of several lines is taken as one, and none of it is left for the shell."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Seconds without input after which nothing more comes.
_QUIET = 0.3
# Seconds after a line until which the next line of a paste has come. People who type take longer.
_NEXT_LINE = 0.15
# On a slow line: so many times the longest pause between the lines of a paste, and the most seconds.
_PAUSES = 3
_LONGEST_PAUSE = 5.0
# A terminal that is asked to puts these around what is pasted. Then a paste has an end, however slowly it comes.
_ASK_FOR_MARKS, _NO_MARKS = "\x1b[?2004h", "\x1b[?2004l"
_PASTE_BEGINS, _PASTE_ENDS = b"\x1b[200~", b"\x1b[201~"
# Far more than any key has.
_MOST_BYTES = 1 << 20
# Where in the list of a terminal's attributes.
_LOCAL, _CONTROL = 3, 6


class EndOfInput(Exception):
    """The terminal gives no more input."""


class Terminal:
    """Asks at the terminal of standard input. What is typed is shown only while a question says so."""

    def __init__(self, is_unfinished: Callable[[str], bool]) -> None:
        """`is_unfinished` says of the lines so far whether others are still to come."""
        self._input = sys.stdin.fileno()
        self._is_unfinished = is_unfinished
        # Seconds: the longest pause so far between two lines of one answer.
        self._pause = 0.0

    def ask(self, question: str, *, hidden: bool) -> str:
        """The answer, without the end of its last line. Raises EndOfInput, or KeyboardInterrupt for Ctrl-C."""
        with self._echo(not hidden):
            self._write(f"{question}: ")
            try:
                return self._read().decode("utf-8", "replace")
            finally:
                if hidden:
                    self._write("\n")

    def _read(self) -> bytes:
        """The lines of one answer: those of a paste as well if it comes line after line."""
        answer = self._read_line()
        while len(answer) < _MOST_BYTES and self._goes_on(answer):
            began = time.monotonic()
            answer += self._read_line()
            self._pause = max(self._pause, time.monotonic() - began)
        return _without_marks(answer).rstrip(b"\r\n")

    def _read_line(self) -> bytes:
        line = os.read(self._input, 65536)
        if not line:
            raise EndOfInput
        return line

    def _goes_on(self, answer: bytes) -> bool:
        if not answer.endswith(b"\n") or _PASTE_ENDS in answer:
            return False
        # Two empty lines, or Ctrl-D, end what has no end of its own.
        begun = _PASTE_BEGINS in answer or self._is_unfinished(_without_marks(answer).decode("utf-8", "replace"))
        if begun:
            return not answer.endswith(b"\n\n\n")
        return self._has_input(max(_NEXT_LINE, self._slowness()))

    def _slowness(self) -> float:
        return min(_PAUSES * self._pause, _LONGEST_PAUSE)

    def _has_input(self, seconds: float) -> bool:
        return bool(select.select([self._input], [], [], seconds)[0])

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    @contextmanager
    def _echo(self, shown: bool) -> Iterator[None]:
        attributes = termios.tcgetattr(self._input)
        attributes[_LOCAL] = attributes[_LOCAL] | termios.ECHO if shown else attributes[_LOCAL] & ~termios.ECHO
        termios.tcsetattr(self._input, termios.TCSADRAIN, attributes)
        yield

    def drop_the_rest(self) -> None:
        """Throw away what is still coming, until nothing has come for a while."""
        attributes = termios.tcgetattr(self._input)
        # Also a line without its end.
        attributes[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
        attributes[_CONTROL][termios.VMIN] = 0
        attributes[_CONTROL][termios.VTIME] = 0
        termios.tcsetattr(self._input, termios.TCSADRAIN, attributes)
        while self._has_input(max(_QUIET, self._slowness())) and os.read(self._input, 65536):
            pass


@contextmanager
def open_terminal(is_unfinished: Callable[[str], bool]) -> Iterator[Terminal]:
    """The terminal of standard input. It is as it was before when the questions end, however they end."""
    terminal = Terminal(is_unfinished)
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    # What is typed between two questions is not shown either.
    hidden = termios.tcgetattr(descriptor)
    hidden[_LOCAL] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, hidden)
    terminal._write(_ASK_FOR_MARKS if _understands_marks() else "")
    try:
        yield terminal
    finally:
        terminal.drop_the_rest()
        terminal._write(_NO_MARKS if _understands_marks() else "")
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _without_marks(answer: bytes) -> bytes:
    return answer.replace(_PASTE_BEGINS, b"").replace(_PASTE_ENDS, b"")


def _understands_marks() -> bool:
    return os.environ.get("TERM", "dumb") not in ("dumb", "linux", "")
