"""Small videos, and a server that streams them as badly as a test wants."""

import socket
import struct
import threading
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="no PyAV: pip install 'ssd-ext[video]'")
TICKS = 90_000


def pictures(number, size=(64, 48)):
    """Pictures (H, W, 3) that differ from each other and from each of their turned copies."""
    width, height = size
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, 4, 4, 3), np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return coarse[:, rows][:, :, columns]


def add_silence(container):
    """Adds a second of sound to a file that PyAV writes."""
    stream = container.add_stream("aac", rate=8000, layout="mono")
    for i in range(8):
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate, samples.pts = 8000, 1024 * i
        container.mux(stream.encode(samples))
    container.mux(stream.encode(None))


def write_clip(
    path,
    number=12,
    size=(64, 48),
    *,
    rate=10,
    times=None,
    codec="libx264",
    pix_fmt="yuv420p",
    sound=False,
    movflags="",
    aspect=None,
):
    """Writes a video of `pictures`.

    Args:
        times: seconds of each frame; by default the frames have `rate` per second.
        aspect: width and height of a pixel.
        movflags: those of FFmpeg's MP4, such as "faststart", with which a cut file can still be opened.
    """
    with av.open(path, "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "5"})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, TICKS if codec == "libx264" else rate)
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if sound:
            add_silence(container)
        container.start_encoding()
        for i, picture in enumerate(pictures(number, size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            time = i / rate if times is None else times[i]
            frame.pts, frame.time_base = round(time / stream.codec_context.time_base), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_matrix(path, a, b, c, d):
    """Changes the display matrix of an MP4 file. ISO/IEC 14496-12, section 8.3.2: (x, y) -> (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # fields before the matrix, in version 0 of the box
    assert struct.unpack_from(">9i", content, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, place, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def cut(path, share=0.5):
    """Removes the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def frames_of(path):
    """The times and the pictures (H, W, 3) of a video, decoded by PyAV alone."""
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


@contextmanager
def streaming(*answers):
    """Serves a stream at a URL, which it gives to the block.

    Args:
        answers: for each connection the bytes to send, and what follows them: "end"; "break", the connection is closed
            without an end; "close", the connection is closed, which is the end; or "stall", it stays open without data.
            Later connections are closed at once.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        left, kept = list(answers), []

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # the block has ended
                    return
                connection.recv(1 << 16)
                if left:
                    content, then = left.pop(0)
                    if then == "close":
                        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + content)
                    else:
                        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                        connection.sendall(head + b"%x\r\n%s\r\n" % (len(content), content))
                    if then == "end":
                        connection.sendall(b"0\r\n\r\n")
                    if then == "stall":
                        kept.append(connection)
                        continue
                connection.shutdown(socket.SHUT_WR)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/live.ts"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join()
            for connection in kept:
                connection.close()
