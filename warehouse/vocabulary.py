"""The words of the house: the sites, what keeps each and where it lives, and the kinds of states.

This is the one table of sites. A new site is a row here, a port that `models.sites` finds, and a
column that `sql/macros/sites.sql` and `sql/views/lake.sql` name.
"""

from typing import NamedTuple


class Site(NamedTuple):
    """One kind of tensor.

    Attributes:
        name: what it is called everywhere.
        flag: the key of a scenario's `capture` that keeps it.
        dataset: the dataset of the lake that holds it.
        column: its column there, where that has another name.
        key: what arrays outside call it, where that is another name.
        in_states: whether last-token states have it; such sites are as wide as the residual stream.
    """

    name: str
    flag: str
    dataset: str = "activations"
    column: str = ""
    key: str = ""
    in_states: bool = False


#: Every site; those of `activations` in the order of its columns.
TABLE = (
    Site("hidden_in", "hidden_states", in_states=True),
    Site("hidden_out", "hidden_states", in_states=True),
    Site("q", "qkv"),
    Site("k", "qkv"),
    Site("v", "qkv"),
    Site("attn_out", "hidden_states", in_states=True),
    Site("mlp_gate", "mlp"),
    Site("mlp_up", "mlp"),
    Site("mlp_down_in", "mlp", key="mlp_act"),
    Site("mlp_down_out", "hidden_states", in_states=True),
    Site("attention", "attention_weights", "attention", column="weights", key="attn_weights"),
    Site("embeddings", "hidden_states", "outputs"),
    Site("logits", "logits", "outputs"),
)
#: The sites of a layer that have a vector for each token.
SITES = tuple(site.name for site in TABLE if site.dataset == "activations")
#: The sites that states keep.
STATE_SITES = tuple(site.name for site in TABLE if site.in_states)
#: What the sub-layers add to the residual stream; in the lake only where they are shown to add up.
CONTRIBUTIONS = ("attn_out", "mlp_down_out")
#: The sites of a pass that no layer has.
OUTPUTS = tuple(site.name for site in TABLE if site.dataset == "outputs")
#: Datasets that hold every token of every pass; `alab rm --activations-only` drops them.
BULK = tuple(dict.fromkeys(site.dataset for site in TABLE))
#: The kinds of last-token states.
STATES = ("initial", "final", "snapshot", "reference", "example")

#: Every name that a site can be asked for by.
SITE_NAMES = tuple(name for site in TABLE for name in (site.name, site.key) if name)

_BY_NAME = {name: site for site in TABLE for name in (site.name, site.column, site.key) if name}


def site_of(name: str) -> Site | None:
    """The site of that name, column or key of arrays outside; None where there is none.

    >>> site_of("mlp_act").name, site_of("weights").name, site_of("mood")
    ('mlp_down_in', 'attention', None)
    """
    return _BY_NAME.get(name)


def column_of(site: Site) -> str:
    """The column of the lake that holds a site."""
    return site.column or site.name


def key_of(site: Site) -> str:
    """What arrays outside call a site."""
    return site.key or site.name
