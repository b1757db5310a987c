"""The commands that run things: up, demo, worker, sink, topics."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallygate.topologies.cli_options import Brokers, DataDir, Json, console, print_json, settings_for
from tallygate.topologies.exits import Exit, Trouble

if TYPE_CHECKING:
    from tallygate.topologies.local_stack import LocalStack
    from tallygate.topologies.settings import Settings

app = typer.Typer()

KAFKA_PORT_DEFAULT = 9092
_CHECK_SECONDS = 0.2

MetricsAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where Prometheus reads metrics. Default: TALLYGATE_METRICS_ADDRESS."),
]


@app.command(rich_help_panel="Running it")
def up(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Kafka's port; 0 takes a free one.")] = (
        KAFKA_PORT_DEFAULT
    ),
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="FILE_OR_FOLDER", help="Apply this catalog; else an example, if there is none."),
    ] = None,
    brokers: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Use this Kafka and start none; so does TALLYGATE_KAFKA_BROKERS."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run all of Tallygate on this machine, until Ctrl-C: a Kafka, a worker, a sink, a gateway. Data is kept.

    The other commands find it by themselves.

    \b
    tallygate up
    tallygate up --catalog my-catalog.yaml --port 0
    """
    from tallygate.connectors.kafka_local import LocalKafka
    from tallygate.topologies.demo_trace import data_path
    from tallygate.topologies.local_stack import LocalStack, check_addresses
    from tallygate.topologies.running import claimed
    from tallygate.topologies.settings import load_settings

    settings = load_settings(kafka_brokers=brokers, data_dir=data_dir)
    out = console()
    with contextlib.suppress(StopAsked), contextlib.ExitStack() as stack:
        stack.enter_context(stop_on_signals())
        note = stack.enter_context(claimed(settings.data_dir))
        check_addresses(settings)
        kafka = None
        if "kafka_brokers" not in settings.model_fields_set:
            _check_in_clear(settings)
            kafka = LocalKafka(settings.data_dir / "kafka", port or None, on_progress=out.print)
        example = stack.enter_context(data_path("catalog.yaml"))
        local = LocalStack(settings, kafka, example=example, catalog=catalog, say=out.print, gateway=True)
        with local:
            note(local.settings.kafka_brokers)
            local.wait_ready()
            _show_up(local, data_dir)
            while True:
                time.sleep(_CHECK_SECONDS)
                local.check()


