"""The cards of a report: one per conversation, with everything that is shown of it."""

from collections import defaultdict

import pyarrow.compute as pc

from warehouse.report import findings
from warehouse.report.tables import MARGINS, RUN_ROWS, Row, Tables, grouped, of_conversation

#: Conversations that get a card of their own; the overview has all of them.
MAX_CARDS = 120
#: The two comparisons that say what replying changed: like with like, and whatever was last.
COMPARED = ("generation prompt", "last token")


def cards(
    tables: Tables, runs: list[Row], prompts: list[Row], results: dict[str, list[Row]]
) -> list[Row]:
    """Make cards of the rows `prompts`, a conversation each, with `results` of `fill_runs`."""
    by_id = {run["run_id"]: run for run in runs}
    _add_intervals(results["leaning"], results.get(MARGINS, []))
    rows = {name: results[name] for name in ("intra_summary", "leaning", "reply_summary")}
    rows |= {"places": results["state_tokens"]}
    rows |= {name: tables.rows(name, runs=list(by_id)) for name in ("messages", "snapshots")}
    groups = {name: grouped(own, "run_id", "prompt_id") for name, own in rows.items()}
    labels = defaultdict(list)
    for row in tables.rows("labels", runs=list(by_id)):
        labels[row["run_id"]].append(row["label"])
    separating = {row["run_id"]: row for row in results["separating"]}
    several = {row["run_id"] for row in prompts if row["prompt_id"]}
    for index, card in enumerate(prompts):
        run_id, prompt_id = key = card["run_id"], card["prompt_id"]
        run, number = by_id[run_id], f" · conversation {prompt_id}" if run_id in several else ""
        card |= {
            "index": index,
            "run_index": run["index"],
            "run": run,
            "alone": len(prompts) == 1,
            "title": run["name"] + number,
            "references": labels[run_id],
            "separating": separating.get(run_id),
            "caveats": [row for row in results["caveats"] if row["run_id"] == run_id],
            **_sort({name: group[key] for name, group in groups.items()}),
        }
        card |= {"findings": findings.conversation(card), **_parts(card)}
    return prompts


def _add_intervals(leaning: list[Row], margins: list[Row]) -> None:
    """Give each leaning the interval of its margin as `sure`; None where there is none."""
    keys = ("run_id", "prompt_id", "message_index")
    intervals = {tuple(row[key] for key in keys): row for row in margins}
    for row in leaning:
        row["sure"] = intervals.get(tuple(row[key] for key in keys))


def _sort(rows: dict[str, list[Row]]) -> Row:
    """The rows of one conversation as its card has them."""
    roles = {row["role"] for row in rows["snapshots"] if not row["is_generated"]}
    summary = rows["intra_summary"]
    return {
        **{name: rows[name] for name in ("messages", "snapshots", "leaning")},
        "reply": next(iter(rows["reply_summary"]), None),
        "has_both_roles": roles >= {"user", "assistant"},
        "intra_summary": {
            name: [row for row in summary if row["compared"] == name] for name in COMPARED
        },
        "states": {
            (row["state"], row["state_index"] if row["state"] == "snapshot" else 0): row
            for row in rows["places"]
        },
    }


def _parts(card: Row) -> Row:
    """Which parts a conversation has, and what its controls offer."""
    run, prompt_id = card["run"], card["prompt_id"]
    own = {name: of_conversation(table, prompt_id) for name, table in run["tables"].items()}
    own["cross_layer"] = run["cross_layer"][prompt_id]
    compared = [name for name in COMPARED if card["intra_summary"][name]]
    passes = pc.unique(own["residual"]["step"]).to_pylist()
    choices = {"step": 0, "residual_step": next(iter(passes), 0)}
    return {
        **{name: own[name].to_pylist() for name in RUN_ROWS},
        "has": {name: table.num_rows > 0 for name, table in own.items()}
        | {"intra": bool(compared)},
        "compared": compared,
        "steps_of": pc.unique(own["steps"]["step"]).to_pylist(),
        "residual_of": passes,
        "lens_sites": sorted(pc.unique(own["logit_lens"]["site"]).to_pylist(), reverse=True),
        "choices": choices | ({"compared": compared[0]} if compared else {}),
    }
