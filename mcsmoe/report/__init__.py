"""The report: tables, figures, the HTML page, and the files that `dvc metrics` and `dvc plots` show.

Each file holds one figure or one section of the page, with its template beside it: `use.py`, `use.html`. `gathered`
reads the inputs, `figure` has the style of all figures, `page` puts the sections together.
"""
