"""What the usage peers share: a count of events that says, at its end, how long they took and how much CPU.

Time and CPU are counted from the first event on, so that no start-up is in them.
"""

import json
import os
import sys
import time


class Counter:
    """Ends the process at the last event, after one line of JSON."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen = 0

    def add(self, events: int = 1) -> None:
        if not self._seen:
            self._began, self._cpu = time.monotonic(), time.process_time()
        self._seen += events
        if self._seen >= self._count:
            self._finish()

    def _finish(self) -> None:
        seconds, cpu = time.monotonic() - self._began, time.process_time() - self._cpu
        found = {"events": self._seen, "seconds": seconds, "cpu_seconds": cpu}
        print(json.dumps(found), file=sys.__stdout__, flush=True)  # Faust takes sys.stdout for its log
        os._exit(0)  # frameworks end slowly, and what they still do is not part of the measurement


def arguments() -> tuple[str, str, Counter]:
    """Brokers, topic and the counter, from the command line."""
    brokers, topic, count = sys.argv[1:4]
    return brokers, topic, Counter(int(count))
