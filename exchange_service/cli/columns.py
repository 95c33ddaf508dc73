"""Tables that fit the terminal, and never cut or wrap a text that people type again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAP = 2
_INDENT = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, and how it gives way where a line has no room for all of them.

    A `whole` column is as wide as its longest text: ids and figures. In others a text is broken between words. One with
    a number as `spare` is whole too, but left out if there is no room, the lowest number first. A column of a `group`
    is a heading above its lines where the columns that must stay do not fit beside each other.
    """

    title: str
    whole: bool = False
    spare: int = 0
    group: bool = False
    right: bool = False


class Columns:
    """Lines of texts, which may have rich's markup, as a table. Where even the columns that must stay do not fit, each
    line is several: the texts of its groups, or its first text, and below it the others."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._lines: list[tuple[Text, ...]] = []

    def add(self, *texts: str) -> None:
        """Add a line with a text for each column."""
        self._lines.append(tuple(Text.from_markup(text, emoji=False) for text in texts))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        kept = self._kept(range(len(self._columns)), options.max_width)
        if kept is None:
            yield from self._grouped(options.max_width)
            return
        yield self._table(kept, self._lines, options.max_width, header=True)
        yield from self._left_out(kept)

    def _left_out(self, shown: Sequence[int]) -> Iterator[Text]:
        names = ", ".join(column.title for number, column in enumerate(self._columns) if number not in shown)
        if names:
            yield Text(f"without room: {names}; --output json has all", style="dim")

    def _kept(self, numbers: Sequence[int], room: int) -> list[int] | None:
        """Those of the columns that fit beside each other, with as few as possible left out; None if too few fit."""
        kept = list(numbers)
        spare = sorted((self._columns[number].spare, number) for number in kept if self._columns[number].spare)
        while _needed([self._least(number) for number in kept]) > room:
            if not spare:
                return None
            kept.remove(spare.pop(0)[1])
        return kept

    def _texts(self, number: int) -> Iterator[Text]:
        yield Text(self._columns[number].title)
        yield from (line[number] for line in self._lines)

    def _least(self, number: int) -> int:
        """The width that a column needs: that of its longest text, or of its longest word."""
        if self._columns[number].whole or self._columns[number].spare:
            return self._most(number)
        return max(cell_len(word) for text in self._texts(number) for word in (text.plain.split() or ("",)))

    def _most(self, number: int) -> int:
        return max(cell_len(text.plain) for text in self._texts(number))

    def _widths(self, kept: Sequence[int], room: int) -> list[int]:
        """The width of each column: what it needs, and of what is left the same for all that want more."""
        widths, most = [self._least(number) for number in kept], [self._most(number) for number in kept]
        left = room - _needed(widths)
        while left > 0 and (wanting := [index for index, width in enumerate(widths) if width < most[index]]):
            share = max(1, left // len(wanting))
            for index in wanting:
                given = min(share, most[index] - widths[index], left)
                widths[index] += given
                left -= given
        return widths

    def _table(self, kept: Sequence[int], lines: Sequence[tuple[Text, ...]], room: int, *, header: bool) -> Table:
        table = Table(box=None, pad_edge=False, show_header=header)
        for number, width in zip(kept, self._widths(kept, room), strict=True):
            column = self._columns[number]
            # A venue's text may have a word without end.
            table.add_column(column.title, width=width, justify="right" if column.right else "left", overflow="fold")
        for line in lines:
            table.add_row(*(line[number] for number in kept))
        return table

    def _grouped(self, room: int) -> RenderResult:
        """The lines below headings, as narrow tables; if these do not fit either, each text on a line of its own."""
        groups = [number for number, column in enumerate(self._columns) if column.group] or [0]
        others = [number for number in range(len(self._columns)) if number not in groups]
        kept = self._kept(others, room - _INDENT)
        header = True
        for heading, lines in itertools.groupby(self._lines, lambda line: [line[number] for number in groups]):
            yield _unbroken(Text(" ").join(heading))
            if kept is None:
                for line in lines:
                    yield from (self._titled(number, line[number]) for number in others if line[number].plain)
            else:
                yield _indented(self._table(kept, list(lines), room - _INDENT, header=header))
            header = False
        if kept is not None:
            yield from self._left_out([*groups, *kept])

    def _titled(self, number: int, text: Text) -> Text:
        return _unbroken(Text.assemble(" " * _INDENT, f"{self._columns[number].title}: ", text))


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _unbroken(text: Text) -> Text:
    """The text as one line, which a terminal breaks where it must: what is copied from there is whole."""
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _indented(table: Table) -> Table:
    grid = Table.grid(padding=0)
    grid.add_column(width=_INDENT)
    grid.add_column()
    grid.add_row("", table)
    return grid
