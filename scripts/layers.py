#!/usr/bin/env python3
"""Checks that src/ keeps to its layers.

A top-level module may import from lower layers and from its own, never from a higher one, and
no top-level modules may import each other in a circle. The list below must name exactly the
modules of src/lib.rs, in the order and the layers of its doc comment.

Test code (`#[cfg(test)]`) is not looked at. `--graph` prints the imports.
"""

import re
import sys
from pathlib import Path

LAYERS = [
    ["base", "metrics"],
    ["store"],
    ["apify", "local", "bucket"],
    ["disk", "transfer", "listing", "cache", "prefetch", "staging", "upload", "copy"],
    ["fs"],
    ["fuse", "server"],
    ["mount", "daemon"],
    ["cli"],
]

# Narrower than the layers: module -> what it may not import although it is lower.
APART = {
    # The server speaks of stores; caches and the filesystem are the client's side.
    "server": {"disk", "transfer", "listing", "cache", "prefetch", "staging", "upload", "copy", "fs", "apify"},
    # One network trait: the rooms above it do not know what stands behind.
    "disk": {"apify", "local", "bucket"},
    "transfer": {"apify", "local", "bucket"},
    "listing": {"apify", "local", "bucket"},
    "cache": {"apify", "local", "bucket"},
    "prefetch": {"apify", "local", "bucket"},
    "staging": {"apify", "local", "bucket", "upload"},
    "upload": {"apify", "local", "bucket"},
    "copy": {"apify", "local", "bucket"},
    "fs": {"apify", "local", "bucket"},
    "fuse": {"apify", "local", "bucket"},
}

# Crates that only one module may use: module -> why.
ONLY_IN = {
    "fuser": ("fuse", "the kernel binding stays in the adapter"),
    "axum": ("server", "the web framework stays in the server"),
    "reqwest": ("apify", "the HTTP client stays behind the store contract"),
    "object_store": ("bucket", "the library for object storages stays behind the store contract"),
    "rusqlite": ("disk", "the database of small contents stays in the cache folder"),
    "shuttle": ("base", "locks that only exist while schedules are explored stay behind one door"),
    "clap": ("cli", "the command line stays in the command line"),
}

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
LAYER_OF = {module: n for n, layer in enumerate(LAYERS, 1) for module in layer}


def without_noise(text):
    """Blanks comments, strings and characters, so that braces can be counted."""
    noise = re.compile(
        r"""//[^\n]*"""
        r"""|/\*.*?\*/"""
        r"""|\bb?r(?P<hash>\#*)".*?"(?P=hash)"""
        r"""|\bb?"(?:\\.|[^"\\])*\""""
        r'''|"(?:\\.|[^"\\])*"'''
        r"""|'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^'\\\n])'""",
        re.DOTALL,
    )
    return noise.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def without_tests(text):
    """Blanks items under `#[cfg(test)]`; returns the rest and the names of test files."""
    files = []
    marker = re.compile(r"#\[cfg\(test\)\]")
    while found := marker.search(text):
        at = found.end()
        # To the item's end: the first `;` or the `}` that closes its first `{`.
        depth = 0
        while at < len(text):
            if text[at] == "{":
                depth += 1
            elif text[at] == "}":
                depth -= 1
                if depth == 0:
                    break
            elif text[at] == ";" and depth == 0:
                break
            at += 1
        item = text[found.start() : at + 1]
        if named := re.search(r"\bmod\s+(\w+)\s*;", item):
            files.append(named.group(1))
        text = text[: found.start()] + re.sub(r"[^\n]", " ", item) + text[at + 1 :]
    return text, files


def sources():
    """Yields path, module path and text of every file that is not only for tests."""
    texts, skipped = {}, set()
    for path in sorted(SRC.rglob("*.rs")):
        raw = path.read_text()
        text, tests = without_tests(without_noise(raw))
        texts[path] = text
        folder = path.parent if path.name in ("mod.rs", "lib.rs", "main.rs") else path.with_suffix("")
        for name in tests:
            # `#[path = "..."]` has been blanked with the strings: look at the original.
            at = re.search(rf'#\[path = "([^"]+)"\]\s*mod {name};', raw)
            skipped.add(path.parent / at.group(1) if at else folder / f"{name}.rs")
            skipped.add(folder / name)
    for path, text in texts.items():
        if skipped & {path, *path.parents} or path.name == "main.rs":
            continue
        parts = list(path.relative_to(SRC).with_suffix("").parts)
        if parts[-1] in ("mod", "lib"):
            parts.pop()
        yield path, parts, text


