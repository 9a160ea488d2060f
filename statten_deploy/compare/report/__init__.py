"""A `Comparison` for people: a table for terminals, and one HTML file with its plots for everybody else.

    console.print(render_table(comparison))
    write_html(comparison, folder)      # folder/report.html and folder/*.png

Both only show what a `Comparison` holds; nothing is measured, counted or priced here, and the same `Comparison` gives
the same bytes. ``report.html`` opens offline: plots are inside as SVG, there is no script and nothing is loaded. Texts
from outside (names, notes, sources) are escaped, and characters that control a terminal or turn text around are shown
as U+FFFD.

Two families of energy figures, paper convention and event counts, never share a table column, a plot or an axis.
"""

from statten_deploy.compare.report.page import write_html
from statten_deploy.compare.report.table import render_table

__all__ = ["render_table", "write_html"]
