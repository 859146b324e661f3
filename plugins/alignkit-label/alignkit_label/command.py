"""The command `alignkit label`. Importing this module imports neither torch nor a web server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignkit import InputError, visible
from alignkit.commands import AsJson, Columns, column_names, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignkit import Group
    from alignkit_label.store import Said, Store

app = typer.Typer(
    help="Let people compare and rank responses on a local web page.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Database = Annotated[Path, typer.Argument(metavar="DATABASE", help="The SQLite file with items and verdicts.")]
NewDatabase = Annotated[Path, typer.Option("--db", metavar="DATABASE", help="The SQLite file; created if missing.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Responses in any form that `dataset` reads, or JSON from "
                                      "Argilla or Label Studio.")]  # fmt: skip
Labels = Annotated[
    Literal["ignore", "keep", "gold"],
    typer.Option(
        help="People's labels in the file: ignore them, keep them as verdicts, or use them as gold answers. AIs'"
        " verdicts always stay on the record, and no annotator sees them."
    ),
]
Audited = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a file of preferences.")]
Names = Annotated[list[str] | None, typer.Option("--annotator", "-a", metavar="NAME", help="An annotator. Repeatable.")]
ExportForm = Annotated[
    Literal["groups", "pairs", "labels", "argilla", "label-studio"],
    typer.Option("--form", help="alignkit's groups, TRL's pairs, KTO's labels, or JSON for another program."),
]


@app.command("import")
def import_file(
    file: File,
    db: NewDatabase,
    labels: Labels = "ignore",
    columns: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Add responses to judge.

    Examples:
        alignkit label import samples.jsonl --db labels.sqlite
    """
    from alignkit_label.exchange import read_records
    from alignkit_label.store import Store

    left_out: dict[str, int] = {}
    read = read_records(file, column_names(columns), left_out)
    groups = [group for group in read if len(set(group.responses)) > 1]
    left_out["equal responses"] = len(read) - len(groups)
    if not groups:
        raise InputError(
            "no prompt has two different responses",
            where=str(file),
            fix="sample some: alignkit preferences RECIPE --preferences candidates --sample 4 --out FILE",
        )
    store = Store(db)
    before = len(store.items())
    try:
        store.add_items(groups, gold=labels == "gold")
    except InputError as error:
        raise InputError(error.what, where=f"{file}, {error.where}", fix=error.fix) from error
    verdicts = store.take_over(_verdicts(store, groups)) if labels == "keep" else 0
    new = len(store.items()) - before
    counts = {"read": len(groups) + sum(left_out.values()), "known_items": len(groups) - new}
    why = {reason: count for reason, count in left_out.items() if count}
    show({**counts, "new_items": new, "verdicts": verdicts, "left_out": why}, as_json=as_json)


