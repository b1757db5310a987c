"""What a person sees while a bench runs: a line for each step, a bar for each load."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Count:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self) -> None:
        self._progress.advance(self._task)

    def to(self, completed: int) -> None:
        self._progress.update(self._task, completed=completed)


class Bars:
    """Shown on `out`, which is best standard error."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def say(self, line: str) -> None:
        self._out.print(line, style="dim")

    @contextmanager
    def counting(self, what: str, total: int | None) -> Iterator[Count]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._out) as progress:
            yield Count(progress, progress.add_task(what, total=total))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._out, transient=True) as progress:
            progress.add_task(what, total=None)
            yield
