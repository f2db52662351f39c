"""What all settings say together (notebooks 00 and 10), in reading order: tables, figures.

A package of its own beside `inoculation` and `narrow`, which it builds on and which know nothing of it but the command line.
"""
