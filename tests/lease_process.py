"""A client with a lease, in a process of its own: `python lease_process.py BROKERS CUSTOMER FIRST TTL TAKE`.

Once a line comes, it takes one token after the other, TAKE of them, and then waits to be killed; with TAKE 0 until
its standard input ends. It prints how many it has taken: when told no, when it waits, and when its lease is closed.
"""

import asyncio
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

METER = "output_tokens"


async def main(brokers: str, customer: str, first: int, ttl: int, most: int) -> None:
    from tallygate.connectors.client import Tallygate

    taken = 0
    ended = threading.Event()
    async with Tallygate(brokers, service="cli", timeout=30) as client:
        async with client.lease(customer, feature="llm", quantities={METER: first}, ttl_seconds=ttl) as lease:
            print("ready", taken, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
            while not ended.is_set():
                if most and taken == most:
                    print("waits", taken, flush=True)
                    await asyncio.Event().wait()
                if await lease.acquire({METER: 1}, timeout=1):
                    taken += 1
                else:
                    print("no", taken, flush=True)
                    await asyncio.sleep(0.1)
        print("closed", taken, flush=True)


class LeaseProcess:
    """`with LeaseProcess(…) as client`; killed at the end if it still runs. `said` are its lines so far."""

    def __init__(self, brokers: str, customer: str, *, first: int, ttl: int, take: int = 0) -> None:
        self._words = [brokers, customer, str(first), str(ttl), str(take)]
        self._came = threading.Condition()
        self.said: list[tuple[str, int]] = []
        self.taken = 0

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *self._words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join()

    def go(self) -> None:
        self.wait_for("ready")
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """Asks it to close its lease, and waits until it has."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self._reader.join()
        assert self.said[-1][0] == "closed"

    def wait_for(self, word: str, more: int = 0, seconds: float = 60.0) -> None:
        """Until it has said this at all, or so many more times."""
        with self._came:
            wanted = max(1, self._count(word) + more)
            assert self._came.wait_for(lambda: self._count(word) >= wanted, seconds), f"{word}: {self.said[-5:]}"

    def _count(self, word: str) -> int:
        return sum(said == word for said, _ in self.said)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, taken = line.split()
            with self._came:
                self.said.append((word, int(taken)))
                self.taken = int(taken)
                self._came.notify_all()


if __name__ == "__main__":
    brokers, customer, *numbers = sys.argv[1:]
    asyncio.run(main(brokers, customer, *map(int, numbers)))
