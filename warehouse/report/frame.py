"""What stands around the cards: the names of runs, facts, warnings, contents, overview, origins."""

import json
import re
from collections import Counter
from collections.abc import Sequence

from warehouse.catalog.removal import readable
from warehouse.report.cards import COMPARED
from warehouse.report.tables import Row, Tables, grouped

#: A run's id as `Lake.stage` makes it.
_ID = re.compile(
    r"(?P<name>.+)_\d{4}(?P<month>\d\d)(?P<day>\d\d)T(?P<h>\d\d)(?P<m>\d\d)(?P<s>\d\d)Z"
)
#: The names that a run may have, the shortest first; one that several would have is not taken.
_NAMES = ("{name}", "{name} {h}:{m}:{s}", "{name} {month}-{day} {h}:{m}:{s}")
#: Warnings of what is usual, which are a line below the facts.
NOTES = ("dtype",)


def runs_of(tables: Tables, run_ids: list[str]) -> list[Row]:
    """The runs, oldest first, each with its place and a short name."""
    runs = tables.rows("runs", runs=run_ids)
    names = short_names([run["run_id"] for run in runs])
    for index, run in enumerate(runs):
        run |= {"index": index, "name": names[run["run_id"]], "tables": {}, "cross_layer": {}}
    return runs


def short_names(run_ids: list[str]) -> dict[str, str]:
    """Short names that tell runs apart: without the time, where that is enough.

    >>> ids = ["joy_20260102T101500Z", "fear_20260102T101500Z", "fear_20260102T101601Z", "imported"]
    >>> list(short_names(ids).values())
    ['joy', 'fear 10:15:00', 'fear 10:16:01', 'imported']
    >>> ids = ["joy_20260102T101500Z", "joy_20260103T101500Z", "joy_20260103T101500Z-2"]
    >>> list(short_names(ids).values())
    ['joy 01-02 10:15:00', 'joy 01-03 10:15:00', 'joy_20260103T101500Z-2']
    """
    parts = {run_id: _ID.fullmatch(run_id) for run_id in run_ids}
    names: dict[str, str] = {}
    for form in _NAMES:
        shorter = {
            run_id: form.format_map(match.groupdict()) if match else run_id
            for run_id, match in parts.items()
        }
        uses = Counter(shorter.values())
        for run_id, name in shorter.items():
            if uses[name] == 1:
                names.setdefault(run_id, name)
    return {run_id: names.get(run_id, run_id) for run_id in run_ids}


def facts(runs: list[Row], prompts: list[Row]) -> list[tuple[str, str, str]]:
    """The header's facts, about everything, with a card or without: name, value and detail."""
    first = runs[0]
    models = list(dict.fromkeys(run["model_id"] for run in runs))
    shapes = {shape(run) for run in runs}
    cut = sum(prompt["stop_reason"] == "length" and prompt["n_generated"] > 0 for prompt in prompts)
    several = len(prompts) > 1
    replies = f"{cut:,} of {len(prompts):,} replies cut" if several else "reply cut at its limit"
    where = f"in {len(runs):,} runs" if len(runs) > 1 else ""
    conversations = [("Conversations", f"{len(prompts):,}", where)] if several else []

    def total(column: str) -> int:
        return sum(prompt[column] or 0 for prompt in prompts)

    return [
        ("Model", models[0], first["arch"])
        if len(models) == 1
        else ("Models", str(len(models)), ", ".join(models[:4])),
        ("Layers × width", shapes.pop() if len(shapes) == 1 else "differ", ""),
        *conversations,
        ("Tokens read", f"{total('n_prompt_tokens'):,}", f"{total('n_messages'):,} messages"),
        ("Tokens written", f"{total('n_generated'):,}", replies if cut else ""),
        ("Captured", f"{first['created_at']:%Y-%m-%d %H:%M} UTC", until(runs)),
        ("In the lake", readable(sum(run["bytes"] or 0 for run in runs)), ""),
    ]


