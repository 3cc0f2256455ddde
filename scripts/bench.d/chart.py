"""Draws the chart of README.md."""

import statistics

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

SHOWN = [("cat", "cat *"), ("tar", "tar"), ("grep", "grep -r"), ("again", "cat * again"), ("remount", "cat * after a remount")]
TITLE = "1,000 records of 4 KiB over TLS and 50 ms, as the platform answers: seconds, less is better"
COLOURS = {"kvfs": "#1f77b4", "rclone": "#bbbbbb", "rclone, tuned": "#999999", "s3fs": "#777777", "curl": "#e0a030"}


def draw(results, names, rows, figure, patience, path):
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "kvfs", "font.family": "sans-serif", "font.size": 9}
    picked = [(row, label) for row, label in SHOWN if row in results]
    figure_, axes = plt.subplots(figsize=(8, 0.75 * len(picked) + 1))
    names = [name for name in names if any(results[row].get(name) for row, _ in picked)]
    height = 0.8 / len(names)
    for at, name in enumerate(names):
        for line, (row, _) in enumerate(picked):
            runs = [r for r in results[row].get(name, []) if not r["error"]]
            if not runs:
                continue
            times = [r["s"] for r in runs if r["s"] is not None]
            seconds = statistics.median(times) if times else patience
            y = line + (at - (len(names) - 1) / 2) * height
            axes.barh(y, seconds, height * 0.9, color=COLOURS.get(name), label=name if line == 0 else None)
            text = f"{seconds:.2g} s" if times else f"over {patience} s"
            axes.text(seconds * 1.05, y, f"{name}: {text}", va="center", fontsize=7, color="#808080")
    axes.set_yticks(range(len(picked)), [label for _, label in picked])
    axes.set_xscale("log")
    axes.set_xlim(0.05, patience * 8)
    axes.set_xticks([0.1, 1, 10, 100], ["0.1 s", "1 s", "10 s", "100 s"])
    axes.invert_yaxis()
    axes.set_title(TITLE, fontsize=9, color="#808080")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color("#808080")
    axes.tick_params(which="both", colors="#808080")
    figure_.tight_layout()
    figure_.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
