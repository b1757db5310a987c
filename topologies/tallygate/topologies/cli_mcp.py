"""`tallygate mcp`: the tools for agents over standard input and output."""

from typing import Annotated

import typer

from tallygate.topologies.cli_options import TIMEOUT_SECONDS, Brokers, DataDir, Timeout, settings_for

app = typer.Typer()


@app.command(rich_help_panel="Running it")
def mcp(
    customer: Annotated[
        str, typer.Option("--customer", metavar="CUSTOMER", help="For whom the agent works: nobody else is reached.")
    ],
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """Give an agent on this machine its tools over standard input and output: reserve, settle, balance and the like.

    For agents' programs that start their servers themselves. It talks to Kafka, for one customer, until its input
    ends. Agents elsewhere use /mcp of a gateway, with an API key.

    \b
    tallygate mcp --customer acme
    tallygate mcp --customer acme --brokers kafka-1:9092
    """
    import asyncio

    from tallygate.topologies.mcp_stdio import serve

    asyncio.run(serve(settings_for(brokers, data_dir), customer, timeout))
