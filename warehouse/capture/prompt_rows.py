"""Rows about a conversation and its reply: prompts, messages, tokens, snapshots, state_tokens."""

from collections.abc import Sequence
from typing import Any

from warehouse.capture import state_tokens
from warehouse.capture.plan import PlannedPrompt, Snapshot
from warehouse.models.chat import Chat, Rendered

#: Columns of `tokens`, but for the run's id and the prompt's.
_TOKEN = (
    "step", "position", "token_id", "token", "message_index", "role", "is_template", "is_generated"
)  # fmt: skip


def prompt_rows(
    prompt_id: int,
    chat: Chat,
    prompt: PlannedPrompt,
    generated: Sequence[int],
    stop: str,
    snapshots: Sequence[Snapshot] | None,
) -> dict[str, list[dict]]:
    """Rows of a conversation that has been read and answered, without the run's id.

    Args:
        prompt_id: the conversation.
        chat: spells the tokens.
        prompt: its messages and how they were read.
        generated: tokens of the reply, the last of which no pass has read.
        stop: why they ended.
        snapshots: the states that were taken after messages; None where no states are kept.
    """
    messages, rendered, _ = prompt
    at: dict[str, Any] = {"prompt_id": prompt_id}
    n, reply = len(rendered.ids), chat.decode(list(generated))
    texts = [*rendered.texts, *map(chat.token_text, generated)]
    owners = [(*owner, False) for owner in rendered.owners] + [
        (len(messages), "assistant", False, True)
    ] * len(generated)
    tokens = [
        at
        | {
            "step": _step(position, n, len(generated)),
            "position": position,
            "token_id": token_id,
            "token": text,
            "message_index": message,
            "role": role,
            "is_template": is_template,
            "is_generated": is_generated,
        }
        for position, (token_id, text, (message, role, is_template, is_generated)) in enumerate(
            zip([*rendered.ids, *generated], texts, owners, strict=True)
        )
    ]
    return {
        "prompts": [
            at
            | {
                "n_prompt_tokens": n,
                "n_generated": len(generated),
                "stop_reason": stop,
                "prompt_text": rendered.text,
                "generated_text": reply,
            }
        ],
        "tokens": tokens,
        "messages": [
            at | _message_row(k, message, tokens) | {"is_generated": k == len(messages)}
            for k, message in enumerate([*messages, {"role": "assistant", "content": reply}])
        ],
        "snapshots": [
            at
            | {
                "message_index": s.message_index,
                "role": s.role,
                "preview": s.preview,
                "n_tokens": len(s.ids),
                "is_generated": s.is_generated,
            }
            for s in snapshots or ()
        ],
        "state_tokens": []
        if snapshots is None
        else [
            state_tokens.row_of((prompt_id, "initial", 0, None), rendered),
            *_final(
                prompt_id,
                len(messages),
                [*rendered.ids, *generated][:-1],
                texts[:-1],
                len(generated),
            ),
            *(s.token for s in snapshots),
        ],
    }


def read_rows(
    prompt_id: int, messages: Sequence[dict], rendered: Rendered, row_id: str
) -> dict[str, list[dict]]:
    """Rows of a dataset's prompt that has been read and not answered, without the run's id."""
    at: dict[str, Any] = {"prompt_id": prompt_id}
    parts = zip(rendered.ids, rendered.texts, rendered.owners, strict=True)
    values = [(0, position, *part[:2], *part[2], False) for position, part in enumerate(parts)]
    tokens = [at | dict(zip(_TOKEN, row, strict=True)) for row in values]
    prompt = {"n_prompt_tokens": len(tokens), "n_generated": 0, "prompt_text": rendered.text}
    return {
        "prompts": [at | prompt | {"row_id": row_id}],
        "tokens": tokens,
        "steps": [at | {"step": 0, "kind": "prefill", "seq_len": len(tokens)}],
        "messages": [
            at | _message_row(k, message, tokens) | {"is_generated": False}
            for k, message in enumerate(messages)
        ],
    }


def recorded_token_rows(
    chat: Chat, prompt_id: int, step: int, position: int, ids: Sequence[int]
) -> list[dict]:
    """Rows of `tokens` of a pass that the caller made, whose first token is at `position`."""
    at = {"prompt_id": prompt_id, "step": step, "is_template": False, "is_generated": position > 0}
    return [
        at | {"position": position + i, "token_id": token_id, "token": chat.token_text(token_id)}
        for i, token_id in enumerate(ids)
    ]


def recorded_prompt_row(chat: Chat, tokens: Sequence[dict]) -> dict:
    """The row of `prompts` of passes that the caller made, from their rows of `tokens`."""
    given, reply = (
        [row["token_id"] for row in tokens if row["is_generated"] == generated]
        for generated in (False, True)
    )
    return {
        "prompt_id": tokens[0]["prompt_id"],
        "n_prompt_tokens": len(given),
        "n_generated": len(reply),
        "stop_reason": None,
        "prompt_text": chat.spelling.whole(given),
        "generated_text": chat.decode(reply),
    }


def _step(position: int, prompt: int, generated: int) -> int | None:
    """The pass that read a token; None for the last one, which none did."""
    if generated and position == prompt + generated - 1:
        return None
    return max(0, position - prompt + 1)


def _message_row(k: int, message: dict, tokens: list[dict]) -> dict:
    positions = [token["position"] for token in tokens if token["message_index"] == k]
    return {
        "message_index": k,
        "role": message["role"],
        "content": message["content"],
        "first_position": min(positions, default=None),
        "last_position": max(positions, default=None),
    }


def _final(
    prompt_id: int, reply: int, read: list[int], texts: list[str], generated: int
) -> list[dict]:
    """The row of the final state, which there is where a token of the reply was read."""
    if generated < 2:
        return []
    key = prompt_id, "final", generated - 1, None
    return [state_tokens.row(key, read, texts[-1], (reply, "assistant", False), generated=True)]
