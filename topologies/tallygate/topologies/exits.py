"""What the command line ends with: exit codes, and one line for every known trouble. No traceback reaches a person."""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    NO = 1
    WRONG = 2
    AWAY = 3
    BUG = 70
    INTERRUPTED = 130


MEANINGS: Final = {
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


#: By full name, so that no command imports what it does not use; a test imports them all.
CODES: Final = {
    "tallygate.connectors.client_errors.RefusedRequest": Exit.WRONG,
    "tallygate.connectors.clickhouse_questions.QuestionError": Exit.WRONG,
    "tallygate.connectors.usage_producer.BadEvents": Exit.WRONG,
    "tallygate.pipeline.scenario_fields.ScenarioError": Exit.WRONG,
    "tallygate.schemas.catalog_file.CatalogError": Exit.WRONG,
    "tallygate.topologies.settings.SettingsError": Exit.WRONG,
    "tallygate.connectors.client_errors.Denied": Exit.NO,
    "tallygate.connectors.client_errors.TallygateError": Exit.AWAY,
    "tallygate.connectors.clickhouse.StoreError": Exit.AWAY,
    "tallygate.connectors.kafka_admin.KafkaRefused": Exit.AWAY,
    "tallygate.connectors.kafka_admin.KafkaUnreachable": Exit.AWAY,
    "tallygate.connectors.kafka_fetch.LocalKafkaError": Exit.AWAY,
    "tallygate.connectors.usage_producer.PublishFailed": Exit.AWAY,
    "tallygate.topologies.local_stack.StackError": Exit.AWAY,
    "tallygate.topologies.running.AlreadyRunning": Exit.AWAY,
    "tallygate.topologies.sink_journal.JournalTrouble": Exit.AWAY,
    "tallygate.topologies.sql_server.NobodyAnswers": Exit.AWAY,
}


def explain(error: Exception) -> tuple[Exit, str] | None:
    """Code and message of an exception that is no fault of ours; None for one that is."""
    if isinstance(error, Trouble):
        return error.code, str(error)
    for kind in type(error).__mro__:
        code = CODES.get(f"{kind.__module__}.{kind.__qualname__}")
        if code is not None:
            return code, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return Exit.WRONG, f"{error.filename}: {error.strerror}"
    return None
