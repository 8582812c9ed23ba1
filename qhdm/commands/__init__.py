"""The verbs of the command line: each module adds one to the parser, and runs it."""
