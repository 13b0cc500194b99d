"""A conversation as tokens, coloured by what was captured of each, and what one token is."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from warehouse.errors import NotThereError
from warehouse.serve.server import Handler, Server
from warehouse.serve.values import values_of

#: Conversations that a list offers by name; of more the number is typed.
LISTED = 100


async def tokens(server: Server, request: Request) -> Response:
    """The tokens of one conversation; the script asks for them and for their colours."""
    run = await server.run(request)
    prompt = values_of(request.query_params)["prompt"]
    (offer,) = await server.rows("tokens_page", run=run["run_id"], prompt=prompt)
    if not offer["tokens"]:
        raise NotThereError(
            f"{run['run_id']} has no tokens of conversation {prompt}",
            f"It has {offer['prompts']} conversations, from 0." if offer["prompts"] else "",
        )
    return server.pages.render(
        "tokens",
        title=f"{run['run_id']} · tokens",
        run=run,
        part="tokens",
        prompt=prompt,
        offer=offer,
        listed=LISTED,
        colours=colourings(offer if "activations" in run["has"] else offer | {"sites": []}),
        page_class="tokens-page",
        data={"sites": [one["site"] for one in offer["sites"]], "labels": offer["labels"]},
    )


def colourings(offer: dict[str, Any]) -> list[tuple[str, str]]:
    """What the tokens of a run can be coloured by: the name of it in addresses, and in words."""
    every = [
        ("norm", "length", offer["sites"]),
        ("surprise", "surprise", True),
        ("entropy", "entropy of what follows", True),
        ("cosine", "cosine with the locked token", offer["sites"]),
        ("neuron", "one dimension (a neuron)", offer["sites"]),
        ("reference", "projection between references", len(offer["labels"]) > 1 and offer["sites"]),
        ("label", "projection between labels of a dataset", offer["sources"] and offer["sites"]),
    ]
    return [(name, words) for name, words, is_there in every if is_there]


ROUTES: list[tuple[str, Handler, list[str]]] = [("/run/{run}/tokens", tokens, ["GET"])]
