"""Hundreds of questions in one process: what it holds in memory stays what it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from medvlm.demo.dataset import Item
from medvlm.demo.saved import save_dataset

QUESTIONS, SETTLED, MOST_GROWTH = 500, 50, 1.02
# What is kept of earlier questions grows up to its limits first: here prefixes are not, and few decoded images are.
PREFIX_MB = 0
# Says after each answer how many kilobytes the process holds, as Linux counts them.
WATCHED = """
from pathlib import Path
import sys
from medvlm.runtime import decoded
from medvlm.runtime.cli import main
from medvlm.runtime.evaluation.results import Results

decoded._MOST_BYTES = 4_000_000

append, watched = Results.append, Path(sys.argv.pop(1)).open("w")

def counted(*given):
    append(*given)
    status = Path("/proc/self/status").read_text()
    print(status.partition("VmRSS:")[2].split()[0], file=watched, flush=True)

Results.append = counted
main()
"""


def test_memory_is_flat_over_five_hundred_questions(demo_bundle: Path, demo_items: list[Item], tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc to see what a process holds")
    save_dataset(tmp_path, demo_items)
    entries = json.loads((tmp_path / "dataset.json").read_text())
    asked = [entries[number % len(entries)] for number in range(QUESTIONS)]
    (tmp_path / "dataset.json").write_text(json.dumps(asked))
    watched = tmp_path / "watched"
    words = ["eval", demo_bundle, tmp_path / "dataset.json", "--out", tmp_path / "results.jsonl", "--threads", 1]
    words += ["--prefix-mb", PREFIX_MB, "--max-new-tokens", 8]
    command = [sys.executable, "-c", WATCHED, str(watched), *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    held = [int(line) for line in watched.read_text().split()]
    assert len(held) == QUESTIONS
    assert max(held[SETTLED:]) <= MOST_GROWTH * held[SETTLED], held[SETTLED::50]
