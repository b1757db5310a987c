"""What the command line ends with: exit codes, and one line for every known trouble. No traceback reaches a person."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    NO = 1
    WRONG = 2
    AWAY = 3
    BUG = 70
    INTERRUPTED = 130


MEANINGS = {
    Exit.DONE: "done, or yes: allowed",
    Exit.NO: "no: denied, or differences were found",
    Exit.WRONG: "the command or its input is wrong; nothing was done",
    Exit.AWAY: "something needed is away: no broker, worker or sink answers, a port is taken, Java is missing",
    Exit.BUG: "a fault in tallygate itself",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}


class Trouble(Exception):
    """A command cannot go on: what to end with, and one line for the person."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def explain(error: Exception) -> tuple[Exit, str] | None:
    """Code and message of an exception that is no fault of ours; None for one that is.

    It imports what it compares with, so that a command that goes well does not pay for it.
    """
    if isinstance(error, Trouble):
        return error.code, str(error)
    for code, kinds in ((Exit.WRONG, _wrong()), (Exit.NO, _no()), (Exit.AWAY, _away())):
        if isinstance(error, kinds):
            return code, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return Exit.WRONG, f"{error.filename}: {error.strerror}"
    return None


def _wrong() -> tuple[type[Exception], ...]:
    from tallygate.connectors.clickhouse_questions import QuestionError
    from tallygate.connectors.client_errors import RefusedRequest
    from tallygate.connectors.usage_producer import BadEvents
    from tallygate.pipeline.scenario import ScenarioError
    from tallygate.schemas.catalog_file import CatalogError
    from tallygate.topologies.settings import SettingsError

    return (RefusedRequest, SettingsError, CatalogError, ScenarioError, BadEvents, QuestionError)


def _no() -> tuple[type[Exception], ...]:
    from tallygate.connectors.client_errors import Denied

    return (Denied,)


def _away() -> tuple[type[Exception], ...]:
    from tallygate.connectors.clickhouse import StoreError
    from tallygate.connectors.client_errors import TallygateError
    from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
    from tallygate.connectors.kafka_fetch import LocalKafkaError
    from tallygate.connectors.usage_producer import PublishFailed
    from tallygate.topologies.local_stack import StackError
    from tallygate.topologies.running import AlreadyRunning

    return (
        StoreError,
        TallygateError,
        KafkaRefused,
        KafkaUnreachable,
        LocalKafkaError,
        PublishFailed,
        StackError,
        AlreadyRunning,
    )
