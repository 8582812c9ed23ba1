"""Print docs/cli.md, the commands and options of `qhdm`, from the parsers.

`python docs/cli.py > docs/cli.md` rewrites the page. A test compares it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from qhdm import cli

INTRODUCTION = """\
# Command line

`qhdm COMMAND --help` prints what this page lists; both are generated from the parsers. Where a
command takes a configuration, comparison, job or circuit, give a file or the name of a shipped one
(`quickstart`, `ablation`, `rehearsal`, `reuploading`); a file of that name has precedence.
`RUN` is a run directory, or `eurosat`, the [shipped model](training.md#the-shipped-model).
`--set KEY=VALUE` may be repeated, and VALUE is read as YAML. [reference.md](reference.md) lists
configuration keys, environment variables and exit codes."""

#: The page that tells more about a command.
GUIDES = {
    "train": "training.md",
    "sample": "training.md#samplers",
    "evaluate": "evaluation.md",
    "augment": "augment.md",
    "train-classifier": "evaluation.md#feature-extractors",
    "compare": "comparison.md",
    "report": "report.md",
    "circuits": "circuits.md",
    "export": "circuits.md#export-filters",
    "noise": "aer.md#noise",
    "data": "training.md#data",
    "import-flax": "reproduction.md#import-weights",
    "submit": "hardware.md",
    "jobs": "hardware.md",
}


def page() -> str:
    return "\n\n".join([INTRODUCTION, *_commands(cli._parser(), "##")]) + "\n"


def _commands(parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    """Headings, descriptions and tables of all subcommands."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {choice.dest: choice.help for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield f"{level} `{command.prog}`"
            guide = (
                f" See [{GUIDES[name].split('#')[0]}]({GUIDES[name]})."
                if level == "##" and name in GUIDES
                else ""
            )
            yield f"{_sentence(summaries[name] or '')}{guide}"
            yield from _tables(command)
            yield from _commands(command, level + "#")


def _tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table of the arguments of each group."""
    plain: list[argparse.Action] = []
    titled = []
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if group in (parser._positionals, parser._optionals):
            plain += actions
        elif actions:
            titled.append((group, actions))
    if plain:
        yield _table(plain)
    for group, actions in titled:
        yield f"*{_sentence(group.title or '')}* {_escaped(group.description or '')}".rstrip()
        yield _table(actions)


def _table(actions: list[argparse.Action]) -> str:
    rows = [f"| {_name(action)} | {_help(action)} |" for action in actions]
    return "\n".join(["| | |", "|---|---|", *rows])


def _name(action: argparse.Action) -> str:
    value = action.metavar or (
        "" if action.nargs == 0 else "|".join(action.choices or [action.dest.upper()])
    )
    words = [*action.option_strings[:1], *([value] if isinstance(value, str) else value)]
    text = " ".join(filter(None, words)).replace("|", "\\|")
    text += " ..." if action.nargs == "+" else ""
    optional = not action.option_strings and action.nargs == "?"
    return f"`[{text}]`" if optional else f"`{text}`"


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "default": action.default}
    return f"{_escaped(text)}{'; required' if action.option_strings and action.required else ''}"


def _escaped(text: str) -> str:
    return re.sub(r"([<*|])", r"\\\1", text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{_escaped(text[1:])}."


if __name__ == "__main__":
    print(page(), end="")
