"""One page about runs, which needs nothing beside itself; its plots are bokeh's.

It is given plain data: names, tables, lines and maps. Only this folder names bokeh.
"""
