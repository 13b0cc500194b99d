"""What is told when a run has been captured: each reply, where it ended, and what to do next."""

from collections.abc import Sequence
from pathlib import Path

from warehouse import advice
from warehouse.lake.lake import Lake

#: Prompts of a run whose replies are shown, characters of each reply, and runs that the next
#: command names.
PROMPTS, CHARACTERS, RUNS = 3, 600, 3


def ending(lake: Lake, run_id: str) -> str:
    """The replies of a run, the first few of many, and how each ended."""
    prompts = lake.metadata(run_id, "prompts").select(
        ["prompt_id", "n_generated", "stop_reason", "generated_text"]
    )
    steps, prompts = (
        lake.metadata(run_id, "steps").select(["prompt_id", "generated_token"]),
        prompts.to_pylist(),
    )
    last = dict(
        zip(*(column.to_pylist() for column in steps.columns), strict=True)
    )  # of each prompt's last step
    lines = []
    for prompt in prompts[:PROMPTS]:
        name = f"{prompt['prompt_id']}  " if len(prompts) > 1 else ""
        lines += [
            name + shown(prompt["generated_text"] or ""),
            f"   {_end(prompt, last.get(prompt['prompt_id']))}",
        ]
    if len(prompts) > PROMPTS:
        cut = sum(prompt["stop_reason"] == "length" for prompt in prompts)
        lines.append(
            f"… {len(prompts)} prompts; {cut} replies were cut, {len(prompts) - cut} ended by themselves"
        )
    return "\n".join(lines)


def _end(prompt: dict, token: str | None) -> str:
    count = prompt["n_generated"]
    tokens = f"{count} token{'s' * (count != 1)}"
    if not count:
        return "nothing was generated"
    if prompt["stop_reason"] == "eos":
        return f"it ended by itself after {tokens}, with {shown(token or '')}"
    return f"it was cut at {tokens} (generation.max_new_tokens)"


def next_command(runs: Sequence[tuple[Lake, str]]) -> str:
    """What to type after a capture of some runs, each in its lake."""
    places: dict[Path, list[str]] = {}
    for lake, run_id in runs:
        places.setdefault(lake.warehouse, []).append(run_id)
    lines = []
    for place, ids in places.items():
        lines.append(
            f"next: {advice.alab(place)} "
            + (f"report {' '.join(ids)}" if len(ids) <= RUNS else "runs")
        )
    return "\n".join(lines)


def shown(text: str) -> str:
    r"""A model's text for a terminal: neither what moves its cursor, nor pages of it.

    >>> shown("one\n\ttwo\x1b[2J")
    'one\n\ttwo\\x1b[2J'
    """
    text = text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
