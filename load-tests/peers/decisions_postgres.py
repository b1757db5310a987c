"""Postgres with a row lock a customer and a ledger table, one transaction for each reservation and each settlement.

`decisions_postgres.py DSN RATE CLIENTS CUSTOMERS SECONDS`
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

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
    idle = [await psycopg.AsyncConnection.connect(dsn, autocommit=True) for _ in range(CONNECTIONS)]
    await idle[0].execute(TABLES)
    await idle[0].execute("INSERT INTO account SELECT n, 0, 0 FROM generate_series(0, %s) n", (customers - 1,))
    turn = asyncio.Semaphore(CONNECTIONS)  # first come, first served: nobody waits for ever while others take turns

    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[psycopg.AsyncConnection]:
        async with turn:
            connection = idle.pop()
            try:
                async with connection.transaction():
                    yield connection
            finally:
                idle.append(connection)

    async def reserve(customer: int, hold: str, amount: int) -> bool:
        async with connected() as connection:
            used, held = await (await connection.execute(LOCK, (customer,))).fetchone()
            if used + held + amount > LIMIT:
                return False
            await connection.execute("UPDATE account SET held = held + %s WHERE customer = %s", (amount, customer))
            await connection.execute(WRITE, (customer, hold, "reserve", amount))
            return True

    async def settle(customer: int, hold: str, held: int, took: int) -> None:
        async with connected() as connection:
            await connection.execute(LOCK, (customer,))
            await connection.execute(
                "UPDATE account SET held = held - %s, used = used + %s WHERE customer = %s", (held, took, customer)
            )
            await connection.execute(WRITE, (customer, hold, "settle", took))

    await Load(reserve, settle, customers, seconds).run(rate, clients)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *map(int, sys.argv[2:5]), seconds=float(sys.argv[5])))
