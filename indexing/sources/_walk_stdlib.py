"""Print the documented public objects of this Python's standard library as JSON lines.

A script, not a module of the package: `pydoc.py` runs it in a process of its own, as
importing the whole standard library has effects (modules that warn, print, hook the
interpreter, or end it) that no other program should share. It imports nothing but the
standard library.

Lines are `{"name", "kind", "module", "doc", "signature"}`, sorted by name, each object once
and under one name; `{"skip", "reason"}` for a module that cannot be imported here; `{"end"}`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

# Modules that act when imported, test and demonstration code, and what is gone from newer
# Pythons; the implementations of `os` and `os.path`, which are documented under those names;
# codec tables, a hundred modules with one and the same docstring.
EXCLUDED = frozenset(
    [
        *("antigravity", "this", "idlelib", "test", "turtledemo", "lib2to3", "distutils"),
        *("ensurepip", "pydoc_data", "posix", "nt", "posixpath", "ntpath", "genericpath"),
        *("encodings", "xxlimited", "xxlimited_35", "xxsubtype"),
    ]
)
# Reached through another module only, but documented under this name.
ALIASED = {"os.path": "os"}


class Found(NamedTuple):
    """A public name of an object."""

    name: str
    module: str
    kind: str
    value: object
    distance: int = 0  # for what a class has from a private base: how far up that base is

    def rank(self) -> tuple[bool, int, int, int, str]:
        """Order names by how well they serve as *the* name: own name, near, few dots, short."""
        own = getattr(self.value, "__name__", "").rpartition(".")[2]
        foreign = self.name.rpartition(".")[2] != own
        return foreign, self.distance, self.name.count("."), len(self.name), self.name


def module_names() -> list[str]:
    """Names of the public modules and packages at the top."""
    return sorted(
        name
        for name in sys.stdlib_module_names
        if not name.startswith("_") and name not in EXCLUDED
    )


def modules(name: str) -> Iterator[tuple[str, ModuleType | str]]:
    """Import a module and its public submodules; yield each, or the reason why not."""
    try:
        module = importlib.import_module(ALIASED.get(name, name))
        if name in ALIASED:
            module = sys.modules[name]
    except BaseException as error:  # SystemExit too: a module must not end the walk
        yield name, " ".join(str(error).split()) or type(error).__name__
        return
    yield name, module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not info.name.startswith("_") and info.name not in ("test", "tests"):
            yield from modules(f"{name}.{info.name}")


def is_own(module: ModuleType, name: str, value: object) -> bool:
    """Tell whether a module without `__all__` defines the object itself."""
    home = getattr(value, "__module__", None) or ""
    return (
        name == "builtins"  # nobody else's names are there, whatever their home (`io` for `open`)
        or home == name
        or home == module.__name__
        or home.startswith(f"{name}.")
        or home.lstrip("_") == name
    )


def kind_of(value: object) -> str:
    """Give `class`, `function`, or nothing for values that are neither."""
    if inspect.isclass(value):
        return "class"
    return "function" if inspect.isroutine(value) else ""


def module_members(name: str, module: ModuleType) -> Iterator[Found]:
    """Yield a module's public classes and functions."""
    # Names of the builtins are written without their module.
    prefix = "" if name == "builtins" else f"{name}."
    listed = getattr(module, "__all__", None)
    for key in sorted(set(listed if listed is not None else vars(module))):
        value = getattr(module, key, None)
        if key.startswith("_") or not (kind := kind_of(value)):
            continue
        if listed is not None or is_own(module, name, value):
            yield Found(f"{prefix}{key}", name, kind, value)


def class_members(found: Found) -> Iterator[Found]:
    """Yield methods, properties and classes that a class, or a private base of it, defines."""
    cls = found.value
    if not isinstance(cls, type):
        return
    # What a private base defines can be documented nowhere but here.
    bases = [base for base in cls.__mro__ if base is cls or is_private(base)]
    for base in bases:
        # A class under a name that is not its own (`socket.SocketType`) is a distant home too.
        distance = cls.__mro__.index(base) + (2 if found.rank()[0] else 0)
        for key, value in sorted(vars(base).items()):
            if key.startswith("_"):
                continue
            name = f"{found.name}.{key}"
            if inspect.isclass(value):
                # A class that is only referred to is documented where it is defined.
                if value.__qualname__.startswith(f"{base.__qualname__}."):
                    yield Found(name, found.module, "class", value)
            elif isinstance(value, property) or inspect.isroutine(value):
                kind = "property" if isinstance(value, property) else "method"
                value = getattr(value, "__func__", value)
                if not is_inherited_doc(cls, key, value):
                    yield Found(name, found.module, kind, value, distance)
            elif isinstance(value, (staticmethod, classmethod)):
                yield Found(name, found.module, "method", value.__func__, distance)


