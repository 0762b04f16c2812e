"""Errors that are reported together."""

import pytest

from ssd.runtime.faults import SHOWN, Faults


def raised(*errors):
    faults = Faults()
    for error in errors:
        with faults.caught():
            raise error
    with pytest.raises((ValueError, OSError)) as caught:
        faults.check()
    return caught.value


def test_nothing_wrong_raises_nothing():
    Faults().check()


def test_a_single_error_is_raised_as_it_is():
    error = FileNotFoundError("a.jpg: no such file")
    assert raised(error) is error


def test_several_errors_have_a_line_each():
    error = raised(FileNotFoundError("a"), FileNotFoundError("b"))
    assert type(error) is FileNotFoundError
    assert str(error).split("\n") == ["2 errors:", "  a", "  b"]
    assert type(raised(FileNotFoundError("a"), ValueError("b"))) is ValueError


def test_errors_that_are_not_made_from_one_text_become_value_errors():
    undecodable = [UnicodeDecodeError("utf-8", b"\xff", 0, 1, reason) for reason in ("bad a", "bad b")]
    error = raised(*undecodable)
    assert type(error) is ValueError
    assert [line[-5:] for line in str(error).split("\n")[1:]] == ["bad a", "bad b"]


def test_of_many_errors_the_first_are_shown_and_the_others_counted():
    lines = str(raised(*(ValueError(str(i)) for i in range(SHOWN + 7)))).split("\n")
    assert lines[0] == f"{SHOWN + 7} errors:"
    assert lines[1:-1] == [f"  {i}" for i in range(SHOWN)]
    assert lines[-1] == "  and 7 more"


def test_errors_of_a_part_count_one_by_one():
    part = raised(ValueError("a"), ValueError("b"))
    assert str(raised(part, ValueError("c"))).split("\n") == ["3 errors:", "  a", "  b", "  c"]


def test_other_errors_are_not_caught():
    with pytest.raises(ZeroDivisionError), Faults().caught():
        raise ZeroDivisionError
