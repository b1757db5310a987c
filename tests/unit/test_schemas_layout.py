"""What the sources may not hold, and what the wheel must."""

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORTIONS = ("schemas", "pipeline", "topologies", "connectors")
EXACT = sorted(path for portion in ("schemas", "pipeline") for path in (ROOT / portion).rglob("*.py"))


def binary_fractions(source: str) -> Iterator[tuple[int, str]]:
    """Line and kind of everything that makes or names a float."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id="float" | "complex") | ast.Attribute(attr="float"):
                yield node.lineno, "the name float"
            case ast.Constant(value=float() | complex()):
                yield node.lineno, "a float literal"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield node.lineno, "a true division"


@pytest.mark.parametrize("path", EXACT, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_float_near_a_balance(path: Path) -> None:
    assert list(binary_fractions(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("x: float = y", ["the name float"]),
        ("isinstance(x, float)", ["the name float"]),
        ("builtins.float(x)", ["the name float"]),
        ("x = 1.0", ["a float literal"]),
        ("x = 1e3", ["a float literal"]),
        ("x = a / b", ["a true division"]),
        ("a /= b", ["a true division"]),
        ("x = a // b; y = Decoder(float_hook=Decimal); z = 'float'", []),
    ],
)
def test_the_ban_sees_floats(source: str, kinds: list[str]) -> None:
    assert [kind for _, kind in binary_fractions(source)] == kinds


def test_tallygate_stays_a_namespace_package() -> None:
    """An `__init__.py` in one portion would hide the other three."""
    for portion in PORTIONS:
        found = {path.name for path in (ROOT / portion / "tallygate").iterdir()} - {"__pycache__"}
        assert found == {portion}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    sources = {
        str(path.relative_to(ROOT / portion))
        for portion in PORTIONS
        for path in (ROOT / portion / "tallygate").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == sources


@pytest.mark.parametrize("portion", PORTIONS)
def test_the_wheel_says_that_each_portion_is_typed(wheel: zipfile.ZipFile, portion: str) -> None:
    assert {f"tallygate/{portion}/__init__.py", f"tallygate/{portion}/py.typed"} <= set(wheel.namelist())


def test_the_wheel_holds_the_json_schemas_and_the_license(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "tallygate/schemas/json/request.schema.json" in names
    (license,) = (name for name in names if name.endswith("licenses/LICENSE"))
    assert wheel.read(license) == (ROOT / "LICENSE").read_bytes()


def test_the_license_is_the_whole_standard_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text
    assert text.rstrip().endswith("limitations under the License.")