def is_inherited_doc(cls: type, key: str, value: object) -> bool:
    """Tell whether the docstring is word for word that of the method it overrides."""
    doc = getattr(value, "__doc__", None)
    return any(
        getattr(vars(base).get(key), "__doc__", None) == doc
        for base in cls.__mro__[1:]
        if key in vars(base) and not is_private(base)
    )


def is_private(cls: type) -> bool:
    """Tell whether a class is an implementation that has no public name of its own."""
    return cls.__name__.startswith("_") or cls.__module__.startswith("_")


def docstring(value: object) -> str:
    """Give the object's own docstring, or nothing."""
    doc = getattr(value, "__doc__", None)
    # Objects without a docstring of their own answer with that of their class.
    if not isinstance(doc, str) or (doc == type(value).__doc__ and value is not type):
        return ""
    if isinstance(value, type) and any(
        base.__doc__ == doc for base in value.__mro__[1:] if not is_private(base)
    ):
        return ""
    return inspect.cleandoc(doc).strip()


def signature(value: object) -> str:
    """Give the call's parameters, or nothing if the object does not tell.

    Only plain short defaults are shown: others may hold addresses, paths or the environment,
    and differ from one run to the next.
    """
    if not callable(value):
        return ""
    try:
        found = inspect.signature(value)
    except Exception:  # evaluates text of the object's own, so anything may go wrong
        return ""
    parameters = []
    for parameter in found.parameters.values():
        default = parameter.default
        plain = default is None or type(default) in (bool, int, float, str, tuple)
        if default is not inspect.Parameter.empty and not (plain and len(repr(default)) <= 20):
            parameter = parameter.replace(default=Ellipsis)
        parameters.append(parameter.replace(annotation=inspect.Parameter.empty))
    bare = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return str(bare).replace("Ellipsis", "...")


def walk() -> Iterator[dict[str, str]]:
    """Yield a dictionary for every documented public object, sorted by name."""
    names: dict[int, Found] = {}  # the best name of each object, by identity
    alive: list[object] = []  # bound methods are made on access: keep what an id names

    def offer(found: Found) -> None:
        value = getattr(found.value, "__func__", found.value)
        known = names.get(id(value))
        if known is None or found.rank() < known.rank():
            names[id(value)] = found
            alive.append(value)

    for top in [*module_names(), *ALIASED]:
        for name, module in modules(top):
            if isinstance(module, str):
                yield {"skip": name, "reason": module}
                continue
            offer(Found(name, name, "module", module))
            for member in module_members(name, module):
                offer(member)
    # Only now is it known under which name each class goes; its methods follow that name.
    classes = [found for found in names.values() if found.kind == "class"]
    while classes:
        inner = [member for found in classes for member in class_members(found)]
        for member in inner:
            offer(member)
        classes = [
            member
            for member in inner
            if member.kind == "class" and names[id(member.value)] is member
        ]
    taken = set()
    for found in sorted(names.values(), key=lambda found: (found.name, found.kind)):
        doc = docstring(found.value)
        if doc and found.name not in taken:
            taken.add(found.name)
            yield {
                "name": found.name,
                "kind": found.kind,
                "module": found.module,
                "doc": doc,
                "signature": "" if found.kind == "module" else signature(found.value),
            }


def main() -> None:
    """Write the lines to standard output, which no imported module may touch."""
    warnings.simplefilter("ignore")
    with open(os.dup(1), "w", encoding="utf-8") as out:  # noqa: PTH123  (a descriptor)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for line in walk():
                out.write(json.dumps(line) + "\n")
        out.write('{"end": ""}\n')
        out.flush()
        # Threads and exit handlers of the imported modules are nobody's business.
        os._exit(0)


if __name__ == "__main__":
    main()
