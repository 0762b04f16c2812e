"""Pictures per second of examples/serve.py, against those of `ssd.Detector` without HTTP, with the same pictures.

    python benchmarks/serving.py run/best.pt photos/ [--requests 512]

Needs fastapi and uvicorn. The clients are threads of this process, and run on the same cores as the server. Each
sends its next picture when the last one is answered. p50 and p99 are quantiles of the time of a request.
"""

import argparse
import http.client
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

SERVE = Path(__file__).parents[1] / "examples" / "serve.py"
CLIENTS = (1, 8, 64)


@contextmanager
def serving(weights: str) -> Iterator[int]:
    """Runs the example in its own process, and gives its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVE, weights, str(port)], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None:
                    raise SystemExit(f"{SERVE} has ended with the exit code {process.returncode}") from None
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(port: int, bodies: list[bytes], times: list[float]) -> None:
    """Sends pictures, one after another, and notes the seconds that each answer took."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        for body in bodies:
            start = time.perf_counter()
            connection.request("POST", "/detect", body)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {answer.decode()}")
            times.append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("pictures", type=Path, help="a folder of JPEG and PNG files")
    parser.add_argument("--requests", type=int, default=512, help="per row of the table (default: %(default)s)")
    arguments = parser.parse_args()
    n = arguments.requests
    paths = sorted(path for path in arguments.pictures.iterdir() if path.suffix in (".jpg", ".png"))
    print(f"{len(paths)} pictures, {n} requests, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

    from ssd import Detector  # imported here, so that --help is quick
    from ssd.runtime.memory import keep_freed_memory

    keep_freed_memory()
    detector = Detector.load(arguments.weights)
    many = list(itertools.islice(itertools.cycle(paths), n))
    for size in (1, 16):
        detector(many[:size], batch_size=size)  # the first batch of each size is slow
        start = time.perf_counter()
        detector(many, batch_size=size)
        print(f"Detector, batches of {size:<4} {n / (time.perf_counter() - start):7.1f} pictures/s", flush=True)
    contents = {path: path.read_bytes() for path in paths}
    with serving(arguments.weights) as port:
        ask(port, [contents[path] for path in many[:32]], [])
        for clients in CLIENTS:
            times: list[float] = []
            shares = [[contents[path] for path in many[i::clients]] for i in range(clients)]
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(partial(ask, port, times=times), shares))
            speed = n / (time.perf_counter() - start)
            p50, p99 = (1000 * np.quantile(times, q) for q in (0.5, 0.99))
            print(f"{clients:>3} clients {speed:18.1f} pictures/s, p50 {p50:5.0f} ms, p99 {p99:5.0f} ms", flush=True)


if __name__ == "__main__":
    main()
