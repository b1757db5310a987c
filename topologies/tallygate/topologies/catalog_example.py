"""A ready-made catalog for an AI product, as files to start from."""

from importlib.resources import files


def example_files() -> dict[str, str]:
    """Name → text of each file."""
    folder = files("tallygate.topologies").joinpath("example_catalogs", "ai-product")
    return {
        each.name: each.read_text(encoding="utf-8") for each in sorted(folder.iterdir(), key=lambda each: each.name)
    }
