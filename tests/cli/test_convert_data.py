"""`ssd convert-data`."""

from small_datasets import add_picture

from ssd.cli import main
from ssd.data import open_dataset


def test_convert_data(tmp_path, capsys):
    add_picture(tmp_path / "in", "a", [("dog", 1, 1, 30, 30), ("cat", 11, 5, 9, 30)])
    command = ["convert-data", str(tmp_path / "in"), str(tmp_path / "out"), "--format", "yolo"]
    assert main([*command, "--classes", "cat,dog"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"wrote {tmp_path / 'out'}: 1 pictures\n"
    assert printed.err.endswith(
        "a.xml: object 1 (cat, (11.0, 5.0, 9.0, 30.0)) left out: no width or height, because its corners are swapped\n"
    )
    assert open_dataset(tmp_path / "out").counts == {"cat": 0, "dog": 1}
    assert main(command) == 2
    assert "ssd convert-data: error: " in (said := capsys.readouterr().err)
    assert "out: exists; choose another name" in said
