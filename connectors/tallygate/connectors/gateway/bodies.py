"""Bodies as they come: never more of them in memory than is allowed, packed or unpacked, and never for long."""

import asyncio
import zlib
from collections.abc import Collection
from typing import Final

import zstandard
from starlette.requests import Request

from tallygate.connectors.gateway.problems import Problem

BODY_BYTES_MAX: Final = 1 << 20
#: How long a body may take to come.
BODY_SECONDS_MAX: Final = 30.0

ENCODINGS: Final = ("gzip", "zstd")


def content_type(request: Request, allowed: Collection[str], default: str = "") -> str:
    """The body's media type, without parameters. Raises Problem 415."""
    found = request.headers.get("content-type", default).partition(";")[0].strip().lower()
    if found not in allowed:
        said = repr(found[:100]) if found else "none"
        raise Problem(415, "content-type", f"the content type is {said}; one of these is needed: {', '.join(allowed)}")
    return found


async def read_body(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The body, unpacked. Raises Problem 400, 408, 413 or 415."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *ENCODINGS):
        raise Problem(415, "content-encoding", f"content encodings are {', '.join(ENCODINGS)}, and one at a time")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:19]) > bytes_max:
        raise too_large(bytes_max)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for part in request.stream():
                size += len(part)
                if size > bytes_max:
                    raise too_large(bytes_max)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "too-slow", f"the body did not come within {BODY_SECONDS_MAX:g} s") from None
    body = b"".join(parts)
    if encoding in ENCODINGS:
        return unpack(body, encoding, bytes_max)
    return body


def too_large(bytes_max: int) -> Problem:
    return Problem(413, "body-too-large", f"a body may have {bytes_max} bytes, packed and unpacked")


def unpack(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """The content of a packed body, up to `bytes_max`: not a byte more is unpacked, whatever the body claims."""
    try:
        found, whole = _gunzip(body, bytes_max) if encoding == "gzip" else _unzstd(body, bytes_max)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise Problem(400, "content-encoding", f"the body is not {encoding}: {error}") from None
    if len(found) > bytes_max:
        raise too_large(bytes_max)
    if not whole:
        raise Problem(400, "content-encoding", f"the body is not {encoding}: it is cut off, or has more than one part")
    return found


def _gunzip(body: bytes, bytes_max: int) -> tuple[bytes, bool]:
    unpacker = zlib.decompressobj(wbits=31)
    found = unpacker.decompress(body, bytes_max + 1)
    return found, unpacker.eof and not unpacker.unused_data


def _unzstd(body: bytes, bytes_max: int) -> tuple[bytes, bool]:
    # A window larger than the content that is allowed would only cost memory.
    reader = zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body, read_across_frames=False)
    found = reader.read(bytes_max + 1)
    # A frame that ends early reads as an empty rest, too: the frame's own end is what tells.
    unpacker = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
    if len(found) <= bytes_max:
        unpacker.decompress(body)
        return found, unpacker.eof and not unpacker.unused_data
    return found, True
