"""The command `alignkit label`. Importing this module imports neither torch nor a web server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignkit import InputError
from alignkit.commands import AsJson, Columns, column_names, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignkit import Group
    from alignkit_label.store import Said, Store

app = typer.Typer(
    help="Let people compare and rank responses, on a web page of this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Database = Annotated[Path, typer.Argument(metavar="DATABASE", help="The SQLite file with items and verdicts.")]
NewDatabase = Annotated[Path, typer.Option("--db", metavar="DATABASE", help="The SQLite file, made if need be.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Responses in any form that `dataset` reads, or JSON of "
                                      "Argilla or Label Studio.")]  # fmt: skip
Labels = Annotated[
    Literal["ignore", "keep", "gold"],
    typer.Option(help="What the file says of its responses: nobody sees it; it counts as said; or it is the gold."),
]
Names = Annotated[list[str] | None, typer.Option("--annotator", "-a", metavar="NAME", help="An annotator. Repeatable.")]
ExportForm = Annotated[
    Literal["groups", "pairs", "labels", "argilla", "label-studio"],
    typer.Option("--form", help="alignkit's groups, TRL's pairs or KTO labels, or the JSON of another program."),
]


@app.command("import")
def import_file(
    file: File,
    db: NewDatabase,
    labels: Labels = "ignore",
    columns: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Add responses to be judged."""
    from alignkit_label.exchange import read_records
    from alignkit_label.store import Store

    groups = [group for group in read_records(file, column_names(columns)) if len(set(group.responses)) > 1]
    if not groups:
        raise InputError("holds no two responses to one prompt", where=str(file), fix="alignkit preferences --sample 4")
    store = Store(db)
    before = len(store.items())
    store.add_items(groups, gold=labels == "gold")
    verdicts = store.take_over(_verdicts(store, groups)) if labels == "keep" else 0
    show({"read": len(groups), "new_items": len(store.items()) - before, "verdicts": verdicts}, as_json=as_json)


@app.command()
def serve(
    database: Database,
    annotator: Names = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    guidelines: Annotated[Path | None, typer.Option(metavar="FILE", help="A text that annotators can open.")] = None,
    overlap: Annotated[int | None, typer.Option(min=1, help="Annotators of an item.")] = None,
    overlap_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the items that so many judge; the others need one.")
    ] = None,
    gold_every: Annotated[int | None, typer.Option(min=1, help="One gold item in so many.")] = None,
    lease_minutes: Annotated[
        float | None, typer.Option(min=0.1, help="How long an item that was shown is kept for its annotator.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the order of responses and of what overlaps.")] = None,
) -> None:
    """Serve the page on 127.0.0.1, with a link for each annotator. Settings are kept for the next time."""
    from alignkit_label.server import HOST, listen
    from alignkit_label.server import serve as answer

    store = _existing(database)
    given: dict[str, Any] = {
        "overlap": overlap,
        "overlap_share": overlap_share,
        "gold_every": gold_every,
        "lease_minutes": lease_minutes,
        "seed": seed,
    }
    if guidelines is not None:
        given["guidelines"] = _text(guidelines)
    store.configure(**{name: value for name, value in given.items() if value is not None})
    listening = listen(port)
    for name in annotator or store.annotators() or ["annotator"]:
        link = f"http://{HOST}:{listening.getsockname()[1]}/#token={store.add_annotator(name)}"
        print(f"{name}: {link}", flush=True)
    print("Each link is its annotator's key. Ctrl-C ends.", flush=True)
    answer(store, listening)


@app.command()
def status(database: Database, as_json: AsJson = False) -> None:
    """Say what is labelled, what is missing, how long it took, and who got the gold items right."""
    from alignkit_label.records import status as counted

    show(counted(_existing(database)), as_json=as_json)


@app.command()
def export(
    database: Database,
    out: Annotated[Path, typer.Option(metavar="FILE", help="What to write.")],
    form: ExportForm = "groups",
    min_annotators: Annotated[int, typer.Option(min=1, help="People who must have judged an item.")] = 1,
    min_gold: Annotated[float, typer.Option(min=0, max=1, help="Gold items that they must get right, a share.")] = 0.0,
    with_gold: Annotated[bool, typer.Option("--with-gold", help="The gold items too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write what is labelled. `alignkit preferences report` reads agreement from the form `groups`."""
    from alignkit_label.exchange import rows_of, write_rows
    from alignkit_label.records import labelled

    found = labelled(_existing(database), min_annotators=min_annotators, min_gold=min_gold, with_gold=with_gold)
    rows = write_rows(out, rows_of(found.groups, form), form)
    show({"out": str(out), "rows": rows, "labelled": len(found.groups), "missing": found.missing,
          "left_out": found.left_out}, as_json=as_json)  # fmt: skip


@app.command()
def agreement(database: Database, as_json: AsJson = False) -> None:
    """Say how far the annotators agree: raw, Cohen's kappa of every two, Krippendorff's alpha; position bias; gold."""
    from alignkit_report.figures import figures

    from alignkit_label.records import gold_shares, labelled

    store = _existing(database)
    found = figures(labelled(store, with_gold=True).groups)
    shares = gold_shares(store.items(), store.said())
    result = {
        **{name: found["agreement"][name] for name in ("between", "alpha_people")},
        "position": found["position"],
        "gold_right": {name: share.to_json() for name, share in shares.items() if share.n},
    }
    if not as_json:
        result["between"] = {" and ".join(pair.pop("annotators")): pair for pair in result["between"]}
    show(result, as_json=as_json)


def _existing(path: Path) -> Store:
    from alignkit_label.store import Store

    if not path.expanduser().is_file():
        raise InputError("no such file", where=str(path), fix=f"make it: alignkit label import FILE --db {path}")
    return Store(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't be read: {error}", where=str(path), fix="name a text file") from error


def _verdicts(store: Store, groups: Sequence[Group]) -> Iterator[Said]:
    """What the groups' annotations, or their ranks alone, say of the store's items."""
    from alignkit.preferences import annotations_of
    from alignkit_label.store import Said, item_id

    items = {item.id: item.group for item in store.items()}
    for whole in groups:
        group = whole.without_duplicates()
        key = item_id(group)
        places = [group.responses.index(text) for text in items[key].responses]
        kept = group.choose(places)
        for one in annotations_of(kept):
            if one.kind == "ai":
                continue
            digest = hashlib.sha256(f"{key}:{one.annotator}:{one.ranks}".encode()).hexdigest()[:32]
            verdict: Any = "skip" if one.ranks is None else "ranked"
            reason = one.reason or ("skipped" if one.ranks is None else "")
            yield Said(digest, key, one.annotator, verdict, one.ranks, one.order, one.seconds, reason)
