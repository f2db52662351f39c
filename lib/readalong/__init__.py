"""The read-along site: executed notebooks, claims and samples of a profile as pages that open from disk.

Modules, in reading order: pages, books, samples, claims, site. Built on `inoculation` and `narrow`, which know nothing of it.
"""
