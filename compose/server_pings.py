"""
Pings of Redis, MongoDB and S3 in their own protocols, without a driver.

An open port proves nothing: it may belong to another program, or to a server that
still loads its data. So each ping expects an answer of the protocol itself.
"""

import asyncio
import struct

TIMEOUT_S = 2.0

# OP_MSG (opcode 2013) with the BSON document {ping: 1, $db: "admin"}.
_PING = b"\x10ping\x00\x01\x00\x00\x00\x02$db\x00\x06\x00\x00\x00admin\x00\x00"
_BODY = b"\x00" * 5 + struct.pack("<i", len(_PING) + 4) + _PING
_OP_MSG = struct.pack("<iiii", 16 + len(_BODY), 1, 0, 2013) + _BODY
_MONGO_OK = b"\x01ok\x00" + struct.pack("<d", 1.0)


async def redis_answers(port: int) -> bool:
    """
    Whether Redis or Valkey answers PONG; False while it loads its data.
    """
    # QUIT ends the connection, so that a refusal takes no timeout.
    return await _answers(port, b"PING\r\nQUIT\r\n", b"+PONG\r\n")


async def mongo_answers(port: int) -> bool:
    """
    Whether a server with MongoDB's wire protocol answers ping with ok: 1.
    """
    return await _answers(port, _OP_MSG, _MONGO_OK)


async def s3_answers(port: int) -> bool:
    """
    Whether an S3 server refuses an unsigned request in S3's own XML.
    """
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    return await _answers(port, request, b"<Error><Code>")


async def _answers(port: int, request: bytes, wanted: bytes) -> bool:
    """
    Whether the answer to *request* contains *wanted*, within TIMEOUT_S.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _exchange(port, request, wanted)
    except (OSError, TimeoutError):
        return False


async def _exchange(port: int, request: bytes, wanted: bytes) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(request)
        while wanted not in answer:
            chunk = await reader.read(4096)
            if not chunk:
                return False
            answer += chunk
        return True
    finally:
        writer.close()
