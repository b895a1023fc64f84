"""Measure the language of docstrings and settings: `python tests/package/language.py src/puna` prints a table by file.

Pronouns and relatives ("what", "which", "it", "those") per 1,000 docstring words tell how often a reader must look for
the noun that a word stands for. Well-read projects of the field have 20 to 30.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PRONOUNS = {
    *("what", "who", "whom", "whose", "which", "that", "those", "these", "it", "its", "they", "them", "their"),
    *("each", "none", "such", "so", "other", "others", "one", "ones"),
}
MIN_DESCRIPTION_WORDS = 4


def python_files(path: Path) -> list[Path]:
    """Return a file alone, or every Python file of a folder."""
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def docstrings(paths: Iterable[Path]) -> Iterator[str]:
    """Yield every docstring of some Python files."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def pronouns_and_words(paths: Iterable[Path]) -> tuple[int, int]:
    """Count pronouns and words in the docstrings of some files."""
    words = [word.lower() for text in docstrings(paths) for word in re.findall(r"[A-Za-z][A-Za-z']*", text)]
    return sum(word in PRONOUNS for word in words), len(words)


def descriptions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the settings of a file with their descriptions: ("Config.lr", "Peak learning rate")."""
    for definition in ast.walk(ast.parse(path.read_text())):
        if isinstance(definition, ast.ClassDef):
            for node in definition.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                    texts = [part.value for part in node.value.keywords if part.arg == "description"]
                    if ast.unparse(node.value.func) == "Field" and texts:
                        yield (
                            f"{definition.name}.{ast.unparse(node.target)}",
                            ast.unparse(texts[0]).lstrip("f").strip("'\""),
                        )


def stands_alone(description: str) -> bool:
    """Tell whether a description is a phrase of its own: four words or more, and a capital letter at the start."""
    return len(description.split()) >= MIN_DESCRIPTION_WORDS and description[0].isupper()


def main() -> None:
    """Print the files of the given folders, the densest in pronouns first, and descriptions that do not stand alone."""
    paths = [path for root in sys.argv[1:] for path in python_files(Path(root))]
    counts = {path: pronouns_and_words([path]) for path in paths}
    for path, (pronouns, words) in sorted(counts.items(), key=lambda item: -item[1][0] / max(1, item[1][1])):
        print(f"{1000 * pronouns / max(1, words):6.0f} {words:6} {path}")
    pronouns, words = pronouns_and_words(paths)
    print(f"{1000 * pronouns / max(1, words):6.1f} {words:6} all, in pronouns per 1,000 words and words")
    for path in paths:
        for name, description in descriptions(path):
            if not stands_alone(description):
                print(f"{path}: {name}: {description!r}")


if __name__ == "__main__":
    main()
