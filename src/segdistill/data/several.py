"""Several data sets in one run: who is who, what an option says of each, and one list of classes out of theirs.

A data set is known by its folder's (or CSV file's) name. What is done to one set is done to each of several as if it
stood alone: its splits, the label budget. So a set has the same test images in a run of its own (with the same seed)
as beside others. Not here: any claim that a patient of one set is a patient of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..types import UserError
from .labels import LabelMapping, MaskValues, build_mapping, check_names
from .rows import Manifest, Row


@dataclass(frozen=True)
class Source:
    """A data set of a run: where it lies, and what its mask values mean; no mapping where it has no masks."""

    name: str
    root: Path
    mapping: LabelMapping | None


def join_manifests(manifests: Sequence[Manifest], modality: str | None = None) -> list[Manifest]:
    """The data sets of one run, their rows named after them.

    `modality` ("xray", or "A=xray; B=fundus") wins over what the manifest says. Of several sets, a row without one has
    its data set's name; of a single set it stays without.

    Raises:
        UserError: two sets of one name, or an option that names none of them.
    """
    names = [manifest.name for manifest in manifests]
    for number, name in enumerate(names):
        twice = [other for other in range(number) if names[other].casefold() == name.casefold()]
        if twice:
            raise UserError(
                f"{manifests[twice[0]].root} and {manifests[number].root}: two data sets named {name}; rename one, "
                "as the name tells them apart in options and scores"
            )
    given = per_set(modality, names, "--modality")
    default = dict.fromkeys(names, "") if len(names) == 1 else {name: name for name in names}

    def named(row: Row, name: str) -> Row:
        return replace(row, dataset=name, modality=given.get(name) or row.modality or default[name])

    return [replace(one, rows=tuple(named(row, one.name) for row in one.rows)) for one in manifests]


def per_set(text: int | str | None, names: Sequence[str], option: str) -> dict[str, str]:
    """What an option says of each data set: "A=x; B=y; z", where z is for all that are not named; or nothing.

    Raises:
        UserError: a name that is no data set, or two values for one set.
    """
    if text is None:
        return {}
    whole = str(text).strip()
    several = len(names) > 1 or any(whole.startswith(f"{name}=") for name in names)
    given: dict[str, str] = {}
    for entry in whole.split(";") if several else [whole]:
        name, value = _entry(entry.strip(), names, option)
        if name in given:
            raise UserError(f"{option} {whole!r}: says two things of {name or 'the sets it does not name'}; keep one")
        given[name] = value
    rest = given.pop("", None)
    return given if rest is None else {name: given.get(name, rest) for name in names}


def _entry(entry: str, names: Sequence[str], option: str) -> tuple[str, str]:
    """(data set, value) of "A=x"; ("", value) where no set is named."""
    for name in sorted(names, key=len, reverse=True):
        if entry.startswith(f"{name}="):
            return name, entry[len(name) + 1 :].strip()
    name, equals, _ = entry.partition("=")
    if equals and "," not in name:
        raise UserError(f"{option} {entry!r}: no data set is named {name}; there are {', '.join(names)}")
    return "", entry


def join_mappings(found: Mapping[str, MaskValues], names: Mapping[str, Sequence[str]]) -> dict[str, LabelMapping]:
    """The mapping of each data set into one list of classes: equal names are one class, the background is one.

    Without any names all sets must be of two values; their foreground is then one class. A single set's mapping is
    that of `build_mapping`.

    Args:
        found: Data set -> the values in its masks; sets without masks are not here.
        names: Data set -> names of its classes, background first.

    Raises:
        UserError: names for some sets only, none for a set of more than two values, or as `build_mapping`.
    """
    nameless = [name for name in found if name not in names]
    alone = {name: _alone(name, found[name], names.get(name), len(found) > 1) for name in found}
    if len(found) == 1:
        return alone
    if nameless and len(nameless) < len(found):
        raise UserError(
            f"--classes says nothing of {nameless[0]}; name its classes too: "
            f"--classes {nameless[0]}={','.join(alone[nameless[0]].classes)}"
        )
    for name in nameless:
        if len(alone[name].classes) > 2:
            raise UserError(
                f"{name}: mask values {found[name].listed()}; which of them are the same class as in the other sets "
                f"nobody can know: name the classes of each set, as --classes {name}={','.join(alone[name].classes)}"
            )
    classes = list(dict.fromkeys(name for one in alone.values() for name in one.classes[1:]))
    background = next(iter(alone.values())).classes[0]
    for name, one in alone.items():
        if one.classes[0] in classes:
            raise UserError(f"{name}: a class is background in one set and not in another; give it one meaning")
    whole = (background, *classes)
    check_names(whole)
    return {name: into_classes(one, whole) for name, one in alone.items()}


def marks_of(sources: Sequence[Source], rows: Sequence[Row], classes: int) -> dict[str, tuple[bool, ...]]:
    """Data set -> per class, whether its masks would show it; a set without masks has those of its modalities."""
    masked = {source.name: source.mapping.marks() for source in sources if source.mapping}
    modalities: dict[str, set[str]] = {source.name: set() for source in sources}
    for row in rows:
        modalities[row.dataset].add(row.modality)

    def guessed(name: str) -> tuple[bool, ...]:
        alike = [one for other, one in masked.items() if modalities[other] & modalities[name]]
        return tuple(map(any, zip(*alike, strict=True))) if alike else (True,) * classes

    return {source.name: masked.get(source.name) or guessed(source.name) for source in sources}


def _alone(name: str, found: MaskValues, classes: Sequence[str] | None, several: bool) -> LabelMapping:
    try:
        return build_mapping(found, classes)
    except UserError as error:
        raise UserError(f"{name}: {error}" if several else str(error)) from None


def into_classes(mapping: LabelMapping, classes: tuple[str, ...]) -> LabelMapping:
    """The mapping with its classes' places in a longer list, by name; the background stays 0.

    Raises:
        UserError: a class that is not in the list.
    """
    unknown = [name for name in mapping.classes[1:] if name not in classes[1:]]
    if unknown:
        raise UserError(f"class {unknown[0]} is none of {', '.join(classes[1:])}; name it as there, with --classes")
    place = (0, *(classes.index(name) for name in mapping.classes[1:]))
    if place == tuple(range(len(classes))):
        return replace(mapping, classes=classes)
    annotated = place if mapping.annotated is None else tuple(place[index] for index in mapping.annotated)
    return LabelMapping(mapping.found, tuple(place[index] for index in mapping.indices), classes, annotated)
