"""Files in archives: their names, their texts and their bytes."""

import pickle

import pytest

from ssd.data.members import Member, file_of, identity, shown, source_of, text_of


@pytest.mark.parametrize("archive", ["a/b.tar", "https://host/a/b.tar", "s3://bucket/{b}.tar"])
def test_a_text_gives_the_file_again(archive):
    member = Member(archive, "x/y z.jpg", 512, 7, 99)
    again = file_of(text_of(member))
    assert again == member
    assert (again.archive, again.inside, again.part, identity(again)) == (
        archive,
        "x/y z.jpg",
        (archive, 512, 7),
        (7, 99),
    )
    assert str(again) == shown(text_of(member)) == f"{archive}/x/y z.jpg"
    assert (again.name, again.stem, again.suffix) == ("y z.jpg", "y z", ".jpg")
    assert source_of(text_of(member)) == archive
    assert pickle.loads(pickle.dumps(member)) == member


def test_files_on_the_disk(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"123")
    assert file_of(text_of(path)) == path
    assert (shown(text_of(path)), source_of(text_of(path)), identity(path)) == (str(path), str(path), (3, 0))


def test_bytes(tmp_path):
    (tmp_path / "b.tar").write_bytes(b"0123456789")
    member = Member(str(tmp_path / "b.tar"), "x.jpg", 2, 3)
    assert member.read_bytes() == member.open().read() == b"234"
    assert Member("nowhere.tar", "x.json", 2, 3, content=b"known").read_bytes() == b"known"
    missing = Member("a.tar", "x.jpg")
    assert member.is_file()
    assert not missing.is_file()
    with pytest.raises(FileNotFoundError, match=r"a\.tar/x\.jpg: no such file"):
        missing.read_bytes()
