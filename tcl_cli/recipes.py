"""`tcl recipes`: find, read, copy and check training recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tcl_cli._console import out as console
from tcl_cli._options import OUTPUT_PANEL, App, JsonOption, argument, complete_recipe, complete_setting, option

EPILOG = """\
[bold]Examples[/]

  tcl recipes ls
  tcl recipes cp demo mine.yaml
  tcl recipes validate mine.yaml optim.lr=2.0e-4
  tcl pretrain mine.yaml --data captions.jsonl
"""

app = App(help="Find, read, copy and check training recipes.", no_args_is_help=True, epilog=EPILOG)

RecipeArgument = Annotated[
    str,
    argument(metavar="RECIPE", help="The name of a shipped recipe, or a path.", autocompletion=complete_recipe),
]
OverridesArgument = Annotated[
    list[str] | None,
    argument(
        metavar="[KEY=VALUE]...", help="Settings to change, e.g. optim.lr=2.0e-4", autocompletion=complete_setting
    ),
]


@app.command()
def ls(json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from tcl.config.files import shipped_recipes

    recipes = shipped_recipes()
    if json:
        console.json({"recipes": [{"name": name, "path": str(path)} for name, path in recipes.items()]})
        return
    console.table(
        ["recipe", "for", "what it is"], [[name, path.parent.name, _title(path)] for name, path in recipes.items()]
    )
    console.hint("tcl recipes show NAME")


@app.command()
def show(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resolved: Annotated[
        bool, option("--resolved", help="Every setting with its value, defaults included.", panel=OUTPUT_PANEL)
    ] = False,
    keys: Annotated[bool, option("--keys", help="Every setting with what it means.", panel=OUTPUT_PANEL)] = False,
) -> None:
    """Print a recipe."""
    from tcl.config.files import find_recipe
    from tcl.config.recipe import load_recipe, settings

    loaded = load_recipe(recipe, overrides or [])
    if keys:
        values = loaded.model_dump()
        console.table(["setting", "value", "meaning"], [[key, _value(values, key), text] for key, text in settings()])
    elif resolved or overrides:
        console.data(loaded.to_yaml().rstrip())
    else:
        console.data(find_recipe(recipe).read_text(encoding="utf-8").rstrip())


@app.command()
def cp(
    recipe: RecipeArgument,
    target: Annotated[Path, argument(metavar="FILE", help="A new file, or a folder.")],
) -> None:
    """Copy a recipe, to change it."""
    from tcl.config.files import find_recipe
    from tcl.errors import UsageError

    source = find_recipe(recipe)
    target = target / source.name if target.is_dir() else target
    if target.suffix not in (".yaml", ".yml"):
        target = target.with_name(target.name + ".yaml")
    if target.exists():
        raise UsageError(f"{target}: exists", hint="choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}", hint="choose another folder") from error
    console.data(str(target))
    console.hint(f"change it, then: tcl recipes validate {target}")


@app.command()
def validate(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Check a recipe; report everything that is wrong with it at once."""
    from tcl.config.recipe import load_recipe

    load_recipe(recipe, overrides or [])
    console.data(f"{recipe}: valid")


def _title(path: Path) -> str:
    """What a recipe is for, else its command; it opens with `# COMMAND   # what it is for`.

    A command of several lines has a backslash at the end of each but the last.
    """
    command = ""
    with path.open(encoding="utf-8") as file:
        for line in file:
            command += line.strip().removeprefix("#").strip()
            if not command.endswith("\\"):
                break
            command = command.removesuffix("\\")
    return command.rpartition(" # ")[2].strip()


def _value(values: dict[str, object], key: str) -> object:
    found: object = values
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    return found
