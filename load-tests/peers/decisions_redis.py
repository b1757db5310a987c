"""Redis with a Lua script for one counter a customer: no levels, no ledger, no ids.

`decisions_redis.py PORT RATE CLIENTS CUSTOMERS SECONDS`
"""

import sys

import redis.asyncio
import uvloop
from loads import Load

LIMIT = 10**12
RESERVE = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return 0 end
redis.call('INCRBY', KEYS[1], ARGV[1])
return 1
"""


async def main(port: int, rate: int, clients: int, customers: int, seconds: float) -> None:
    server = redis.asyncio.Redis(port=port, max_connections=max(64, clients))
    script = server.register_script(RESERVE)

    async def reserve(customer: int, hold: str, amount: int) -> bool:
        return bool(await script(keys=[f"used:{customer}"], args=[amount, LIMIT]))

    async def settle(customer: int, hold: str, held: int, took: int) -> None:
        await server.decrby(f"used:{customer}", held - took)

    await Load(reserve, settle, customers, seconds).run(rate, clients)
    await server.aclose()


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:5]), seconds=float(sys.argv[5])))
