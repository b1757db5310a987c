"""A plain Faust agent over single records, with a table: tokens by customer.

`usage_faust.py BROKERS TOPIC COUNT PARTITIONS`
"""

import sys
import tempfile
import uuid

import faust
from counting import arguments

brokers, topic_name, counter = arguments()
app = faust.App(
    f"peer-{uuid.uuid4().hex[:8]}",
    broker=f"aiokafka://{brokers}",
    datadir=tempfile.mkdtemp(),
    store="memory://",
    topic_disable_leader=True,
    topic_allow_declare=True,
    topic_partitions=int(sys.argv[4]),
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
)
tokens = app.Table("tokens", default=int, partitions=int(sys.argv[4]))


@app.agent(app.topic(topic_name, key_type=bytes, value_serializer="json"))
async def count(stream):
    async for event in stream:
        tokens[event["subject"]] += event["data"]["tokens"]
        counter.add()


if __name__ == "__main__":
    sys.argv = ["faust", "worker", "-l", "error", "--without-web"]
    app.main()