class StopAsked(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or a closed terminal; event loops let this kind through."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """The first signal raises `StopAsked`; further ones do nothing, so that everything is stopped in order."""
    former: dict[signal.Signals, Any] = {}

    def on_signal(number: int, frame: object) -> None:
        for each in former:
            signal.signal(each, signal.SIG_IGN)
        raise StopAsked

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        former[each] = signal.signal(each, on_signal)
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


def _check_in_clear(settings: "Settings") -> None:
    """A Kafka that is started here talks in clear, on loopback: security settings are for another."""
    from tallygate.connectors.kafka_security import protocol_of

    if protocol_of(settings.kafka_config) != "PLAINTEXT":
        raise Trouble(
            Exit.WRONG,
            "TALLYGATE_KAFKA_CONFIG is for a Kafka that is there: name it with --brokers, or unset the variable, "
            "and a Kafka is started here, in clear",
        )


def _show_up(local: "LocalStack", data_dir: Path | None) -> None:
    from rich.panel import Panel
    from rich.text import Text

    settings = local.settings
    feature = local.catalog.features[0].name if local.catalog.features else "FEATURE"
    where = f" --data-dir {data_dir}" if data_dir is not None else ""
    rows = [
        ("HTTP", local.gateway_url),
        ("Kafka", settings.kafka_brokers),
        ("catalog", f"version {local.catalog.version}"),
        ("metrics", _metrics_line(settings)),
        ("data and logs", str(settings.data_dir)),
    ]
    text = Text("\n".join(f"{name:14} {value}" for name, value in rows if value))
    text.append("\n\nIn another terminal:\n\n", style="bold")
    for command in (
        "tallygate grant acme 1000",
        f"tallygate reserve acme {feature} --credits 75 --explain",
        "tallygate balance acme",
    ):
        text.append(f"  {command}{where}\n")
    text.append("\nCtrl-C ends it.")
    out = console()
    out.print(Panel(text, title="Tallygate is up", title_align="left", expand=False))
    if local.gateway_url:
        _show_http(local, feature)
    for report in local.topics:
        for difference in report.differences:
            out.print(
                f"note: topic {report.name} differs: {difference.what} is {difference.found}, not {difference.wanted}"
            )


def _show_http(local: "LocalStack", feature: str) -> None:
    """Beside the panel, unbroken: what stands there is to be copied."""
    from tallygate.topologies.keys_topic import LOCAL_KEY_FILE, local_key

    key = local_key(local.settings)
    typer.echo(
        f"\nAPI key, for everything (kept in {local.settings.data_dir / LOCAL_KEY_FILE}):\n\n  {key}\n\nOver HTTP:\n"
    )
    reserve = f'{{"customer": "acme", "feature": "{feature}", "credits": "75"}}'
    for path, body in (
        ("/v1/customers/acme/grants", '{"amount": "1000"}'),
        ("/v1/reserve", reserve),
        ("/v1/customers/acme/balance", ""),
    ):
        data = f" --json '{body}'" if body else ""
        typer.echo(f"  curl {local.gateway_url}{path} -H 'Authorization: Bearer {key}'{data}")
    typer.echo("")


def _metrics_line(settings: "Settings") -> str:
    from tallygate.topologies.local_stack import sink_metrics_address

    address = settings.metrics_address
    if address.endswith(":0"):
        return "on free ports; the logs name them"
    return address and f"{address} (worker), {sink_metrics_address(settings)} (sink)"


@app.command(rich_help_panel="Running it")
def demo(
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures there, as JSON.")
    ] = None,
) -> None:
    """28 185 real LLM calls through all of it, and a runaway agent stopped. About a minute; nothing is kept.

    Starts a Kafka, a worker and a sink of its own on temporary folders. Ends with 1 when trace, ledger and ClickHouse
    do not agree.

    \b
    tallygate demo
    tallygate demo --json figures.json
    """
    from tallygate.topologies.demo import run_demo

    try:
        with stop_on_signals():
            agreed = run_demo(json, console())
    except StopAsked:
        raise typer.Exit(Exit.INTERRUPTED) from None
    if not agreed:
        raise typer.Exit(Exit.NO)


@app.command(rich_help_panel="Running it")
def worker(brokers: Brokers = None, data_dir: DataDir = None, metrics_address: MetricsAddress = None) -> None:
    """Own partitions and decide. Start as many as you like, each with its own data folder; Kafka shares the work out.

    \b
    tallygate worker --brokers kafka-1:9092,kafka-2:9092
    tallygate worker --data-dir /var/lib/tallygate/2 --metrics-address ''
    """
    from tallygate.topologies.running import connect_settings
    from tallygate.topologies.worker import run_worker

    _log()
    settings = connect_settings(kafka_brokers=brokers, data_dir=data_dir, metrics_address=metrics_address)
    raise typer.Exit(run_worker(settings))


@app.command(rich_help_panel="Running it")
def sink(
    brokers: Brokers = None,
    data_dir: DataDir = None,
    clickhouse: Annotated[
        str | None,
        typer.Option(metavar="DSN", help="clickhouse://user:password@host:port/database; default: embedded."),
    ] = None,
    metrics_address: MetricsAddress = None,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Go on although records of the journal are gone for good.")
    ] = False,
) -> None:
    """Move the journal into ClickHouse: postings, decisions, usage by hour, balances. Answers `tallygate sql`.

    \b
    tallygate sink
    tallygate sink --clickhouse clickhouse://default@db:8123/tallygate
    """
    from tallygate.topologies.running import connect_settings
    from tallygate.topologies.sink import run_sink

    _log()
    settings = connect_settings(
        kafka_brokers=brokers, data_dir=data_dir, clickhouse_dsn=clickhouse, metrics_address=metrics_address
    )
    raise typer.Exit(run_sink(settings, accept_gap=accept_gap))


@app.command(rich_help_panel="Running it")
def gateway(
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where it answers. Default: TALLYGATE_GATEWAY_ADDRESS.")
    ] = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    metrics_address: MetricsAddress = None,
) -> None:
    """Answer over HTTP: decisions, usage, balances, administration. Start as many as you like; they hold no state.

    Its keys are made with `tallygate keys create`; GET /openapi.json describes all of it.

    \b
    tallygate gateway
    tallygate gateway --address 0.0.0.0:8086 --brokers kafka-1:9092
    """
    from tallygate.topologies.gateway import run_gateway
    from tallygate.topologies.running import connect_settings

    _log()
    settings = connect_settings(
        kafka_brokers=brokers,
        data_dir=data_dir,
        gateway_address=address,
        gateway_metrics_address=metrics_address,
    )
    raise typer.Exit(run_gateway(settings))


@app.command(rich_help_panel="Running it")
def topics(
    service: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A service that will ask; may be repeated.")
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Of the inputs and the journal. Default: TALLYGATE_PARTITIONS.")
    ] = None,
    replication: Annotated[int | None, typer.Option(min=1, help="Copies; default: 3, or as many as brokers.")] = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Declare every topic. What is missing is made; what is there is compared and left as it is: then it ends with 1.

    Each service that uses the client needs a reply topic: name it with --service.

    \b
    tallygate topics
    tallygate topics --service checkout --partitions 32 --replication 3
    """
    from tallygate.connectors.kafka_admin import declare_topics
    from tallygate.schemas.topics import reply_topic, topic_specs

    names = tuple(dict.fromkeys(("cli", "gateway", *(service or ()))))
    for name in names:
        try:
            reply_topic(name)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--service") from None
    settings = settings_for(brokers, data_dir)
    specs = topic_specs(partitions or settings.partitions, names)
    reports = declare_topics(settings.librdkafka, specs, replication)
    if json:
        print_json(
            [
                {"name": r.name, "outcome": r.outcome, "differences": [d._asdict() for d in r.differences]}
                for r in reports
            ]
        )
    else:
        for report in reports:
            typer.echo(f"{report.outcome:8} {report.name}")
            for d in report.differences:
                typer.echo(f"         {d.what} is {d.found}, not {d.wanted}")
    if any(report.outcome == "differs" for report in reports):
        raise typer.Exit(Exit.NO)


def _log() -> None:
    from tallygate.topologies.stack_member import LOG_FORMAT

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
