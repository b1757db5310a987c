"""The bench's commands: usage, decisions, leases, sink, growth, catalog."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tallygate.topologies.cli_options import console
from tallygate.topologies.exits import Exit

if TYPE_CHECKING:
    from rich.console import Console

    from tallygate.topologies.bench.bars import Bars

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Measure how much this machine, or a cluster, carries: usage, decisions, the sink, growth.",
)

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result there, as JSON.")]
Seconds = Annotated[float, typer.Option(min=1, max=3600, help="How long the load flows.")]
Customers = Annotated[int, typer.Option(min=1, max=1_000_000, help="How many customers; few of them make most calls.")]
Partitions = Annotated[
    int | None, typer.Option(min=1, max=256, help="Of the bench's own stack. Default: TALLYGATE_PARTITIONS.")
]
Workers = Annotated[int, typer.Option(min=1, max=16, help="Of the bench's own stack.")]
Cluster = Annotated[
    bool,
    typer.Option(
        "--cluster",
        help="Run against the Kafka of TALLYGATE_KAFKA_BROKERS and start nothing. This WRITES there: customers whose "
        "names begin with bench-, their usage and decisions, for good; and topics, for a moment.",
    ),
]


@app.command()
def usage(
    shape: Annotated[
        Literal["single", "batch"],
        typer.Option(help="single: one CloudEvent in JSON a record; batch: 1 000 events in Arrow a record."),
    ] = "single",
    rate: Annotated[int, typer.Option(min=0, max=50_000_000, help="Events a second; 0 finds what is held.")] = 0,
    seconds: Seconds = 30,
    customers: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Few of them make most calls. Default: 1000; 10000 for batches."),
    ] = None,
    dimensions: Annotated[
        int, typer.Option(min=0, max=4, help="How many of model, team, agent and user an event carries.")
    ] = 1,
    partitions: Partitions = None,
    workers: Workers = 1,
    cluster: Cluster = False,
    json: JsonFile = None,
) -> None:
    """Usage events end to end: decoded, counted once, metered, paid with credits, journaled, in ClickHouse.

    Starts a Kafka, a worker and a sink of its own in a temporary folder, and removes them. The load is open: an event
    is sent when it is due, and its lag counts from then. Ends with 1 when ClickHouse does not count what was sent.

    \b
    tallygate bench usage
    tallygate bench usage --rate 20000 --seconds 60 --json usage.json
    tallygate bench usage --shape batch
    """
    from tallygate.topologies.bench import report
    from tallygate.topologies.bench.usage import UsageOptions, bench_usage, differences

    options = UsageOptions(
        shape=shape,
        rate=rate,
        seconds=seconds,
        customers=customers or (10_000 if shape == "batch" else 1_000),
        dimensions=dimensions,
        partitions=partitions,
        workers=workers,
        given=cluster,
    )
    _run(lambda bars: bench_usage(options, bars), report.show_usage, differences, json)


@app.command()
def decisions(
    rate: Annotated[int, typer.Option(min=0, max=100_000, help="Open: so many calls a second.")] = 0,
    closed: Annotated[
        int, typer.Option(min=0, max=50_000, metavar="CLIENTS", help="Closed: so many clients that wait for answers.")
    ] = 0,
    hot: Annotated[
        int, typer.Option(min=0, max=50_000, metavar="AGENTS", help="Closed: so many agents of one customer.")
    ] = 0,
    usage_rate: Annotated[
        int, typer.Option(min=0, max=10_000_000, help="So many usage events a second flow beside.")
    ] = 0,
    usage_shape: Annotated[Literal["single", "batch"], typer.Option(help="How those are sent.")] = "batch",
    seconds: Seconds = 30,
    customers: Customers = 100,
    partitions: Partitions = None,
    workers: Workers = 1,
    cluster: Cluster = False,
    json: JsonFile = None,
) -> None:
    """Reserve and settle through the client, past every level: rate limit, budgets, allowance, credits.

    Some calls meet a limit. What was let through is added up from the answers and from the journal, apart from the
    worker; ends with 1 when any limit was passed or a request was not answered. Give one of --rate, --closed, --hot.

    \b
    tallygate bench decisions --rate 200
    tallygate bench decisions --rate 1000 --usage-rate 10000
    tallygate bench decisions --closed 200 --json decisions.json
    """
    from tallygate.topologies.bench import report
    from tallygate.topologies.bench.decisions import DecisionOptions, bench_decisions, differences

    if sum(map(bool, (rate, closed, hot))) != 1:
        raise typer.BadParameter("give one of --rate, --closed and --hot, and more than 0", param_hint="--rate")
    options = DecisionOptions(
        rate=rate,
        closed=closed,
        hot=hot,
        usage_rate=usage_rate,
        usage_shape=usage_shape,
        seconds=seconds,
        customers=customers,
        partitions=partitions,
        workers=workers,
        given=cluster,
    )
    _run(lambda bars: bench_decisions(options, bars), report.show_decisions, differences, json)


@app.command()
def leases(
    rate: Annotated[int, typer.Option(min=1, max=1_000_000, help="Takes a second, by all clients.")] = 20_000,
    clients: Annotated[int, typer.Option(min=2, max=1_000, help="Leases; half of them for one who runs out.")] = 8,
    seconds: Seconds = 10,
    partitions: Partitions = None,
    cluster: Cluster = False,
    json: JsonFile = None,
) -> None:
    """Local decisions within leases, and in turns with them those of a counter in the same process.

    A customer runs out of credits meanwhile: ends with 1 when more was taken than there is.

    \b
    tallygate bench leases
    tallygate bench leases --rate 50000 --clients 32 --json leases.json
    """
    from tallygate.topologies.bench import report
    from tallygate.topologies.bench.leases import LeaseOptions, bench_leases, differences

    options = LeaseOptions(rate=rate, clients=clients, seconds=seconds, partitions=partitions, given=cluster)
    _run(lambda bars: bench_leases(options, bars), report.show_leases, differences, json)


@app.command()
def sink(
    events: Annotated[
        int, typer.Option(min=1_000, max=10_000_000, help="Usage events whose journal is moved.")
    ] = 50_000,
    customers: Customers = 1_000,
    partitions: Partitions = None,
    json: JsonFile = None,
) -> None:
    """The journal into ClickHouse: a sink is held back while usage is journaled, then let go.

    \b
    tallygate bench sink
    tallygate bench sink --events 500000 --json sink.json
    """
    from tallygate.topologies.bench import report
    from tallygate.topologies.bench.sink import SinkOptions, bench_sink
    from tallygate.topologies.bench.usage import differences

    options = SinkOptions(events=events, customers=customers, partitions=partitions)
    _run(lambda bars: bench_sink(options, bars), report.show_sink, differences, json)


@app.command()
def growth(
    customers: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of customers; the first is what all is compared with.")
    ] = "10000,100000",
    partitions: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of partitions.")] = "8,1,32",
    workers: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of workers.")] = "1,2",
    events: Annotated[int, typer.Option(min=1_000, max=10_000_000, help="Events that count, in each step.")] = 50_000,
    json: JsonFile = None,
) -> None:
    """What an event costs as customers, partitions and workers become more; one list grows at a time.

    \b
    tallygate bench growth
    tallygate bench growth --customers 10000,1000000 --partitions 8 --workers 1
    """
    from tallygate.topologies.bench import report
    from tallygate.topologies.bench.growth import GrowthOptions, bench_growth

    options = GrowthOptions(
        customers=_numbers(customers, "--customers", 10_000_000),
        partitions=_numbers(partitions, "--partitions", 256),
        workers=_numbers(workers, "--workers", 16),
        events=events,
    )
    _run(lambda bars: bench_growth(options, bars), report.show_growth, _growth_differences, json)


@app.command()
def catalog() -> None:
    """Print the meters and plans that --cluster needs, to be put beside the files of your catalog.

    \b
    tallygate bench catalog > catalog/bench.yaml
    """
    from importlib.resources import files

    typer.echo(files("tallygate.topologies.bench").joinpath("data", "bench.yaml").read_text(), nl=False)


def _numbers(text: str, option: str, most: int) -> tuple[int, ...]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in numbers):
        raise typer.BadParameter(f"{text!r}: write numbers from 1 to {most} with commas, like 1,2", param_hint=option)
    return tuple(map(int, numbers))


def _growth_differences(result: dict[str, Any]) -> list[str]:
    from tallygate.topologies.bench.usage import differences

    return [line for run in result["runs"] for line in differences(run)]


def _run(
    measure: "Callable[[Bars], dict[str, Any]]",
    show: "Callable[[dict[str, Any], Console], None]",
    differences: Callable[[dict[str, Any]], list[str]],
    path: Path | None,
) -> None:
    """Measures, shows and writes; nothing is left behind, whatever happens in between."""
    import msgspec

    from tallygate.topologies.bench.bars import Bars
    from tallygate.topologies.bench.report import show_differences
    from tallygate.topologies.cli_run import StopAsked, stop_on_signals

    if path is not None:
        path.open("a").close()  # a file that cannot be written is told before the load, not after it
    try:
        with stop_on_signals():
            result = measure(Bars(console(stderr=True)))
    except StopAsked:
        raise typer.Exit(Exit.INTERRUPTED) from None
    out = console()
    show(result, out)
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    if wrong := differences(result):
        show_differences(wrong, out)
        raise typer.Exit(Exit.NO)
