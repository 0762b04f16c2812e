"""Parts of files, on the disk and by URL."""

import os

import fsspec
import pytest

from ssd.runtime import remote
from ssd.runtime.remote import PartError, absolute, is_url, list_files, read_ahead, read_part, stamp, tried


@pytest.fixture
def url():
    """A file in memory, which fsspec opens by URL."""
    system = fsspec.filesystem("memory")
    system.pipe("/here/a.bin", b"0123456789")
    yield "memory://here/a.bin"
    system.rm("/here", recursive=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))


def test_paths_and_urls(tmp_path):
    assert is_url("s3://bucket/a.tar")
    assert not is_url(tmp_path / "a.tar")
    assert absolute("s3://bucket/../a.tar") == "s3://bucket/../a.tar"
    assert absolute("a.tar") == os.path.join(os.getcwd(), "a.tar")


def test_parts(tmp_path, url):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    for path in (str(tmp_path / "a.bin"), url):
        assert read_part((path, 3, 4)) == b"3456"
        assert read_part((path, 0, 0)) == b""
        with pytest.raises(PartError, match=r"a\.bin: gave 2 bytes instead of 4 from byte 8 on; has the file"):
            read_part((path, 8, 4))
        with pytest.raises(FileNotFoundError):
            read_part((path + "x", 3, 4))


def test_what_is_read_ahead_is_read_once(url, monkeypatch):
    parts = [(url, 0, 2), (url, 2, 2), ("memory://here/none.bin", 0, 2)]
    read_ahead(parts)
    fsspec.filesystem("memory").pipe("/here/a.bin", b"abcdefghij")
    assert [read_part(part) for part in parts[:2]] == [b"01", b"23"]
    assert read_part(parts[0]) == b"ab"  # it was kept for one use
    with pytest.raises(FileNotFoundError):
        read_part(parts[2])
    read_ahead(parts)
    read_ahead([])
    fsspec.filesystem("memory").pipe("/here/a.bin", b"0123456789")
    assert read_part(parts[0]) == b"01"  # what was read ahead, and not used, is forgotten


def test_a_stamp_differs_after_a_change(tmp_path, url):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    for path, change in (
        (str(tmp_path / "a.bin"), lambda: os.utime(tmp_path / "a.bin", (1, 1))),
        (url, lambda: fsspec.filesystem("memory").pipe("/here/a.bin", b"012345678")),
    ):
        before = stamp(path)
        assert stamp(path) == before
        assert before[0] == 10
        change()
        assert stamp(path) != before


def test_files_below_an_address(url):
    fsspec.filesystem("memory").pipe({"/here/x/1.tar": b"", "/here/2.tar": b"", "/here/2.txt": b""})
    assert list_files("memory://here", ".tar") == ["memory:///here/2.tar", "memory:///here/x/1.tar"]
    assert list_files("memory://here/*.tar", ".tar") == ["memory:///here/2.tar"]


def test_attempts(tmp_path):
    calls = []

    def failing(error):
        calls.append(1)
        raise error

    for error, raised, attempts in (
        (TimeoutError("slow"), PartError, 3),
        (FileNotFoundError("x"), FileNotFoundError, 1),
        (ImportError("x"), ImportError, 1),
        (PartError("x"), PartError, 1),
        (type("Denied", (Exception,), {"status": 403})("no"), PartError, 1),
    ):
        calls.clear()
        with pytest.raises(raised):
            tried(lambda error=error: failing(error), "s3://bucket/a.tar")
        assert len(calls) == attempts
    calls.clear()
    with pytest.raises(TimeoutError):  # of a local file: as it is
        tried(lambda: failing(TimeoutError("slow")), str(tmp_path))
    assert len(calls) == 1
