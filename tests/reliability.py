"""Tries every fault many times and writes the table of docs/reliability.md (scripts/reliability)."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from fault_kit import ALL, ENDED, KILLED, NAMED, Outcome, Trial, contents, judge, make_work
from faults import FAULTS, WAYS, disk_stand_in, thousand
from run_kit import failures

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
START, END = "<!-- written by scripts/reliability -->", "<!-- end -->"
MANY = f"1,000 videos, 100 broken in {len(WAYS)} ways"
COLUMNS = {ALL: "all done", NAMED: "failed by name", ENDED: "run ended, said why", KILLED: "killed"}


def table(outcomes: dict[str, list[Outcome]], before: str) -> str:
    """The table with a row for each fault. Rows of faults that were not tried are kept from ``before``."""
    rows = {line.split("|")[1].strip(): line for line in before.splitlines() if line.startswith("| ")}
    head = ["fault", "tried", *COLUMNS.values(), "results lost"]
    for fault, found in outcomes.items():
        kinds = Counter(item.kind for item in found)
        cells = [len(found), *(kinds[kind] or "" for kind in COLUMNS), sum(item.lost for item in found)]
        rows[fault] = f"| {fault} | {' | '.join(map(str, cells))} |"
    order = [*FAULTS, MANY]
    lines = [rows[fault] for fault in order if fault in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def many_broken(folder: Path) -> Outcome:
    """Run the 1,000 videos, and judge the result."""
    ended, good, broken = thousand(folder)
    done = {name.removesuffix(".npz") for name in contents(folder / "out") if name.endswith(".npz")}
    lost = len(good - done) + len(broken - failures(folder / "out").keys())
    return Outcome(NAMED, lost, "" if ended.code == 1 and not lost else ended.said[-600:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="that each fault is tried [default: 20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("faults", nargs="*", help="[default: all]")
    arguments = parser.parse_args()
    times, seed, only = arguments.times, arguments.seed, arguments.faults or [*FAULTS, MANY]
    outcomes: dict[str, list[Outcome]] = {}
    problems = []
    with tempfile.TemporaryDirectory(prefix="vfx-faults-") as name:
        work = make_work(Path(name) / "work")
        for fault in (item for item in FAULTS if item in only):
            disturb, outcomes[fault] = FAULTS[fault], []
            for number in range(times):
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    trial = Trial(work, Path(folder) / "trial", random.Random(f"{seed} {fault} {number}"))
                    outcome = judge(trial, disturb(trial))
                outcomes[fault].append(outcome)
                if outcome.why:
                    problems.append(f"{fault}, {number}: {outcome.why}")
            print(f"{fault}: {dict(Counter(item.kind for item in outcomes[fault]))}", flush=True)
        if MANY in only:
            many = Path(name) / "many"
            many.mkdir()
            outcomes[MANY] = [many_broken(many)]
            problems += [f"{MANY}: {item.why}" for item in outcomes[MANY] if item.why]
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(START)
    earlier, after = rest.split(END)
    made = f"Made by `scripts/reliability --times {times} --seed {seed}`; a full disk was {disk_stand_in()}."
    rows = table(outcomes, earlier)
    DOCUMENT.write_text(f"{before}{START}\n{rows}\n\n{made}\n{END}{after}", "utf-8")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
