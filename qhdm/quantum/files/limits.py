"""Limits of OpenQASM text, checked before it is parsed.

The parser's time grows faster than the text. Brackets, operators and definitions are counted in one
pass over the tokens, so that text that would take minutes is refused at once.
"""

from __future__ import annotations

import re
from typing import NoReturn

from qhdm.errors import CircuitError

#: Brackets within brackets, of all kinds.
MAX_NESTING = 32
#: Of one statement; all of a file.
MAX_OPERATORS = 100
MAX_ALL_OPERATORS = 20_000
#: Names, numbers and signs of one statement.
MAX_TOKENS = 5_000
MAX_DEFINITIONS = 1_000
#: As many as gates and parameters (qhdm.quantum.files.load) with room for the rest.
MAX_STATEMENTS = 13_000

#: What follows these is no longer OpenQASM's own tokens, in which comments could hide it.
_FOREIGN = {
    "pragma": "a pragma is not read; a filter consists of gates only",
    "cal": "calibrations are not read; a filter consists of gates only",
    "defcal": "calibrations are not read; a filter consists of gates only",
    "defcalgrammar": "calibrations are not read; a filter consists of gates only",
}

_TOKEN = re.compile(
    r"""
      (?P<comment> //[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<string> "[^"\n]*" | '[^'\n]*' )
    | (?P<annotation> @[^\W\d]\w* )
    | (?P<word> [^\W\d]\w* )
    | (?P<number> \d\w* )
    | (?P<operator> \*\* | \+\+ | << | >> | && | \|\| | [=!<>]= | -> | [-+*/%@!~^&|<>] )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<end> ; )
    | (?P<other> \S )
    """,
    re.VERBOSE | re.DOTALL,
)
#: The version of a file, after white space and comments.
_VERSION = re.compile(r"(?>\s+|//[^\n]*\n|/\*.*?\*/)*+OPENQASM\s+(2)\b", re.DOTALL)
_NUMBER = re.compile(r"[\d_]+([eE]\d*)?|0[xXbBoO][0-9a-fA-F_]+")


def check_text(text: str, source: str) -> None:
    """Refuse text that would take long to parse.

    Args:
        text: the program.
        source: the file it came from, for messages.

    Raises:
        CircuitError: naming the line.
    """
    position = nesting = tokens = operators = all_operators = definitions = statements = 0

    def fail(message: str) -> NoReturn:
        line = text.count("\n", 0, position) + 1
        raise CircuitError(f"{source}:{line}: {message}")

    version = _VERSION.match(text)
    if version:
        position = version.start(1)
        fail(
            "OpenQASM 2 holds no free parameters; read it with qiskit.qasm2.load, put parameters "
            "x0, ..., w0, ... in place of angles, and write it with qiskit.qasm3.dump"
        )
    for match in _TOKEN.finditer(text):
        position, kind, token = match.start(), match.lastgroup, match[0]
        if kind == "comment":
            continue
        tokens += 1
        if tokens > MAX_TOKENS:
            fail(f"more than {MAX_TOKENS:,} words and signs in one statement; write it shorter")
        if kind == "word":
            if token in _FOREIGN:
                fail(_FOREIGN[token])
            definitions += token == "gate"
            if definitions > MAX_DEFINITIONS:
                fail(f"more than {MAX_DEFINITIONS:,} gate definitions; at most so many are read")
        elif kind == "number" and not _NUMBER.fullmatch(token):
            fail(f"{token[:20]!r} is not a number; units are not read")
        elif kind == "annotation":
            fail("annotations are not read; leave them out (a space follows the @ of a modifier)")
        elif kind == "operator":
            operators += 1
            all_operators += 1
            if operators > MAX_OPERATORS:
                fail(f"more than {MAX_OPERATORS} operators in one statement; use fewer")
            if all_operators > MAX_ALL_OPERATORS:
                fail(f"more than {MAX_ALL_OPERATORS:,} operators in all; use fewer")
        elif kind == "open":
            nesting += 1
            if nesting > MAX_NESTING:
                fail(f"more than {MAX_NESTING} brackets within brackets; write it with fewer")
        elif kind == "close":
            nesting -= 1
        if kind == "end" or token in "{}":
            tokens = operators = 0
            statements += 1
            if statements > MAX_STATEMENTS:
                fail(f"more than {MAX_STATEMENTS:,} statements; at most so many are read")
