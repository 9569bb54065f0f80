"""What the documents list is what the code has."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import torch
from typer.core import TyperGroup
from typer.main import get_command

from benchmarks import sizing
from benchmarks.__main__ import BY_HAND
from models.networks.cost import cost
from models.networks.registry import ARCHITECTURES, build
from service.foundation.errors import ServiceError
from service.foundation.settings import Settings
from service.http.app import create_app
from training.cli.commands import app as training
from training.evaluation import PROTOCOLS
from training.recipe import load, shipped
from training.recipe.terms import DistillationTerm, OwnTerm
from training.rendering.recipe import RenderRecipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])

CALL = re.compile(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^` ]*)`")
NOT_IN_OPENAPI = {"GET /openapi.json", "GET /docs", "GET /"}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """From the heading to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found is not None, f"there is no section {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every call of the OpenAPI document, as `GET /galleries`."""
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))
    return {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }


def documented_settings() -> dict[str, str]:
    """Defaults as the table of settings gives them, by the settings' names."""
    rows = re.findall(
        r"^\| `GAITID_(\w+)` \| (.*?) \|", section(page("operations.md"), "Settings"), re.MULTILINE
    )
    return {name.lower(): default for name, default in rows}


def test_the_table_of_settings_lists_every_setting_and_no_other() -> None:
    assert set(documented_settings()) == set(Settings.model_fields)


def test_the_table_of_settings_gives_the_real_defaults() -> None:
    for name, documented in documented_settings().items():
        default = Settings.model_fields[name].default
        if default is None or name.endswith(("_models_dir", "recipes_dir")):
            continue  # said in words
        number, _, unit = documented.strip("`").partition(" ")
        if unit in UNITS:
            assert default == int(number) * UNITS[unit], name
        elif isinstance(default, bool):
            assert documented == f"`{str(default).lower()}`", name
        elif isinstance(default, int | float):
            assert default == float(number), name
        elif isinstance(default, tuple):
            assert documented == "`[]`", name
            assert default == ()
        else:
            assert documented == f"`{default}`", name


def test_the_table_of_calls_lists_every_call_and_no_other(calls: set[str]) -> None:
    documented = set(CALL.findall(section(page("api.md"), "Calls")))
    assert documented - NOT_IN_OPENAPI == calls


def test_every_kind_of_problem_is_in_the_table_of_errors() -> None:
    named = {
        slug
        for file in (ROOT / "service").rglob("*.py")
        for slug in re.findall(r'\bslug="([a-z-]+)"', file.read_text(encoding="utf-8"))
    }
    kinds = {kind.slug for kind in every_error(ServiceError)}
    listed = section(page("api.md"), "Errors")
    assert named
    assert named | kinds <= set(re.findall(r"`([a-z-]+)`", listed))


def every_error(kind: type[ServiceError]) -> set[type[ServiceError]]:
    return {kind}.union(*(every_error(narrower) for narrower in kind.__subclasses__()))


def test_every_recipe_is_named() -> None:
    recipes = {file.stem for file in (ROOT / "training" / "recipes").glob("*.toml")}
    assert recipes
    assert recipes <= set(re.findall(r"`([\w-]+)`", page("training.md")))


def test_the_table_of_architectures_gives_their_embeddings_and_cost() -> None:
    table = section(page("training.md"), "Architectures")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) × (\d+) \| ([\d.]+), ([\d.]+)", table, re.MULTILINE)
    found = {}
    with torch.device("meta"):
        for name in ARCHITECTURES:
            network = build(name, {})
            size = cost(network)
            found[name] = (
                (str(network.parts), str(network.channels)),
                f"{size.embedding_parameters / 1e6:.2f}",
                f"{size.macs_per_frame / 1e9:.2f}",
            )
    assert {row[0]: ((row[1], row[2]), row[3], row[4]) for row in rows} == found


def test_the_table_of_recipes_gives_their_steps() -> None:
    table = section(page("training.md"), "Recipes")
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \|$", table, re.MULTILINE)
    assert {name: int(steps.replace(",", "")) for name, steps in rows} == {
        name: load(name).steps for name in shipped()
    }


def test_the_table_of_rendered_datasets_gives_their_people_and_walks() -> None:
    table = section(page("training.md"), "Rendered walkers")
    rows = re.findall(r"^\| `(render-[\w-]+)` \| ([\d,]+) \| ([^|]*) \|", table, re.MULTILINE)
    found = {name: [int(n.replace(",", "")), *numbers(walks)] for name, n, walks in rows}
    recipes = {
        file.stem: RenderRecipe.load(file)
        for file in (ROOT / "training" / "recipes").glob("render-*.toml")
    }
    assert found == {
        name: [r.identities, r.walks.normal, r.walks.bag, r.walks.coat]
        for name, r in recipes.items()
    }


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def training_commands() -> dict[str, set[str]]:
    """The options of every command of `python -m training`."""
    group = get_command(training)
    assert isinstance(group, TyperGroup)
    return {
        name: {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
            if option.startswith("--")
        }
        for name, command in group.commands.items()
    }


def test_every_command_of_training_and_each_of_its_options_is_named() -> None:
    text = page("training.md")
    listed = re.findall(r"`([\w-]+)`", text[: text.index("What a distillation")])
    commands = training_commands()
    assert set(listed) == set(commands)
    for name, options in commands.items():
        for option in options:
            if option.startswith("--no-") and f"--{option[5:]}" in options:
                continue  # said with the other of the two, where it matters
            assert re.search(rf"{option}\b", text), f"{name} {option}"


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_training_in_documents_exist_with_their_options(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    commands = training_commands()
    call = r"python -m training ([a-z-]+)((?:\\\n|[^`\n#])*)"
    signature = r"`python -m training ([a-z-]+)([^`]*)`"
    for name, rest in re.findall(call, text) + re.findall(signature, text):
        assert name in commands, name
        assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= commands[name], name


def test_every_benchmark_is_named() -> None:
    text = page("benchmarks.md")
    scripts = {
        file.stem
        for file in (ROOT / "benchmarks").glob("*.py")
        if 'if __name__ == "__main__"' in file.read_text("utf-8") and file.stem != "__main__"
    }
    assert scripts == set(re.findall(r"`python -m benchmarks\.(\w+)`", text))
    assert text.endswith(BY_HAND.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_that_is_asked_for_help_measures_nothing(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"benchmarks.{script}")
    if not hasattr(module, "main"):
        return  # what the scripts share
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as leaving:
        module.main()
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script}")


def test_the_sizing_page_has_what_the_measurements_say() -> None:
    assert sizing.page(sizing.Measured.read(), sizing.RATE) in page("sizing.md")


def test_every_protocol_is_described() -> None:
    described = re.findall(r"^\| `([\w-]+)` \|", section(page("training.md"), "evaluate"), re.M)
    assert set(described) == set(PROTOCOLS)


def test_every_term_of_an_objective_is_described() -> None:
    kinds = {
        get_args(term.model_fields["kind"].annotation)[0]
        for term in (*get_args(OwnTerm), *get_args(DistillationTerm))
    }
    table = section(page("distillation.md"), "How a recipe says it")
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == kinds


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_and_sections_resolve(source: Path) -> None:
    text = re.sub(r"^```.*?^```", "", source.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (source.parent / name).resolve() if name else source
        assert file.exists(), f"{source.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{source.name}: {target}"


def anchors(file: Path) -> set[str]:
    """The sections' ids as GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
