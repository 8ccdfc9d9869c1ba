"""What is wrong with a Dockerfile: said without a builder, by reading its instructions."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

EXEC_ONLY = ("ENTRYPOINT", "CMD")
SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}
BUILD_TOOLS = re.compile(r"\b(pip|apt-get|apk|gcc|make|build-essential|curl|wget)\b")
NUMBER = re.compile(r"[1-9][0-9]*(:[1-9][0-9]*)?")


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return [word for word in self.text.split() if not word.startswith("--")]

    def option(self, name: str) -> str:
        return next((word.partition("=")[2] for word in self.text.split() if word.startswith(f"--{name}=")), "")


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages(found: list[Instruction]) -> list[list[Instruction]]:
    divided: list[list[Instruction]] = []
    for each in found:
        if each.name == "FROM":
            divided.append([])
        divided[-1].append(each)
    return divided


def wrong(text: str, ignored: str, root: Path) -> Iterator[str]:
    divided = stages(instructions(text))
    yield from _wrong_bases(divided)
    for stage in divided:
        yield from _wrong_copies(stage, ignored, root)
    yield from _wrong_last_stage(divided[-1])


def _wrong_bases(divided: list[list[Instruction]]) -> Iterator[str]:
    names: set[str] = set()
    if len(divided) < 2:
        yield "one stage: what builds goes along into what runs"
    for stage in divided:
        base, *alias = stage[0].words
        if base not in names and not re.fullmatch(r"[a-z0-9./-]+:[^:@]*[0-9][^:@]*(@sha256:[0-9a-f]{64})?", base):
            yield f"FROM {base}: pin a version"
        names.update(alias[1:])


def _wrong_copies(stage: list[Instruction], ignored: str, root: Path) -> Iterator[str]:
    for each in stage:
        if each.name == "ADD":
            yield "ADD fetches and unpacks: use COPY"
        if each.name != "COPY" or each.option("from"):
            continue
        for source in each.words[:-1]:
            if not (root / source).exists():
                yield f"COPY {source}: there is no such file"
            if not is_sent(source, ignored):
                yield f"COPY {source}: .dockerignore keeps it from the builder"


def _wrong_last_stage(stage: list[Instruction]) -> Iterator[str]:
    last = {each.name: each for each in stage}
    users = [each.text for each in stage if each.name == "USER"]
    if not users or not NUMBER.fullmatch(users[-1]):
        yield "the last stage runs as root, or as a name that an orchestrator cannot judge: USER wants a number"
    for each in stage:
        if each.name == "COPY" and not each.option("from"):
            yield f"COPY {each.text}: the last stage takes from an earlier one only"
        if each.name == "RUN" and BUILD_TOOLS.search(each.text):
            yield f"RUN {each.text}: no tools of a build in the last stage"
    for name in ("ENTRYPOINT", "HEALTHCHECK", "STOPSIGNAL", "LABEL"):
        if name not in last:
            yield f"{name} is missing"
    for name in (*EXEC_ONLY, "HEALTHCHECK"):
        if name in last:
            yield from _wrong_command(name, last[name].text.partition("CMD ")[2] if name == "HEALTHCHECK" else "", last)


def _wrong_command(name: str, text: str, last: dict[str, Instruction]) -> Iterator[str]:
    try:
        words = json.loads(text or last[name].text)
    except ValueError:
        yield f"{name}: a shell would run it; write a JSON list"
        return
    if words and words[0] in SHELLS:
        yield f"{name}: needs no shell"


def is_sent(path: str, ignored: str) -> bool:
    """Whether .dockerignore lets a path through: the last line that matches it, or a folder it is in, decides."""
    sent = True
    names = [path, *(parent.as_posix() for parent in PurePosixPath(path).parents if parent.name)]
    for line in ignored.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        parts = re.split(r"(\*\*/|\*)", pattern.removeprefix("!"))
        wanted = "".join({"**/": "(.*/)?", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
        if any(re.fullmatch(wanted, name) for name in names):
            sent = pattern.startswith("!")
    return sent
