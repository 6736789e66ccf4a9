"""The documentation names modules, flags, config fields and files that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "drenet_jax"
PAGES = sorted(
    {
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("launch/**/*.sh"),
        *REPOSITORY.glob("launch/**/*.yaml"),
        *REPOSITORY.glob("launch/**/Dockerfile"),
        *REPOSITORY.glob("studies/*.sh"),
        *PACKAGE.glob("*.py"),
    }
)
# Where a path on a page may start.
ROOTS = (REPOSITORY, PACKAGE, REPOSITORY / "docs", REPOSITORY / "tests")
FLAG_DEFINITION = r'(?:DEFINE_\w+\(\s*"|add_argument\("--)(\w+)"'


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def text(request) -> str:
    """A page, with commands on one line each."""
    return request.param.read_text(encoding="utf-8").replace("\\\n", " ")


def _flags(command: str) -> set[str]:
    """The flags that a command defines, itself or by the functions that commands share."""
    source = PACKAGE.joinpath(*command.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    if command == "benchmark":
        source = (REPOSITORY / "benchmarks" / "__main__.py").read_text(encoding="utf-8")
    shared = (PACKAGE / "cli.py").read_text(encoding="utf-8")
    names = set(re.findall(FLAG_DEFINITION, source)) | {"help", "config"}
    for function in re.findall(r"cli\.(define_\w+)", source):
        body = re.search(rf"\ndef {function}\(.*?(?=\ndef |\Z)", shared, re.S)
        assert body, function
        names |= set(re.findall(FLAG_DEFINITION, body[0]))
    return names


def _config_fields() -> set[str]:
    fields = set()
    for file in (REPOSITORY / "configs").glob("[a-z]*.py"):
        if file.stem == "augmentation":  # presets
            continue
        config = importlib.import_module(f"drenet_jax.configs.{file.stem}").get_config()
        for name, value in config.items():
            fields.add(name)
            if hasattr(value, "keys"):
                fields |= {f"{name}.{field}" for field in value}
    return fields


def test_modules_exist(text):
    for name in re.findall(r"\bpython -m (drenet_jax[\w.]*\w)", text):
        assert REPOSITORY.joinpath(*name.split(".")).with_suffix(".py").is_file(), name


def test_flags_exist(text):
    for command, rest in re.findall(r"\bpython -m drenet_jax\.([\w.]*\w)([^\n`|#;&]*)", text):
        rest = re.sub(r'"[^"]*"', "", rest)
        for flag in re.findall(r"--(?:no)?(\w+)", rest):
            assert flag in _flags(command) or f"no{flag}" in _flags(command), (command, flag)


def test_config_fields_exist(text):
    fields = _config_fields()
    groups = {field.partition(".")[0] for field in fields if "." in field}
    named = set(re.findall(r"--config\.(\w+(?:\.\w+)?)(?=[= ])", text))
    files = r"\.(py|sh|csv|json|ckpt|onnx|stablehlo)$"
    named |= {
        field
        for field in re.findall(r"`(\w+\.\w+)(?:`| = |=)", text)
        if field.partition(".")[0] in groups and not re.search(files, field)
    }
    assert named <= fields | {"group.field"}


def test_files_exist(text):
    for path in re.findall(
        r"(?<![$\w])((?:[\w.]+/)+[\w.]+\.(?:py|sh|md|ipynb|png|cff))\b(?![*/])", text
    ):
        if "NAME" not in path:
            assert any((root / path).exists() for root in ROOTS), path


def test_links_of_the_front_pages_exist():
    for page in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
