"""Report: queries become tables, tables become one HTML page; heatmaps become pictures.

It asks the catalog and fills templates of `reports/`. Numbers are computed in SQL, not here.
"""
