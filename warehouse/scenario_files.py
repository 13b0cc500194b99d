"""Scenario files: those that arguments mean, read and refused with the file's name and line."""

from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import yaml

from warehouse.errors import AlabError
from warehouse.scenario import Scenario, parse

#: Values that a text may have when its aliases are followed; of a longer one twice those without.
VALUES = 100_000


class Loader(yaml.SafeLoader):
    """YAML without objects of Python.

    It refuses a key that is given twice, of which YAML would keep the last without a word, and
    aliases that stand for so much that whoever walks through the values never comes back.
    """

    def get_single_data(self) -> Any:
        """As YAML's, of aliases within reason."""
        node = self.get_single_node()
        known: dict[int, float] = {}
        if node is not None and _count(node, known, set()) > max(VALUES, 2 * len(known)):
            problem = "its aliases stand for too much"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return None if node is None else self.construct_document(node)

    # The stubs say that an anchor is a dict; it is the name after `&`.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As YAML's, for keys that differ."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in keys:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add((key.tag, key.value))
        return node


def _count(node: yaml.Node, known: dict[int, float], above: set[int]) -> float:
    """Values of a node, aliases followed; endless where it holds itself."""
    if id(node) in above:
        return inf
    if id(node) not in known:
        within: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            within = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            within = node.value
        known[id(node)] = 1
        above.add(id(node))
        known[id(node)] += sum(_count(part, known, above) for part in within)
        above.remove(id(node))
    return known[id(node)]


def read_file(path: Path | str) -> Scenario:
    """Read and check a scenario file.

    Raises:
        AlabError: with exit code 2; names the file and the key that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what, hint = f"there is no scenario file {path}", "Ready-made ones: alab demo"
        raise AlabError(what, hint, 2) from None
    except OSError as error:
        raise AlabError(f"cannot read {path}: {error.strerror}", exit_code=2) from error
    except UnicodeDecodeError as error:
        raise AlabError(f"{path} is not UTF-8 text (byte {error.start})", exit_code=2) from error
    return beside(path, parse(load(text, str(path)), str(path)))


def load(text: str, name: str) -> Any:
    """The plain data that YAML means; `name` says in errors whose it is.

    Raises:
        AlabError: with exit code 2; it is no valid YAML.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise AlabError(f"{name}{where}: not valid YAML: {problem}", exit_code=2) from error
    except RecursionError as error:  # a thousand brackets
        raise AlabError(f"{name}: not valid YAML: nested too deeply", exit_code=2) from error
    except ValueError as error:  # such as the 40th of a month
        raise AlabError(f"{name}: not valid YAML: {error}", exit_code=2) from error


def beside(path: Path, scenario: Scenario) -> Scenario:
    """The scenario with a dataset's source that lies beside its file, wherever we are."""
    if (dataset := scenario.dataset) is None or dataset.source is None:
        return scenario
    source = path.absolute().parent / dataset.source
    pattern = source.relative_to(source.anchor)
    if dataset.source.startswith("vega:") or not any(Path(source.anchor).glob(str(pattern))):
        return scenario
    dataset = dataset.model_copy(update={"source": str(source)})
    prompt = scenario.prompt[0].model_copy(update={"dataset": dataset})
    return scenario.model_copy(update={"prompt": [prompt]})


def are_several(paths: Sequence[Path | str]) -> bool:
    """Whether arguments mean more than one scenario: several, or what a directory holds."""
    return len(paths) > 1 or Path(paths[0]).is_dir()


def files_of(paths: Iterable[Path | str]) -> list[Path]:
    """The scenario files that arguments mean: files as they are, directories with all they hold."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
        elif inside := sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
            files += inside
        else:
            raise AlabError(f"there are no scenario files (*.yaml) in {path}", exit_code=2)
    return files
