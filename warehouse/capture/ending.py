"""What is told when a run has been captured: each reply, where it ended, and what to do next."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice, takewhile
from pathlib import Path

from warehouse import advice
from warehouse.lake.lake import Lake

#: Prompts of a run whose replies are shown, characters of each reply, and runs that the next
#: command names.
PROMPTS, CHARACTERS, RUNS = 3, 600, 3


def ending(lake: Lake, run_id: str) -> str:
    """The replies of a run, the first few of many, and how each ended; of one only read, a line."""
    prompts = _rows(lake, run_id, "prompts")
    first = list(islice(prompts, PROMPTS + 1))
    if not any(prompt["n_generated"] for prompt in first):
        count = len(first) + sum(1 for _ in prompts)
        return f"{count} prompt{'s were' if count != 1 else ' was'} read; nothing was generated"
    steps = takewhile(lambda step: step["prompt_id"] < PROMPTS, _rows(lake, run_id, "steps"))
    tokens = {step["prompt_id"]: step["generated_token"] for step in steps}  # each prompt's last
    lines = []
    for prompt in first[:PROMPTS]:
        name = f"{prompt['prompt_id']}  " if len(first) > 1 else ""
        end = _end(prompt, tokens.get(prompt["prompt_id"]))
        lines += [name + shown(prompt["generated_text"] or ""), f"   {end}"]
    if len(first) > PROMPTS:
        reasons = Counter(prompt["stop_reason"] for prompt in chain(first, prompts))
        count, cut = reasons.total(), reasons["length"]
        replies = f"{cut} replies were cut, {count - cut} ended by themselves"
        lines.append(f"… {count} prompts; {replies}")
    return "\n".join(lines)


def _rows(lake: Lake, run_id: str, table: str) -> Iterator[dict]:
    """What is told of the rows of a metadata table, a few thousand in memory at once."""
    from pyarrow.parquet import ParquetFile

    columns = {
        "prompts": ["prompt_id", "n_generated", "stop_reason", "generated_text"],
        "steps": ["prompt_id", "generated_token"],
    }[table]
    with ParquetFile(lake.dataset("metadata", run_id) / f"{table}.parquet") as file:
        for batch in file.iter_batches(batch_size=1 << 12, columns=columns):
            yield from batch.to_pylist()


def _end(prompt: dict, token: str | None) -> str:
    count = prompt["n_generated"]
    tokens = f"{count} token{'s' * (count != 1)}"
    if prompt["stop_reason"] == "eos":
        return f"it ended by itself after {tokens}, with {shown(token or '')}"
    return f"it was cut at {tokens} (generation.max_new_tokens)"


def next_command(runs: Sequence[tuple[Lake, str]]) -> str:
    """What to type after a capture of some runs, each in its lake."""
    places: dict[Path | str, list[str]] = {}
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
