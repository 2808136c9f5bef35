"""What a function of parameters and a batch asks for: read from its signature, once."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from fgd._checks import PyTree, describe, require_callable

NAMED = "key", "model_state"  # arguments that are given by name, if a function has them


class Signature(NamedTuple):
    """How a function is called: what goes to its positional arguments, and to those by keyword."""

    positional: tuple[str, ...]
    by_keyword: dict[str, str]

    def takes(self, name: str) -> bool:
        """Whether the function is given its `key`, or `model_state`."""
        return name in self.positional or name in self.by_keyword.values()

    def call(self, function: Callable[..., Any], params: PyTree, batch: PyTree, **own: Any) -> Any:
        """`function` of these; of `own`, key and model_state, it gets what it takes."""
        given = {"params": params, "batch": batch, **own}
        by_keyword = {name: given[what] for name, what in self.by_keyword.items()}
        return function(*(given[what] for what in self.positional), **by_keyword)


def read_signature(caller: str, name: str, function: Any, batch: str = "batch") -> Signature:
    """Reads what to give to each argument.

    The first is the parameters, one named `key` or `model_state` is that, the next of another name
    is the batch. One with a default other than None, such as one bound by `functools.partial`, is
    left alone.

    Args:
      caller, name: the public function and its argument, for messages.
      function: what to read.
      batch: what the function calls its batch, for messages.

    Raises:
      TypeError: no function, or one with fewer or other arguments.
    """
    require_callable(caller, name, function, f" such as f(params, {batch})")
    try:
        signature = _own_signature(function)
    except (TypeError, ValueError):  # a builtin's can't be read
        return Signature(("params", "batch"), {})
    positional: list[str] = []
    by_keyword: dict[str, str] = {}
    missing = ["params", "batch"]
    in_order = True  # nothing was left alone yet, so what follows can be given by position
    for argument in signature.parameters.values():
        if argument.kind is argument.VAR_POSITIONAL and in_order:
            positional += missing
            missing = []
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            in_order = False
            continue
        optional = argument.default is not argument.empty
        if argument.name in NAMED and "params" not in missing:
            what = argument.name
        elif missing:
            what = missing[0]
        elif optional:
            in_order = False
            continue
        else:
            raise TypeError(
                f"{caller}: {name}{signature} has an argument {argument.name!r}, for which there "
                f"is no value; expected params, a {batch}, and those named key and model_state. "
                "Bind others with functools.partial"
            )
        if optional and argument.default is not None:
            in_order = False
            continue
        if what in missing:
            missing.remove(what)
        if in_order and argument.kind is not argument.KEYWORD_ONLY:
            positional.append(what)
        else:
            by_keyword[argument.name] = what
    if missing:
        raise TypeError(
            f"{caller}: {name} = {describe(function)} takes {signature}, which leaves no argument "
            f"for the {missing[-1] if missing[-1] != 'batch' else batch}; expected "
            f"{name}(params, {batch})"
        )
    return Signature(tuple(positional), by_keyword)


def _own_signature(function: Any) -> inspect.Signature:
    """What is really called: a decorator's own arguments, unless it passes on whatever it gets."""
    wrapped = getattr(function, "__wrapped__", None)
    if inspect.isfunction(function) and wrapped is not None:
        own = inspect.signature(function, follow_wrapped=False)
        kinds = {argument.kind for argument in own.parameters.values()}
        passes_on = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
        return _own_signature(wrapped) if passes_on else own
    return inspect.signature(function)
