import pytest

from usfm.data import progress as module
from usfm.data.progress import progress


def test_quick_work_shows_nothing(capfd):
    assert list(progress(iter("abc"), 3, "reading")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_long_work_says_how_far_it_is(capfd, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0)
    assert list(progress(range(2), 2, "reading")) == [0, 1]
    assert capfd.readouterr().err == "reading: 1 of 2\nreading: 2 of 2\n"


def test_what_an_earlier_run_did_is_counted(capfd, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0)
    assert list(progress(range(2), 5, "reading", before=3)) == [0, 1]
    assert capfd.readouterr().err == "reading: 4 of 5\nreading: 5 of 5\n"


def test_a_terminal_gets_a_bar_which_passes_everything_on(monkeypatch):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    assert list(progress(range(5), 5, "reading")) == list(range(5))


def test_an_error_of_the_work_is_not_held_back():
    def work():
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(progress(work(), 2, "reading"))
