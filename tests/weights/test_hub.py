"""Weights of the Hugging Face Hub, from a hub on this machine."""

import hashlib
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from own_process import printed_by

from ssd import Detector
from ssd.data.shapes import write_shapes
from ssd.networks.ssdlite import SSDLite
from ssd.weights.checkpoint import save_checkpoint
from ssd.weights.hub import local_file

MAIN = "1" * 40  # the only commit of a repository


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does, from the folder `server.root`, with a folder for each repository."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        words = self.path.partition("?")[0].strip("/").split("/")
        listing = words[:2] == ["api", "models"]
        owner, name, *rest = words[2:] if listing else words
        repo = self.server.root / owner / name
        revision = rest[1] if len(rest) > 1 else "main"
        if owner == "broken":
            self.answer(400)
        elif owner == "gated":
            self.answer(403, X_Error_Code="GatedRepo")
        elif not repo.is_dir():
            self.answer(404, X_Error_Code="RepoNotFound")
        elif revision not in ("main", "v1", MAIN):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif listing:
            files = [path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file()]
            rows = [{"type": "file", "path": file, "rfilename": file, "size": 1, "oid": MAIN} for file in files]
            body = rows if "tree" in rest else {"id": f"{owner}/{name}", "sha": MAIN, "siblings": rows}
            self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        elif not (file := repo.joinpath(*rest[2:])).is_file():
            self.answer(404, X_Error_Code="EntryNotFound")
        else:
            content = file.read_bytes()
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=MAIN)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@contextmanager
def hub(root):
    """A hub with the repositories in a folder; gives its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.root = root
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


LOADED = """
import sys
from pathlib import Path
from ssd.weights.hub import local_file
for source in sys.argv[1:]:
    try:
        path = local_file(source)
        print(source, Path(path).name, len(Path(path).read_bytes()))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_files_and_errors(tmp_path):
    pytest.importorskip("huggingface_hub")
    root = tmp_path / "root"
    for name, files in {
        "best": ("best.pt", "last.pt", "deep/other.pth"),
        "one": ("README.md", "net.onnx", "w.safetensors"),
        "pushed": ("README.md", "best.safetensors", "other.pt"),
        "several": ("a.pt", "b.pth"),
        "exported": ("net.onnx", "net.xml", "net.bin"),
    }.items():
        for i, file in enumerate(files):
            (root / "me" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "me" / name / file).write_bytes(bytes(i + 1))
    expected = {
        "hf://me/best": "hf://me/best best.pt 1",
        "hf://me/best/": "hf://me/best/ best.pt 1",
        "hf://me/best/last.pt": "hf://me/best/last.pt last.pt 2",
        "hf://me/best@v1/deep/other.pth": "hf://me/best@v1/deep/other.pth other.pth 3",
        "hf://me/pushed": "hf://me/pushed best.safetensors 2",
        "hf://me/one": "hf://me/one w.safetensors 3",
        "hf://me/exported/net.xml": "hf://me/exported/net.xml net.xml 2",
        "hf://me/several": "ValueError hf://me/several: has several files of weights; name one of them: a.pt, b.pth",
        "hf://me/exported": "FileNotFoundError hf://me/exported: no weights (.pt, .pth, .tar, .safetensors) in the "
        "repository, which has net.bin, net.onnx, net.xml; an exported file must be named: hf://me/exported/FILE",
        "hf://me/best/x.pt": "FileNotFoundError hf://me/best/x.pt: no such file in the repository, which has best.pt, "
        "deep/other.pth, last.pt",
        "hf://me/none": "FileNotFoundError hf://me/none: no such repository; if it is private, run: hf auth login",
        "hf://me/best@v2": "FileNotFoundError hf://me/best@v2: no such branch, tag or commit in the repository",
        "hf://gated/x": "OSError hf://gated/x: ask for access on the page of the repository, then run: hf auth login",
        "hf://broken/x": "OSError hf://broken/x: cannot be downloaded: ",
        "hf://me/..": "ValueError hf://me/..: ",
    }
    settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with hub(root) as url:
        lines = printed_by(LOADED, *expected, HF_ENDPOINT=url, **settings).splitlines()
    for line, (source, text) in zip(lines, expected.items(), strict=True):
        assert line.startswith(text) if text.endswith(": ") else line == text, source
    assert list((tmp_path / "cache").rglob("snapshots/*/net.bin"))  # beside the .xml
    again = {**expected, "hf://me/several": "OSError hf://me/several: cannot be downloaded: "}
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):  # the server is gone
        some = [*list(again)[:5], "hf://me/several"]
        lines = printed_by(LOADED, *some, HF_ENDPOINT=url, **settings, **offline).splitlines()
        assert lines[:5] == [again[source] for source in some[:5]]
        assert lines[5].startswith(again["hf://me/several"])


DETECTED = """
import sys
from ssd.cli import main
from ssd import Detector
pictures, out = sys.argv[1:]
assert main(["detect", pictures, "--weights", "hf://me/net", "--out", out, "--device", "cpu", "--no-drawings"]) == 0
print(Detector.load("hf://me/net", device="cpu", bf16=False).classes)
"""


def test_a_detector_of_the_hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    torch.manual_seed(0)
    (tmp_path / "root" / "me" / "net").mkdir(parents=True)
    save_checkpoint(tmp_path / "root" / "me" / "net" / "best.pt", SSDLite(4, width=0.1, size=224), ["a", "b", "c"])
    pictures = write_shapes(tmp_path / "shapes", 2, 0) / "JPEGImages"
    with hub(tmp_path / "root") as url:
        settings = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": url}
        printed = printed_by(DETECTED, pictures, tmp_path / "found", **settings)
    assert printed.splitlines()[-1] == "('a', 'b', 'c')"
    info = json.loads((tmp_path / "found" / "detections.json").read_text())["info"]
    assert info["weights"].startswith("best.pt (")  # with a hash: --resume needs the same weights


def test_names_and_a_package_that_is_missing(tmp_path, monkeypatch):
    assert local_file(tmp_path / "w.pt") == tmp_path / "w.pt"
    for source in ("hf://", "hf://name", "hf://@v1/name", "hf:///name"):
        with pytest.raises(ValueError, match=f"{source}: write hf://owner/name, "):
            local_file(source)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^hf://me/net: needs huggingface_hub .*pip install 'ssd-ext\[hub\]'"):
        Detector.load("hf://me/net")
