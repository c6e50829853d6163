"""One check of everything that a GPU changes, for a machine that has one for a few minutes.

`command` holds the command line, `prepare` makes the bundle that such a machine is given, `runner`
runs the parts, and each other file is a part.
"""
