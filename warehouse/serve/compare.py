"""Any states of any runs beside each other."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from warehouse.errors import AlabError, NotThereError
from warehouse.report import page
from warehouse.serve.refs import letter, words
from warehouse.serve.server import Handler, Server
from warehouse.vocabulary import STATE_SITES

#: States that one page compares, and of how many the tokens.
MOST, MOST_TOKENS = 60, 8


async def compare(server: Server, request: Request) -> Response:
    """Two states closely, many as a group."""
    asked = list(dict.fromkeys(request.query_params.getlist("ref")))
    if len(asked) > MOST:
        raise AlabError(f"{len(asked)} states are too many to compare", f"At most {MOST}.", 2)
    states, undecided = await _states(server, asked)
    context = {**_group(states), "states": states, "runs": await server.rows("compare_runs")}
    context["undecided"] = undecided
    names = [one["label"] for one in context["shown"]]
    scales = page.scales(()) | {"letter": [one["letter"] for one in states]}
    data = {
        "refs": [one["ref"] for one in states],
        "sites": context["sites"],
        "names": names,
        "scales": scales,
    }
    return server.pages.render("compare", title="Compare", here="/compare", data=data, **context)


async def _states(server: Server, asked: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """What is known of each state that is asked for.

    Returns:
        The states, and runs that were named alone and have no state before a reply, as datasets.

    Raises:
        AlabError: a run or a state is not there.
    """
    if not asked:
        return [], []
    rows = await server.rows("compare_refs", refs=asked)
    undecided = [row["run_id"] for row in rows if row["sites"] is None and _is_a_run(row)]
    rows = [row for row in rows if row["run_id"] not in undecided or not _is_a_run(row)]
    for row in rows:
        if row["sites"] is None:
            there = await server.rows("compare_choices", run=row["run_id"], find="")
            some = ", ".join(one["ref"].removeprefix(f"{row['run_id']}:") for one in there[:12])
            raise NotThereError(
                f"{row['run_id']} has no state {words(row)!r}",
                f"It has: {some}" if some else "It has no states: capture.states is off.",
            )
    rows = list({row["ref"]: row for row in rows}.values())
    scenarios = {row["scenario"] for row in rows}
    told = "" if len({row["run_id"] for row in rows}) == 1 else "scenario"
    told = told and ("scenario" if len(scenarios) == len({r["run_id"] for r in rows}) else "run_id")
    for place, row in enumerate(rows):
        name = page.visible(f"{row[told]} " if told else "") + page.visible(words(row))
        own = {"letter": letter(place), "words": words(row)}
        row |= own | {"label": f"{letter(place)} · {name}"[:60]}
    return rows, undecided


def _is_a_run(row: dict[str, Any]) -> bool:
    """Whether a ref names a run and none of its states."""
    return bool(row["ref"] == row["run_id"])


def _group(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Which of the states are compared: those as wide, and of a model as deep, as the first."""
    first = states[0] if states else {}
    shown = [
        one for one in states if all(one[key] == first[key] for key in ("width", "num_layers"))
    ]
    order = dict.fromkeys(("hidden_out", *STATE_SITES)) if shown else {}
    sites = [site for site in order if all(site in one["sites"] for one in shown)]
    return {
        "shown": shown,
        "aside": [one for one in states if one not in shown],
        "refs": [one["ref"] for one in shown],
        "sites": sites,
        "site_options": [(site, site) for site in sites],
        "layers": sorted(set.intersection(*(set(one["layers"]) for one in shown))) if shown else [],
        "weights": len({one["weights"] for one in shown}),
        "tokens_missing": [one["letter"] for one in shown if not one["has_tokens"]],
        "of_tokens": [one for one in shown if one["has_tokens"]][:MOST_TOKENS],
        "of_attention": [
            one for one in shown if one["has_attention"] and one["kind"] != "snapshot"
        ],
        "same_pass": len(shown) == 2
        and shown[0]["prompt_id"] is not None
        and len({(one["run_id"], one["prompt_id"]) for one in shown}) == 1,
    }


ROUTES: list[tuple[str, Handler, list[str]]] = [("/compare", compare, ["GET"])]
