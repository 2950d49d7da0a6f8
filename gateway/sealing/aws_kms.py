"""
A key-encryption key in AWS KMS: the data keys are wrapped there, by Encrypt.

The tenant is the encryption context, so CloudTrail shows for which tenant a key was
used, and a wrapped key opens for its own tenant only.
"""

import asyncio
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from everbus.bus.errors import Unavailable
from everbus.gateway.sealing.cipher import KeyMissing

# What no later attempt changes.
_PERMANENT = frozenset(
    {
        *("InvalidCiphertextException", "IncorrectKeyException"),
        *("NotFoundException", "DisabledException", "KMSInvalidStateException"),
    }
)


class AwsKeyEncryption:
    """
    One key of AWS KMS; region and credentials come from the environment, as boto3
    reads it.

    Args:
        key: id, ARN or alias of a symmetric key.
        endpoint: another address than AWS's own, for tests and private endpoints.
    """

    def __init__(
        self, key: str, *, region: str = "", endpoint: str = "", timeout_s: float = 5
    ) -> None:
        self.name = f"aws-kms:{key}"
        self._key = key
        # boto3 ships no types.
        self._client: Any = boto3.client(
            "kms",
            region_name=region or None,
            endpoint_url=endpoint or None,
            config=Config(
                connect_timeout=timeout_s,
                read_timeout=timeout_s,
                retries={"total_max_attempts": 3, "mode": "standard"},
            ),
        )

    async def wrap(self, secret: bytes, tenant: str) -> bytes:
        """
        The *secret* of a tenant, wrapped by the key.

        Raises:
            Unavailable: KMS does not answer, or refuses.
        """
        reply = await self._ask(
            self._client.encrypt, tenant, KeyId=self._key, Plaintext=secret
        )
        return bytes(reply["CiphertextBlob"])

    async def unwrap(self, wrapped: bytes, tenant: str, name: str) -> bytes:
        """
        The secret that the key *name* wrapped for *tenant*. KMS knows the earlier
        versions of a key, and other keys of the account by their names.

        Raises:
            KeyMissing: it was not wrapped by that key for that tenant.
            Unavailable: KMS does not answer, or refuses.
        """
        key = name.removeprefix("aws-kms:")
        if key == name:
            raise KeyMissing(f"the key-encryption key {name} is none of AWS KMS")
        reply = await self._ask(
            self._client.decrypt, tenant, KeyId=key, CiphertextBlob=wrapped
        )
        return bytes(reply["Plaintext"])

    def close(self) -> None:
        """
        Give connections back.
        """
        self._client.close()

    async def _ask(self, call: Any, tenant: str, **arguments: Any) -> Any:
        context = {"everbus:tenant": tenant or "-"}
        try:
            return await asyncio.to_thread(call, EncryptionContext=context, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            refused = KeyMissing if code in _PERMANENT else Unavailable
            raise refused(f"AWS KMS refuses the key {self._key}: {code}") from error
        except BotoCoreError as error:
            cause = type(error).__name__
            raise Unavailable(f"AWS KMS does not answer: {cause}") from error
