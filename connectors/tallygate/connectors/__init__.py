"""The outside: Kafka clients and a local broker, ClickHouse, the Python client."""