def first_names(text, at):
    """Returns the first names of the paths that begin at `at`: one, or those of a group."""
    if text[at] != "{":
        found = re.match(r"\w+", text[at:])
        return [found.group()] if found else []
    depth, names, fresh = 0, [], True
    for found in re.finditer(r"[{},]|\w+|\S", text[at:]):
        token = found.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return names
        elif token == "," and depth == 1:
            fresh = True
        elif fresh and depth == 1 and re.match(r"\w", token):
            names.append(token)
            fresh = False
    return names


def imports(parts, text):
    """Yields line and name of every top-level module that a file refers to."""
    for found in re.finditer(r"(?<![\w:])(crate::|(?:super::)+)(?=[\w{])", text):
        prefix = found.group()
        if prefix != "crate::" and prefix.count("super::") != len(parts):
            continue
        line = text.count("\n", 0, found.start()) + 1
        for name in first_names(text, found.end()):
            yield line, name


def modules_of_lib():
    """Returns the modules that lib.rs declares, and the layers that its doc comment lists."""
    text = (SRC / "lib.rs").read_text()
    declared = re.findall(r"^pub mod (\w+);", text, re.MULTILINE)
    layers, current = [], None
    for line in text.splitlines():
        if not line.startswith("//!"):
            continue
        if re.match(r"//! \d+\. ", line):
            current = []
            layers.append(current)
        if current is not None:
            current.extend(re.findall(r"\[`(\w+)`\]", line))
    return declared, layers


def circle(graph):
    """Returns modules that import each other in a circle, or nothing."""
    state, path = {}, []

    def visit(module):
        state[module] = "open"
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if state.get(other) == "open":
                return path[path.index(other) :] + [other]
            if other not in state and (found := visit(other)):
                return found
        path.pop()
        state[module] = "done"
        return None

    for module in sorted(graph):
        if module not in state and (found := visit(module)):
            return found
    return None


def main():
    problems = []
    declared, documented = modules_of_lib()
    if sorted(declared) != sorted(LAYER_OF):
        odd = sorted(set(declared) ^ set(LAYER_OF))
        problems.append(f"src/lib.rs and scripts/layers.py name different modules: {', '.join(odd)}")
    if [sorted(layer) for layer in documented] != [sorted(layer) for layer in LAYERS]:
        problems.append("the layers in the doc comment of src/lib.rs are not those of scripts/layers.py")

    graph, files = {}, 0
    for path, parts, text in sources():
        files += 1
        if not parts:
            continue
        module, where = parts[0], path.relative_to(ROOT)
        for line, name in imports(parts, text):
            if name == module:
                continue
            if name not in LAYER_OF:
                problems.append(f"{where}:{line}: crate::{name} is no module of src/lib.rs")
                continue
            graph.setdefault(module, set()).add(name)
            if LAYER_OF[name] > LAYER_OF.get(module, 0):
                problems.append(
                    f"{where}:{line}: {module} (layer {LAYER_OF.get(module)}) imports "
                    f"{name} (layer {LAYER_OF[name]}), which is higher"
                )
            elif name in APART.get(module, ()):
                problems.append(f"{where}:{line}: {module} must not know {name}")
        for crate, (owner, reason) in ONLY_IN.items():
            if module != owner and (found := re.search(rf"(?<![\w:.]){crate}::", text)):
                line = text.count("\n", 0, found.start()) + 1
                problems.append(f"{where}:{line}: {module} uses {crate}: {reason}")

    if found := circle(graph):
        problems.append(f"a circle of imports: {' -> '.join(found)}")
    if files < len(LAYER_OF):
        problems.append(f"only {files} files were looked at: is {SRC} complete?")

    if "--graph" in sys.argv[1:]:
        for module in LAYER_OF:
            print(f"{module}: {', '.join(sorted(graph.get(module, ()))) or '-'}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        edges = sum(map(len, graph.values()))
        print(f"layers: {len(LAYER_OF)} modules in {len(LAYERS)} layers, {files} files, {edges} imports: no violation")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
