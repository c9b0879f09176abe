"""Sources of the past: stretches of history as batches of records or as chunks of a table, whatever they are kept in.

A source of events gives records for the fleet, a source of tables columns for a monitor; both are read piece by piece, so that memory
does not grow with their length. `seam.py` says what a source is, `opening.py` which one a URL means.
"""
