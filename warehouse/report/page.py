"""One HTML page: Jinja templates, packed tables, Vega-Lite files and the JavaScript that draws them."""

import base64
import gzip
import hashlib
import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np
import orjson
import pyarrow as pa

from warehouse.assets import asset_dir
from warehouse.report import findings

#: Characters that a browser drops, or that would change the direction of what stands around them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def visible(text: str) -> str:
    """The text with control characters, direction marks and lone surrogates as something a reader can see."""

    def show(match: re.Match) -> str:
        code = ord(match[0])
        if code < 0x20:
            return chr(0x2400 + code)
        return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"

    return _UNSEEN.sub(show, text)


def token_text(token: str) -> str:
    """A token with its white space visible, since a leading space is part of it, as `reports/tokens.js` shows it."""
    for space, sign in ((" ", "␣"), ("\r", "␍"), ("\n", "⏎"), ("\t", "⇥")):
        token = token.replace(space, sign)
    return token or "∅"


def significant(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """Float64 values rounded to so many significant digits: short in JSON, and exact enough to draw and copy."""
    with np.errstate(divide="ignore", invalid="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.where(np.isfinite(places), np.clip(places, -300, 300), 0)
        return np.where(np.isfinite(values), np.round(values * scale) / scale, np.nan)


def pack(table: pa.Table) -> str:
    """A table as base64 of gzipped JSON, column by column.

    Text is a dictionary with codes, floats have five significant digits, and NaN, inf and NULL are
    null, which charts show as gaps.
    """
    columns = {name: _column(table[name]) for name in table.column_names}
    text = orjson.dumps(
        {"rows": table.num_rows, "columns": columns}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()


def _column(column: pa.ChunkedArray) -> np.ndarray | list | dict:
    if pa.types.is_floating(column.type):
        return significant(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if pa.types.is_string(column.type):
        coded = column.combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        codes = coded.indices.fill_null(-1).to_numpy()
        return {
            "values": [visible(value) for value in coded.dictionary.to_pylist()],
            "codes": codes,
        }
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.to_numpy()
    return column.to_pylist()


def number(value: float | int | None) -> str:
    """A number for a table: four decimals, fewer for large ones; a dash where there is none."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def vega() -> str:
    """The JavaScript of Vega, Vega-Lite and vega-embed, which leaves the last as `alab.embed`.

    It takes seconds to bundle, so it is kept in the user's cache folder.
    """
    import vl_convert

    snippet = "alab.embed = vegaEmbed;"
    name = f"vega-{vl_convert.get_vega_version()}-{version('vl-convert-python')}.js"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alab" / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        bundle = vl_convert.javascript_bundle(snippet)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(bundle, encoding="utf-8")
        unfinished.replace(path)
    except OSError:  # no cache folder: bundling again next time is only slow
        pass
    return bundle


def charts() -> dict[str, dict]:
    """Every Vega-Lite file of `reports/charts`, by name."""
    folder = asset_dir("reports") / "charts"
    return {
        path.name.removesuffix(".vl.json"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.vl.json"))
    }


def measures() -> dict[str, dict]:
    """What charts can draw: the words for each measured column, by its name in the tables."""
    return json.loads((asset_dir("reports") / "measures.json").read_text(encoding="utf-8"))


def script() -> str:
    """The page's one script: the library and our own files in one function, so that no name leaks."""
    own = [path.read_text(encoding="utf-8") for path in sorted(asset_dir("reports").glob("*.js"))]
    body = "\n".join([vega(), *own])
    whole = f"(() => {{\nconst alab = {{}};\n{body}\n}})();"
    return re.sub(r"<(?=/script|!--)", r"\\x3c", whole, flags=re.IGNORECASE)


def render(context: dict) -> str:
    """Fill the page's template.

    Args:
        context: what the templates show; `registry` and `packed` are what the script draws.
    """
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset_dir("reports")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    env.filters |= {
        "num": number,
        "listing": findings.listing,
        "named": findings.named,
        "span": findings.span,
        "place": findings.place,
        "seen": token_text,
        "times": lambda value, by: value * by,
    }
    env.globals["charts"] = context["registry"]["charts"]
    code = script()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    css = (asset_dir("reports") / "report.css").read_text(encoding="utf-8")
    return env.get_template("report.html.j2").render(
        context, css=css, script=code, script_hash=digest, version=version("alab")
    )
