"""The log decides who owns a partition: what a reader does with each record, in order."""

import pytest

from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas.journal import OPEN_KEY, PARTITION_KEY, entry_key, row_key

ROW = row_key("acme", "pool", "credits")


def verdicts(story: str, term: int = 0, seq: int = 0) -> tuple[str, Fence]:
    """`o3` is an open record of term 3, `3.1` a row of term 3, sequence 1, `p3.1` the partition row that ends it.

    `o`, `a`, `s` answer for each.
    """
    fence = Fence(term, seq)
    found = []
    for step in story.split():
        if step.startswith("o"):
            verdict = fence.judge(int(step[1:]), 0, OPEN_KEY)
        else:
            at, number = step.removeprefix("p").split(".")
            verdict = fence.judge(int(at), int(number), PARTITION_KEY if step.startswith("p") else ROW)
        found.append(verdict.name[0].lower())
    return " ".join(found), fence


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param("o1 1.1 1.1 1.2", "o a a a", id="a batch is several records of one sequence"),
        pytest.param("o1 1.1 o2 2.1", "o a o a", id="a new owner starts again at 1"),
        pytest.param("o1 1.1 o2 1.2", "o a o s", id="what the former owner appends later is stale"),
        pytest.param("o1 o2 1.9 2.1 1.10 2.2", "o o s a s a", id="stale records between good ones change nothing"),
        pytest.param("o2 o2", "o s", id="of two open records of one term the first holds"),
        pytest.param("o2 2.1 o2 2.2", "o a s a", id="a second open record does not start the sequence again"),
        pytest.param("o3 o2 2.1 3.1", "o s s a", id="an open record of a lower term is stale"),
        pytest.param("o1 o5 5.1", "o o a", id="terms need not be consecutive"),
        pytest.param("1.3 2.7 o4 4.1", "a a o a", id="compaction took the open records of old terms"),
        pytest.param("1.3 3.1 2.9 o3", "a a s s", id="rows of a term fence lower ones without its open record"),
        pytest.param("o1 1.4 1.9", "o a a", id="compaction took sequences out of the middle"),
        pytest.param("o1 1.1 1.2 1.1", "o a a s", id="a batch appended again after the next one is stale"),
        pytest.param("o1 1.1 1.1", "o a a", id="a batch without its end, appended again, is read as its own rest"),
        pytest.param("o1 1.1 p1.1 1.1 p1.1 1.2", "o a a s s a", id="a whole batch appended again at once is stale"),
        pytest.param("o1 1.1 o2 1.2 o3 1.3 2.1 3.1", "o a o s o s s a", id="two former owners wake up late"),
    ],
)
def test_stories(story: str, expected: str) -> None:
    assert verdicts(story)[0] == expected


def test_a_reader_goes_on_where_it_stopped() -> None:
    story = ["o1", "1.1", "1.2", "o2", "1.3", "2.1", "2.2"]
    whole, end = verdicts(" ".join(story))
    for cut in range(len(story)):
        first, stopped = verdicts(" ".join(story[:cut]))
        rest, resumed = verdicts(" ".join(story[cut:]), stopped.term, stopped.seq)
        assert f"{first} {rest}".strip() == whole
        assert (resumed.term, resumed.seq) == (end.term, end.seq)


def test_a_stale_record_leaves_the_fence_as_it_was() -> None:
    fence = Fence(5, 7)
    for term, seq, key in [(4, 9, ROW), (5, 6, entry_key("acme")), (5, 0, OPEN_KEY), (4, 99, PARTITION_KEY)]:
        assert fence.judge(term, seq, key) is Verdict.STALE
        assert (fence.term, fence.seq) == (5, 7)


def test_opening_starts_the_sequence_at_nought() -> None:
    fence = Fence(5, 7)
    assert fence.judge(6, 3, OPEN_KEY) is Verdict.OPENED
    assert (fence.term, fence.seq) == (6, 0)
    assert fence.judge(6, 1, ROW) is Verdict.ACCEPTED


@pytest.mark.parametrize("key", [ROW, entry_key("acme"), PARTITION_KEY])
def test_only_the_open_key_opens(key: bytes) -> None:
    fence = Fence(1, 4)
    assert fence.judge(2, 1, key) is Verdict.ACCEPTED
    assert (fence.term, fence.seq) == (2, 2 if key == PARTITION_KEY else 1)
