"""Changes single values of a YAML text, and leaves every other character of it as it is.

YAML's parser says where in the text each value stands. An edit writes a value there; comments,
quotes and the order of keys around it stay. What comes out is read again and compared with what was
to come out, so that an edit that the text is too unusual for is refused, never done wrongly.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from warehouse.errors import AlabError
from warehouse.scenario_files import Loader, load

#: Keys and numbers from the whole to a value in it.
Path = Sequence[str | int]
#: Parts of a path, at the most: a scenario is no deeper.
DEEPEST = 20
#: Text that can stand in lines of its own after `|-`.
_LITERAL = re.compile(r"[^\s\x00-\x1f\x7f-\xa0\u2028\u2029\ufeff](.*[^\s])?", re.DOTALL)


def edit(text: str, changes: Sequence[dict[str, Any]]) -> str:
    """The text with changes made, one after the other.

    Args:
        text: YAML.
        changes: each `{"path": […], "value": …}` sets a value, `{"path": […], "append": …}` adds
            one to a list (a single value becomes the first of it), `{"path": […], "remove": true}`
            takes a value out, with what it leaves empty.

    Raises:
        AlabError: with exit code 2; the text is no YAML, or a change cannot be made in it.
    """
    for change in changes:
        path = _checked(change.get("path"))
        expected = _changed(load(text, "the scenario"), path, change)
        before = Counter(_comments(text))
        text = _edited(text, path, change)
        if not _means(text, expected):
            raise _refused(path)
        if "remove" not in change and (lost := before - Counter(_comments(text))):
            raise AlabError(
                f"{'.'.join(map(str, path))} cannot be changed here: {min(lost)!r} would be lost",
                "Change it in the YAML beside.",
                2,
            )
    return text


def _means(text: str, expected: Any) -> bool:
    try:
        return bool(load(text, "the scenario") == expected)
    except AlabError:  # the text was too unusual: it is no YAML any more
        return False


def _comments(text: str) -> list[str]:
    """The comments of a text: what stands between its tokens, and behind the mark of a block."""
    gaps, end = [], 0
    for token in yaml.scan(text, Loader):
        gaps.append(text[end : token.start_mark.index])
        end = token.end_mark.index
        if isinstance(token, yaml.ScalarToken) and token.style in ("|", ">"):
            gaps.append(text[token.start_mark.index : end].partition("\n")[0])
    return re.findall(r"#.*", "\n".join([*gaps, text[end:]]))


def line_of(root: Node | None, path: Path) -> int:
    """The line, from 1, where a value's key stands, or what of the way to it is there."""
    line = root.start_mark.line if root else 0
    for part in path:
        key, node = _child(root, part)
        if node is None:
            break
        line, root = (key or node).start_mark.line, node
    return line + 1


def tree(text: str) -> Node | None:
    """Where everything stands in a text that is YAML."""
    root: Node | None = yaml.compose(text, Loader)
    return root


def _checked(path: object) -> Path:
    if (
        isinstance(path, list)
        and 0 < len(path) <= DEEPEST
        and all(type(part) in (str, int) for part in path)
    ):
        return path
    raise AlabError("an edit has a path: a list of keys and numbers", "", 2)


def _refused(path: Path) -> AlabError:
    where = ".".join(map(str, path))
    return AlabError(f"{where} cannot be changed here", "Change it in the YAML beside.", 2)


# --- what is to come out ---


def _changed(data: Any, path: Path, change: dict[str, Any]) -> Any:
    """The data with a change made."""
    data = copy.deepcopy(data) if data is not None else {}
    *way, last = path
    parent = data
    for part in way:
        parent = _step(parent, part, create="remove" not in change, path=path)
    old = _get(parent, last)
    if "remove" in change:
        return _without(data, path) if parent is not None else data
    new = change.get("value")
    if "append" in change:
        some = [] if old is None else old if isinstance(old, list) else [old]
        new = [*some, change["append"]]
    try:
        parent[last] = new
    except (TypeError, IndexError) as error:
        raise _refused(path) from error
    return data


def _step(parent: Any, part: str | int, *, create: bool, path: Path) -> Any:
    if _get(parent, part) is None and create:
        if not isinstance(parent, dict):
            raise _refused(path)
        parent[part] = {}
    return _get(parent, part)


def _get(parent: Any, part: str | int) -> Any:
    try:
        return parent[part]
    except (TypeError, KeyError, IndexError):
        return None


