"""Scenarios while they are written: files in one folder, and what is wrong with a text."""

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from warehouse.assets import asset_dir
from warehouse.errors import AlabError, ConflictError, NotThereError
from warehouse.mistakes import each
from warehouse.scenario import FLAGS, Scenario, parse
from warehouse.scenario_files import beside, load
from warehouse.serve.server import Server
from warehouse.serve.yaml_edit import edit, line_of, tree

#: Characters of a scenario, at the most.
LENGTH = 200_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a scenario.

    Attributes:
        line: where, from 1.
        message: what is wrong.
        hint: what to do; may be empty.
    """

    line: int
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Draft:
    """A text that is to become a scenario.

    Attributes:
        text: the YAML.
        data: what it means; None where it is no YAML.
        mistakes: what is wrong with it.
        scenario: the request, where nothing is wrong with its form.
    """

    text: str
    data: Any
    mistakes: list[Mistake]
    scenario: Scenario | None = None


def check(server: Server, text: str) -> Draft:
    """Everything that can be said of a text without a model and without its data."""
    if len(text) > LENGTH:
        return Draft(text, None, [Mistake(1, "the scenario is too long for this page")])
    try:
        data = load(text, "the scenario")
        root = tree(text)
    except AlabError as error:
        line = re.search(r", line (\d+)", error.message)
        return Draft(text, None, [Mistake(int(line[1]) if line else 1, error.message)])
    if not isinstance(data, dict):
        mistake = Mistake(1, "this is no scenario yet: name, model and prompt are needed")
        return Draft(text, {} if data is None else None, [mistake])
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        told = each(error, data, Scenario).items()
        mistakes = [Mistake(line_of(root, place), what, hint) for what, (place, hint) in told]
        return Draft(text, data, sorted(mistakes, key=lambda one: one.line))
    mistakes = [
        Mistake(line_of(root, place), error.message, error.hint)
        for place, error in refusals(server, scenario)
    ]
    return Draft(text, data, mistakes, scenario)


def refusals(server: Server, scenario: Scenario) -> list[tuple[list[str | int], AlabError]]:
    """What this server does not do for a browser, with the place in the scenario."""
    refused: list[tuple[list[str | int], AlabError]] = []
    if scenario.model.trust_remote_code and not server.allowed.trust_remote_code:
        hint = "Start it with --trust-remote-code, or capture on the command line."
        error = AlabError("model.trust_remote_code: this server runs no code of models", hint)
        refused.append((["model", "trust_remote_code"], error))
    dataset = scenario.dataset
    if dataset is not None and dataset.source is not None:
        try:
            allowed_source(server, located(server, scenario))
        except AlabError as error:
            refused.append((["prompt", "dataset", "source"], error))
    elif dataset is not None:
        missing = AlabError("prompt.dataset: it has no source", "Name a file, or vega:NAME.")
        refused.append((["prompt", "dataset"], missing))
    return refused


def located(server: Server, scenario: Scenario) -> Scenario:
    """The scenario as its file in the folder would be read: its data may lie beside it."""
    try:
        return beside(folder(server) / "scenario.yaml", scenario)
    except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return scenario  # no name that a file can have, which reading it will say


def allowed_source(server: Server, scenario: Scenario) -> None:
    """Refuse data that lie elsewhere than near the scenarios and the warehouse.

    Raises:
        AlabError: the source is, or a link leads, outside of the folders that a browser may read.
    """
    assert scenario.dataset is not None and scenario.dataset.source is not None
    source = scenario.dataset.source
    if source.startswith("vega:"):
        return
    roots = [os.path.realpath(path) for path in roots_of(server)]
    paths = [os.path.realpath(path) for path in _paths(source)]
    if not paths or not all(_is_below(path, roots) for path in paths):
        raise AlabError(
            "prompt.dataset.source: this file is outside of the folders that captures from here "
            "may read",
            f"They are {' and '.join(map(str, roots_of(server)[:2]))}, with what is in them.",
        )


def roots_of(server: Server) -> list[Path]:
    """Folders whose data captures from the browser may read."""
    return [folder(server), server.lake.home.parent, asset_dir("scenarios")]


def _is_below(path: str, roots: list[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _paths(source: str) -> list[Path]:
    """What a source may mean: itself and the files it stands for; none where it is no path."""
    if "\0" in source:
        return []
    try:
        path = Path(source).expanduser()
        return [path, *Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))]
    except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return []


def launchable(server: Server, text: str) -> tuple[str, Scenario]:
    """A text that can be captured wherever it lies, and its scenario.

    Raises:
        AlabError: something is wrong with it; with exit code 2.
    """
    draft = check(server, text)
    if draft.mistakes or draft.scenario is None:
        first = draft.mistakes[0]
        raise AlabError(f"line {first.line}: {first.message}", first.hint, 2)
    scenario = located(server, draft.scenario)
    return with_source(text, scenario), scenario


def with_source(text: str, scenario: Scenario) -> str:
    """A text that names its data wherever it lies itself."""
    data = load(text, "the scenario")
    prompts = data["prompt"] if isinstance(data["prompt"], list) else [data["prompt"]]
    if scenario.dataset is None or prompts[0]["dataset"].get("source") == scenario.dataset.source:
        return text
    way = ["prompt", 0] if isinstance(data["prompt"], list) else ["prompt"]
    change = {"path": [*way, "dataset", "source"], "value": scenario.dataset.source}
    try:
        return edit(text, [change])
    except AlabError:  # through aliases, for instance; then without comments
        plain = parse(data).model_dump(mode="json", exclude_unset=True)
        plain["prompt"][0]["dataset"]["source"] = scenario.dataset.source
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


# --- files ---


def folder(server: Server) -> Path:
    """The one folder of scenario files."""
    return server.allowed.scenarios or server.lake.home.parent / "scenarios"


def names(server: Server) -> list[str]:
    """Names of the scenario files that are there."""
    try:
        files = sorted(folder(server).iterdir())
    except OSError:
        return []
    return [path.name for path in files if path.suffix in _SUFFIXES and _is_ours(path)]


def read(server: Server, name: str) -> str:
    """The text of a scenario file.

    Raises:
        NotThereError: there is none of this name.
    """
    if name not in names(server):
        raise NotThereError(f"there is no scenario file {name[:120]!r}")
    return _text(folder(server) / name)


def example(name: str) -> str:
    """The text of a scenario that alab brings with it; its data are named where they lie.

    Raises:
        NotThereError: there is none of this name.
    """
    if name not in examples():
        raise NotThereError(f"there is no example {name[:120]!r}")
    path = asset_dir("scenarios") / f"{name}.yaml"
    text = _text(path)
    return with_source(text, beside(path, parse(load(text, name), name)))


def examples() -> list[str]:
    """Names of the scenarios that alab brings with it."""
    return sorted(path.stem for path in asset_dir("scenarios").glob("*.yaml"))


def of_run(scenario_json: str) -> str:
    """The scenario of a run as YAML, without what is so by default.

    Raises:
        AlabError: with exit code 2; it is none, as of an imported run.
    """
    stored = json.loads(scenario_json)
    capture = stored.get("capture") or {}
    if capture.get("sites") is not None:  # earlier runs say flags too, which then mean nothing
        stored["capture"] = {key: value for key, value in capture.items() if key not in FLAGS}
    scenario = parse(stored, "the run's scenario")
    whole, data = (scenario.model_dump(mode="json", exclude_defaults=no) for no in (False, True))
    # What is usual depends on the rest: of a dataset, say, no tokens are generated.
    usual = parse(data).model_dump(mode="json")
    for part, values in whole.items():
        if isinstance(values, dict):
            unusual = {key: value for key, value in values.items() if usual[part].get(key) != value}
            data |= {part: data.get(part, {}) | unusual} if unusual else {}
    if len(data["prompt"]) == 1:
        (data["prompt"],) = data["prompt"]
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 100}
    return yaml.safe_dump(data, **options)


def save(server: Server, name: str, text: str, *, overwrite: bool) -> str:
    """Write a scenario file; it appears whole.

    Returns:
        The file's name.

    Raises:
        AlabError: the name is none, or the scenario is wrong.
        ConflictError: the file is there.
    """
    name = name if name.endswith(_SUFFIXES) else f"{name}.yaml"
    if not _NAME.fullmatch(name):
        hint = "Allowed: letters, digits and . _ - , not starting with a dot or a dash"
        raise AlabError(f"{name[:120]!r} is no name for a file", hint, 2)
    launchable(server, text)
    place = folder(server) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(place) and not _is_ours(place):
        raise ConflictError(f"{name} is there, and is no file of this folder")
    draft = place.with_name(f".{secrets.token_hex(8)}.part")
    draft.write_text(text, encoding="utf-8")
    try:
        if overwrite:
            draft.replace(place)
        else:
            place.hardlink_to(draft)
    except FileExistsError as error:
        hint = "Save under another name, or overwrite it."
        raise ConflictError(f"the file {name} is there already", hint) from error
    finally:
        draft.unlink(missing_ok=True)
    return name


def _is_ours(path: Path) -> bool:
    """Whether a file lies in its folder itself: links may lead anywhere."""
    return path.is_file() and not path.is_symlink() and bool(_NAME.fullmatch(path.name))


def _text(path: Path) -> str:
    """A file's text, with the line ends that editors of pages have.

    Raises:
        AlabError: it is no text, or too long for a page.
    """
    text = path.read_text(encoding="utf-8-sig")
    if len(text) > LENGTH:
        raise AlabError(f"{path.name} is too long for this page", "Edit it as a file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
