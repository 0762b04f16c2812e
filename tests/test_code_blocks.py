"""The code blocks of the documents run as they stand there, in a folder that has the files that they name.

Blocks in ```text and ```json are output. Above a block that does not run here stands a comment with the reason:
<!-- not run: ... -->, or <!-- run by: tests/... -->.
"""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clips import write_clip

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.training.run import train

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")}
    - {ROOT / "docs" / "performance.md"}  # generated; benchmarks/performance.md has its texts
    - {ROOT / "docs" / "ten_minutes.md"}  # test_ten_minutes.py runs it
)
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?^( *)```([\w{}+-]*)[^\n]*\n(.*?)^ *```", re.M | re.S)
OUTPUT = ("text", "json", "yaml")
NAMES = {"circle": "dog", "square": "cat", "triangle": "sheep"}  # classes that the documents name

# Appended to commands, so that they take seconds: a small network, one pass over the data, and no other processes.
SMALLER = {
    "train": "--epochs 1 --width 0.1 --size 224 --batch-size 8 --workers 0 --device cpu",
    "eval": "--workers 0 --device cpu",
    "detect": "--device cpu",
    "demo": "--device cpu",
}
# Commands that need what a test does not have.
LEFT_OUT = {
    r"pip install|hf auth": "changes the environment",
    r"make |.*\bbenchmarks/|.*\btools/|SSD_EXT_BUILD=": "takes minutes; the targets and flags are checked elsewhere",
    r"(SSD_\w+=\w+ )?(\.venv/bin/)?python -m pytest": "is a test itself",
    r"SSD_EXT_BACKEND=python ssd info": "chooses the backend at the import; tests/reports/test_bug.py runs it",
    r"ssd .*(--weights (coco|imagenet|hf://)|s3://|https://)": "downloads",
    r"ssd detect photos/ --out found$": "downloads weights",
    r"ssd detect (0|rtsp:)": "needs a camera",
    r"ssd .*(checkpoint_ssd300|ssd300_mAP)": "a file of another project; tests/weights/test_peers.py reads such files",
    r"ssd .*timm:": "another size and no width; tests/networks/test_timm.py runs it",
    r"ssd demo": "takes minutes; tests/test_demo.py runs it",
    r"ssd export .*--format (aoti|onnx|openvino)": "takes long; tests/test_every_network.py runs it",
    r"torchrun|#SBATCH|srun": "several processes; tests/test_several_processes.py starts them",
    r"cmake|build/cpp|python -c": "compiles; tests/export/test_torch_formats.py runs it",
    r"python examples/|curl": "a server or an account; tests/test_examples.py runs the examples",
    r"git ": "changes a repository",
}


def blocks():
    found = []
    for page in PAGES:
        text = page.read_text()
        for comment, indent, language, code in BLOCK.findall(text):
            line = text[: text.index(code)].count("\n")
            name = f"{page.relative_to(ROOT)}:{line}"
            found.append(pytest.param(comment, language, re.sub(f"^{indent}", "", code, flags=re.M), id=name))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the data, pictures and weights that the documents name."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    write_shapes(root / "my_pictures", 16, 8, (160, 120))
    for file in (root / "my_pictures" / "Annotations").iterdir():
        text = file.read_text()
        for old, new in NAMES.items():
            text = text.replace(f"<name>{old}</name>", f"<name>{new}</name>")
        file.write_text(text)
    for name in ("boards", "cells", "aerial", "DATA"):
        shutil.copytree(root / "my_pictures", root / name)
    photos = sorted((root / "my_pictures" / "JPEGImages").iterdir())[:3]
    (root / "photos").mkdir()
    for photo in photos:
        shutil.copy(photo, root / "photos")
    shutil.copy(photos[0], root / "photo.jpg")
    for clip in ("clip.mp4", "a.mp4", "b.mov"):
        write_clip(root / clip)
    (root / "thresholds.json").write_text('{"dog": 0.7, "cat": 0.35}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        first = f"train my_pictures --out run --network ssdlite {SMALLER['train']}"
        assert main(shlex.split(first)) == 0
        assert main(shlex.split("convert-data my_pictures shards --format webdataset")) == 0
        detect = "detect my_pictures --weights run/best.pt --out results --no-drawings --device cpu"
        assert main(shlex.split(detect)) == 0
    shutil.copy(root / "results" / "detections.json", root / "results.json")
    for name in ("other", "demo/run_1"):
        shutil.copytree(root / "run", root / name)
    return root


def given():
    """The names that Python blocks use and do not define: inputs of their calls."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]])
    return {
        "__name__": "block",
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "idxs": torch.tensor([0, 0, 1]),
        "images": torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
        "device": "cpu",
        "checkpoint": "run/best.pt",
    }


def train_smaller(settings, out, **options):
    small = replace(settings, network="ssdlite", size=224, width=0.1, epochs=1, batch_size=8)
    shutil.rmtree(out)
    return train(small, out, device="cpu", workers=0, **options)


def commands(code):
    """The commands of a block for a shell, with continued lines joined and without comments."""
    lines = [re.sub(r"(^| +)# .*", "", line).strip() for line in re.sub(r"\\\n\s*", " ", code).splitlines()]
    return [line for line in lines if line]


def remove_output(words):
    """Removes the folder that a command creates, if a former command or the fixture made it."""
    if words[1] == "train" and "--resume" not in words:
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    elif words[1] == "convert-data":
        shutil.rmtree(words[3], ignore_errors=True)


@pytest.mark.parametrize(("comment", "language", "code"), blocks())
def test_runs(comment, language, code, files, tmp_path, monkeypatch):
    kind, _, reason = comment.partition(": ")
    if kind == "run by":
        assert (ROOT / reason).exists()
        return
    if kind == "not run":
        assert reason
        return
    if comment:  # the name by which another test finds the block
        assert any(comment in file.read_text() for file in ROOT.glob("tests/test_*.py"))
        return
    if language in OUTPUT or language.startswith("{"):
        if language == "json":
            json.loads(code)
        return
    assert language in ("", "sh", "python"), language
    folder = tmp_path / "here"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    if language == "python":
        monkeypatch.setattr("ssd.training.run.train", train_smaller)
        exec(compile(code, "block", "exec"), given())
        return
    for line in commands(code):
        if any(re.match(pattern, line) for pattern in LEFT_OUT):
            continue
        words = shlex.split(line)
        assert words[0] == "ssd", f"{line}: not a command that runs here; if it is output, use ```text"
        remove_output(words)
        assert main([*words[1:], *shlex.split(SMALLER.get(words[1], ""))]) == 0, line
