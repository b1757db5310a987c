"""The gateway's process: the object graph, its connections, and uvicorn on a socket that is bound first.

It listens at once and answers 503 until it is connected; a broker that is away is waited for, with one line. It ends
with 0 when told to, and with 1 after one line that says what is wrong.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec
import uvicorn
import uvloop

from tallygate.connectors.clickhouse_questions import QuestionError
from tallygate.connectors.client_errors import BrokersAway, NotConnected
from tallygate.connectors.consuming import LaneTrouble, broker_watch
from tallygate.connectors.gateway.app import build_app
from tallygate.connectors.gateway.problems import unavailable
from tallygate.connectors.gateway.protocol import IDLE_SECONDS_MAX, BoundedHttp
from tallygate.connectors.gateway.services import Applied, Gateway, GatewayConfig
from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.schemas.catalog import decode_catalog
from tallygate.schemas.catalog_file import CatalogFile
from tallygate.schemas.records import Record
from tallygate.schemas.topics import AUDIT, CATALOG, KEYS
from tallygate.topologies import catalog_topic, sql_server
from tallygate.topologies.cluster import Cluster, ClusterTrouble
from tallygate.topologies.followed_topic import FollowedTopic
from tallygate.topologies.gateway_note import noted
from tallygate.topologies.settings import ENV_PREFIX, Settings, parse_address
from tallygate.topologies.sink_metrics import MetricsPage
from tallygate.topologies.topic_reading import bounds

logger = logging.getLogger(__name__)

#: As in the worker: answers cross threads all the time.
SWITCH_SECONDS: Final = 0.0005
_AGAIN_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5
_SQL_AT_ONCE: Final = 2
_SQL_SECONDS: Final = 20.0


class GatewayTrouble(Exception):
    """The gateway cannot run; one clear line."""


def run_gateway(settings: Settings) -> int:
    """Runs a gateway until SIGTERM or SIGINT; the exit code."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        uvloop.run(serve(settings))
    except (GatewayTrouble, ClusterTrouble, LaneTrouble, NotConnected, KafkaRefused, KafkaUnreachable) as error:
        logger.error("gateway: %s", error)
        return 1
    finally:
        sys.setswitchinterval(former)
    return 0


async def serve(settings: Settings, started: Callable[[Gateway, str], None] = lambda gateway, url: None) -> None:
    """A gateway, until a signal; `started` hears of it when it is ready."""
    async with contextlib.AsyncExitStack() as ends:
        tls = _tls(settings)
        listening = ends.enter_context(_bound(settings))
        url = _url(listening, tls is not None)
        gateway = build_gateway(settings, url)
        ends.push_async_callback(gateway.close)
        page = _serve_metrics(settings, gateway)
        ends.callback(page.close)
        if page.url:
            logger.info("metrics on %s", page.url)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        server = _server(gateway, tls)
        serving = asyncio.create_task(server.serve([listening]))
        ends.enter_context(noted(settings.data_dir, url))
        logger.info("gateway listens on %s", url)
        connecting = asyncio.create_task(connect(settings, gateway, ends, failed))
        connecting.add_done_callback(lambda _: started(gateway, url) if gateway.ready else None)
        asked = asyncio.create_task(_told_to_end())
        try:
            await _until_ended(asked, serving, failed, connecting)
        finally:
            gateway.feed.close()  # streams end, so that nobody waits for them
            server.should_exit = True
            connecting.cancel()
            await asyncio.gather(serving, connecting, return_exceptions=True)
            asked.cancel()


async def _until_ended(
    asked: "asyncio.Task[None]",
    serving: "asyncio.Task[None]",
    failed: "asyncio.Future[None]",
    connecting: "asyncio.Task[None]",
) -> None:
    """Returns when told to end; raises what ends it otherwise."""
    waiting: set[asyncio.Future[None]] = {asked, serving, failed, connecting}
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
        if done - {connecting}:
            return


def build_gateway(settings: Settings, url: str) -> Gateway:
    config = GatewayConfig(
        brokers=settings.kafka_brokers,
        kafka=settings.kafka_config,
        timeout_seconds=settings.gateway_timeout_ms / 1000,
        calls_per_second=settings.gateway_calls_per_second,
        url=url,
        otlp_customer_attribute=settings.gateway_otlp_customer_attribute,
        otlp_event_type=settings.gateway_otlp_event_type,
    )
    return Gateway(config, ask_sql=_sql(settings), apply_catalog=_applying(settings))


