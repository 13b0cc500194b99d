"""Which token each state sits on: rows of the table `state_tokens`."""

from collections.abc import Sequence
from typing import Any

from warehouse.capture.states import Key
from warehouse.models.chat import Owner, Rendered


def row(
    key: Key, ids: Sequence[int], text: str, owner: Owner, *, generated: bool = False
) -> dict[str, Any]:
    """The row of a state that was read at the end of a sequence, without the run's id.

    Args:
        key: the state, as `StateFile` has it.
        ids: the sequence, the state's own token last.
        text: text of that token.
        owner: whom it belongs to.
        generated: whether the model generated it in this run.
    """
    prompt_id, state, index, label = key
    _, role, is_template = owner
    return {
        "prompt_id": prompt_id,
        "state": state,
        "state_index": index,
        "label": label,
        "n_tokens": len(ids),
        "position": len(ids) - 1,
        "token_id": ids[-1],
        "token": text,
        "role": role,
        "is_template": is_template,
        "is_generated": generated,
    }


def row_of(key: Key, rendered: Rendered) -> dict[str, Any]:
    """The row of a state at the end of a rendering."""
    return row(key, rendered.ids, rendered.texts[-1], rendered.owners[-1])


def recorded_rows(prompt_id: int, tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the initial and the final state of passes that the caller made.

    Args:
        prompt_id: the prompt that they read.
        tokens: its rows of the table `tokens`, in order.
    """
    ids, last = [token["token_id"] for token in tokens], tokens[-1]
    first = max(n for n, token in enumerate(tokens) if not token["step"])
    owner = None, tokens[first].get("role"), False
    rows = [row((prompt_id, "initial", 0, None), ids[: first + 1], tokens[first]["token"], owner)]
    if last["step"]:
        key, owner = (prompt_id, "final", last["step"], None), (None, last.get("role"), False)
        rows.append(row(key, ids, last["token"], owner, generated=last["is_generated"]))
    return rows
