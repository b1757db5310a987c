"""A partition that this process owns: the task in which its owner works, until it is asked to let go."""

import asyncio
from collections.abc import Callable

from tallygate.schemas.records import Chunk
from tallygate.topologies.inbox import Inbox
from tallygate.topologies.journal import KafkaJournal
from tallygate.topologies.owner import PartitionOwner
from tallygate.topologies.ports import Clock


class OwnedPartition:
    """Runs one owner on the event loop. `failed` hears of what the owner's work ends with, if that is an exception."""

    def __init__(
        self,
        owner: PartitionOwner,
        inbox: Inbox,
        journal: KafkaJournal,
        clock: Clock,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._owner = owner
        self._inbox = inbox
        self._journal = journal
        self._clock = clock
        self._failed = failed
        self._wake = asyncio.Event()
        self._closing = False
        self._work: asyncio.Task[None] | None = None

    @property
    def working(self) -> bool:
        return self._work is not None

    async def open(self) -> dict[str, int]:
        """Takes the partition over and begins to work; returns the next offset of each topic seen so far."""
        offsets = await self._owner.open()
        self._work = asyncio.create_task(self._run(), name=f"owner of partition {self._owner.partition}")
        return offsets

    def offer(self, chunk: Chunk, done: Callable[[], object]) -> None:
        self._inbox.offer(chunk, done)
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    async def close(self) -> None:
        """Answers the requests it has taken in, and lets the partition go. After an `open` that was cancelled, too."""
        self._closing = True
        self._wake.set()
        if self._work is not None:
            await self._work
        self._owner.close()
        self._inbox.close()
        self._journal.leave()

    async def _run(self) -> None:
        try:
            while not self._closing or self._inbox.asks:
                if await self._owner.step():
                    await asyncio.sleep(0)  # a step that only answers questions awaits nothing by itself
                else:
                    await self._rest()
        except Exception as error:
            self._failed(error)
            raise

    async def _rest(self) -> None:
        """Until something comes in, usage has rested, or the next tick is due."""
        self._wake.clear()
        if self._inbox or self._closing:
            return
        due_us = self._owner.tick_due_us
        if self._inbox.rests:
            due_us = min(due_us, self._inbox.rests_until_us)
        wait_us = max(0, due_us - self._clock.monotonic_us())
        alarm = asyncio.get_running_loop().call_later(wait_us / 1e6, self._wake.set)
        await self._wake.wait()
        alarm.cancel()