async def connect(
    settings: Settings, gateway: Gateway, ends: contextlib.AsyncExitStack, failed: "asyncio.Future[None]"
) -> None:
    """Makes a gateway ready, however long the brokers are away. Raises ClusterTrouble, NotConnected."""

    def trouble(what: LaneTrouble) -> None:
        if not failed.done():
            failed.set_exception(what)

    def take_catalog(record: Record) -> None:
        _take_catalog(gateway, record)

    cluster = Cluster(settings)
    await cluster.layout()
    for topic in (KEYS, AUDIT):
        await asyncio.to_thread(bounds, settings, topic, _LOOK_SECONDS)
    for topic, take in ((CATALOG, take_catalog), (KEYS, gateway.keys.take)):
        followed = FollowedTopic(settings, cluster, topic, take, trouble)
        ends.callback(followed.close)
        await followed.start()
    await _connect_client(settings, gateway)
    gateway.producer.start()
    gateway.ready = True
    gateway.figures.ready.set(1)
    gateway.figures.keys.set_function(lambda: len(gateway.keys))
    logger.info(
        "gateway is ready: %s, %d keys, catalog version %d",
        settings.kafka_brokers,
        len(gateway.keys),
        gateway.newest.catalog.version,
    )


async def _connect_client(settings: Settings, gateway: Gateway) -> None:
    watch = broker_watch(settings.kafka_brokers)
    while True:
        try:
            await gateway.client.start()
        except BrokersAway as error:
            watch.away("gateway", str(error))
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            watch.back("gateway")
            return


def _take_catalog(gateway: Gateway, record: Record) -> None:
    if record.value is None:
        return
    try:
        catalog = decode_catalog(record.value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        logger.error("catalog record %d cannot be read and is not used: %s", record.offset, error)
        return
    if catalog.version > gateway.newest.catalog.version:
        gateway.newest.catalog = catalog
        gateway.newest.published_at = record.timestamp_ms


def _sql(settings: Settings) -> Callable[[str], Awaitable[bytes]]:
    room = asyncio.Semaphore(_SQL_AT_ONCE)

    def ended(work: "asyncio.Future[str]") -> None:
        room.release()
        if not work.cancelled():
            work.exception()  # whoever asked may have gone

    async def ask(sql: str) -> bytes:
        try:
            async with asyncio.timeout(_SQL_SECONDS):
                await room.acquire()
                work = asyncio.ensure_future(asyncio.to_thread(sql_server.ask, settings, sql, "jsonl"))
                work.add_done_callback(ended)  # a question goes on without its asker: so long it takes the room
                return (await asyncio.shield(work)).encode()
        except TimeoutError:
            raise unavailable("no-clickhouse", f"ClickHouse did not answer within {_SQL_SECONDS:g} s") from None
        except sql_server.NobodyAnswers as error:
            raise unavailable("no-clickhouse", str(error)) from None
        except QuestionError as error:
            logger.warning("ClickHouse did not answer a question: %s", error)
            raise unavailable("no-clickhouse", f"ClickHouse does not answer that: {error}") from None

    return ask


def _applying(settings: Settings) -> Callable[[CatalogFile], Awaitable[Applied]]:
    one_at_a_time = asyncio.Lock()

    async def apply(file: CatalogFile) -> Applied:
        async with one_at_a_time:
            published = await asyncio.to_thread(catalog_topic.publish, settings, file)
        return Applied(published.catalog, published.changed)

    return apply


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    if not settings.gateway_address:
        raise GatewayTrouble(f"{ENV_PREFIX}GATEWAY_ADDRESS is empty: say where to listen, like 127.0.0.1:8086")
    host, port = parse_address(settings.gateway_address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise GatewayTrouble(
            f"{settings.gateway_address} cannot be listened on ({error.strerror}): set {ENV_PREFIX}GATEWAY_ADDRESS "
            "to another address (port 0 takes a free one)"
        ) from error
    with listening:
        yield listening


def _tls(settings: Settings) -> tuple[str, str] | None:
    """Certificate and key, tried."""
    if settings.gateway_tls_cert is None or settings.gateway_tls_key is None:
        return None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.gateway_tls_cert, settings.gateway_tls_key
        )
    except (OSError, ssl.SSLError) as error:
        raise GatewayTrouble(
            f"{settings.gateway_tls_cert} and {settings.gateway_tls_key} are no certificate and key: {error}"
        ) from error
    return str(settings.gateway_tls_cert), str(settings.gateway_tls_key)


def _url(listening: socket.socket, tls: bool) -> str:
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(gateway: Gateway, tls: "tuple[str, str] | None") -> _Server:
    cert, key = tls or (None, None)
    config = uvicorn.Config(
        build_app(gateway),
        http=BoundedHttp,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS_MAX,
        timeout_graceful_shutdown=_STOP_SECONDS,
        ssl_certfile=cert,
        ssl_keyfile=key,
    )
    return _Server(config)


def _serve_metrics(settings: Settings, gateway: Gateway) -> MetricsPage:
    try:
        return MetricsPage(settings.gateway_metrics_address, gateway.figures.registry)
    except OSError as error:
        raise GatewayTrouble(
            f"metrics cannot be served on {settings.gateway_metrics_address} ({error.strerror}): set "
            f"{ENV_PREFIX}GATEWAY_METRICS_ADDRESS (port 0 takes a free one, empty serves none)"
        ) from error


async def _told_to_end() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()