@app.command()
def audit(
    run: Audited,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Pairs to draw.")] = 100,
    db: Annotated[Path | None, typer.Option("--db", metavar="DATABASE", help="Default: RUN/audit.db.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    overlap: Annotated[int, typer.Option(min=1, help="Annotators per pair, in a new database.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Draw random pairs that AIs judged, for people to judge: it shows what the AIs' labels are worth.

    Examples:
        alignkit label audit runs/first -n 100
    """
    from alignkit_data import Dataset
    from alignkit_report.audit import audit_database, preferences_of

    from alignkit_label.audit import drawn
    from alignkit_label.store import Store

    file, db = preferences_of(run), db or audit_database(run)
    pairs, judged = drawn(Dataset.of_file(file, {}).groups(), n, seed)
    if not pairs:
        raise InputError("no AI has judged these", where=str(file), fix="give a run or a file with a judge's verdicts")
    new = not db.exists()
    store = Store(db)
    before = len(store.items())
    store.add_items(pairs)
    if new:
        store.configure(overlap=overlap)
    show({"judged_pairs": judged, "drawn": len(pairs), "new_items": len(store.items()) - before, "db": str(db),
          "next": f"alignkit label serve {db} -a NAME -a NAME, then alignkit label export {db},"
          f" then alignkit preferences report {run}"}, as_json=as_json)  # fmt: skip


@app.command()
def serve(
    database: Database,
    annotator: Names = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8765,
    guidelines: Annotated[Path | None, typer.Option(metavar="FILE", help="A text that annotators can open.")] = None,
    overlap: Annotated[int | None, typer.Option(min=1, help="Annotators per overlapping item.")] = None,
    overlap_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of overlapping items; the others need one annotator.")
    ] = None,
    gold_every: Annotated[int | None, typer.Option(min=1, help="Show one gold item in every N.")] = None,
    lease_minutes: Annotated[
        float | None, typer.Option(min=0.1, help="How long an item stays reserved for the annotator who sees it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed for the order of responses and the choice of overlapping items.")
    ] = None,
) -> None:
    """Serve the page on 127.0.0.1, with a link for each annotator. The settings are saved for the next time.

    Examples:
        alignkit label serve labels.sqlite -a ann -a bob
    """
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
        print(f"{visible(name)}: {link}", flush=True)
    print("Each link is private to its annotator. Press Ctrl-C to stop.", flush=True)
    answer(store, listening)


@app.command()
def status(database: Database, as_json: AsJson = False) -> None:
    """Show what is labelled, what is missing, how long it took, and who got the gold items right.

    Examples:
        alignkit label status labels.sqlite
    """
    from alignkit_label.records import status as counted

    show(counted(_existing(database)), as_json=as_json)


@app.command()
def export(
    database: Database,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write. Default: DATABASE.jsonl.")
    ] = None,
    form: ExportForm = "groups",
    min_annotators: Annotated[int, typer.Option(min=1, help="Annotators that an item needs.")] = 1,
    min_gold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of gold items that an annotator must get right.")
    ] = 0.0,
    with_gold: Annotated[bool, typer.Option("--with-gold", help="Include the gold items.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the labelled items, with the verdicts of people and AIs. `alignkit preferences report` measures agreement
    in the form `groups`.

    Examples:
        alignkit label export labels.sqlite --out labelled.jsonl
    """
    from alignkit_label.exchange import NOT_KEPT, rows_of, write_rows
    from alignkit_label.records import labelled

    out = out or database.with_suffix(".json" if form in ("argilla", "label-studio") else ".jsonl")
    found = labelled(_existing(database), min_annotators=min_annotators, min_gold=min_gold, with_gold=with_gold)
    rows = write_rows(out, rows_of(found.groups, form), form)
    lost = {"not_kept": NOT_KEPT[form]} if form in NOT_KEPT else {}
    show({"out": str(out), "rows": rows, "labelled": len(found.groups), "missing": found.missing,
          "left_out": found.left_out, **lost}, as_json=as_json)  # fmt: skip


@app.command()
def agreement(database: Database, as_json: AsJson = False) -> None:
    """Show agreement (raw, Cohen's kappa of each pair, Krippendorff's alpha), position bias and gold results.

    Examples:
        alignkit label agreement labels.sqlite
    """
    from alignkit_report.figures import figures

    from alignkit_label.records import gold_shares, labelled

    store = _existing(database)
    found = figures(labelled(store, with_gold=True).groups)
    shares = gold_shares(store.items(), store.said())
    result = {
        **{
            name: value
            for name, value in found["agreement"].items()
            if name == "between" or name[:12] == "alpha_people"
        },
        "position": found["position"],
        "gold_right": {name: share.to_json() for name, share in shares.items() if share.n},
    }
    if not as_json:
        result["between"] = {" and ".join(pair.pop("annotators")): pair for pair in result["between"]}
    show(result, as_json=as_json)


def _existing(path: Path) -> Store:
    from alignkit_label.store import Store

    if not path.expanduser().is_file():
        raise InputError("no such file", where=str(path), fix=f"create it: alignkit label import FILE --db {path}")
    return Store(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't be read: {error}", where=str(path), fix="give a UTF-8 text file") from error


def _verdicts(store: Store, groups: Sequence[Group]) -> Iterator[Said]:
    """The groups' annotations, or their ranks if they have none, as verdicts on the store's items."""
    from alignkit.preferences import annotations_of
    from alignkit_label.records import ALL_BAD
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
            bad, said, why = one.reason.partition(ALL_BAD)
            all_bad = one.ranks is not None and said and not bad
            verdict: Any = "skip" if one.ranks is None else "both_bad" if all_bad else "ranked"
            reason = why.removeprefix(": ") if all_bad else one.reason or ("skipped" if one.ranks is None else "")
            yield Said(digest, key, one.annotator, verdict, one.ranks, one.order, one.seconds, reason)
