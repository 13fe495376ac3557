"""The ES modules of a page as one file, since a browser pays for every file that it asks for.

A module becomes a function, so its names stay its own. Only the forms of ``import`` and ``export``
are known that our modules have; others are refused.
"""

import re
from collections.abc import Mapping

_IMPORT = re.compile(r'^import \{ ((?:\w+, )*\w+) \} from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
_OTHER = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


class CannotBundle(ValueError):
    """A module has a form of import or export that is not known here."""


def entries(sources: Mapping[str, str]) -> set[str]:
    """The names of the modules that no other one imports."""
    imported = {name for source in sources.values() for _, name in _IMPORT.findall(source)}
    return set(sources) - imported


def bundle(sources: Mapping[str, str], *names: str) -> str:
    """One module that runs the modules of these names, and before them all that they import.

    The modules of ``names`` do not wait for each other. Raises ``CannotBundle``.
    """
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parts:
            return
        for _, imported in _IMPORT.findall(sources[name]):
            add(imported)
        body, exported = _body(name, sources[name])
        if name in names:
            parts[name] = f"(async () => {{\n{body}}})();\n"
        else:
            result = f"return {{ {', '.join(exported)} }};\n"
            parts[name] = f"const ${name} = (() => {{\n{body}{result}}})();\n"

    for name in names:
        add(name)
    return "".join(parts.values())


def _body(name: str, source: str) -> tuple[str, list[str]]:
    """The body of the function that a module becomes, and the names that it exports."""
    body = _IMPORT.sub(r"const { \1 } = $\2;", source)
    exported = _EXPORT.findall(body)
    body = _EXPORT.sub("", body)
    if unknown := _OTHER.search(body):
        raise CannotBundle(
            f"{name}.js: {unknown.group()!r} cannot be bundled: import names from one module with "
            f'`import {{ a, b }} from "./NAME.js";` in a line, and export functions, classes and '
            f"constants where they are defined"
        )
    return body, exported
