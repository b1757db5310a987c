"""The rule every reader of a journal partition applies: the log itself decides who owns it.

An *open* record with a higher term fences every lower term; whatever a former owner appends later is stale and dropped.
Terms need not be consecutive for a reader: compaction may have removed the open record of a term whose rows survive.
That is safe because nobody writes under a term before having read its own open record back as the first of that term.

A batch ends with the partition row; the same batch once more behind it is stale, so nothing in it counts twice.
"""

from enum import Enum, auto

from tallygate.schemas.journal import OPEN_KEY, PARTITION_KEY


class Verdict(Enum):
    OPENED = auto()
    ACCEPTED = auto()
    STALE = auto()


class Fence:
    """Where one reader stands: the term, and the least sequence number that it still accepts in it."""

    __slots__ = ("seq", "term")

    def __init__(self, term: int = 0, seq: int = 0) -> None:
        self.term = term
        self.seq = seq

    def judge(self, term: int, seq: int, key: bytes) -> Verdict:
        """What to do with the next record; takes it into account."""
        if key == OPEN_KEY:
            if term <= self.term:
                return Verdict.STALE
            self.term, self.seq = term, 0
            return Verdict.OPENED
        if (term, seq) < (self.term, self.seq):
            return Verdict.STALE
        self.term, self.seq = term, seq + (key == PARTITION_KEY)
        return Verdict.ACCEPTED
