"""One HTML page: Jinja templates, packed tables, Vega-Lite files and the script that draws them."""

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import orjson
import pyarrow as pa

from warehouse.assets import asset_dir
from warehouse.atomic import writing
from warehouse.errors import AlabError

#: Sites, roles in the order of their colours; a role has the hue of its messages on the page.
SITE_COLOURS = ("hidden_in", "hidden_out", "attn_out", "mlp_down_out")
ROLES = ("user", "tool", "assistant", "developer", "system")
#: Scripts of the page: its data and charts, printing, and the figures that are tables of tokens.
SCRIPTS = ("report.js", "print.js", "tokens.js")
#: Characters that a browser drops, or that would change the direction of what stands around them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def visible(text: str) -> str:
    """The text with control characters, direction marks and lone surrogates made visible."""

    def show(match: re.Match) -> str:
        code = ord(match[0])
        if code < 0x20:
            return chr(0x2400 + code)
        return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"

    return _UNSEEN.sub(show, text)


def token_text(token: str) -> str:
    """A token with its white space visible, as `reports/tokens.js` shows it."""
    for space, sign in ((" ", "␣"), ("\r", "␍"), ("\n", "⏎"), ("\t", "⇥")):
        token = token.replace(space, sign)
    return token or "∅"


def significant(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """Float64 values rounded to so many significant digits: short in JSON, exact enough to draw."""
    with np.errstate(divide="ignore", invalid="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.where(np.isfinite(places), np.clip(places, -300, 300), 0)
        return np.where(np.isfinite(values), np.round(values * scale) / scale, np.nan)


def pack(table: pa.Table) -> str:
    """A table as base64 of gzipped JSON, column by column.

    Text is a dictionary with codes, floats have five significant digits, and NaN, inf and NULL are
    null, which charts show as gaps.
    """
    columns = {name: column(table[name]) for name in table.column_names}
    text = orjson.dumps(
        {"rows": table.num_rows, "columns": columns}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()


def column(values: pa.ChunkedArray) -> np.ndarray | list | dict:
    """A column as `pack` writes it, for orjson with numpy."""
    if pa.types.is_floating(values.type):
        return significant(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if pa.types.is_string(values.type):
        coded = values.combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        codes = coded.indices.fill_null(-1).to_numpy()
        return {"values": list(map(visible, coded.dictionary.to_pylist())), "codes": codes}
    if pa.types.is_decimal(values.type):  # a sum of whole numbers comes as one
        return column(values.cast(pa.float64() if values.type.scale else pa.int64()))
    if pa.types.is_integer(values.type) and not values.null_count:
        return values.to_numpy()
    return values.to_pylist()


def number(value: float | int | None) -> str:
    """A number for a table: four decimals, fewer for large ones; a dash where there is none."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def extent(values: Iterable[float], form: str = "{}") -> str:
    """One value, or the least and the largest: `3`, `3 to 5`."""
    texts = list(dict.fromkeys(form.format(value) for value in sorted(values)))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def listing(parts: Iterable[str]) -> str:
    """Parts as a sentence has them.

    >>> listing(["a"]), listing(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def message_names(rows: list[dict[str, Any]]) -> str:
    """The messages of some rows, as a sentence names them.

    >>> message_names([{"message_index": k, "is_generated": k == 4} for k in (1, 4)])
    'message 1 and the reply'
    """
    numbers = [str(row["message_index"]) for row in rows if not row["is_generated"]]
    parts = [f"message{'s' if len(numbers) > 1 else ''} {listing(numbers)}"] if numbers else []
    if len(numbers) < len(rows):
        parts.append("the reply")
    return " and ".join(parts)


def message_name(row: dict[str, Any]) -> str:
    """The message after which a state was taken."""
    return "the reply" if row["is_generated"] else f"message {row['message_index']} ({row['role']})"


def times(value: float, by: float) -> float:
    """A product, for templates that map a filter over many."""
    return value * by


def vega() -> str:
    """The JavaScript of Vega, Vega-Lite and vega-embed, which leaves the last as `alab.embed`.

    It takes seconds to bundle, so it is kept in the user's cache folder.
    """
    import vl_convert

    snippet = "alab.embed = vegaEmbed;"
    name = f"vega-{vl_convert.get_vega_version()}-{version('vl-convert-python')}.js"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alab" / name
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle(snippet)
    with suppress(OSError, AlabError), writing(path, "$XDG_CACHE_HOME") as draft:
        draft.write_text(bundle, encoding="utf-8")
    return bundle  # without a cache folder bundling again next time is only slow


def charts(with_datasets: bool = False) -> dict[str, dict]:
    """Every Vega-Lite file of `reports/charts`, and perhaps of `reports/datasets`, by name."""
    folders = ("charts", "datasets") if with_datasets else ("charts",)
    files = [file for one in folders for file in (asset_dir("reports") / one).glob("*.vl.json")]
    files.sort(key=lambda file: file.name)
    return {file.name.removesuffix(".vl.json"): json.loads(file.read_bytes()) for file in files}


def measures(with_datasets: bool = False) -> dict[str, dict]:
    """What charts can draw: the words for each measured column, by its name in the tables."""
    names = ("measures.json", "datasets/measures.json") if with_datasets else ("measures.json",)
    files = [json.loads((asset_dir("reports") / name).read_bytes()) for name in names]
    return {name: words for file in files for name, words in file.items()}


def scales(labels: Iterable[str]) -> dict[str, list[str]]:
    """What has a colour of its own, the same in every chart: values by field, in their order."""
    return {
        "label": sorted(labels),
        "site": list(SITE_COLOURS),
        "role": list(ROLES),
        "state": ["initial", "final"],
        "how": ["clearly", "narrowly"],
    }


def script(*names: str, registry: dict | None = None) -> str:
    """The page's one script: the library and files of `reports/` in one function: no name leaks.

    Args:
        names: the files.
        registry: what the page itself need not say.
    """
    folder = asset_dir("reports")
    own = [(folder / name).read_text(encoding="utf-8") for name in names]
    body = "\n".join([vega(), *own])
    shared = json.dumps({"registry": registry}) if registry else "{}"
    whole = f"(() => {{\nconst alab = {shared};\n{body}\n}})();"
    return re.sub(r"<(?=/script|!--)", r"\\x3c", whole, flags=re.IGNORECASE)


def environment() -> jinja2.Environment:
    """What templates of `reports/` are filled with: text is made visible, and escaped."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset_dir("reports")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    filters = (listing, message_names, extent, message_name, token_text, times)
    env.filters |= {"num": number} | {one.__name__: one for one in filters}
    return env


def fragment(name: str, context: dict) -> str:
    """Fill a template that is a part of a page, with what `render` is given."""
    env = environment()
    env.globals["charts"] = context["registry"]["charts"]
    return env.get_template(name).render(context)


def styles(*names: str) -> str:
    """Style sheets of `reports/`, one behind the other."""
    return "".join((asset_dir("reports") / name).read_text(encoding="utf-8") for name in names)


def render(context: dict) -> str:
    """Fill the page's template; its script draws `registry` and `packed` of the context."""
    env, extra = environment(), bool(context["datasets"])
    env.globals["charts"] = context["registry"]["charts"]
    code = script(*SCRIPTS, *(["datasets/datasets.js"] if extra else []))
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    css = styles("report.css", *(["datasets/datasets.css"] if extra else []))
    return env.get_template("report.html.j2").render(
        context, css=css, script=code, script_hash=digest, version=version("alab")
    )
