"""What a report says first: rows of `sql/analyses/findings.sql`, sorted for a template's sentences.

No number is computed here. What counts as clear, or as about as far, is decided here, once, and the
page says it.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable

from warehouse.report.tables import Row, Tables, grouped

#: A lead in this share of the layers is clear.
CLEAR = 2 / 3
#: What a run may leave open, as the analysis `caveats` names it.
CAVEATS = (
    "no_references",
    "one_reference",
    "one_example",
    "cut",
    "token_kind",
    "unknown_token",
    "snapshot_tokens",
    "one_conversation",
)
#: States that are not clear are named one by one up to so many.
FEW = 4
#: Texts of which less than this share is common are shown without marks: they would be all marks.
RELATED = 0.55
#: Moves whose ratio is within this factor are about as far as each other.
ALIKE = 1.25


def conversation(card: Row) -> Row:
    """What can be said of one conversation.

    Args:
        card: a conversation with its rows `leaning`, `separating`, `reply` and `caveats`.

    Returns:
        `leading`, the clear leanings by label, and `close`, pairs of two labels and rows, the
        others (of many those of the widest margins), which are `close_count`; `separating` and
        `reply`, a row or None; `further`, how the reply's move compares with those before it;
        `caveats`, a row or None by code.
    """
    states, reply = card["leaning"], card["reply"]
    # Of two states one mirrors the other: the reply tells of both.
    mirror = bool(states) and states[0]["states"] == 2
    if mirror:
        states = [row for row in states if row["is_generated"]]
    leading, close = defaultdict(list), defaultdict(list)
    for row in filter(is_clear, states):
        leading[row["label"]].append(row)
    unclear = [row for row in states if not is_clear(row)]
    widest = sorted(unclear, key=lambda row: -row["margin"])[:3]
    for row in widest if len(unclear) > FEW else unclear:
        close[row["label"], row["second"]].append(row)
    return {
        "mirror": mirror,
        "leading": dict(leading),
        "close": list(close.items()),
        "close_count": len(unclear),
        "count": len(states),
        "separating": card["separating"],
        "reply": reply,
        "further": further(reply["cosine"], reply["cosine_before"]) if reply else None,
        "caveats": dict.fromkeys(CAVEATS) | {row["code"]: row for row in card["caveats"]},
    }


def is_clear(row: Row) -> bool:
    """Whether a row's first reference leads in most layers, and with other examples too.

    The row is one of `leaning_layers`; where labels have several examples, `sure` has the interval
    of the margin.
    """
    sure = row.get("sure")
    return row["layers_led"] >= CLEAR * row["layers"] and (sure is None or sure["margin_low"] > 0)


def further(cosine: float | None, before: float | None) -> str | None:
    """How one move compares with others: `further`, `less far`, `about as far` or None."""
    if cosine is None or before is None or before >= 1 or cosine >= 1:
        return None
    ratio = (1 - cosine) / (1 - before)
    return "further" if ratio > ALIKE else "less far" if ratio < 1 / ALIKE else "about as far"


def differences(variants: list[Row], names: dict[str, str]) -> list[Row]:
    """What the conversations of some runs have in common and where they part, message by message.

    Told from rows of `message_variants`, with the short name of each run.

    Returns:
        Per message `prompt_id`, `message_index`, `is_generated`, `role`, and `wordings`: each with
        `runs` and `words`, pieces of text as (whether it is in the first wording too, text). A
        message that all runs share has one wording.
    """
    messages = grouped(variants, "prompt_id", "message_index")
    return [_difference(rows, names) for rows in messages.values()]


def _difference(rows: list[Row], names: dict[str, str]) -> Row:
    """One message and its wordings: a row for each."""
    first = rows[0]
    wordings = [
        {
            "runs": [names[run_id] for run_id in row["run_ids"]],
            "role": row["role"],
            "words": _words(row, rows),
        }
        for row in rows
    ]
    same_role = len({row["role"] for row in rows}) == 1
    return {
        **{key: first[key] for key in ("prompt_id", "message_index", "is_generated", "missing")},
        "role": first["role"] if same_role else "differs",
        "same": len(rows) == 1 and not first["missing"],
        "wordings": wordings,
    }


def _words(row: Row, rows: list[Row]) -> list[tuple[bool, str]]:
    """A wording with marks against the first one, which has some where there are two."""
    first = rows[0]
    if row is not first:
        return marks(first["content"], row["content"])
    return marks(rows[1]["content"], row["content"]) if len(rows) == 2 else [(True, row["content"])]


def marks(other: str | None, text: str | None) -> list[tuple[bool, str]]:
    """The text in pieces, each with whether it is in the other text too; one where little is."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", one or "") for one in (other, text))
    if len(a) + len(b) > 4000:  # comparing takes the square of the length
        return [(True, text or "")]
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if match.ratio() < RELATED:
        return [(True, text or "")]
    return [
        (kind == "equal", "".join(b[low:high]))
        for kind, _, _, low, high in match.get_opcodes()
        if high > low
    ]


