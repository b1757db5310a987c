"""Bytewax, stateless: each event decoded and looked at. `usage_bytewax.py BROKERS TOPIC COUNT`"""

import bytewax.operators as op
import msgspec
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from counting import arguments

brokers, topic_name, counter = arguments()
decode = msgspec.json.decode


class Counting(StatelessSinkPartition):
    def write_batch(self, items):
        counter.add(len(items))


class Count(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Counting()


def tokens(message):
    return decode(message.value)["data"]["tokens"]


flow = Dataflow("usage")
source = op.input("in", flow, KafkaSource([brokers], [topic_name], batch_size=1000))
op.output("out", op.map("decode", source, tokens), Count())

if __name__ == "__main__":
    run_main(flow)
