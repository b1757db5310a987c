"""Quix Streams, stateless: each event decoded and looked at. `usage_quix.py BROKERS TOPIC COUNT`"""

import uuid

from counting import arguments
from quixstreams import Application

brokers, topic_name, counter = arguments()
app = Application(
    broker_address=brokers,
    consumer_group=f"peer-{uuid.uuid4().hex[:8]}",
    auto_offset_reset="earliest",
    auto_create_topics=False,
    loglevel="ERROR",
)


def count(event):
    assert event["data"]["tokens"] > 0
    counter.add()


if __name__ == "__main__":
    app.dataframe(app.topic(topic_name, value_deserializer="json")).update(count)
    app.run()
