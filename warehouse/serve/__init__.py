"""`alab serve`: a warehouse in the browser, on the report's own templates, charts and tokens.

Whatever reads the lake or the catalog happens in worker processes that cannot write. This room has
pages, and what keeps strangers out; it computes no metric and never loads a model: captures run as
`alab capture`, in processes of their own.
"""