def _without(data: Any, path: Path) -> Any:
    """The data without a value, and without what has nothing else in it; the whole stays."""
    for end in range(len(path), 0, -1):
        parent = data
        for part in path[: end - 1]:
            parent = _get(parent, part)
        try:
            del parent[path[end - 1]]
        except (TypeError, KeyError, IndexError):
            return data
        if parent:
            break
    return data


# --- in the text ---


def _edited(text: str, path: Path, change: dict[str, Any]) -> str:
    root = tree(text)
    if root is None or (isinstance(root, ScalarNode) and not root.value):
        root = None
    if "remove" in change:
        return _remove(text, root, path)
    if "append" in change:
        return _append(text, root, path, change["append"])
    return _set(text, root, path, change.get("value"))


def _child(node: Node | None, part: str | int) -> tuple[Node | None, Node | None]:
    """The key and the value of a part of a node; the value alone in a list; None where none is."""
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if k.value == part), (None, None))
    if isinstance(node, SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return None, node.value[part]
    return None, None


def _at(root: Node | None, path: Path) -> Node | None:
    for part in path:
        root = _child(root, part)[1]
    return root


def _end(text: str, node: Node) -> int:
    """Where the last character of a node stands, before blanks and comments behind it."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    end = node.end_mark.index
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        return len(text[:end].rstrip())
    return end


def _line_end(text: str, at: int) -> int:
    """Where the line of a place ends."""
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _set(text: str, root: Node | None, path: Path, value: Any) -> str:
    node = _at(root, path)
    if node is not None:
        start, end = node.start_mark.index, _end(text, node)
        column = _indent_of(text, node)
        in_brackets = _in_flow(root, path)
        new = _dump(value, column + 2, flow=in_brackets)
        if isinstance(node, ScalarNode) and node.style in ("|", ">"):
            behind = re.search(r" +#.*", text[start:end].partition("\n")[0])
            first, line_end, rest = new.partition("\n")
            new = first + (behind[0] if behind else "") + line_end + rest
        # `key:` with nothing behind it, or what stood on lines of its own.
        before = "" if not new or new[0] == "\n" or text[start - 1 : start] in " \n-[{" else " "
        if new.startswith("\n"):
            start = len(text[:start].rstrip(" \n"))
        elif not in_brackets and not text[:start].rpartition("\n")[2].strip():
            start, before = len(text[:start].rstrip()), " "
        if new.startswith("|"):  # what stands behind it on its line would be text
            stop = _line_end(text, end)
            new, end = new.replace("\n", text[end:stop] + "\n", 1), stop
        return text[:start] + before + new + text[end:]
    *way, last = path
    parent = _at(root, way)
    if isinstance(parent, MappingNode) and parent.value and isinstance(last, str):
        return _add_key(text, parent, last, value, flow=_in_flow(root, path))
    if way and not isinstance(parent, SequenceNode):
        return _set(text, root, way, {last: value})
    if not way and root is None:
        return text.rstrip("\n") + ("\n" if text.strip() else "") + _block({last: value}, 0)[1:]
    raise _refused(path)


def _add_key(text: str, parent: MappingNode, key: str, value: Any, *, flow: bool) -> str:
    """A key more, behind the others."""
    if flow or parent.flow_style:
        end = _end(text, parent.value[-1][1])
        return f"{text[:end]}, {_dump(key, 0, flow=True)}: {_dump(value, 0, flow=True)}{text[end:]}"
    end = _line_end(text, _end(text, parent))
    column = parent.value[0][0].start_mark.column
    return text[:end] + _block({key: value}, column) + text[end:]


def _append(text: str, root: Node | None, path: Path, value: Any) -> str:
    node = _at(root, path)
    if node is None or (isinstance(node, ScalarNode) and node.tag.endswith(":null")):
        return _set(text, root, path, [value])
    if isinstance(node, SequenceNode) and node.value and not node.flow_style:
        end = _line_end(text, _end(text, node))
        return text[:end] + _block([value], node.start_mark.column) + text[end:]
    if isinstance(node, SequenceNode):
        end = _end(text, node.value[-1]) if node.value else node.start_mark.index + 1
        comma = ", " if node.value else ""
        return text[:end] + comma + _dump(value, 0, flow=True) + text[end:]
    if isinstance(node, MappingNode) and not node.flow_style:
        return _append(_as_item(text, node), tree(_as_item(text, node)), path, value)
    end = _end(text, node)
    start = node.start_mark.index
    more = _dump(value, 0, flow=True)
    return f"{text[:start]}[{text[start:end]}, {more}]{text[end:]}"


def _as_item(text: str, node: MappingNode) -> str:
    """The text with a mapping as the first item of a list, its lines moved to the right."""
    start, end = node.start_mark.index, _end(text, node)
    body = text[start:end].replace("\n", "\n  ")
    return text[:start] + "- " + re.sub(r"\n +(?=\n)", "\n", body) + text[end:]


def _remove(text: str, root: Node | None, path: Path) -> str:
    if root is None or not path or _at(root, path) is None:
        return text
    *way, last = path
    parent = _at(root, way)
    key, node = _child(parent, last)
    assert node is not None and isinstance(parent, MappingNode | SequenceNode)
    if len(parent.value) == 1:
        return _remove(text, root, way) if way else ""
    first, end = key or node, _end(text, node)
    if _in_flow(root, path) or parent.flow_style:
        return _without_item(text, first.start_mark.index, end)
    start = text.rfind("\n", 0, first.start_mark.index) + 1
    lead = text[start : first.start_mark.index]
    if key is not None and lead.strip():  # the first key beside the dash of its item
        after = next(k for k, _ in parent.value if k.start_mark.index > end)
        return text[: first.start_mark.index] + text[after.start_mark.index :]
    return text[:start] + text[_line_end(text, end) + 1 :]


def _without_item(text: str, start: int, end: int) -> str:
    """The text without an item of a list in brackets, and the comma behind or before it."""
    if behind := re.match(r"\s*,\s*", text[end:]):
        return text[:start] + text[end + behind.end() :]
    before = re.search(r"\s*,\s*$", text[:start])
    return text[: before.start() if before else start] + text[end:]


def _in_flow(root: Node | None, path: Path) -> bool:
    """Whether a value stands inside brackets."""
    return any(getattr(_at(root, path[:n]), "flow_style", False) for n in range(len(path)))


def _indent_of(text: str, node: Node) -> int:
    """Blanks that the line of a node begins with, the dash of an item counted in."""
    line = text[text.rfind("\n", 0, node.start_mark.index) + 1 : node.start_mark.index]
    match = re.match(r" *(- +)*", line)
    return match.end() if match and match.end() < len(line) else max(0, len(line) - 2)


# --- values as YAML ---


def _block(value: dict | list, column: int) -> str:
    """A mapping or list of values in lines of their own, each after a line's end."""
    pad = "\n" + " " * column
    if isinstance(value, dict):
        parts = [(_dump(key, 0, flow=True) + ":", item) for key, item in value.items()]
    else:
        parts = [("-", item) for item in value]
    text = ""
    for head, item in parts:
        if head == "-" and isinstance(item, dict) and item:
            text += pad + "- " + _block(item, column + 2).lstrip("\n").lstrip(" ")
            continue
        new = _dump(item, column + 2, flow=False)
        text += pad + head + ("" if new.startswith("\n") else " ") + new
    return text


def _dump(value: Any, column: int, *, flow: bool) -> str:
    """A value as YAML; one in lines of its own begins with a line's end."""
    if not flow and value and _is_nested(value):
        return _block(value, column)
    if isinstance(value, str):
        return _dump_text(value, column, flow=flow)
    if isinstance(value, dict):
        pairs = (f"{_dump(k, 0, flow=True)}: {_dump(v, 0, flow=True)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_dump(item, 0, flow=True) for item in value) + "]"
    options: dict[str, Any] = {"default_flow_style": True, "width": 1 << 30}
    return yaml.safe_dump(value, **options).removesuffix("\n").removesuffix("\n...")


def _is_nested(value: Any) -> bool:
    """Whether a value takes lines of its own: a mapping, or a list that has more than words."""
    several = isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
    return isinstance(value, dict) or several


def _dump_text(value: str, column: int, *, flow: bool) -> str:
    if not flow and "\n" in value and _LITERAL.fullmatch(value) and value.isascii():
        lines = ["|-", *(" " * column + line if line else "" for line in value.split("\n"))]
        return "\n".join(lines)
    if re.fullmatch(r"[A-Za-z_/][\w./:-]*( [\w.-]+)*", value, re.ASCII) and ": " not in value:
        plain = value
        try:
            if yaml.safe_load(plain) == value and not plain.endswith(":"):
                return plain
        except (yaml.YAMLError, ValueError):
            pass
    return re.sub(
        "[\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]",
        _escaped,
        json.dumps(value, ensure_ascii=False),
    )


def _escaped(match: re.Match) -> str:
    return f"\\u{ord(match[0]):04x}"
