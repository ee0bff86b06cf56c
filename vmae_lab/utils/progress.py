"""Progress bars: one line that updates in a notebook and in a terminal, and a few plain lines in a log file."""

import os
import shutil
import sys
import time
from collections.abc import Iterable
from multiprocessing import parent_process
from types import TracebackType
from typing import Any, ClassVar, Self, TextIO

from tqdm import tqdm

VARIABLE = "VMAE_LAB_PROGRESS"  # `terminal`, `lines` or `off` overrides the choice of the display
TEXT = "{desc} {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} {unit}, {elapsed} so far, {remaining} to go{postfix}"
REDRAW = 0.5  # seconds between two updates of a line
FIRST_LINE, NEXT_LINE = 60.0, 5.0  # seconds until a log file's first line, and at least between two lines
PART = 0.1  # share of the work between two lines of a log file
WIDEST = 160  # characters of a line in a notebook


class Progress(tqdm):
    """A tqdm bar for a `with` statement. All open bars of a process share one line. Worker processes show nothing.

    In a notebook, the line is a display that updates. In a terminal, it is a line on the error stream. In a file or a pipe, a
    line is printed after every 10%.
    """

    monitor_interval = 0  # disable tqdm's thread, which would draw as well
    opened: ClassVar[list["Progress"]] = []

    def __init__(
        self, iterable: Iterable[Any] | None = None, total: float | None = None, disable: bool = False, **settings: Any
    ):
        hidden = disable or parent_process() is not None or os.environ.get(VARIABLE) == "off"
        # With `gui`, tqdm prints nothing itself, as in its own subclasses.
        ours: dict[str, Any] = {"smoothing": 0.3, "bar_format": TEXT, "mininterval": REDRAW, "miniters": 0, "gui": True}
        super().__init__(iterable, total=total, disable=hidden, **(ours | settings))
        self._output: _Notebook | _Terminal | _Lines | None = None
        self._depth: int | None = None  # the number of outer bars, while this one is open

    def __enter__(self) -> Self:
        if not self.disable and self.total != 0:  # an empty bar is not shown
            self._depth = len(self.opened)
            self.opened.append(self)
            if self._depth == 0:
                self._output = _output()
            self.refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._depth is not None:
            del self.opened[self._depth :]
            self._draw(last=True)
        self.close()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self._draw()

    def measure(self) -> None:
        """Called before the bar is drawn. Subclasses that do not call `update` set `n` here."""

    def _draw(self, last: bool = False) -> None:
        if self._output:
            self.measure()
            text = self.format_meter(**{**self.format_dict, "ncols": None}).strip()
            if self.opened and (inner := self.opened[-1]) is not self:
                text += f" | {inner.short()}"
            self._output.show(text, self.n / self.total if self.total else 0.0, last)
        elif self.opened:
            self.opened[0].refresh()

    def short(self) -> str:
        """Return the text of this bar in the line of an outer bar."""
        self.measure()
        count = f": {self.n:.0f}/{self.total:.0f} {self.unit}" if self.total else ""
        return f"{self.desc}{count}" + (f", {self.postfix}" if self.postfix else "")


class _Notebook:
    """A display of plain text that updates. A saved notebook has the last text."""

    def __init__(self) -> None:
        from IPython.display import display

        self.handle = display({}, raw=True, display_id=True)  # empty at first: nbval compares the first state

    def show(self, text: str, part: float, last: bool = False) -> None:
        self.handle.update({"text/plain": _shortened(text, WIDEST)}, raw=True)


class _Terminal:
    """A line in a terminal that is overwritten."""

    def __init__(self, stream: TextIO):
        self.stream, self.write = stream, tqdm.status_printer(stream)

    def show(self, text: str, part: float, last: bool = False) -> None:
        self.write(_shortened(text, shutil.get_terminal_size().columns - 1))
        print(end="\n" * last, file=self.stream, flush=True)


class _Lines:
    """Lines in a file: one after every 10%, and one after the first minute."""

    def __init__(self, stream: TextIO):
        self.stream, self.lines, self.part, self.written = stream, 0, 0.0, time.monotonic()

    def show(self, text: str, part: float, last: bool = False) -> None:
        passed = time.monotonic() - self.written
        early = not self.lines and passed >= FIRST_LINE
        if last or early or (passed >= NEXT_LINE and part >= self.part + PART):
            print(text, file=self.stream, flush=True)
            self.lines, self.part, self.written = self.lines + 1, part, time.monotonic()


def _output() -> _Notebook | _Terminal | _Lines:
    kind = os.environ.get(VARIABLE)
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    in_kernel = hasattr(shell, "kernel")
    if in_kernel and not kind:
        return _Notebook()
    stream = sys.stdout if in_kernel else sys.stderr  # a notebook shows its error stream in red
    return _Terminal(stream) if kind == "terminal" or (not kind and stream.isatty()) else _Lines(stream)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
