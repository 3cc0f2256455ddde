#!/usr/bin/env python3
"""Makes a picture of a terminal's screen, as `tmux capture-pane -e -p` prints it: SVG on standard
output, with the command given as the argument above it.

The text stays text, in the colours of the reader's own light or dark mode. Bold is the only
attribute that kvfs uses; others are dropped.
"""

import re
import sys
from html import escape

WIDTH, HEIGHT, FIRST = 8.43, 18, 58
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
STYLE = """
  .frame { fill: #ffffff; stroke: #d0d7de; }
  .bar { fill: #f0f2f4; }
  text { fill: #1f2328; white-space: pre; }
  .b { font-weight: 700; }
  @media (prefers-color-scheme: dark) {
    .frame { fill: #0d1117; stroke: #30363d; }
    .bar { fill: #161b22; }
    text { fill: #e6edf3; }
  }
"""


def runs(line):
    """Yields the column, the text and whether it is bold, for each part of a line."""
    column, bold = 0, False
    for part in re.split(r"(\x1b\[[0-9;]*m|\x1b\([AB0]|[\x0e\x0f])", line):
        if part.startswith("\x1b["):
            for code in (part[2:-1] or "0").split(";"):
                bold = True if code == "1" else False if code in ("", "0", "22") else bold
        elif part and part[0] not in "\x1b\x0e\x0f":
            # Columns are places of their own: no reader's font moves them.
            for words in re.finditer(r"\S+(?: \S+)*", part):
                yield column + words.start(), words.group(), bold
            column += len(part)


def main():
    lines = sys.stdin.read().rstrip("\n").split("\n")
    width = round(80 * WIDTH + 32)
    height = FIRST + HEIGHT * len(lines) + 4
    title = escape(" ".join(sys.argv[1:]))
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" xml:space="preserve">')
    print(f"<title>{title}</title>\n<style>{STYLE}</style>")
    print(f'<rect class="frame" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>')
    print(f'<rect class="bar" width="{width}" height="34" rx="8"/>')
    print(f'<g font-family="{FONT}" font-size="14">')
    print(f'<text x="16" y="22">$ {title}</text>')
    for number, line in enumerate(lines):
        for column, text, bold in runs(line):
            x, y = 16 + column * WIDTH, FIRST + number * HEIGHT
            # The length is told: every font then keeps to the columns.
            length = f'textLength="{len(text) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
            mark = ' class="b"' if bold else ""
            print(f'<text{mark} x="{x:.1f}" y="{y}" {length}>{escape(text)}</text>')
    print("</g>\n</svg>")


if __name__ == "__main__":
    main()
