"""The references of a scenario: labels, each with the short conversations that are its examples."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from warehouse.capture import state_tokens
from warehouse.capture.states import Key, StateFile
from warehouse.models.chat import Rendered
from warehouse.models.reader import Reader

if TYPE_CHECKING:
    from warehouse.capture.session import Session


@dataclass
class Reference:
    """A label with its examples.

    A label with one example has its state as the reference. Of a label with several each has a
    state `example`, and the reference is their mean.

    Attributes:
        label: the label.
        index: its place among the labels, in the order of their first examples.
        examples: place in the scenario, messages and rendering of each example.
    """

    label: str
    index: int
    examples: list[tuple[int, list[dict], Rendered]] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What tells the reference's state."""
        return None, "reference", self.index, self.label

    def keys(self) -> list[Key]:
        """What tells the state of each of its examples."""
        if len(self.examples) == 1:
            return [self.key]
        return [(None, "example", place, self.label) for place, *_ in self.examples]

    def average(self, states: StateFile) -> None:
        """Add the mean of the examples' states where there are several."""
        if len(self.examples) > 1:
            states.average(self.key, self.keys())

    def row(self) -> dict:
        """Its row of the table `reference_states`, without the run's id."""
        conversations = [messages for _, messages, _ in self.examples]
        return {
            "label": self.label,
            "ref_index": self.index,
            "n": len(self.examples),
            "messages": json.dumps(
                conversations if len(conversations) > 1 else conversations[0], ensure_ascii=False
            ),
            "n_tokens": sum(len(rendered.ids) for *_, rendered in self.examples),
        }

    def token_rows(self) -> list[dict]:
        """Rows of `state_tokens`: of each example, and of a mean what all examples agree on."""
        rows = [
            state_tokens.row_of(key, rendered)
            for key, (_, _, rendered) in zip(self.keys(), self.examples, strict=True)
        ]
        if len(rows) == 1:
            return rows
        common = {
            name: value
            for name, value in rows[0].items()
            if all(row[name] == value for row in rows)
        }
        places = dict.fromkeys(("n_tokens", "position"))  # each has its own
        return [*rows, common | places | {"state": "reference", "state_index": self.index}]


def read_references(
    run: "Session", reader: Reader, tick: Callable[[int], None] = lambda _: None
) -> None:
    """Read the examples of a plan's references into a session, and write their rows.

    Args:
        run: the session; no prompt is being read.
        reader: what reads them.
        tick: told how many were read.
    """
    references = grouped(run.plan.references)
    run.read_states(reader, sequences(references), tick)
    for reference in references:
        reference.average(run.states)
        run.add("reference_states", [reference.row()])
        run.add("state_tokens", reference.token_rows())
    run.states.flush()


def grouped(examples: Sequence[tuple[str, list[dict], Rendered]]) -> list[Reference]:
    """The references of examples (label, messages, rendering), in the order of the scenario."""
    references: dict[str, Reference] = {}
    for place, (label, messages, rendered) in enumerate(examples):
        reference = references.setdefault(label, Reference(label, len(references)))
        reference.examples.append((place, messages, rendered))
    return list(references.values())


def sequences(references: Sequence[Reference]) -> dict[Key, list[int]]:
    """The states to read and the tokens of each, in the scenario's order.

    The order matters: bits depend on what is read together.
    """
    examples = [
        (place, key, rendered.ids)
        for reference in references
        for key, (place, _, rendered) in zip(reference.keys(), reference.examples, strict=True)
    ]
    return {key: ids for _, key, ids in sorted(examples, key=lambda example: example[0])}
