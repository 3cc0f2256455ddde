#!/usr/bin/env python3
"""Checks what the documents say against the project.

* every sentence of docs/SEMANTICS.md is numbered in turn and names tests that exist and run
* docs/OPTIONS.md has every option of the command line; README.md and docs/SERVE.md no other
* docs/TROUBLESHOOTING.md has every errno that src/fs/error.rs answers
* links between the documents lead somewhere
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))]

problems = []


def read(path):
    return (ROOT / path).read_text()


def test_file(module):
    """Returns the file of a test: by its name in tests/, by the end of its path in src/."""
    path = module.replace("::", "/")
    for folder in ("tests/core", "tests/mount"):
        if (ROOT / folder / f"{path}.rs").exists():
            return ROOT / folder / f"{path}.rs"
    found = [
        file
        for file in (ROOT / "src").rglob("*.rs")
        if str(file).endswith((f"/{path}.rs", f"/{path}/mod.rs"))
    ]
    return found[0] if len(found) == 1 else None


def check_test(name, where):
    module, _, test = name.rpartition("::")
    path = test_file(module)
    if path is None:
        problems.append(f"{where}: there is no single file for the test {name}")
        return
    text = path.read_text()
    # A function, or a line of a macro's table.
    found = re.search(rf"(?:fn {test}\s*\(|^\s*{test}: \[)", text, re.MULTILINE)
    if not found:
        problems.append(f"{where}: {path.relative_to(ROOT)} has no test {test}")
    elif re.search(r"#\[ignore[^\]]*\]\s*$", text[: found.start()]):
        problems.append(f"{where}: the test {name} is ignored")


def check_semantics():
    text = read("docs/SEMANTICS.md")
    items = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^#|^$)", text, re.MULTILINE | re.DOTALL)
    for expected, (number, item) in enumerate(items, 1):
        where = f"docs/SEMANTICS.md, {number}"
        if int(number) != expected:
            problems.append(f"{where}: should be {expected}")
        _, mark, tests = item.partition("Tests:")
        names = re.findall(r"`([\w:]+)`", tests)
        if not mark or not names:
            problems.append(f"{where}: names no test")
        for name in names:
            check_test(name, where)
    return len(items)


def check_options():
    source = "\n".join(file.read_text() for file in sorted((ROOT / "src/cli/args").glob("*.rs")))
    known = set()
    for attributes, field in re.findall(
        r"#\[arg\(((?:[^()\[\]]|\([^()]*\)|\[[^\]]*\])*)\)\]\s*pub (\w+):", source
    ):
        if found := re.search(r'\blong(?: = "([\w-]+)")?', attributes):
            known.add("--" + (found.group(1) or field.replace("_", "-")))
    known.discard("--fstab-source")
    # What clap itself adds need not be told. The page is generated, and compared by a test.
    page = read("docs/OPTIONS.md")
    listed = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    for option in sorted(known - {"--help"} - listed):
        problems.append(f"docs/OPTIONS.md: the option {option} is missing")
    text = read("README.md").split("## Commands")[1] + read("docs/SERVE.md").split("| option |")[1]
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help", "--ro"}
    for option in sorted(shown - known):
        problems.append(f"README.md or docs/SERVE.md: there is no option {option}")
    if len(known) < 20:
        problems.append("scripts/docs.py no longer finds the options in src/cli/args")
    return len(known)


def check_errnos():
    source = read("src/fs/error.rs")
    table = source[source.index("pub fn errno_name") :]
    known = set(re.findall(r'"(E[A-Z]+)"', table)) - {"EAGAIN"}
    text = read("docs/TROUBLESHOOTING.md")
    for errno in sorted(known):
        if f"`{errno}`" not in text:
            problems.append(f"docs/TROUBLESHOOTING.md: {errno} is missing")


def anchors(text):
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def check_links():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", read(document)):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = ((ROOT / document).parent / path) if path else ROOT / document
            if not file.exists():
                problems.append(f"{document}: {target} leads nowhere")
            elif anchor and anchor not in anchors(file.read_text()):
                problems.append(f"{document}: {target} names no heading")


def main():
    sentences = check_semantics()
    options = check_options()
    check_errnos()
    check_links()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"documents: {sentences} promises with tests, {options} options, {len(DOCUMENTS)} documents: no fault")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
