"""Which partition a customer lives in: Kafka's own key hash (murmur2 of the UTF-8 bytes), as every Java client, and
librdkafka with `partitioner=murmur2_random`, computes it.
"""

from typing import Final

_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit murmur2 hash with Kafka's seed (org.apache.kafka.common.utils.Utils.murmur2), unsigned."""
    length = len(data)
    h = (0x9747B28C ^ length) & _MASK
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k ^= k >> 24
        h = (h * _M & _MASK) ^ (k * _M & _MASK)
    if rest := length & 3:
        h = (h ^ int.from_bytes(data[whole : whole + rest], "little")) * _M & _MASK
    h ^= h >> 13
    h = h * _M & _MASK
    return h ^ (h >> 15)


def partition_of(customer: str, partitions: int) -> int:
    """The partition of a customer among `partitions`."""
    return (murmur2(customer.encode()) & 0x7FFFFFFF) % partitions
