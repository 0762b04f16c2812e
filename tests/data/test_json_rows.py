"""Rows of the lists in a JSON file: those that `json` reads, or its error."""

import json

import pytest

from ssd.data.json_rows import START, json_rows

SOUND = [
    "[]",
    " [ 1, 2 ,3 ]\n",
    '{"a": [], "b": 3, "c" : [ {"x": 1} , null,\n{"y": "]\\"["} ], "d": {"e": [1]}}',
    "3",
    "{}",
    '{"a": [NaN, -Infinity, 1e400]}',
    '{"a": ["\\"segmentation\\": [[1, 2]]", {"segmentation": "no list"}]}',
]
BROKEN = [
    "",
    " ",
    "{",
    "[",
    "[1",
    "[1 2]",
    "[1,]",
    "[,1]",
    "[1] 2",
    "{a: 1}",
    '{"a" 1}',
    '{"a": [1],}',
    '{"a": [1',
    "nan",
]


def lists(path):
    found = {}
    for key, row in json_rows(path):
        if row is START:
            found[key] = []
        else:
            found[key].append(row)
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", SOUND)
def test_sound_files(tmp_path, text, encoding):
    path = tmp_path / "a.json"
    path.write_text(text, encoding=encoding)
    content = json.loads(text)
    content = {"": content} if isinstance(content, list) else content if isinstance(content, dict) else {}
    assert repr(lists(path)) == repr({key: rows for key, rows in content.items() if isinstance(rows, list)})


@pytest.mark.parametrize("text", BROKEN)
def test_broken_files(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: broken JSON \(\w"):
        lists(tmp_path / "a.json")


def test_the_place_of_an_error_is_that_in_the_file(tmp_path):
    text = '{"a": [{"segmentation": [[1, 2, 3.5]], "b": 1}, 7 8]}'
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"\(char {text.index('8')}\)"):
        lists(tmp_path / "a.json")


def test_outlines_are_left_out(tmp_path):
    rows = [
        {"segmentation": [[1.5, -2e3], []], "bbox": [1, 2]},
        {"segmentation": [], "n": 1},
        {"segmentation": {"a": []}},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows}))
    assert lists(tmp_path / "a.json") == {
        "rows": [rows[0] | {"segmentation": 0}, rows[1] | {"segmentation": 0}, rows[2]]
    }
