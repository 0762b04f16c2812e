"""Serves a detector by HTTP: a request has one picture, JPEG or PNG, and its answer the objects in it, as JSON.

pip install ssd-ext fastapi uvicorn
python examples/serve.py run/best.pt 8000        # then: curl --data-binary @photo.jpg http://127.0.0.1:8000/detect
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

from ssd import Detector
from ssd.data.reading import ImageReadError, PictureFile
from ssd.runtime.memory import keep_freed_memory

MAX_BYTES, MAX_PIXELS = 20_000_000, 50_000_000  # of a picture
MAX_BATCH, WAIT = 16, 0.003  # pictures; seconds for which the first picture of a batch waits for others
FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # the first bytes of JPEG and PNG; no other decoder is called
# Further requests are answered by 503. After a signal to end, the last requests have 30 seconds.
LIMITS = {"limit_concurrency": 128, "timeout_graceful_shutdown": 30}


async def detect_in_batches(detector: Detector, waiting: asyncio.Queue) -> None:
    """Takes pictures and their futures from a queue, and gives each future the detections or the error."""
    while True:
        batch = [await waiting.get()]
        await asyncio.sleep(WAIT)
        while len(batch) < MAX_BATCH and not waiting.empty():  # those that came meanwhile, or while the network ran
            batch.append(waiting.get_nowait())
        errors: list[Exception] = []  # of pictures that cannot be decoded, in their order
        pictures = [picture for picture, _ in batch]
        try:
            results = await asyncio.to_thread(detector, pictures, batch_size=MAX_BATCH, on_error=errors.append)
            found = {result.picture: result for result in results}
        except Exception as error:  # such as too little memory: these requests fail, but not the next ones
            found, errors = {}, [error] * len(batch)
        for picture, future in batch:
            result = found[picture] if picture in found else errors.pop(0)
            if not future.cancelled():
                (future.set_exception if isinstance(result, Exception) else future.set_result)(result)


async def read_body(request: Request) -> bytes:
    """Reads a file of a picture, and stops where it is too large."""
    too_large = HTTPException(413, f"the body has more than {MAX_BYTES} bytes; send a smaller file")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                raise too_large
    except ClientDisconnect:
        raise HTTPException(400, f"the body ended after {len(body)} bytes") from None
    if not body.startswith(FORMATS):
        raise HTTPException(415, f"the body, {len(body)} bytes, is not a JPEG or PNG file; send the file and no form")
    return bytes(body)


def make_app(detector: Detector) -> FastAPI:
    """The application: GET /health, and POST /detect with a picture as the body."""
    waiting: asyncio.Queue = asyncio.Queue()

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(detect_in_batches(detector, waiting))
        yield
        task.cancel()

    app = FastAPI(title="ssd", lifespan=running)

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "classes": detector.classes}

    @app.post("/detect")
    async def detect(request: Request) -> dict:
        with TemporaryDirectory() as folder:
            path = Path(folder, "picture")
            path.write_bytes(await read_body(request))
            try:
                picture = PictureFile(path, levels=detector.levels)  # reads the header
                if picture.width * picture.height > MAX_PIXELS:
                    raise HTTPException(413, f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}")
                waiting.put_nowait((picture, future := asyncio.get_running_loop().create_future()))
                found = await future
            except ImageReadError as error:
                raise HTTPException(400, str(error).replace(str(path), "the body")) from None
        rows = [row | {"name": o.name} for row, o in zip(found.to_coco(), found, strict=True)]
        return {"width": picture.width, "height": picture.height, "detections": rows}

    return app


if __name__ == "__main__":
    keep_freed_memory()  # one batch after another needs the same memory
    uvicorn.run(make_app(Detector.load(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), **LIMITS)
