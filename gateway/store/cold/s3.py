"""
The cold tier in S3, or in anything that speaks S3. The one file that knows boto3.

Only whole objects are put, read, measured and deleted: no listings, tags, versions
or conditions, which S3 servers differ in (PITFALLS.md section 3). Its keys need
`s3:PutObject`, `GetObject`, `DeleteObject` and `ListBucket`; without the last, S3
says "forbidden" of objects that are not there.
"""

import asyncio
import base64
import hashlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError

from everbus.bus.errors import Unavailable
from everbus.gateway.store.cold.local import check_key, check_size

# Calls at a time; each has a thread and a connection.
CALLS = 8
CONNECT_TIMEOUT_S = 5.0
READ_BYTES = 256 * 1024
_AWS_REGION = re.compile(r"//(?:[\w.-]+\.)?s3[.-]([a-z0-9-]+)\.amazonaws\.com")
_NO_OBJECT = frozenset({"NoSuchKey", "NotFound", "404"})
_NO_BUCKET = frozenset({"NoSuchBucket", "NotFound", "404"})

T = TypeVar("T")
Call = Callable[[Any], T]  # takes the boto3 client, which has no types


class S3Cold:
    """
    Objects in one bucket, which is made at the first call if it is missing.

    Args:
        access_key: empty: boto3's own way to credentials (roles, profiles).
        timeout_s: how long the server may say nothing, and an object may take.
        ca: file of the authority of its certificate; empty: boto3's own authorities.

    A call that fails is not repeated, but for one whose connection turns out to be
    useless. All methods raise Unavailable if S3 cannot be reached or refuses.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        timeout_s: float = 10.0,
        ca: str = "",
    ) -> None:
        self._endpoint = endpoint
        self._bucket = bucket
        self._keys = (access_key or None, secret_key or None)
        self._timeout_s = timeout_s
        self._ca = ca or None
        self._threads = ThreadPoolExecutor(CALLS, thread_name_prefix="s3")
        self._lock = threading.Lock()
        self._client: Any = None  # boto3 has no types
        self._ready = False

    async def put(self, key: str, data: bytes) -> None:
        """
        Keep *data* under *key*; the server checks its MD5 before it answers.
        """
        await self._run(key, lambda client: self._put(client, key, data))

    async def get(self, key: str, limit: int) -> bytes | None:
        """
        The object; None if there is none.

        Raises:
            TooLarge: it has more than *limit* bytes, of which no more are read.
        """
        return await self._run(key, lambda client: self._get(client, key, limit))

    async def size(self, key: str) -> int | None:
        """
        Its length in bytes; None if there is no such object.
        """
        return await self._run(key, lambda client: self._size(client, key))

    async def delete(self, key: str) -> None:
        """
        Remove it; nothing happens if there is none.
        """
        await self._run(
            key, lambda client: client.delete_object(Bucket=self._bucket, Key=key)
        )

    def close(self) -> None:
        """
        Close the connections; what is under way ends by its own timeouts.
        """
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._drop_connections()

    async def _run(self, key: str, call: Call[T]) -> T:
        check_key(key)
        loop = asyncio.get_running_loop()

        return await loop.run_in_executor(self._threads, self._called, key, call)

    def _called(self, key: str, call: Call[T]) -> T:
        try:
            return self._twice(call)
        except ClientError as error:
            raise self._refused(key, error) from error
        except BotoCoreError as error:
            raise self._away(error) from error

    def _twice(self, call: Call[T]) -> T:
        """
        What *call* returns; once more, if it failed for its connection.

        A server that closes idle connections may do so just when one is used; and
        nanio answers 400 to whatever comes on a connection after a request that it
        refused. Every call may be repeated, since keys are of their content.
        """
        client = self._prepared()
        try:
            return call(client)
        except ConnectionClosedError:
            self._drop_connections()
        except ClientError as error:
            self._drop_connections()
            if _status(error) != 400:
                raise
        return call(client)

    def _put(self, client: Any, key: str, data: bytes) -> None:
        try:
            client.put_object(
                Bucket=self._bucket, Key=key, Body=data, ContentMD5=_md5(data)
            )
        except ClientError as error:
            if _status(error) < 500:
                raise
            # nanio 0.1.7, killed between an object and its metadata, answers 500
            # to this key for ever, and so it does to the slower of two equal puts.
            # What is there and whole was put.
            self._drop_connections()
            if self._get(client, key, len(data)) != data:
                raise

    def _get(self, client: Any, key: str, limit: int) -> bytes | None:
        try:
            answer = client.get_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if _code(error) in _NO_OBJECT:
                return None
            raise
        body = answer["Body"]
        try:
            check_size(key, answer["ContentLength"], limit)
            return self._read(key, body, limit)
        finally:
            # One with unread bytes must not be used again; this ends it.
            body.close()

    def _read(self, key: str, body: Any, limit: int) -> bytes:
        until = time.monotonic() + self._timeout_s
        data = bytearray()
        while piece := self._piece(body):
            data += piece
            check_size(key, len(data), limit)
            if time.monotonic() > until:
                raise Unavailable(
                    f"S3 at {self._endpoint} sent {len(data)} bytes of {key} in "
                    f"{self._timeout_s:g} s; try again later"
                )
        return bytes(data)

    def _piece(self, body: Any) -> bytes:
        try:
            piece: bytes = body.read(READ_BYTES)
        except Exception as error:
            # Beside botocore's own errors, urllib3's reach us here.
            raise self._away(error) from error
        return piece

    def _size(self, client: Any, key: str) -> int | None:
        try:
            answer = client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if _code(error) in _NO_OBJECT:
                return None
            raise
        return int(answer["ContentLength"])

    def _prepared(self) -> Any:
        """
        The client, made at the first call, with the bucket there.
        """
        with self._lock:
            if self._client is None:
                self._client = self._made()
            if not self._ready:
                self._make_bucket(self._client)
                self._ready = True
            return self._client

    def _made(self) -> Any:
        access_key, secret_key = self._keys
        session = boto3.session.Session(
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name=_region(self._endpoint),
        )
        config = Config(
            connect_timeout=min(CONNECT_TIMEOUT_S, self._timeout_s),
            read_timeout=self._timeout_s,
            # Retries are ours; those of boto3 would outlast our deadlines.
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=CALLS,
            s3={"addressing_style": "path"},
            # ContentMD5 is all that every server checks, and SHA-256 is ours.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.client(
            "s3", endpoint_url=self._endpoint, config=config, verify=self._ca
        )

    def _make_bucket(self, client: Any) -> None:
        try:
            client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if _code(error) not in _NO_BUCKET:
                raise
        else:
            return
        region = _region(self._endpoint)
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            client.create_bucket(
                Bucket=self._bucket, **({} if region == "us-east-1" else where)
            )
        except ClientError as error:
            # Another process was faster.
            if _code(error) != "BucketAlreadyOwnedByYou":
                raise

    def _drop_connections(self) -> None:
        if self._client is not None:
            self._client.close()

    def _refused(self, key: str, error: ClientError) -> Unavailable:
        remedy = "try again later"
        if _status(error) in (401, 403):
            remedy = "check the keys, and their rights on the bucket"
        elif _code(error) == "NoSuchBucket":
            remedy = "put the bucket back, or correct its name"
        return Unavailable(
            f"S3 at {self._endpoint}, bucket {self._bucket}: {_code(error)} "
            f"({_status(error)}) for {key}; {remedy}"
        )

    def _away(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"S3 at {self._endpoint}: {type(error).__name__}; try again later"
        )


def _md5(data: bytes) -> str:
    digest = hashlib.md5(data, usedforsecurity=False).digest()

    return base64.b64encode(digest).decode()


def _region(endpoint: str) -> str:
    """
    The region in an endpoint of AWS; any other server takes AWS's first one.
    """
    found = _AWS_REGION.search(endpoint)

    return found[1] if found else "us-east-1"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
