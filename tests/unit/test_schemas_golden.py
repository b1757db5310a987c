"""Golden files: what is on the wire today is read tomorrow.

A `minimal` file never changes once released: it is what a writer sent before a later field existed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tallygate.schemas import export, samples, samples_catalog, samples_requests
from tallygate.schemas.answers import decode_answer
from tallygate.schemas.audit import decode_audit
from tallygate.schemas.catalog import decode_catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import BATCH, UsageEvent, decode_events
from tallygate.schemas.journal import DecisionRecord, decode_record
from tallygate.schemas.keys import decode_keyed
from tallygate.schemas.ledger import Posting
from tallygate.schemas.published import decode_published
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import parse_request
from tallygate.schemas.samples_requests import Sample

#: Names of samples and how their bytes are read in production; the longest fitting prefix holds.
READERS: dict[str, Callable[[bytes], Any]] = {
    "usage-event": lambda value: decode_events(value, {})[0],
    "request-": parse_request,
    "answer": decode_answer,
    "posting": msgspec.json.Decoder(Posting).decode,
    "decision": msgspec.json.Decoder(DecisionRecord).decode,
    "row-": decode_record,
    "entry": decode_record,
    "published-": decode_published,
    "catalog": decode_catalog,
    "key": decode_keyed,
    "audit": decode_audit,
}
BOTH = [
    pytest.param(sample, form, id=f"{sample.name}.{form}") for sample in samples.SAMPLES for form in ("full", "minimal")
]
EACH = [pytest.param(sample, id=sample.name) for sample in samples.SAMPLES]
#: Checked by hand, with a reason of its own, instead of by the type.
REQUIRED_BY_HAND = "subject"
#: Another way to write `data`; after reading it is never set.
NEVER_READ = "data_base64"


def optional_fields(record: msgspec.Struct) -> list[msgspec.structs.FieldInfo]:
    fields = msgspec.structs.fields(record)
    return [f for f in fields if not f.required and f.name not in (REQUIRED_BY_HAND, NEVER_READ)]


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def reader(sample: Sample) -> Callable[[bytes], Any]:
    return next(read for prefix, read in READERS.items() if sample.name.startswith(prefix))


def golden(name: str) -> bytes:
    return export.GOLDEN_FOLDER.joinpath(name).read_bytes()


def comparable(value: Any) -> Any:
    """A decoded sample as JSON: numbers in an event's data may be strings, and `Raw` does not compare."""
    return msgspec.json.decode(msgspec.json.encode(value))


def test_nothing_generated_is_stale() -> None:
    assert export.stale_files() == []


@pytest.mark.parametrize(("sample", "form"), BOTH)
def test_golden_bytes_decode_to_the_sample_and_back(sample: Sample, form: str) -> None:
    written = golden(f"{sample.name}.{form}.json")
    found = reader(sample)(written)
    assert type(found) is type(getattr(sample, form))
    assert msgspec.json.encode(found) == written


def records_within(value: Any) -> Iterator[msgspec.Struct]:
    """A record and every record in it."""
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from records_within(getattr(value, name))
    elif isinstance(value, tuple):
        for part in value:
            yield from records_within(part)


def test_the_full_samples_set_every_field() -> None:
    """A new field that no sample sets would have no golden bytes."""
    unset: dict[str, set[str]] = {}
    for sample in samples.SAMPLES:
        for record in records_within(sample.full):
            left = {f.name for f in optional_fields(record) if getattr(record, f.name) == default_of(f)}
            name = type(record).__name__
            unset[name] = unset.get(name, left) & left
    assert {name: fields for name, fields in unset.items() if fields} == {}


@pytest.mark.parametrize("sample", EACH)
def test_the_minimal_sample_sets_only_what_it_must(sample: Sample) -> None:
    fields = optional_fields(sample.minimal)
    assert [f.name for f in fields if getattr(sample.minimal, f.name) != default_of(f)] == []


@pytest.mark.parametrize("sample", EACH)
def test_bytes_written_before_a_field_existed_decode(sample: Sample) -> None:
    optional = [field.name for field in optional_fields(sample.full)]
    whole = msgspec.json.decode(golden(f"{sample.name}.full.json"))
    shorter: list[Any]
    if isinstance(whole, list):
        shorter = [whole[: len(whole) - n] for n in range(1, len(optional) + 1)]
    else:
        shorter = [{k: v for k, v in whole.items() if k != name} for name in optional]
    for older in shorter:
        found = reader(sample)(msgspec.json.encode(older))
        assert type(found) is type(sample.full)


@pytest.mark.parametrize("sample", EACH)
def test_bytes_with_a_field_of_tomorrow(sample: Sample) -> None:
    """Readers of records ignore it; a request with it is refused, because it may be a misspelt limit."""
    whole = msgspec.json.decode(golden(f"{sample.name}.full.json"))
    newer = msgspec.json.encode([*whole, "new"] if isinstance(whole, list) else {**whole, "of_tomorrow": {"new": [1]}})
    if sample in samples_requests.REQUESTS:
        with pytest.raises(Refused, match="of_tomorrow") as refused:
            reader(sample)(newer)
        assert refused.value.reason is Reason.MALFORMED
    else:
        assert comparable(reader(sample)(newer)) == whole


def test_nested_records_take_fields_of_tomorrow_too() -> None:
    entry = msgspec.json.decode(golden("entry.full.json"))
    whole = msgspec.json.encode(entry)
    for name in ("causes", "postings", "usage", "balances", "seen", "counted"):
        entry[name] = [[*leg, "new"] for leg in entry[name]]
    for name in ("decisions", "alerts"):
        entry[name][0]["of_tomorrow"] = 1
    assert comparable(decode_record(msgspec.json.encode(entry))) == msgspec.json.decode(whole)


def test_the_batch_and_binary_forms_hold_the_same_events() -> None:
    full, minimal = (golden(f"usage-event.{form}.json") for form in ("full", "minimal"))
    expected: tuple[UsageEvent, ...] = (*decode_events(full, {}), *decode_events(minimal, {}))
    assert decode_events(golden("usage-event.batch.json"), {"content-type": BATCH}) == expected
    binary = msgspec.json.decode(golden("usage-event.binary.json"))
    headers = {name: text.encode() for name, text in binary["headers"].items()}
    assert decode_events(binary["value"].encode(), headers) == expected[:1]


def test_the_sample_catalog_file_says_the_same_as_the_catalog_record() -> None:
    compiled = read_catalog(samples_catalog.FILE, "sample").compile(3)
    assert compiled == samples.CATALOG.full


def test_check_names_what_is_not_current(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(export, "CHECKOUT", tmp_path)
    monkeypatch.setattr(export, "SCHEMA_FOLDER", tmp_path / "json")
    monkeypatch.setattr(export, "GOLDEN_FOLDER", tmp_path / "golden")
    assert export.main(["--check"]) == 2
    assert "no checkout" in capsys.readouterr().err

    (tmp_path / "pyproject.toml").touch()
    assert export.main([]) == 0
    assert export.main(["--check"]) == 0
    (tmp_path / "golden" / "answer.full.json").write_bytes(b"{}")
    (tmp_path / "json" / "posting.schema.json").unlink()
    (tmp_path / "golden" / "left-over.json").touch()
    capsys.readouterr()
    assert export.main(["--check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [
        "json/posting.schema.json",
        "golden/answer.full.json",
        "golden/left-over.json",
    ]
