"""The references of a scenario: labels, each with the short conversations that are its examples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from warehouse.states import Key, StateFile


@dataclass
class Reference:
    """A label with its examples.

    A label with one example has its state as the reference. Of a label with several each has a state `example`, and
    the reference is their mean.

    Attributes:
        label: the label.
        index: its place among the labels, in the order of their first examples.
        examples: place in the scenario, messages and token ids of each example.
    """

    label: str
    index: int
    examples: list[tuple[int, list[dict], list[int]]] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What tells the reference's state."""
        return None, "reference", self.index, self.label

    def sequences(self) -> dict[Key, list[int]]:
        """The states to read for it, and what each has seen."""
        if len(self.examples) == 1:
            return {self.key: self.examples[0][2]}
        return {(None, "example", place, self.label): ids for place, _, ids in self.examples}

    def average(self, states: StateFile) -> None:
        """Add the mean of the examples' states where there are several."""
        if len(self.examples) > 1:
            states.average(self.key, list(self.sequences()))

    def row(self) -> dict:
        """Its row of the table `reference_states`, without the run's id."""
        conversations = [messages for _, messages, _ in self.examples]
        return {
            "label": self.label, "ref_index": self.index, "n": len(self.examples),
            "messages": json.dumps(conversations if len(conversations) > 1 else conversations[0], ensure_ascii=False),
            "n_tokens": sum(len(ids) for *_, ids in self.examples),
        }  # fmt: skip


def grouped(examples: Sequence[tuple[str, list[dict], list[int]]]) -> list[Reference]:
    """The references of a plan, whose examples are (label, messages, token ids) in the scenario's order."""
    found: dict[str, Reference] = {}
    for place, (label, messages, ids) in enumerate(examples):
        found.setdefault(label, Reference(label, len(found))).examples.append((place, messages, ids))
    return list(found.values())
