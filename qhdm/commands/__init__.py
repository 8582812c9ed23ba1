"""Verbs of the command line, a module each: `add(commands)` makes its parser."""
