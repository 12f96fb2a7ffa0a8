"""The language of the package and the documents: phrases that read as translated stay out.

Only phrases that are wrong wherever they stand are listed; single words remain a matter of judgement.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnnjob

PACKAGE = Path(cnnjob.__file__).parent
ROOT = PACKAGE.parent
NOUNS = (
    "array|attempt|batch|block|byte|channel|class|column|core|element|epoch|figure|file|group|image|job|key|layer|line"
    "|page|parameter|part|pixel|process|row|run|seed|second|shard|source|split|step|table|task|turn|value|word"
)
PHRASES = {
    "goes on": r"\b(?:go|goes|going|went|gone) on\b",
    "without a word": r"\bwithout a word\b",
    "one X a Y": rf"\b(?:one|two|three|an?) (?!that\b|of\b)\w+ an? (?:{NOUNS})\b(?! of)",
    "heed": r"\bheed",
    "whoever": r"\bwhoever\b",
    "made good": r"\bma(?:d|k)e\w* good\b",
    "for good": r"\bfor good\b",
    "as it stands": r"\bas (?:it|they) stands?\b",
    "tell apart": r"\b(?:told|tell|tells|telling)\b(?: \w+){0,4} apart\b",
    "see to": r"\bsee to (?:the|it|its|that|this)\b",
    "held-out": r"\bheld-out\b",
    "verdict": r"\bverdicts?\b",
    "no more": r"\b(?:is|are|was) no more\b(?! than)",
    "life": r"\b(?:life|lives) (?:\d|\{\}|of (?:a|the|this|one) run)"
    r"|\b(?:a|its|his|each|next|first|last|second|new) li(?:fe|ves)\b",
    "sign of life": r"\bsigns? of (?:life|itself)\b",
    "taken for": r"\b(?:taken|takes?|took|taking) (?:(?:it|them|this|that|itself) )?for (?:an?|the|dead|gone|lost)\b",
    "how it stands": r"\bhow (?:it|they|runs?|things) stands?\b",
    "starts so": r"\b(?:never|not) starts? so\b",
    "packed dataset": r"\bpack(?:s|ed|ing)? (?:a |the |of |these |your )?(?:data|dataset|datasets|images)\b",
    "it is said": r"\b(?:is|are|was|were) said\b",
    "of itself": r"\b(?:says?|tells?|told|say) of (?:it|them|itself)\b",
    "look": r"\blooks? (?:a|the) (?:run|job)\b",
    "none is": r"\bof which there (?:is|are) none\b|\bwhat there is not\b",
    "deaf": r"\bdeaf\b|\bhearken\b|\bshelf\b|\bcrew\b",
}
"""Pattern of each phrase, by its name in the message."""
OPENINGS = r"(?:Of|Whether|What|How|Who|Whose|Why|Where|When|That)\b"
"""How the docstring of a function does not begin: with a verb it does."""
ALLOWED = {
    ("runs/logs.py", "goes on"): "matched in logs of older versions",
    ("slurm/diagnosis.py", "goes on"): "matched in restart logs of older versions",
    ("runs/restart_log.py", "goes on"): "quotes what older versions wrote into restart logs",
}
"""Module and phrase of what stays because it is on disk, each with the reason."""


def sources() -> Iterator[Path]:
    """Yield every file whose language is checked."""
    yield from PACKAGE.rglob("*.py")
    yield from PACKAGE.rglob("*.jinja")
    yield from PACKAGE.rglob("*.cu")
    yield from (ROOT / "docs").glob("*.md")
    yield from (ROOT / "jobs").glob("*.toml")
    yield from (ROOT / "slurm").glob("*.toml*")
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md"))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line number and text: of a module its strings and comments, of another file its paragraphs."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        line = 1
        for paragraph in content.split("\n\n"):
            yield line, re.sub(r"\s*\n\s*(?:#|//|- )?\s*", " ", paragraph)
            line += paragraph.count("\n") + 2
        return
    tree = ast.parse(content)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, " ".join(node.value.split())
    yield from comments(content)


def comments(content: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a module; lines of comments that follow each other are one text."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            row = token.start[0]
            if block and row != last + 1:
                yield first, " ".join(block)
                block = []
            first = first if block else row
            last = row
            block.append(token.string.lstrip("# "))
    if block:
        yield first, " ".join(block)


def faults(path: Path) -> list[str]:
    """Return the phrases found in a file, one line each."""
    name_of_file = path.relative_to(ROOT).as_posix()
    in_package = name_of_file.removeprefix("cnnjob/")
    wanted = {name: pattern for name, pattern in PHRASES.items() if (in_package, name) not in ALLOWED}
    return [
        f"{name_of_file}:{line}: {name}: …{text[max(0, match.start() - 40) : match.end() + 40]}…"
        for line, text in texts(path)
        for name, pattern in wanted.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


def test_what_stays_is_still_there() -> None:
    for name, phrase in ALLOWED:
        assert any(re.search(PHRASES[phrase], text, re.IGNORECASE) for _, text in texts(PACKAGE / name)), name


def test_no_phrase_reads_as_translated() -> None:
    found = [fault for path in sorted(sources()) for fault in faults(path)]
    assert not found, "\n".join(found)


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}: {(ast.get_docstring(node) or '').splitlines()[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and not any(isinstance(one, ast.Name) and one.id.endswith("property") for one in node.decorator_list)
        and re.match(OPENINGS, ast.get_docstring(node) or "")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("run the same command and it goes on", "goes on"),
        ("Yield a dict a row.", "one X a Y"),
        ("one guess an image", "one X a Y"),
        ("see to the disk", "see to"),
        ("the data cannot tell them apart", "tell apart"),
        ("it is taken for dead", "taken for"),
        ("killed in life 3", "life"),
    ],
)
def test_a_phrase_is_found(text: str, name: str) -> None:
    assert re.search(PHRASES[name], text, re.IGNORECASE)


@pytest.mark.parametrize("text", ["as long as a run is alive", "one run per row", "an image of a class", "depends on"])
def test_plain_english_is_not_found(text: str) -> None:
    assert not [name for name, pattern in PHRASES.items() if re.search(pattern, text, re.IGNORECASE)]
