"""
What the tiers cost: the bytes that each holds, times a price.
"""

import msgspec

GIB = 2**30


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """
    Prices of one GiB for a month, in whatever currency the settings are in.

    The defaults are examples in US dollars, from list prices for us-east-1 of
    2026; storage alone, without requests and traffic:

    Attributes:
        hot: ElastiCache Serverless for Valkey, 0.084 per GB-hour for 730 hours
            (aws.amazon.com/elasticache/pricing).
        warm: Atlas on AWS, an M30 with 200 GB against one with its default: 0.11
            per hour (mongodb.com/docs/atlas/billing/invoice-breakdown).
        cold: S3 Standard, the first 50 TB (aws.amazon.com/s3/pricing).
    """

    hot: float = 61.32
    warm: float = 0.40
    cold: float = 0.023


def monthly(bytes_held: int, price: float) -> float:
    """
    What *bytes_held* cost for a month at *price* per GiB, to six decimals.
    """
    return round(bytes_held / GIB * price, 6)
