"""The report: tables, figures, the HTML page, and values and rows for other programs to compare and plot.

Each file holds one figure or one section of the page, with its template beside it: `use.py`, `use.html`. `gathered`
reads the inputs, `figure` has the style of all figures, `page` puts the sections together. `shrunk` is the page of a
single model before and after merging.
"""
