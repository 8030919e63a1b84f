"""What a drill says: the arithmetic of repeated steps, and a verdict that is good only if everything is."""

from __future__ import annotations

import json
from pathlib import Path

from hrdc_hpc.drill.driver import Drilled, Struck
from hrdc_hpc.drill.observe import Attempt, Trace, repeated
from hrdc_hpc.drill.plan import make_plan
from hrdc_hpc.drill.report import Report, write
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import MetricsWriter, read_raw


def struck(run: str = "drill-1", steps: int = 3, wrong: str | None = None) -> Struck:
    (fault,) = make_plan({"kill-rank": 1}, 0, 10)
    return Struck(fault, run, 0.0, 0, 23, ["train"], "rank 1", "killed", steps, wrong)


def report(*faults: Struck, lost: str | None = None, differences: dict[str, list[str]] | None = None) -> Report:
    runs = [Drilled(Path("drill-1"), attempts=2, steps=240, repeated=3), Drilled(Path("drill-2"), lost=lost, steps=120)]
    return Report(struck=faults, runs=runs, planned=2, differences=differences or {})


def test_all_survived() -> None:
    good = report(struck(), struck())
    assert good.good
    assert good.line() == ("2 faults of 1 kinds survived: 0 runs lost, 3 steps repeated (of 360), weights identical")


def test_each_thing_that_went_wrong_is_told_and_spoils_the_verdict() -> None:
    cases = {
        "a fault with a complaint": report(struck(), struck(wrong="not set aside")),
        "a lost run": report(struck(), struck("drill-2"), lost="did not start again"),
        "other weights": report(struck(), struck("drill-2"), differences={"drill-1": [], "drill-2": ["/model/w"]}),
    }
    for case, bad in cases.items():
        assert not bad.good, case
        assert bad.line().startswith("1 of 2 faults"), case
        assert len(bad.troubles()) == 1, case
    assert "weights NOT identical" in cases["other weights"].line()
    assert "1 runs lost" in cases["a lost run"].line()
    assert report(struck()).line().startswith("1 of 2 faults"), "one was not made"


def test_repeated_steps_are_those_on_record_twice(tmp_path: Path) -> None:
    """Also where an attempt goes back itself, and where one never came to train."""
    folder = RunFolder.create(tmp_path / "run", config_text="", manifest={})
    for number, (first, steps) in enumerate(
        [(0, range(1, 18)), (None, []), (10, [11, 12, 13, 12, 13]), (13, range(14, 21))]
    ):
        writer = MetricsWriter(folder, number)
        writer.write("phase", 0, name="startup", event="begin")
        if first is not None:
            writer.write("phase", first, name="startup", event="end")
        for step in steps:
            writer.write("train", step, loss=1.0)
        writer.close()
    trace = Trace(folder.path)
    assert trace.look() is not None
    made = [record["step"] for record in read_raw(folder) if record["kind"] == "train"]
    assert repeated(trace.attempts) == len(made) - len(set(made)) == 9
    assert trace.reached() == 20


def test_a_trace_reads_on_where_it_was_and_leaves_half_a_line_for_later(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", config_text="", manifest={})
    trace = Trace(folder.path)
    assert trace.look() is None
    lines = [{"kind": "phase", "name": name, "event": "begin", "step": 0} for name in ("train", "save")]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    file = folder.metrics / "attempt-0.jsonl"
    file.write_text(text[:-5])
    seen = trace.look()
    assert isinstance(seen, Attempt)
    assert seen.phases == ["train"]
    file.write_text(text)
    trace.look()
    assert seen.phases == ["train", "save"]


def test_the_record_holds_every_fault_and_the_command(tmp_path: Path) -> None:
    about = {"site": "local", "slurm": None, "seed": 7, "arguments": ["--cfg", "a b.yaml"], "seconds": 130.0}
    page = write(tmp_path, report(struck(), struck(wrong="lost a step")), about)
    assert page.name.startswith("drill-local_")
    told = json.loads(page.with_suffix(".json").read_text())
    assert (told["seed"], len(told["faults"]), told["faults"][1]["wrong"]) == (7, 2, "lost a step")
    assert told["machine"]["packages"]
    text = page.read_text()
    assert text.startswith("# Drill: 1 of 2 faults")
    assert "python -m hrdc_hpc.drill --cfg 'a b.yaml'" in text
    assert "- fault 1, kill-rank of drill-1: lost a step" in text
