"""A local HTTP server that gives parts of files, as the stores of large data sets do."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Answers range requests, which Python's own handler does not know."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        state = self.server.state
        state.requests += 1
        if state.barrier:
            state.barrier.wait(30)
        if state.failing > 0:
            state.failing -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not path.is_file() or not state.ranges:
            super().do_GET()
            return
        size = path.stat().st_size
        begin, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read(end + 1 - begin)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.server.state.requests += 1
        super().do_HEAD()

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """The state of a server.

    Attributes:
        url: of its folder.
        requests: number of requests so far.
        failing: number of the next requests for content that fail with the state 503.
        ranges: whether it gives parts of files.
        barrier: where each request for content waits for others; None: nowhere.
    """

    def __init__(self, url: str) -> None:
        self.url, self.requests, self.failing, self.ranges = url, 0, 0, True
        self.barrier: threading.Barrier | None = None


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Ignores clients that close the connection in the middle of an answer."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serves a folder until the block ends."""
    with _Threads(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        server.state = Server(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.state
        finally:
            server.shutdown()
            thread.join()
