"""Where an exception was raised, for a log line: files and lines, without its text or any value."""

from __future__ import annotations


def raised_at(error: BaseException, *, most: int = 8) -> list[str]:
    """The innermost `most` places that the exception passed, as "file:line", outermost first."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-most:]
