"""
The settings of bounds: what one MAD, caller or reader may take of all.

Each field is a row of docs/bounds.md, and the reverse; a test compares them.
"""

from pydantic import Field
from pydantic_settings import BaseSettings

from everbus.gateway.store.read_bound import PAGE_BYTES
from everbus.handlers.turns import MAX_ENTRIES

MIB = 1024 * 1024


class BoundSettings(BaseSettings):
    """
    Bounds in bytes and items, part of `Settings`.

    Attributes:
        page_max_bytes: where a page ends: timelines, session lists, differences,
            events.
        fetched_max_bytes: bytes that one manager holds of the lower tiers' answers.
        batch_max_bytes: where a commit ends: commands, and answers of lower tiers.
        unread_max_bytes: replies that one MAD, or one caller of an edge, may leave
            unread on a partition; unread_max_items: their number.
        edge_connections: open connections of one edge, live streams included.
        edge_connections_per_address: those of one address, see edge_trusted_proxies.
        edge_bad_tokens: bad tokens of one address in 10 s, beyond which the answer to
            a bad token is 429.
        edge_bad_messages: refused messages of one WebSocket in a minute, beyond which
            it is closed.
        edge_head_timeout_s: time for the head of a request, and for a TLS handshake.
        cache_max_bytes: sessions that the lanes of one manager keep in memory.
        mad_rate: commands a second of one MAD that one manager takes; tenant_rate: of
            one tenant.
        dead_letters_max_items: dead letters of one MAD on one partition;
            dead_letters_max_bytes: their bytes.
        ingress_max_bytes: the streams of one MAD, of the lanes that one manager
            serves; mad_max_connections: the connections of its Redis user.
        turn_max_entries: entries of one turn; its bytes are those of one command.
        revoked_max_items: revoked tokens and subjects on the list, and in each
            process's copy of it.
    """

    page_max_bytes: int = Field(PAGE_BYTES, ge=64 * 1024, le=16 * 1024 * 1024)
    fetched_max_bytes: int = Field(32 * MIB, ge=MIB)
    batch_max_bytes: int = Field(8 * MIB, ge=MIB)
    unread_max_bytes: int = Field(32 * MIB, ge=MIB)
    unread_max_items: int = Field(10_000, ge=100)
    edge_connections: int = Field(10_000, ge=1, le=1_000_000)
    edge_connections_per_address: int = Field(1000, ge=1)
    edge_bad_tokens: int = Field(200, ge=1)
    edge_bad_messages: int = Field(10, ge=1)
    edge_head_timeout_s: float = Field(10, gt=0, le=300)
    cache_max_bytes: int = Field(256 * MIB, ge=MIB)
    mad_rate: float = Field(1_000_000, gt=0)
    tenant_rate: float = Field(1_000_000, gt=0)
    dead_letters_max_items: int = Field(10_000, ge=1)
    dead_letters_max_bytes: int = Field(8 * MIB, ge=MIB)
    ingress_max_bytes: int = Field(256 * MIB, ge=MIB)
    mad_max_connections: int = Field(1_000, ge=10)
    # Each is an event and a document of its own; the commit writes all of them at once.
    turn_max_entries: int = Field(MAX_ENTRIES, ge=1, le=4096)
    revoked_max_items: int = Field(10_000, ge=1, le=1_000_000)
