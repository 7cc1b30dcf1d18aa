"""Words of the command line: what they mean, and one line where they mean nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .types import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PER_SET = ("--classes", "--threshold", "--labelled", "--modality")  # may be given once per data set
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "Path": "a path"}


def normalised(words: Sequence[str]) -> list[str]:
    """The words as the parsers know them."""
    return _gathered(_underscored(words))


def parser_of(verb: str, description: str) -> ArgumentParser:
    """A verb's."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"segdistill {verb}", description=description, exit_on_error=False)


def call(parser: ArgumentParser, function: Callable[..., Any], words: list[str]) -> Any:
    """Parse the words by the function's own signature, beside what the parser has already, and call it."""
    declared = {action.dest for action in parser._actions}
    parser.add_function_arguments(function, as_group=False, skip={*declared & signature(function).parameters.keys()})
    given = parse(parser, words)
    return function(**{name: given[name] for name in signature(function).parameters})


def parse(parser: ArgumentParser, words: list[str]) -> Any:
    """Parsed arguments; raises UserError for whatever is wrong with them."""
    from argparse import ArgumentError

    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(
            f"{_readable(' '.join(str(error).split()))}; see {parser.prog}{_of_method(words)} --help"
        ) from None


def _of_method(words: list[str]) -> str:
    """Of `train` only with its --method does the help show that method's settings."""
    return f" --method {name}" if (name := chosen_method(words)) != "supervised" else ""


def _readable(message: str) -> str:
    """The parser's message in our words: it names Python's types."""
    if found := re.match(r"argument (--\S+): expected one argument", message):
        return f"{found[1]} needs a value"
    if found := re.match(r"Unexpected config: (\w+):$", message):
        return f"--config: {found[1]} has no value"
    if re.match(r"unrecognized arguments: --\w+\.", message):
        return f"{message} (settings of a method go with its --method)"
    message = re.sub(r"Given value type: <.*?> ", "", message)
    found = re.match(r'Parser key "(\S+)": (.*?)G(?:ot|iven) value: ?(.*)', message)
    choices = re.findall(r"Literal\[(.*?)\]", message)
    kinds = [KINDS[name] for name in re.findall(r"class '(?:\w+\.)*(\w+)'", message) if name in KINDS]
    listed = ["one of " + ", ".join(re.findall(r"'(.*?)'", each)) for each in choices]
    wanted = list(dict.fromkeys(listed or kinds))
    if found is None or not wanted:
        return message
    value = found[3] or "(nothing)"
    return f"--{found[1]} {value}: needs {' or '.join(wanted)}"


def _gathered(words: list[str]) -> list[str]:
    """--classes A=x --classes B=y is --classes "A=x; B=y"; without an = the last one holds, as of every option."""
    for option in PER_SET:
        at = [
            i for i, word in enumerate(words) if word.partition("=")[0] == option and (word != option or words[i + 1 :])
        ]
        values = [words[i + 1] if words[i] == option else words[i].partition("=")[2] for i in at]
        if len(at) > 1 and any("=" in value for value in values):
            taken = {place for i in at for place in ((i, i + 1) if words[i] == option else (i,))}
            words = [word for i, word in enumerate(words) if i not in taken] + [f"{option}={'; '.join(values)}"]
    return words


def _underscored(words: Sequence[str]) -> list[str]:
    """--show-augment is --show_augment."""
    parts = (word.partition("=") for word in words)
    return [(a.replace("-", "_") if a.startswith("--") else a).replace("__", "--", 1) + e + v for a, e, v in parts]


def chosen_method(words: list[str]) -> str:
    """The method that decides which settings there are: the last --method, else the one in a --config file."""
    name, said = "supervised", None
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        value = value if equals else after
        if option == "--method":
            said = value
        if option == "--config" and Path(value).is_file():
            name = _settings(Path(value)).get("method", name)
    return name if said is None else said


def refuse_two_lengths(
    words: Sequence[str], settings: str, config: Any, iterations: int | None, epochs: float | None
) -> None:
    """UserError where a method of one stage is told its length twice: the one in its settings would go unheard.

    Of several stages the lengths are shares of --iterations, so both have a say. What a --config says in a method's
    settings, --iterations may change without a word.
    """
    lengths = [name for name in vars(config) if name.endswith("iterations")]
    said = {word.partition("=")[0] for word in words} & {f"--{settings}.{name}" for name in lengths}
    if len(lengths) != 1 or not said or getattr(config, lengths[0]) == iterations:
        return
    option, length = said.pop(), getattr(config, lengths[0])
    if epochs is not None:
        raise UserError(
            f"{option} {length} beside --epochs {epochs:g} (perhaps of a --config), which would win; give one"
        )
    if iterations is None:
        return
    raise UserError(
        f"{option} {length} beside --iterations {iterations} (perhaps of a --config), which is for all methods and "
        f"would win; give one: --iterations {length} in place of both"
    )


def _settings(path: Path) -> dict[str, Any]:
    """What a settings file says. Raises UserError where it is none; the parser would go round in circles, or raise."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        aliased = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        values = None if aliased else yaml.safe_load(text)
        twice = "" if aliased else _said_twice(yaml.compose(text))
    except Exception as error:  # PyYAML raises a dozen kinds on what it does not expect, AttributeError to KeyError
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--config {path}: not YAML in UTF-8 ({reason}); correct it, or take a recipe") from None
    if twice:
        raise UserError(f"--config {path}: says {twice} twice, and only the last would count; leave one out")
    if not isinstance(values, dict):
        what = "has aliases (*name), which are not followed" if aliased else "holds no settings"
        raise UserError(f"--config {path}: {what}; write them as in recipes/, as size: 256")
    return values


def _said_twice(node: Any) -> str:
    """A key that a mapping has twice, in it or in one below; YAML's readers take the last."""
    pairs = node.value if getattr(node, "id", "") == "mapping" else []
    keys = [key.value for key, _ in pairs]
    twice = next((str(key) for key in keys if keys.count(key) > 1), "")
    return twice or next(filter(None, (_said_twice(value) for _, value in pairs)), "")
