"""Reporting all errors of a piece of work at once, and not only the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SHOWN = 20  # errors whose messages are shown


def first_of(things: Sequence[object]) -> list[str]:
    """The first `SHOWN` of some things as texts; if there are more, the last line has the number of the others."""
    more = len(things) - SHOWN
    return [*map(str, things[:SHOWN]), *([f"and {more} more"] if more > 0 else [])]


class Faults:
    """Collects errors about input, that is `ValueError` and `OSError`, while the work goes on.

    `caught` may be used in several threads.
    """

    def __init__(self) -> None:
        self._errors: list[Exception] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Collects an error about input that the block raises. The block ends there, and the caller goes on."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.add(error)

    def add(self, error: Exception) -> None:
        """Collects an error. One that `check` has raised counts as the errors that it reports."""
        self._errors += getattr(error, "errors", [error])

    def check(self) -> None:
        """Raises what was collected, if anything.

        A single error is raised unchanged. Several become one error with an `errors` attribute, whose message has a
        line for each of the first `SHOWN`, and the number of the others. Its type is that of all of them if such an
        error can be made from a text, and otherwise ValueError.
        """
        if not self._errors:
            return
        if len(self._errors) == 1:
            raise self._errors[0]
        kinds = set(map(type, self._errors))
        kind = kinds.pop() if len(kinds) == 1 else ValueError
        message = "\n  ".join([f"{len(self._errors)} errors:", *first_of(self._errors)])
        try:
            raised = kind(message)
        except TypeError:  # such as UnicodeDecodeError, which takes more
            raised = ValueError(message)
        raised.errors = self._errors
        raise raised
