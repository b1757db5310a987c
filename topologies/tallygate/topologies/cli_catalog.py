"""The commands about the catalog: apply, diff, show, history, import-prices, example."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallygate.topologies.cli_options import Brokers, DataDir, Json, print_json, settings_for
from tallygate.topologies.exits import Exit, Trouble

if TYPE_CHECKING:
    from tallygate.schemas.catalog import Catalog
    from tallygate.schemas.catalog_diff import Change

app = typer.Typer(
    no_args_is_help=True, help="What is metered, what it costs, what is sold: apply it, compare it, show it."
)

FileOrFolder = Annotated[
    Path, typer.Argument(metavar="FILE_OR_FOLDER", help="A YAML file, or a folder of them.", show_default=False)
]
_CHANGES_SHOWN = 20


@app.command()
def apply(path: FileOrFolder, brokers: Brokers = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Put a catalog in force as the next version. A broken one is refused whole; an unchanged one makes no version.

    \b
    tallygate catalog apply catalog.yaml
    tallygate catalog apply catalog/
    """
    from tallygate.schemas.catalog_diff import changes
    from tallygate.topologies.audit_log import audited
    from tallygate.topologies.catalog_topic import publish
    from tallygate.topologies.catalog_yaml import read_files

    file = read_files(path)
    settings = settings_for(brokers, data_dir)
    with audited(settings, "catalog.apply", "", {"from": path.name}) as change:
        done = publish(settings, file)
        change.target = f"version {done.catalog.version}"
    version = done.catalog.version
    if json:
        print_json({"version": version, "changed": done.changed})
    elif done.before is None:
        typer.echo(f"unchanged: version {version} says the same")
    else:
        typer.echo(f"catalog version {version} is in force: {_size(done.catalog)}")
        if done.before.version:
            _tell_changes(changes(done.before, done.catalog))


@app.command()
def diff(path: FileOrFolder, brokers: Brokers = None, data_dir: DataDir = None, json: Json = False) -> None:
    """What would change if this were applied. Ends with 0 for nothing and 1 for something, for scripts.

    \b
    tallygate catalog diff catalog/
    tallygate catalog diff catalog/ --json | jq .
    """
    from tallygate.schemas.catalog_diff import changes
    from tallygate.topologies.catalog_topic import newest_catalog
    from tallygate.topologies.catalog_yaml import read_files

    file = read_files(path)
    newest = newest_catalog(settings_for(brokers, data_dir))
    found = changes(newest, file.compile(newest.version))
    if json:
        print_json({"version": newest.version, "changes": found})
    elif found:
        typer.echo(f"against version {newest.version}:" if newest.version else "there is no catalog yet:")
        _tell_changes(found, len(found))
    else:
        typer.echo(f"no difference from version {newest.version}")
    if found:
        raise typer.Exit(Exit.NO)


@app.command()
def show(
    version: Annotated[int | None, typer.Option(min=1, help="An earlier version; default: the newest.")] = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show the catalog in force, or an earlier version, as YAML that can be applied again.

    \b
    tallygate catalog show > catalog.yaml
    tallygate catalog show --version 3 --json
    """
    from tallygate.topologies.catalog_topic import catalog_version, newest_catalog
    from tallygate.topologies.catalog_yaml import write_yaml

    settings = settings_for(brokers, data_dir)
    found = newest_catalog(settings) if version is None else catalog_version(settings, version)
    if found is None:
        raise Trouble(Exit.WRONG, f"there is no catalog version {version}")
    if not found.version:
        raise _none_yet()
    if json:
        print_json(found)
    else:
        typer.echo(f"# catalog version {found.version}\n{write_yaml(found)}", nl=False)


@app.command()
def history(brokers: Brokers = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Every version: when it was applied, and what it changed.

    \b
    tallygate catalog history
    """
    from tallygate.schemas.catalog import EMPTY
    from tallygate.schemas.catalog_diff import changes, summary
    from tallygate.schemas.instants import format_instant
    from tallygate.topologies.catalog_topic import versions

    found = versions(settings_for(brokers, data_dir))
    if not found:
        raise _none_yet()
    lines = []
    before = EMPTY
    for catalog, at in found:
        what = summary(changes(before, catalog)) if before.version else _size(catalog)
        lines.append({"version": catalog.version, "at": format_instant(at - at % 1000), "summary": what})
        before = catalog
    if json:
        print_json(lines)
    else:
        for line in lines:
            typer.echo("{version:>4}  {at}  {summary}".format_map(line))


@app.command("import-prices")
def import_prices(
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", "-p", help="Like anthropic, openai, google; may be repeated.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model as your events name it; may be repeated. Default: every model of the providers.",
            show_default=False,
        ),
    ] = None,
    credits_per_usd: Annotated[str, typer.Option(help="How many credits one US dollar is.")] = "1",
    markup: Annotated[str, typer.Option(metavar="PERCENT", help="Added to every price.")] = "0",
    feature: Annotated[str, typer.Option(help="The feature that has the meters.")] = "llm",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; default: standard output.")
    ] = None,
    list_providers: Annotated[bool, typer.Option("--list", help="List the providers, or their models.")] = False,
) -> None:
    """Make a rate card from the model prices of the package genai-prices: a YAML file to put beside your catalog's.

    \b
    tallygate catalog import-prices -p anthropic --credits-per-usd 100 --markup 20 -o catalog/prices.yaml
    tallygate catalog import-prices -p openai -m gpt-4o -m gpt-4o-mini
    tallygate catalog import-prices --list
    """
    from tallygate.topologies.model_prices import PriceCard, catalogue, rate_card

    if list_providers:
        for line in catalogue(provider or []):
            typer.echo(line)
        return
    card = PriceCard(
        providers=tuple(provider or ()),
        models=tuple(model or ()),
        credits_per_usd=_number(credits_per_usd, "--credits-per-usd"),
        markup_percent=_number(markup, "--markup"),
        feature=feature,
    )
    text = rate_card(card, datetime.now(UTC).date())
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        typer.echo(f"{output}: {text.count('meter: ')} rates; check it with `tallygate catalog diff`")


@app.command()
def example(
    folder: Annotated[Path, typer.Argument(help="Where to; the folder is made.", show_default=False)],
) -> None:
    """Write a ready-made catalog for an AI product, to change and apply: free, pro and enterprise.

    \b
    tallygate catalog example catalog/
    tallygate catalog apply catalog/
    """
    from tallygate.topologies.catalog_example import example_files

    files = example_files()
    for name in files:
        if (folder / name).exists():
            raise Trouble(Exit.WRONG, f"{folder / name} exists: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        typer.echo(folder / name)


def _tell_changes(found: "tuple[Change, ...]", shown: int = _CHANGES_SHOWN) -> None:
    for change in found[:shown]:
        typer.echo(f"  {change.text}")
    if len(found) > shown:
        typer.echo(f"  and {len(found) - shown} more")


def _size(catalog: "Catalog") -> str:
    counted = (
        ("meter", len(catalog.meters)),
        ("feature", len(catalog.features)),
        ("rate", sum(len(feature.rates) for feature in catalog.features)),
        ("plan", len(catalog.plans)),
        ("add-on", len(catalog.add_ons)),
    )
    return ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for word, number in counted if number) or "empty"


def _none_yet() -> Trouble:
    return Trouble(Exit.WRONG, "there is no catalog yet: apply one with `tallygate catalog apply FILE`")


def _number(text: str, option: str) -> int:
    from tallygate.schemas.amounts import AmountError, quantity_nanos

    try:
        return quantity_nanos(text)
    except AmountError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
