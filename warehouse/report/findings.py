"""What a report says first: rows of the analyses in `sql/analyses/findings.sql`, sorted for a template's sentences.

No number is computed here. What counts as clear, or as about as far, is decided here, once, and the
page says it.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable

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


def conversation(card: dict) -> dict:
    """What was found in one conversation.

    Args:
        card: a conversation with its rows `leaning`, `separating`, `reply` and `caveats`.

    Returns:
        `leading`, the clear leanings by label, and `close`, pairs of two labels and rows, the
        others (of many those of the widest margins), which are `close_count`; `separating` and
        `reply`, a row or None; `further`, how the reply's move compares with those before it;
        `caveats`, a row or None by code.
    """
    rows = card["leaning"]
    turned = (
        bool(rows) and rows[0]["states"] == 2
    )  # of two states one mirrors the other: the reply tells of both
    if turned:
        rows = [row for row in rows if row["is_generated"]]
    leading, close = defaultdict(list), defaultdict(list)
    for row in filter(is_clear, rows):
        leading[row["label"]].append(row)
    unclear = [row for row in rows if not is_clear(row)]
    widest = sorted(unclear, key=lambda row: -row["margin"])[:3]
    for row in widest if len(unclear) > FEW else unclear:
        close[row["label"], row["second"]].append(row)
    reply = card["reply"]
    return {
        "turned": turned,
        "leading": dict(leading),
        "close": list(close.items()),
        "close_count": len(unclear),
        "count": len(rows),
        "separating": card["separating"],
        "reply": reply,
        "further": further(reply["cosine"], reply["cosine_before"]) if reply else None,
        "caveats": dict.fromkeys(CAVEATS) | {row["code"]: row for row in card["caveats"]},
    }


def is_clear(row: dict) -> bool:
    """Whether the first reference of a row of `leaning_layers` leads in most layers, and with other examples too.

    Where labels have several examples, `sure` has the interval of the margin.
    """
    sure = row.get("sure")
    return row["layers_led"] >= CLEAR * row["layers"] and (sure is None or sure["margin_low"] > 0)


def further(cosine: float | None, before: float | None) -> str | None:
    """How one move compares with others: `further`, `less far`, `about as far`, or None where there is no telling."""
    if cosine is None or before is None or before >= 1 or cosine >= 1:
        return None
    ratio = (1 - cosine) / (1 - before)
    return "further" if ratio > ALIKE else "less far" if ratio < 1 / ALIKE else "about as far"


def span(values: Iterable[float], form: str = "{}") -> str:
    """One value, or the least and the largest: `3`, `3 to 5`."""
    texts = list(dict.fromkeys(form.format(value) for value in sorted(values)))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def listing(parts: Iterable[str]) -> str:
    """Parts as a sentence has them.

    >>> listing(["a"]), listing(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def named(rows: list[dict]) -> str:
    """The messages of some rows, as a sentence names them.

    >>> named([{"message_index": 1, "is_generated": False}, {"message_index": 4, "is_generated": True}])
    'message 1 and the reply'
    """
    numbers = [str(row["message_index"]) for row in rows if not row["is_generated"]]
    parts = [f"message{'s' if len(numbers) > 1 else ''} {listing(numbers)}"] if numbers else []
    return " and ".join(
        [*parts, *(["the reply"] if any(row["is_generated"] for row in rows) else [])]
    )


def place(row: dict) -> str:
    """The message after which a state was taken."""
    return "the reply" if row["is_generated"] else f"message {row['message_index']} ({row['role']})"


def differences(variants: list[dict], names: dict[str, str]) -> list[dict]:
    """What the conversations of some runs have in common and where they part, message by message.

    Args:
        variants: rows of `message_variants`.
        names: short name of each run.

    Returns:
        Per message `prompt_id`, `message_index`, `is_generated`, `role`, and `wordings`: each with
        `runs` and `words`, pieces of text as (whether it is in the first wording too, text). A
        message that all runs share has one wording.
    """
    places = defaultdict(list)
    for row in variants:
        places[row["prompt_id"], row["message_index"]].append(row)
    found = []
    for (prompt_id, index), rows in places.items():
        first = rows[0]
        found.append(
            {
                "prompt_id": prompt_id,
                "message_index": index,
                "is_generated": first["is_generated"],
                "role": first["role"] if len({row["role"] for row in rows}) == 1 else "differs",
                "same": len(rows) == 1 and not first["missing"],
                "missing": first["missing"],
                "wordings": [
                    {
                        "runs": [names[one] for one in row["run_ids"]],
                        "role": row["role"],
                        "words": marked(first["content"], row["content"])
                        if row is not first
                        else marked(rows[1]["content"], row["content"])
                        if len(rows) == 2
                        else [(True, row["content"])],
                    }
                    for row in rows
                ],
            }
        )
    return found


def marked(other: str, text: str) -> list[tuple[bool, str]]:
    """The text in pieces: whether each stands in the other text too, word by word; one piece where little does."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", one or "") for one in (other, text))
    if len(a) + len(b) > 4000:  # comparing takes the square of the length
        return [(True, text or "")]
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if match.ratio() < RELATED:
        return [(True, text)]
    return [
        (kind == "equal", "".join(b[low:high]))
        for kind, _, _, low, high in match.get_opcodes()
        if high > low
    ]


def overall(
    tables, runs: list[dict], prompts: list[dict], found: dict, pairs: dict | None, site: str
) -> dict:
    """What was found in several conversations together, and in several runs.

    Args:
        tables: the page's tables, with `reply_summary_rows` and `before_reply_rows` in their
            connection.
        runs: the runs, with their short names.
        prompts: every conversation.
        found: rows about every conversation, as `comparison.fill_runs` gives them.
        pairs: the comparison between runs; None for one run.
        site: site that the findings are about.
    """
    ids = [run["run_id"] for run in runs]
    names = {run["run_id"]: run["name"] for run in runs}
    tables.share("conversations")
    values = {"runs": ids, "site": site}
    tables.add("conversation_counts", "conversation_counts", **values)
    shift = tables.add("conversation_shift", "conversation_shift", **values)
    leaning = tables.rows("conversation_leaning", **values)
    several = {row["run_id"] for row in prompts if row["prompt_id"]}

    def name(run_id: str, prompt_id: int) -> str:
        number = f"conversation {prompt_id}" if run_id in several else ""
        return (
            " · ".join(part for part in (names[run_id] if len(runs) > 1 else "", number) if part)
            or names[run_id]
        )

    labels = defaultdict(list)
    for row in leaning:
        row["name"] = name(row["run_id"], row["prompt_id"])
        if row["clear"]:
            labels[row["label"]].append(row)
    counts = sorted(labels.items(), key=lambda item: (-len(item[1]), item[0]))
    replies = next(iter(tables.rows("reply_totals")), None)
    if replies:
        replies |= {
            "least_name": name(**replies["least_of"]),
            "further": further(replies["cosine"], replies["cosine_before"]),
        }
    caveats = defaultdict(lambda: {"count": 0, "total": 0, "runs": 0})
    for row in found["caveats"]:
        own = caveats[row["code"]]
        own |= {
            "count": own["count"] + row["count"],
            "total": own["total"] + row["total"],
            "runs": own["runs"] + 1,
        }
    variants = tables.rows("message_variants", runs=ids) if len(runs) > 1 else []
    return {
        "leaning": leaning,
        "leading": counts,
        "n_clear": sum(len(rows) for _, rows in counts),
        "strongest": max(leaning, key=lambda row: row["hundredths"], default=None),
        "shift": shift.num_rows > 0 and len(leaning) > 0,
        "separating": found["separating"],
        "replies": replies,
        "caveats": dict.fromkeys(CAVEATS) | caveats,
        "pairs": (pairs or {}).get("found") or [],
        "names": names,
        "steps": tables.rows("pair_steps", site=site) if (pairs or {}).get("by_message") else [],
        "differences": differences(variants, names),
        "settings": _settings(tables, ids, names),
    }


def _settings(tables, ids: list[str], names: dict[str, str]) -> list[dict]:
    """The settings in which runs differ, each with its values and the runs that have them."""
    if len(ids) < 2:
        return []
    settings: dict[str, dict] = {}
    for row in tables.rows("run_settings", runs=ids):
        settings.setdefault(row["setting"], {}).setdefault(row["value"], []).append(
            names[row["run_id"]]
        )
    return [
        {"setting": setting, "values": list(values.items())} for setting, values in settings.items()
    ]
