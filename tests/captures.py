"""Captures of tiny random models, for the tests that need a run that a model made."""

import tiny

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.models import loading as models
from warehouse.models import sites

USER = {"role": "user", "content": "Hello there"}
CHAT = [
    {"role": "system", "content": "Be kind."},
    USER,
    {"role": "assistant", "content": "Hi!"},
    USER,
]


def make_scenario(**changes) -> scenario.Scenario:
    data = {
        "name": "tiny", "model": {"id": "tiny", "dtype": "float32", "device": "cpu"},
        "prompt": {"messages": CHAT}, "generation": {"max_new_tokens": 4},
        "capture": {"store_dtype": "float32", "top_k_probs": 3},
        "reference_states": [
            {"label": "joy", "messages": [{"role": "user", "content": "Joy!"}]},
            {"label": "calm", "messages": [{"role": "user", "content": "Joyless"}]},
        ],
    }  # fmt: skip
    for key, value in changes.items():
        data[key] = (
            data[key] | value
            if isinstance(data.get(key), dict) and isinstance(value, dict)
            else value
        )
    return scenario.parse(data)


def loaded(model) -> models.Loaded:
    """A tiny model without an end of sequence: random models end anywhere, and tests want every step."""
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    return models.Loaded(model, tokenizer, "tiny", "float32", "cpu")


def family(name: str) -> tuple[models.Loaded, sites.ModelSites]:
    """A tiny model of a family, and what is found in it."""
    model = tiny.model_of(name)
    return loaded(model), sites.discover(model)


def run(lake: Lake, llama, **changes) -> str:
    return capture.capture_one(make_scenario(**changes), *llama, lake)


def rows(lake: Lake, query: str, *values) -> list[tuple]:
    with catalog.connect(lake) as db:
        return db.execute(query, list(values)).fetchall()
