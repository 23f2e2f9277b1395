"""Switches a protection off: replaces a piece of a module's source by another one, in the running functions."""

import contextlib
import types
from pathlib import Path


@contextlib.contextmanager
def mutated(module, old, new):
    """Run the block with `old` in the module's source replaced by `new`; it must be there exactly once.

    Functions and methods keep their identity and get the code of the changed source, so that whoever imported them
    before runs the changed code too.
    """
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times {old!r}"
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update(__file__=module.__file__, __package__=module.__package__)
    sources = compile(source.replace(old, new), module.__file__, "exec")
    import sys

    sys.modules[module.__name__] = changed   # dataclasses look their module up
    try:
        exec(sources, changed.__dict__)
    finally:
        sys.modules[module.__name__] = module
    pairs = list(_functions(module.__dict__, changed.__dict__, module.__name__))
    kept = [(function, function.__code__) for function, _ in pairs]
    differing = sum(function.__code__ != other.__code__ for function, other in pairs)
    assert differing, f"{new!r} changes no function"
    for function, other in pairs:
        function.__code__ = other.__code__
    try:
        yield
    finally:
        for function, code in kept:
            function.__code__ = code


def _functions(ours, theirs, name):
    """Pairs of functions of the same place in both."""
    for key, value in ours.items():
        other = theirs.get(key)
        one, two = (getattr(found, "__func__", found) for found in (value, other))
        if isinstance(one, property) and isinstance(two, property):
            one, two = one.fget, two.fget
        one, two = (getattr(found, "__wrapped__", found) for found in (one, two))
        if isinstance(one, types.FunctionType) and isinstance(two, types.FunctionType):
            if one.__module__ == name and one.__code__.co_freevars == two.__code__.co_freevars:
                yield one, two
        elif isinstance(one, type) and isinstance(two, type) and one.__module__ == name:
            yield from _functions(vars(one), vars(two), name)
