"""`tallygate catalog` on a real broker: apply, diff, show, history; a version stays as it was applied.

The first test wants a topic without catalogs; the others go on from what there is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Producer

from kafka_fixture import Broker
from tallygate.schemas.catalog import Catalog, catalog_key, encode_catalog
from tallygate.schemas.topics import CATALOG
from tallygate.topologies.catalog_topic import catalog_version, newest_catalog, publish, versions
from tallygate.topologies.catalog_yaml import read_files
from tallygate.topologies.settings import Settings, load_settings

CARD = "features:\n  llm: {meters: [tokens], rates: [{meter: tokens, credits: %s}]}\n"
METERS = "meters:\n  tokens: {event_type: llm.call, value: tokens, dimensions: [team]}\n"


@pytest.fixture
def brokers(module_kafka: Broker) -> str:
    return module_kafka.bootstrap


@pytest.fixture
def settings(brokers: str, tmp_path: Path) -> Settings:
    return load_settings(kafka_brokers=brokers, data_dir=tmp_path / "data")


def tallygate(brokers: str, *arguments: object) -> tuple[int, str]:
    """The exit code, and all that a person sees."""
    done = subprocess.run(
        [sys.executable, "-m", "tallygate.topologies.cli", "catalog", *map(str, arguments), "--brokers", brokers],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    return done.returncode, done.stdout + done.stderr


def written(folder: Path, credits: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "meters.yaml").write_text(METERS)
    (folder / "features.yaml").write_text(CARD % credits)
    return folder


def test_a_catalog_lives_through_its_versions(brokers: str, settings: Settings, tmp_path: Path) -> None:
    folder = written(tmp_path / "catalog", "2.5")
    assert tallygate(brokers, "show") == (
        2,
        "tallygate: there is no catalog yet: apply one with `tallygate catalog apply FILE`\n",
    )
    code, text = tallygate(brokers, "diff", folder)
    assert (code, text.splitlines()[:2]) == (
        1,
        [
            "there is no catalog yet:",
            "  meter tokens: new: event_type llm.call, value tokens, dimensions (team)",
        ],
    )
    assert tallygate(brokers, "apply", folder) == (0, "catalog version 1 is in force: 1 meter, 1 feature, 1 rate\n")
    assert tallygate(brokers, "apply", folder) == (0, "unchanged: version 1 says the same\n")
    assert tallygate(brokers, "diff", folder) == (0, "no difference from version 1\n")

    written(folder, "3")
    change = "feature llm: rate of tokens: credits: 2.5 becomes 3"
    assert tallygate(brokers, "diff", folder) == (1, f"against version 1:\n  {change}\n")
    code, text = tallygate(brokers, "diff", folder, "--json")
    assert json.loads(text) == {
        "version": 1,
        "changes": [
            {
                "subject": ["feature", "llm", "rate of", "tokens"],
                "change": "changed",
                "field": "credits",
                "before": "2.5",
                "after": "3",
            }
        ],
    }
    code, text = tallygate(brokers, "apply", folder)
    assert (code, text.splitlines()[1:]) == (0, [f"  {change}"])

    written(folder, "oops")
    code, text = tallygate(brokers, "apply", folder)
    assert (code, text) == (
        2,
        f"tallygate: {folder}/features.yaml:2: features.llm.rates.0.credits: oops is no decimal number\n",
    )

    code, text = tallygate(brokers, "show", "--version", "1")
    (tmp_path / "shown.yaml").write_text(text)
    assert read_files(tmp_path / "shown.yaml").compile(1) == catalog_version(settings, 1)
    assert tallygate(brokers, "show", "--version", "9")[0] == 2

    code, text = tallygate(brokers, "history")
    first, second = text.splitlines()
    assert first.endswith("Z  1 meter, 1 feature, 1 rate")
    assert second.endswith(f"Z  {change}")


def test_of_two_applied_at_once_the_first_one_stays(brokers: str, settings: Settings, tmp_path: Path) -> None:
    applied = publish(settings, read_files(written(tmp_path / "one", "1"))).catalog
    stray = Catalog(version=applied.version, default_plan="stray")
    producer = Producer({"bootstrap.servers": brokers})
    producer.produce(CATALOG, encode_catalog(stray), catalog_key(stray.version), partition=0)
    producer.flush(10)
    assert newest_catalog(settings) == applied
    numbers = [each.catalog.version for each in versions(settings)]
    assert numbers == sorted(set(numbers))


def test_the_example_is_written_once_and_applies(brokers: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "catalog"
    example = [sys.executable, "-m", "tallygate.topologies.cli", "catalog", "example", str(folder)]
    assert subprocess.run(example, capture_output=True, timeout=60, check=False).returncode == 0
    again = subprocess.run(example, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, again.stderr) == (2, f"tallygate: {folder}/features.yaml exists: choose another folder\n")
    code, text = tallygate(brokers, "apply", folder)
    assert code == 0
    assert text.splitlines()[0].endswith("is in force: 7 meters, 4 features, 10 rates, 3 plans, 2 add-ons")
