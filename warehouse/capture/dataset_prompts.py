"""The prompts of a dataset: which rows can be read, their tokens, what selectors keep."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from warehouse.capture.dataset import Dataset, Filled
from warehouse.capture.plan import PlannedPrompt
from warehouse.errors import AlabError
from warehouse.lake.parquet import open_parquet
from warehouse.lake.staging import StagedRun
from warehouse.models import limits, weights
from warehouse.models.chat import Chat, Rendered
from warehouse.models.loading import Loaded
from warehouse.scenario import Scenario

#: Selectors that need no field: the last token, every token, the last token of each message.
SELECTORS = ("last", "all", "message_ends")
#: Rows after which is told how far it is.
TOLD = 1000
#: The selector whose vectors are means over tokens, and stand among the states.
MEAN = "mean"


class DatasetPrompts:
    """What a dataset's rows read, compactly: texts and renderings are made again when they are due.

    Attributes:
        dataset: the dataset.
        readable: `prompt_id` of the rows that are read.
        lengths: tokens of each row's prompt; 0 where it is not read.
        selectors: names of the selectors that keep positions.
        means: whether means over the tokens are kept.
        tokens, pairs, snapshots, dataset_hash: as `plan.Prompts` has them, of what is kept.

    Args:
        dataset: the dataset.
        scenario: the request.
        loaded: the model.
        warnings: gets rows of the table `warnings` about rows that are left out.
        progress: told of rows whose tokens are made, which takes a minute a million.

    Raises:
        AlabError: with exit code 2; a row cannot be read and is not to be skipped, or there is no
            such selector.
    """

    def __init__(
        self,
        dataset: Dataset,
        scenario: Scenario,
        loaded: Loaded,
        warnings: list[dict],
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ):
        self.dataset, self._loaded, self._scenario = dataset, loaded, scenario
        self.dataset_hash = dataset.digest
        prompt = scenario.prompt[0]
        self._request = dataset.request
        self._chat = Chat(
            loaded.tokenizer,
            prompt.template,
            generation_prompt=prompt.add_generation_prompt,
            plain=self._request.text is not None,
        )
        positions = scenario.capture.positions or ["last"]
        self.means = MEAN in positions
        self.selectors = [name for name in dict.fromkeys(positions) if name != MEAN]
        self._check_selectors()
        self._ids: list[array | None] = []
        self._places: dict[str, list[tuple[int, ...]]] = {
            name: [] for name in self.selectors if name not in ("last", "all")
        }
        errors: list[tuple[Filled, str]] = []
        for filled in dataset.prompts():
            if len(self._ids) % TOLD == 0:
                progress("tokens of rows", len(self._ids), len(dataset))
            error = filled.error or self._read(filled)
            if error:
                if self._request.on_error == "stop":
                    raise AlabError(
                        f"prompt.dataset: row {filled.id!r}: {error}",
                        "Leave such rows out in the query, or write: on_error: skip",
                        2,
                    )
                errors.append((filled, error))
                self._ids.append(None)
                for places in self._places.values():
                    places.append(())
        warnings += [
            {"prompt_id": row.prompt_id, "code": "skipped", "message": f"row {row.id!r}: {why}"}
            for row, why in errors
        ]
        self.lengths = [len(ids) if ids is not None else 0 for ids in self._ids]
        self.readable = [n for n, length in enumerate(self.lengths) if length]
        if not self.readable:
            first = f"; the first: row {errors[0][0].id!r}: {errors[0][1]}" if errors else ""
            raise AlabError(f"prompt.dataset: none of its rows can be read{first}", "", 2)
        self.tokens = sum(len(self.places(n)) for n in self.readable)
        self.pairs = sum(length * length // 2 for length in self.lengths)
        self.snapshots = 0

    def __len__(self) -> int:
        return len(self._ids)

    def digest(self) -> str:
        """Digest of every prompt's tokens and of the places that selectors keep."""
        digest = hashlib.sha256()
        for prompt_id in self.readable:
            digest.update(array("q", [*self.ids(prompt_id), -1, *self.places(prompt_id), -2]))
        return digest.hexdigest()

    def ids(self, prompt_id: int) -> list[int]:
        """Tokens of a prompt."""
        ids = self._ids[prompt_id]
        assert ids is not None  # only rows that can be read are asked for
        return ids.tolist()

    def places(self, prompt_id: int) -> list[int]:
        """Positions of a prompt that some selector keeps, rising."""
        kept = {place for _, places in self.by_selector(prompt_id) for place in places}
        return sorted(kept)

    def by_selector(self, prompt_id: int) -> Iterator[tuple[str, Sequence[int]]]:
        """Each selector with the positions of a prompt that it keeps."""
        length = len(self._ids[prompt_id] or ())
        for name in self.selectors:
            if name == "last":
                yield name, (length - 1,)
            else:
                yield name, range(length) if name == "all" else self._places[name][prompt_id]

    def rendered(self, prompts: Sequence[int]) -> Iterator[tuple[list[dict], Rendered]]:
        """Messages and rendering of some prompts, made anew."""
        for filled in self.dataset.prompts(list(prompts)):
            messages = self._messages(filled)
            yield messages, self._chat.conversation(messages, "prompt.dataset")

    def __getitem__(self, prompt_id: int) -> PlannedPrompt:
        (prompt,) = self.rendered([prompt_id])
        return PlannedPrompt(*prompt, [])

    def rows(self, prompt_id: int, batch: dict) -> dict[str, list[dict]]:
        """Rows of `positions` and `batches` of a prompt; `batch` is what it was read in."""
        at = {"prompt_id": prompt_id}
        positions = [
            at | {"selector": name, "position": place}
            for name, places in self.by_selector(prompt_id)
            for place in places
        ]
        return {"positions": positions, "batches": [at | batch]}

    def write_labels(self, staged: StagedRun) -> None:
        """Write the dataset's rows, but those that were left out, columns of their own types."""
        rows = self.dataset.labels.take(pa.array(self.readable))
        names = {
            "run_id": pa.repeat(staged.run_id, len(rows)),
            "prompt_id": pa.array(self.readable, pa.int32()),
        }
        table = pa.table(names | dict(zip(rows.column_names, rows.columns, strict=True)))
        with open_parquet(staged.path("labels", "part-0.parquet"), table.schema) as writer:
            writer.write_table(table)

    def _check_selectors(self) -> None:
        known = [*SELECTORS, MEAN, *sorted(self.dataset.fields)]
        for name in self._scenario.capture.positions or ():
            if name in (*SELECTORS, MEAN) and name in self.dataset.fields:
                raise AlabError(
                    f"capture.positions: {name} is a selector, and a field of the template too",
                    f"Rename the field in the query: select {name} as …",
                    2,
                )
            if name not in known:
                raise AlabError(
                    f"capture.positions: there is no selector {name!r}",
                    f"There are: {', '.join(known)} (the last are fields of the template)",
                    2,
                )

    def _messages(self, filled: Filled) -> list[dict]:
        if self._request.messages is None:
            return [{"role": "text", "content": filled.texts[0]}]
        roles = [message.role for message in self._request.messages]
        return [{"role": r, "content": t} for r, t in zip(roles, filled.texts, strict=True)]

    def _read(self, filled: Filled) -> str:
        """Take in a row; gives why it cannot be read, or nothing."""
        new = self._scenario.generation.max_new_tokens
        try:
            rendered = self._chat.conversation(self._messages(filled), "prompt.dataset")
            weights.check_ids(rendered.ids, self._loaded.model, "prompt.dataset")
        except AlabError as error:
            return error.message
        limit = limits.context_length(self._loaded.model)
        if not rendered.ids:
            return "it has no tokens"
        if limit is not None and len(rendered.ids) + new > limit:
            return f"{len(rendered.ids) + new} tokens are more than the model's context of {limit}"
        places: dict[str, tuple[int, ...]] = {}
        for name in self._places:
            some = _positions(name, rendered, filled)
            if some is None:
                return f"where {name} stands in what is read cannot be told"
            places[name] = some
        for name, some in places.items():
            self._places[name].append(some)
        self._ids.append(array("i", rendered.ids))
        return ""


def _positions(selector: str, rendered: Rendered, filled: Filled) -> tuple[int, ...] | None:
    """What a selector keeps of a prompt; None where that cannot be told."""
    if selector == "message_ends":
        ends: dict[Any, int] = {}
        for position, (message, _, is_template) in enumerate(rendered.owners):
            if message is not None and not is_template:
                ends[message] = position
        return tuple(sorted(ends.values()))
    k, first, end = (filled.spans or {}).get(selector, (0, 0, 0))
    place = rendered.token_at(k, end) if end > first else None
    return None if place is None else (place,)
