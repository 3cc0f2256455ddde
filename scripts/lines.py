#!/usr/bin/env python3
"""Counts the lines of code in src/: without blank lines, comments and tests, one number a room.

`--tests` adds the lines below tests/. `--files` names the files of src/ that are too long for one
idea, and fails if there are any.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import layers  # noqa: E402

# The most lines that a file of src/ may have, of any kind.
LONGEST = 450


def code_lines(text):
    """Returns how many lines hold code; comments and strings are blank in `text` already."""
    return sum(1 for line in text.splitlines() if line.strip())


def rooms():
    """Returns the lines of code by room of src/, and their files."""
    counted = {}
    for path, parts, _ in layers.sources():
        raw = path.read_text()
        # Strings stay: they are code. Only comments and tests go.
        text, _ = layers.without_tests(layers.without_noise(raw))
        blank = [not line.strip() for line in text.splitlines()]
        # A line that is blank without its strings but not without its comments is code.
        code = 0
        for line, is_blank in zip(raw.splitlines(), blank):
            stripped = line.strip()
            if not stripped or stripped.startswith("//"):
                continue
            if not is_blank or stripped.startswith(('"', 'r"', 'r#"')):
                code += 1
        room = parts[0] if parts else "lib.rs"
        lines, files = counted.get(room, (0, 0))
        counted[room] = (lines + code, files + 1)
    main = layers.SRC / "main.rs"
    counted["main.rs"] = (code_lines(layers.without_noise(main.read_text())), 1)
    return counted


def all_lines(folder):
    """Returns the lines of all Rust files below a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.rs"))


def long_files():
    """Returns the files of src/ over `LONGEST` lines, the longest first."""
    found = []
    for path in layers.SRC.rglob("*.rs"):
        lines = len(path.read_text().splitlines())
        if lines > LONGEST:
            found.append((lines, str(path.relative_to(layers.ROOT))))
    return sorted(found, reverse=True)


def main():
    if "--files" in sys.argv[1:]:
        found = long_files()
        for lines, path in found:
            print(f"error: {path} has {lines} lines, more than {LONGEST}: split it by idea", file=sys.stderr)
        if not found:
            print(f"lines: no file of src/ has more than {LONGEST}")
        return 1 if found else 0
    counted = rooms()
    for room, (lines, files) in sorted(counted.items(), key=lambda item: -item[1][0]):
        print(f"{room:12} {files:4} files {lines:7}")
    print(f"{'src':12} {sum(f for _, f in counted.values()):4} files {sum(n for n, _ in counted.values()):7}")
    if "--tests" in sys.argv[1:]:
        print(f"{'tests':12} {'':10} {all_lines(layers.ROOT / 'tests'):7} with comments")
    return 0


if __name__ == "__main__":
    sys.exit(main())
