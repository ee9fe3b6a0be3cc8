"""Classes as the site's reference shows them; mkdocs.yml names this as an extension of griffe."""

import ast
import re
from collections.abc import Iterable, Iterator
from typing import Any

import griffe

# The heading in a docstring, such as "Fields, beside those of `Head`:", and the lines below it.
_SECTION = re.compile(r"^(Fields.*:)\n((?: {4}.*\n?)+)|\Z", re.M)
# In these lines: "width, depth: how large", and further lines of its text.
_FIELD = re.compile(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", re.M)


class Fields(griffe.Extension):
    """Lists fields with their types and defaults, and variants, in the docstring of a class.

    Of its members the page then has those alone that a docstring explains.
    """

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if not cls.docstring:
            return
        text = cls.docstring.value
        section: Any = _SECTION.search(text)  # at its end if there is none
        fields = _list(section[1] or "Fields:", _fields(section[2] or "", cls))
        variants = _list("Variants:", _variants(cls))
        before, after = text[: section.start()], text[section.end() :]
        cls.docstring.value = "\n".join([before, *fields, after, *variants])
        cls.decorators.clear()  # a dataclass would show its fields once more
        for name, member in [*cls.members.items()]:
            if not member.has_docstring and name != "__init__":
                cls.del_member(name)


def _list(heading: str, items: Iterable[str]) -> list[str]:
    listed = [f"- {item}" for item in items]
    return ["", heading, "", *listed, ""] if listed else []


def _fields(described: str, cls: griffe.Class) -> Iterator[str]:
    """Those that the docstring describes, then those that say enough by their names."""
    listed: set[str] = set()
    for names, text in _FIELD.findall(described):
        listed |= {*names.split(", ")}
        yield f"{', '.join(_stated(n, cls) for n in names.split(', '))}: {' '.join(text.split())}"
    for name, member in cls.members.items():
        if name not in listed and member.is_public and _is_field(member):
            yield _stated(name, cls)


def _is_field(member: Any) -> bool:
    if not isinstance(member, griffe.Attribute) or member.annotation is None:
        return False
    return "property" not in member.labels and "ClassVar" not in str(member.annotation)


def _stated(name: str, cls: griffe.Class) -> str:
    """The field with its type and default; alone if it is a parent's."""
    member: Any = cls.members.get(name)
    if not _is_field(member):
        return f"`{name}`"
    default = "" if member.value is None else f" = {member.value}"
    return f"`{name}: {member.annotation}{default}`"


def _variants(cls: griffe.Class) -> Iterator[str]:
    for name, member in cls.members.items():
        value = getattr(member, "value", None)
        if isinstance(value, griffe.ExprCall) and str(value.function) == "variant":
            said = ast.literal_eval(str(value.arguments[0]))
            yield f"`{cls.name}.{name}()`: {' '.join(said.split())}"