def overall(
    tables: Tables,
    runs: list[Row],
    prompts: list[Row],
    results: dict[str, list[Row]],
    pairs: Row | None,
    site: str,
) -> Row:
    """What can be said of several conversations together, and of several runs, at one site.

    The connection of the tables has `reply_summary_rows` and `before_reply_rows`, and `results` are
    those of `tables.fill_runs`; there are no `pairs` of a single run.
    """
    names = {run["run_id"]: run["name"] for run in runs}
    ids, title, pairs = list(names), _titles(names, prompts), pairs or {}
    tables.share("conversations")
    tables.add("conversation_counts", "conversation_counts", runs=ids, site=site)
    shift = tables.add("conversation_shift", "conversation_shift", runs=ids, site=site)
    leaning = tables.rows("conversation_leaning", runs=ids, site=site)
    clear = defaultdict(list)
    for row in leaning:
        row["name"] = title(row["run_id"], row["prompt_id"])
        if row["clear"]:
            clear[row["label"]].append(row)
    variants = tables.rows("message_variants", runs=ids) if len(runs) > 1 else []
    return {
        "leaning": leaning,
        "leading": sorted(clear.items(), key=lambda item: (-len(item[1]), item[0])),
        "n_clear": sum(len(rows) for rows in clear.values()),
        "strongest": max(leaning, key=lambda row: row["hundredths"], default=None),
        "shift": shift.num_rows > 0 and len(leaning) > 0,
        "separating": results["separating"],
        "replies": _replies(tables, title),
        "caveats": dict.fromkeys(CAVEATS) | _caveats(results["caveats"]),
        "pairs": pairs.get("findings") or [],
        "names": names,
        "steps": tables.rows("pair_steps", site=site) if pairs.get("by_message") else [],
        "differences": differences(variants, names),
        "settings": _settings(tables, ids, names),
    }


def _titles(names: dict[str, str], prompts: list[Row]) -> Callable[[str, int], str]:
    """What a conversation is called: the run, its number or both, whichever tell it apart."""
    several = {row["run_id"] for row in prompts if row["prompt_id"]}

    def title(run_id: str, prompt_id: int) -> str:
        number = [f"conversation {prompt_id}"] if run_id in several else []
        run = [names[run_id]] if len(names) > 1 or not number else []
        return " · ".join(run + number)

    return title


def _replies(tables: Tables, title: Callable[[str, int], str]) -> Row | None:
    """How far all replies moved their states, and the conversation whose reply moved it most."""
    row = next(iter(tables.rows("reply_totals")), None)
    return row and row | {
        "least_name": title(row["least_of"]["run_id"], row["least_of"]["prompt_id"]),
        "further": further(row["cosine"], row["cosine_before"]),
    }


def _caveats(rows: list[Row]) -> Row:
    """The caveats of all runs by code: how many of how many, in how many runs."""
    totals: Row = {}
    for row in rows:
        total = totals.setdefault(row["code"], {"count": 0, "total": 0, "runs": 0})
        total["count"] += row["count"]
        total["total"] += row["total"]
        total["runs"] += 1
    return totals


def _settings(tables: Tables, ids: list[str], names: dict[str, str]) -> list[Row]:
    """The settings in which runs differ, each with its values and the runs that have them."""
    settings: dict[str, dict[str, list[str]]] = {}
    for row in tables.rows("run_settings", runs=ids) if len(ids) > 1 else ():
        runs = settings.setdefault(row["setting"], {}).setdefault(row["value"], [])
        runs.append(names[row["run_id"]])
    return [
        {"setting": setting, "values": list(values.items())} for setting, values in settings.items()
    ]
