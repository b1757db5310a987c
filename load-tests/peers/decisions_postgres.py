"""Postgres with a row lock a customer and a ledger table, one transaction for each reservation and each settlement.

`decisions_postgres.py DSN RATE CLIENTS CUSTOMERS SECONDS`
"""

import asyncio
import sys

import psycopg
import uvloop
from loads import Load

LIMIT = 10**12
CONNECTIONS = 16
TABLES = """
CREATE TABLE account (customer int PRIMARY KEY, used bigint NOT NULL, held bigint NOT NULL);
CREATE TABLE ledger (id bigserial PRIMARY KEY, customer int NOT NULL, hold text NOT NULL, op text NOT NULL,
                     amount bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
"""
LOCK = "SELECT used, held FROM account WHERE customer = %s FOR UPDATE"
WRITE = "INSERT INTO ledger (customer, hold, op, amount) VALUES (%s, %s, %s, %s)"


async def main(dsn: str, rate: int, clients: int, customers: int, seconds: float) -> None:
    idle: asyncio.Queue[psycopg.AsyncConnection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
    first = await idle.get()
    await first.execute(TABLES)
    await first.execute("INSERT INTO account SELECT n, 0, 0 FROM generate_series(0, %s) n", (customers - 1,))
    idle.put_nowait(first)

    async def reserve(customer: int, hold: str, amount: int) -> bool:
        connection = await idle.get()
        try:
            async with connection.transaction():
                used, held = await (await connection.execute(LOCK, (customer,))).fetchone()
                if used + held + amount > LIMIT:
                    return False
                await connection.execute("UPDATE account SET held = held + %s WHERE customer = %s", (amount, customer))
                await connection.execute(WRITE, (customer, hold, "reserve", amount))
                return True
        finally:
            idle.put_nowait(connection)

    async def settle(customer: int, hold: str, held: int, took: int) -> None:
        connection = await idle.get()
        try:
            async with connection.transaction():
                await connection.execute(LOCK, (customer,))
                await connection.execute(
                    "UPDATE account SET held = held - %s, used = used + %s WHERE customer = %s", (held, took, customer)
                )
                await connection.execute(WRITE, (customer, hold, "settle", took))
        finally:
            idle.put_nowait(connection)

    await Load(reserve, settle, customers, seconds).run(rate, clients)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *map(int, sys.argv[2:5]), seconds=float(sys.argv[5])))
