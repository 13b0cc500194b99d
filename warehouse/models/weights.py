"""Whether a model is the one that its files describe: the loading report, and the ids of tokens."""

import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from warehouse.errors import AlabError

#: Names of weights that a message lists.
_SHOWN = 4


def listed(names: Iterable[str]) -> str:
    """The first of some names, in the order of their numbers.

    >>> listed(f"layers.{n}" for n in (10, 2, 0, 1, 3))
    'layers.0, layers.1, layers.2, layers.3 and 1 more'
    """

    def parts(name: str) -> list[int | str]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    ordered = sorted(names, key=parts)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def check(model: nn.Module, report: dict[str, Any], source: str) -> list[tuple[str, str]]:
    """Refuse a model whose weights are not all those of its checkpoint.

    `report` is what `from_pretrained` gave as loading info; messages call the checkpoint `source`.

    Returns:
        Notes about weights that were left out, as (code, sentence).

    Raises:
        AlabError: the checkpoint lacks weights, or has them in another shape, so that those that
            ran would be random.
    """
    unexpected = report["unexpected_keys"]
    mismatched = {name: shapes for name, *shapes in report["mismatched_keys"]}
    missing = _not_loaded(model, report) - mismatched.keys()
    nowhere = (name for name, value in model.named_parameters() if value.is_meta)
    missing |= {name for name in nowhere if not _offloaded(model, name)}
    total = len(set(model.state_dict()))
    if missing:
        others = f"; {len(unexpected)} that it has fit nowhere: {listed(unexpected)}"
        raise AlabError(
            f"model.id: {source} lacks {len(missing)} of the {total} weights of "
            f"{type(model).__name__}: {listed(missing)}{others if unexpected else ''}",
            _why(missing, unexpected, total),
        )
    if mismatched:
        name = min(mismatched)
        its, own = (" × ".join(map(str, shape)) for shape in mismatched[name])
        raise AlabError(
            f"model.id: {len(mismatched)} of the weights in {source} have another shape than its "
            f"config says: {listed(mismatched)} ({name} is {its}, not {own})",
            "Its config.json and its weights are not of the same model.",
        )
    return left_out(unexpected, "the checkpoint", model)


def left_out(names: Collection[str], source: str, model: nn.Module) -> list[tuple[str, str]]:
    """A note about weights that have no place in a model; none where there are none."""
    if not names:
        return []
    sentence = (
        f"{len(names)} weights of {source} fit nowhere in {type(model).__name__} and were left "
        f"out: {listed(names)}"
    )
    return [("unexpected_weights", sentence)]


def _why(missing: Collection[str], unexpected: Collection[str], total: int) -> str:
    ends = ((name, own) for name in unexpected for own in missing if name.endswith(f".{own}"))
    if pair := next(ends, None):
        return (
            f"Its names begin with {pair[0].removesuffix(pair[1])!r}, as of a model that was "
            "wrapped: rename them in the checkpoint."
        )
    if any("score" in name or "classifier" in name for name in unexpected):
        return (
            "It is a classifier, made from a language model without its head. "
            "Name the language model."
        )
    if len(missing) == total:
        return (
            "None of its weights are of this architecture; compare its config.json with where it "
            "is from."
        )
    return "They would be random numbers. Get the whole checkpoint, or correct its config.json."


def load_strictly(kind: Any, source: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model with `kind.from_pretrained` and a report that hides nothing that matters.

    A model class may tell transformers not to report some missing weights
    (`_keys_to_ignore_on_load_missing`). Where one of those is no constant, which a rule would have
    filled in (a bias of zeros), it was read or drawn: the model is loaded again with everything
    reported.

    Returns:
        The model and its loading report.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    name = "_keys_to_ignore_on_load_missing"
    model, report = kind.from_pretrained(source, **options)
    patterns = getattr(model, name, None)
    if not patterns:
        return model, report
    quiet = re.compile("|".join(f"({pattern})" for pattern in patterns))
    if all(_is_constant(value) for name, value in model.state_dict().items() if quiet.search(name)):
        return model, report
    kinds = {type(module) for module in model.modules()}
    rules = {owner: rule for owner in kinds if (rule := getattr(owner, name, None))}
    del model
    for owner in rules:
        setattr(owner, name, None)
    try:
        return kind.from_pretrained(source, **options)
    finally:
        for owner, rule in rules.items():
            setattr(owner, name, rule)


def _not_loaded(model: nn.Module, report: dict[str, Any]) -> set[str]:
    """Names of the weights that came from no file, and that the model does not compute either."""
    missing = set(report["missing_keys"])
    buffers = missing & {name for name, _ in model.named_buffers()}
    return missing - _computed(model, buffers) if buffers else missing


def _is_constant(value: torch.Tensor) -> bool:
    return value.is_meta or bool((value == value.reshape(-1)[:1]).all())


def _computed(model: nn.Module, names: set[str]) -> set[str]:
    """Those of some buffers that the model's code computes when it is made anew."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
            fresh = dict(type(model)(model.config).named_buffers())
    except Exception:  # the model's own code
        return set()
    ours = dict(model.named_buffers())
    pairs = {name: (fresh[name], ours[name].cpu()) for name in names & fresh.keys()}
    return {name for name, (new, own) in pairs.items() if torch.equal(new.to(own.dtype), own)}


def _offloaded(model: nn.Module, name: str) -> bool:
    return getattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook", None) is not None


def vocabulary_notes(tokenizer: Any, model: Any) -> list[tuple[str, str]]:
    """A note where the tokenizer knows ids that the model has no embedding of."""
    rows = embedding_rows(model)
    added = max(getattr(tokenizer, "added_tokens_decoder", None) or {}, default=-1)
    if rows is None or max(len(tokenizer) - 1, added) < rows:  # listing a vocabulary takes a while
        return []
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if not beyond:
        return []
    names = ", ".join(f"{token!r} ({i})" for i, token in beyond[:_SHOWN])
    more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
    sentence = (
        f"the tokenizer has {len(beyond)} tokens beyond the model's {rows} embeddings: "
        f"{names}{more}; text with these is refused"
    )
    return [("vocabulary", sentence)]


def check_ids(ids: Iterable[int], model: Any, where: str) -> None:
    """Refuse token ids that the model has no embedding of, as wrong usage."""
    rows = embedding_rows(model)
    if rows and (beyond := sorted({i for i in ids if not 0 <= i < rows})):
        raise AlabError(
            f"{where}: the tokenizer gives the token {beyond[0]}; the model has embeddings of "
            f"0 to {rows - 1}",
            "The tokenizer is not of this model, or tokens were added to it alone.",
            2,
        )


def embedding_rows(model: Any) -> int | None:
    """How many tokens the model has embeddings of; None where that cannot be told."""
    table = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(table, "weight", None)
    rows = len(weight) if weight is not None and weight.ndim == 2 else None
    return getattr(table, "num_embeddings", None) or rows
