"""
MongoDB collections as an old store; needs pymongo, which the extra `server` brings.
"""

import os
from collections.abc import Iterator
from typing import Any

from bson import ObjectId, json_util
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from everbus.compose.exit_codes import UNREACHABLE, USAGE, Failed
from everbus.compose.migration.rules import SourceRules
from everbus.compose.migration.source import (
    OldConversation,
    OldMessage,
    embedded_messages,
)

TIMEOUT_MS = 10_000
PAGE_DOCUMENTS = 100


class Documents:
    """
    A collection of conversations; messages within, or in a collection of their own.
    """

    def __init__(self, rules: SourceRules) -> None:
        self._rules = rules
        url = os.environ.get(rules.url_env, "")
        if not url:
            raise Failed(
                f"{rules.url_env} is not set; source.url_env names the variable with "
                "the old MongoDB's URL",
                USAGE,
            )
        self._client: MongoClient[dict[str, Any]] = MongoClient(
            url, serverSelectionTimeoutMS=TIMEOUT_MS, tz_aware=True
        )
        database = self._client[rules.database]
        self._conversations = database[rules.conversations]
        self._messages = database[rules.messages]
        try:
            self._client.admin.command("ping")
        except PyMongoError as error:
            # Not the driver's text: it may hold the URL.
            raise Failed(
                f"the MongoDB in {rules.url_env} does not answer "
                f"({type(error).__name__})",
                UNREACHABLE,
            ) from error

    def conversations(self, after: Any = None) -> Iterator[OldConversation]:
        """
        The documents in the order of their ids, those behind the id in *after*.
        """
        key = self._rules.id
        behind: dict[str, Any] = {}
        if after is not None:
            behind = {key: {"$gt": json_util.loads(after)}}
        found = self._conversations.find(behind).sort(key, 1).batch_size(PAGE_DOCUMENTS)
        for document in found:
            yield self._conversation(document)

    def conversation(self, key: str) -> OldConversation | None:
        """
        The document whose id is *key*, as text, number or ObjectId.
        """
        forms: list[Any] = [key]
        if key.isascii() and key.isdigit():
            forms.append(int(key))
        if ObjectId.is_valid(key):
            forms.append(ObjectId(key))
        found = self._conversations.find_one({self._rules.id: {"$in": forms}})

        return self._conversation(found) if found else None

    def messages(
        self, conversation: OldConversation, skip: int, limit: int
    ) -> list[OldMessage]:
        """
        Messages of the conversation in the order of the mapping.
        """
        if self._rules.embedded:
            return embedded_messages(conversation, skip, limit)
        found = (
            self._messages.find({self._rules.conversation: conversation.key})
            .sort([(name, 1) for name in self._rules.ordering])
            .skip(skip)
            .limit(limit)
        )
        name = self._rules.messages
        return [
            OldMessage(f"{name}._id {document['_id']}", _plain(document))
            for document in found
        ]

    def count(self) -> int:
        """
        Documents of the conversations' collection, as MongoDB estimates them.
        """
        return self._conversations.estimated_document_count()

    def close(self) -> None:
        """
        Close the connections.
        """
        self._client.close()

    def _conversation(self, document: dict[str, Any]) -> OldConversation:
        key = document.get(self._rules.id)
        where = f"{self._rules.conversations}.{self._rules.id} {key}"
        fields: dict[str, Any] = _plain(document)
        embedded = None
        if self._rules.embedded:
            embedded = fields.pop(self._rules.messages, None) or []

        return OldConversation(
            where, json_util.dumps(key), key, fields, embedded=embedded
        )


def _plain(value: Any) -> Any:
    """
    *value* with ObjectIds as text; other types of BSON are the mapping's to judge.
    """
    if isinstance(value, ObjectId):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
