"""The commands `models list`, `add` and `remove`: which models are on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from sunzip.cli.options import anon_option, json_option
from sunzip.cli.output import natural, result
from sunzip.cli.program import need_command
from sunzip.display import NONE, count, fields, size, table
from sunzip.errors import SunzipError

if TYPE_CHECKING:
    from sunzip.weights import AddReport, Model


@click.group(
    short_help="Look after the models on this machine.",
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.pass_context
def models(ctx: click.Context) -> None:
    """Look after the models on this machine."""
    need_command(ctx)


@models.command("list", short_help="List the models on this machine.")
@json_option
def list_models(as_json: bool) -> None:
    """List the models on this machine: those that came with sunzip, and those that were added."""
    from sunzip import added, weights

    rows: list[dict[str, Any]] = []
    for folder in weights.installed():
        row = {"name": folder.name, "added": False, "default": folder.name == weights.DEFAULT}
        rows.append(row | {"path": str(folder)} | _told(partial(weights.read_folder, folder)))
    own: list[dict[str, Any]] = []
    names = weights.names_of_added()
    for entry in added.entries():
        row = {"name": names.get(entry.sha256), "added": True, "default": False}
        # Its folder tells the sha256 even where the files do not.
        row |= {"path": str(entry.path), "sha256": entry.sha256}
        own.append(row | _told(partial(weights.read_added, entry, keep=False)))
    rows += sorted(own, key=lambda row: (row["name"] is None, row["name"], row["sha256"]))
    result(as_json, {"models": rows}, _listed(rows, str(added.folder())))


def _told(read: Callable[[], Model]) -> dict[str, Any]:
    """Return what is to be told of a model, or what is wrong with it."""
    try:
        model = read()
        # A copy that broke off is told by nothing else.
        model.check()
    except SunzipError as error:
        return {"problem": str(error)}
    return {
        "family": model.family,
        "sha256": model.sha256,
        "bytes": model.nbytes,
        "parameters": natural(model.config.get("parameters")),
    }


def _listed(rows: list[dict[str, Any]], folder: str) -> Iterator[str]:
    if not rows:
        yield "no model on this machine"
        return
    good = [row for row in rows if "problem" not in row]
    yield from table(
        ["name", "family", "size", "parameters", "sha256", ""],
        [
            [
                row["name"] or NONE,
                row["family"],
                size(row["bytes"]),
                NONE if row["parameters"] is None else count(row["parameters"]),
                row["sha256"][:12],
                "default" if row["default"] else "added" if row["added"] else "",
            ]
            for row in good
        ],
        indent="",
    )
    for row in rows:
        if "problem" in row:
            yield f"{row['name'] or row['sha256'][:12]}: {row['problem']}"
    if any(row["added"] for row in rows):
        yield f"added: in {folder}"


@models.command(short_help="Add a model to those of this machine.")
@click.argument("src", metavar="SRC")
@click.option("--name", metavar="NAME", help="What to call it; default what it calls itself.")
@click.option(
    "--sha256", metavar="HEX", help="Refuse another model than this; its first 12 digits are enough."
)
@anon_option
@click.option("--force", is_flag=True, help="Take the name from the model that was added under it before.")
@json_option
def add(src: str, name: str | None, sha256: str | None, anon: bool, force: bool, as_json: bool) -> None:
    """Add a model to those of this machine, to be named in any command and found for archives that it coded.

    SRC is a folder as `sunzip train` writes it, or an archive that embeds its model; a path or a URL. The
    model is kept in a folder of yours, or where the environment variable SUNZIP_MODELS says.
    """
    from sunzip import api

    report = api.add_model(src, name=name, sha256=sha256, anon=anon, force=force)
    result(as_json, report.as_dict(), _added(report))


def _added(r: AddReport) -> Iterator[str]:
    yield f"{r.name} {'was added' if r.new else 'is on this machine already'}"
    yield from fields(
        [("family", r.family), ("sha256", r.sha256), ("size", size(r.bytes)), ("folder", r.path)]
    )
    if r.instead_of:
        yield f"  what was called so before is found by its sha256, {r.instead_of[:12]}"


@models.command(short_help="Remove a model that was added.")
@click.argument("model", metavar="NAME|SHA256")
@json_option
def remove(model: str, as_json: bool) -> None:
    """Remove a model that was added, by its name or its sha256, of which 12 digits are enough.

    Archives that it coded and do not hold it cannot be decoded then, until it is added again.
    """
    from sunzip import weights

    path = weights.remove(model)
    result(as_json, {"removed": str(path)}, [f"{model} was removed from {path.parent}"])