def warnings(
    tables: Tables, runs: list[Row], elsewhere: Sequence[str] = ()
) -> dict[str, dict[str, list[str]]]:
    """What there is to know about the runs: each message with the names of the runs it concerns.

    Warnings whose code is among `elsewhere` are told in another place of the page.

    Returns:
        `notes`, of what is usual and only to be noted, and `warnings`, which a reader needs.
    """
    messages: dict[str, dict[str, list[str]]] = {"notes": {}, "warnings": {}}
    names = {run["run_id"]: run["name"] for run in runs}
    for row in tables.rows("warnings", runs=list(names)):
        if row["code"] in elsewhere:
            continue
        group = messages["notes" if row["code"] in NOTES else "warnings"]
        concerned = group.setdefault(row["message"], [])
        if names[row["run_id"]] not in concerned:
            concerned.append(names[row["run_id"]])
    return messages


def contents(
    runs: list[Row], cards: list[Row], results: dict[str, list[Row]]
) -> list[tuple[str, str]]:
    """Anchors and titles for the table of contents."""
    several = len(runs) > 1
    if len(cards) == 1:
        has = cards[0]["has"]
        parts = [
            ("findings", "What was found", True),
            ("conversation", "Conversation", True),
            ("intra", "What replying changed", has["intra"]),
            ("references", "Messages against references", has["references"]),
            ("generation", "Generation", has["steps"]),
            ("residual", "Residual stream", has["residual"] or has["cross_layer"]),
            ("logit-lens", "Logit lens", has["logit_lens"]),
            ("about", "About this run", True),
        ]
    else:
        parts = [
            ("differences", "What was asked", several),
            ("findings", "What was found", True),
            ("runs", "What replying changed", bool(results["intra_summary"])),
            ("inter", "Between runs", several),
            ("cards", "Run by run" if several else "Conversation by conversation", True),
            ("about", "About these runs" if several else "About this run", True),
        ]
    return [(anchor, title) for anchor, title, there in parts if there]


def overview(prompts: list[Row], runs: list[Row], summary: list[Row]) -> list[Row]:
    """A row for each conversation that was answered, with a card or not: how far the reply went."""
    names = {run["run_id"]: run["name"] for run in runs}
    several = {row["run_id"] for row in prompts if row["prompt_id"]}
    groups = grouped(summary, "run_id", "prompt_id")
    rows = []
    for index, prompt in enumerate(prompts):
        run_id, prompt_id = prompt["run_id"], prompt["prompt_id"]
        own = groups[run_id, prompt_id]
        like = [row for row in own if row["compared"] == COMPARED[0]] or own
        title = names[run_id]
        if run_id in several:
            title = f"{title} · {prompt_id}" if len(runs) > 1 else f"conversation {prompt_id}"
        if own:
            rows.append(
                {
                    "index": index,
                    "title": title,
                    "reply": prompt["generated_text"],
                    "cut": prompt["stop_reason"] == "length",
                    "cosines": {row["site"]: row["cosine_mean"] for row in like},
                }
            )
    return rows


def about(run: Row) -> dict[str, str]:
    """A row of the table about the runs, by the heads of its columns."""
    env = json.loads(run["env_json"] or "{}")
    names = [name for name in ("alab", "torch", "transformers", "python") if env.get(name)]
    return {
        "run": run["run_id"],
        "model": run["model_id"],
        "layers × width": shape(run),
        "dtype": run["dtype"],
        "stored as": run["store_dtype"],
        "device": run["device"],
        "seed": str(run["seed"]),
        "captured": f"{run['created_at']:%Y-%m-%d %H:%M:%S}",
        "took": _seconds(run),
        "size": readable(run["bytes"] or 0),
        "with": ", ".join(f"{name} {env[name]}" for name in names) or "–",
    }


def shape(run: Row) -> str:
    """How many layers a run's model has, and how wide they are."""
    return f"{run['num_layers']} × {run['hidden_size']}"


def until(runs: list[Row]) -> str:
    """When the last of some runs began, or how long the only one took."""
    last = runs[-1]
    return f"to {last['created_at']:%Y-%m-%d %H:%M}" if len(runs) > 1 else f"in {_seconds(last)}"


def _seconds(run: Row) -> str:
    return f"{(run['finished_at'] - run['created_at']).total_seconds():.1f} s"
