"""What a capture would take, before it is launched: bytes and time, without loading a model."""

from typing import Any

from warehouse.capture.amounts import Amounts
from warehouse.prefixes import at_each_message
from warehouse.scenario import Scenario
from warehouse.vocabulary import SITES

#: Characters of a token, and tokens that a chat template writes around a message, about.
CHARACTERS, AROUND = 4, 5


def amounts(scenario: Scenario, rows: dict[str, Any] | None) -> Amounts:
    """What a scenario keeps; tokens are counted by their characters.

    Args:
        scenario: the request.
        rows: of a dataset: `rows`, and `characters` and `messages` of one, on average.
    """
    if scenario.dataset is not None:
        assert rows is not None  # who asks has read it
        return _of_dataset(scenario, rows)
    new, tokens, pairs, states = scenario.generation.max_new_tokens, 0, 0, 0
    for run in at_each_message(scenario):
        for prompt in run.prompt:
            length = _tokens([turn["content"] for turn in prompt.turns]) + max(new - 1, 0)
            tokens += length
            pairs += length * length // 2
            # Snapshots of each message and of the reply, the first and the last state.
            states += len(prompt.turns) + 1 + 2 if scenario.capture.states else 0
        states += len(run.reference_states) if scenario.capture.states else 0
    return Amounts(tokens, pairs if scenario.capture.keeps("attention") else 0, states)


def _of_dataset(scenario: Scenario, rows: dict[str, Any]) -> Amounts:
    """What is kept of each row's prompt: what selectors name, and the reply where there is one."""
    length = _tokens(["x" * int(rows["characters"])]) + AROUND * int(rows["messages"])
    counts = {"last": 1, "all": length, "message_ends": max(1, int(rows["messages"])), "mean": 0}
    chosen = [counts.get(name, 1) for name in scenario.capture.positions or ["last"]]
    kept = length if "all" in (scenario.capture.positions or ()) else min(length, sum(chosen))
    new = scenario.generation.max_new_tokens
    reply = max(new - 1, 0)
    pairs = length * length // 2 + reply * (length + reply // 2)
    pairs = pairs if scenario.capture.keeps("attention") else 0
    return Amounts(rows["rows"] * (kept + reply), rows["rows"] * pairs, 0)


def _tokens(texts: list[str]) -> int:
    return sum(len(text) // CHARACTERS + 1 + AROUND for text in texts)


def bytes_of(scenario: Scenario, kept: Amounts, model: dict[str, Any]) -> int:
    """Bytes on disk, about.

    Args:
        scenario: the request.
        kept: what it keeps.
        model: sizes of the model, as `alab layers --format json` says them.
    """
    options = scenario.capture
    layers = model["layers"] if options.layers == "all" else len(options.layers)
    widths = sum(model["sites"].get(site, 0) for site in SITES if options.keeps(site))
    outputs = {"embeddings": model["embeddings"], "logits": model["vocabulary"]}
    width = layers * widths + sum(size for name, size in outputs.items() if options.keeps(name))
    return kept.bytes(
        layers=layers,
        heads=model["heads"],
        hidden_size=model["hidden_size"],
        width=width,
        store_dtype=options.store_dtype,
    )


def seconds_of(
    scenario: Scenario, rows: dict[str, Any] | None, speed: dict[str, Any]
) -> float | None:
    """Seconds, about, from what earlier runs of the model took; None where there were none.

    Args:
        scenario: the request.
        rows: of a dataset, as `amounts` takes them.
        speed: seconds of a forward pass, and of a prompt of a dataset that is only read.
    """
    new = scenario.generation.max_new_tokens
    if rows is not None and not new:
        each, count = speed["prompt"], rows["rows"]
    else:
        prompts = sum(len(run.prompt) for run in at_each_message(scenario))
        each, count = speed["pass"], (rows["rows"] if rows else prompts) * max(new, 1)
    return None if each is None else each * count
