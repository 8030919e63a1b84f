"""Every form of the report: whole, well-formed and honest, whatever is missing from the study."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from hrdc_hpc.record.measurement import Node
from hrdc_hpc.scaling.advice import advise
from hrdc_hpc.scaling.report import plots
from hrdc_hpc.scaling.report.document import document
from hrdc_hpc.scaling.report.markdown import to_markdown
from hrdc_hpc.scaling.report.page import to_html
from hrdc_hpc.scaling.report.write import tell, write_report
from hrdc_hpc.scaling.view import Fit, StudyView

from made_studies import believable, failed, found, inat, predicted, row, size, without

NASTY = 'rank 1: <b>a|b</b>, "c", `d` *e* & [f](g)\nsecond line'
PICTURES = {"efficiency.png", "throughput.png", "shares.png"}
FORMS = {"report.html", "report.md", "rows.csv", "sizes.csv", "predictions.csv", "report.json"}
_VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """What a browser would make of a page, if every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def view() -> StudyView:
    """Weak and strong over eight sizes; weak on 16 nodes failed for a reason with everything in it that is markup."""
    made = believable()
    rows = [replace(one, why=NASTY) if one.found is None else one for one in made.rows]
    return replace(made, rows=rows)


@pytest.fixture(scope="module")
def folder(view: StudyView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("study") / "report"
    files = write_report(target, view)
    assert {file.name for file in files} == FORMS | PICTURES == {file.name for file in target.iterdir()}
    return target


def records(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source, strict=True))


def tables(markdown: str) -> Iterator[list[str]]:
    """Yield the lines of each table."""
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            yield block.splitlines()


def test_page_is_one_whole_file(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.tags.count("img") == 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "b" not in page.tags, "a failure's reason became markup"
    assert " ".join(NASTY.split()) in " ".join(page.text.split())
    assert "prefers-color-scheme: dark" in page.text
    assert page.text.count("Weak scaling") == 1


def test_markdown_tables_have_the_same_number_of_cells_in_every_line(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    seen = list(tables(text))
    assert len(seen) >= 10
    for lines in seen:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines[0]
    assert r"\<b>a\|b\</b>".replace(">", r"\>") in text
    assert "second line" in text
    assert "<b>" not in text
    for name in PICTURES:
        assert f"]({name})" in text


def test_rows_and_sizes_as_csv(folder: Path, view: StudyView) -> None:
    rows = records(folder / "rows.csv")
    assert len(rows) == len(view.rows) == 48
    lost = [one for one in rows if one["state"] == "failed"]
    assert [(one["mode"], one["nodes"]) for one in lost] == [("weak", "16")] * 3 + [("strong", "16")]
    assert all(one["why"] == NASTY and one["images_per_s"] == "" for one in lost)
    first = rows[0]
    assert float(first["images_per_s"]) == pytest.approx(1024 / float(first["step_p50_s"]), rel=1e-6)
    parts = ("waiting_for_data_s", "forward_and_backward_s", "exposed_communication_s", "optimizer_s", "rest_s")
    assert sum(float(rows[5][part]) for part in parts) == pytest.approx(float(rows[5]["step_p50_s"]))
    sizes = {(one["mode"], one["nodes"]): one for one in records(folder / "sizes.csv")}
    assert len(sizes) == 16
    assert float(sizes["weak", "1"]["efficiency_percent"]) == pytest.approx(100)
    assert sizes["weak", "16"]["repeats_finished"] == "0"
    assert sizes["weak", "16"]["efficiency_percent"] == ""
    assert sizes["strong", "16"]["why"] == f"repeat 2 failed: {' '.join(NASTY.split())}"
    predicted = records(folder / "predictions.csv")
    assert {one["nodes"] for one in predicted} >= {"128", "256"}


def test_json_holds_the_same_and_no_nan(folder: Path) -> None:
    value = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert value["modes"]["weak"]["most"]["nodes"] == 32
    assert value["modes"]["strong"]["most"]["nodes"] == 2
    assert len(value["rows"]) == 48
    assert value["fit"]["parameters"][0]["name"] == "bandwidth between nodes"


def test_console_names_the_failed_size_and_why(view: StudyView, capsys: pytest.CaptureFixture[str]) -> None:
    tell(view)
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) < 400
    assert f"x 16 nodes (64 GPUs), weak: repeats 1, 2 and 3 failed: {' '.join(NASTY.split())}" in told
    assert "x 16 nodes (64 GPUs), strong: repeat 2 failed" in told
    assert re.search(r"x 16 .* 0 of 3", told)


def test_pictures_are_wide_enough_to_read(folder: Path) -> None:
    for name in PICTURES:
        png = (folder / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == 1280


def test_plots_mark_failed_sizes_and_number_nodes_plainly_without_overlaps(view: StudyView) -> None:
    advices = [advise(view, mode) for mode in view.modes]
    for name in ("efficiency", "throughput"):
        figure = plots.figure_of(view, advices, name)
        figure.canvas.draw()
        axes = figure.axes[0]
        lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
        assert lines["weak, no figures"] == [16]
        assert "strong, no figures" not in lines, "two of its three repeats have figures"
        assert lines["weak, model"][-1] == 256
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        assert [label.get_text() for label in labels] == ["1", "2", "3", "4", "8", "16", "32", "64", "128", "256"]
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        heights = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        assert all(low.y1 < high.y0 for low, high in pairwise(heights))
        assert figure.legends[0].get_window_extent().y0 >= axes.get_window_extent().y1
        assert axes.get_xlabel() == "nodes (4 GPUs each)"
    bars = plots.figure_of(view, advices, "shares").axes
    assert [axes.get_xlabel() for axes in bars] == ["nodes, weak scaling", "nodes, strong scaling"]
    assert [text.get_text() for text in bars[0].texts].count("no figures") == 1


def test_nothing_finished_is_said_and_old_plots_are_taken_away(tmp_path: Path) -> None:
    rows = [failed(size("weak", nodes), state="queued", why="") for nodes in (1, 2)]
    (tmp_path / "efficiency.png").write_bytes(b"of before")
    write_report(tmp_path, StudyView(name="s", config=inat(), rows=rows))
    assert {file.name for file in tmp_path.iterdir()} == FORMS
    text = (tmp_path / "report.md").read_text()
    assert "No size has figures yet (2 rows: queued)" in text
    assert "Nothing has been measured in this mode yet." in text
    Page((tmp_path / "report.html").read_text())
    assert [one["state"] for one in records(tmp_path / "rows.csv")] == ["queued", "queued"]


def test_a_report_on_paper_does_not_speak_of_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [size("weak", nodes) for nodes in (1, 2, 4)]
    fit = Fit(model="On paper: nothing was measured.", assumptions=["A rank's steps differ by 1 %."])
    view = StudyView(
        name="inat", config=inat(), train_images=1 << 20, predictions=[predicted(one, 1024) for one in sizes], fit=fit
    )
    write_report(tmp_path, view)
    tell(view)
    told, text = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert "On paper: up to 4 nodes (16 GPUs) would keep 80 %" in told
    assert "A rank's steps differ by 1 %." in told
    assert text.startswith("# Scaling of inat, on paper")
    for wrong in ("been measured", "beyond what was", "extrapolated", "Dots", "window", "The fitted model", "off by"):
        assert wrong.lower() not in text.lower(), wrong
        assert wrong.lower() not in told.lower(), wrong
    assert all(set(cell.strip()) - {"-"} for line in told.splitlines() if "│" in line for cell in line.split("│")[1:-1])


def test_no_rows_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = StudyView(name="s", config=inat())
    write_report(tmp_path, empty)
    tell(empty)
    assert "Nothing was run" in capsys.readouterr().out


def test_one_machine_comes_first_in_every_form_and_one_size_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [Node(name=name, machine="m", cores=1, device="CPU") for name in ("a", "b")]
    rows = [row(size("weak", 2), 0.2, nodes=nodes)]
    shared = StudyView(name="s", config=inat(), rows=rows, train_images=1 << 20)
    write_report(tmp_path, shared)
    tell(shared)
    says = "2 nodes of this study are one machine: figures show the method, not scaling."
    assert capsys.readouterr().out.startswith(f"! {says}")
    text = (tmp_path / "report.md").read_text()
    assert text.split("> - ")[1].strip() == says
    assert "Only 2 nodes (8 GPUs) has figures" in text
    assert re.search(r"<li>(.*)</li>", (tmp_path / "report.html").read_text())[1] == says  # type: ignore[index]
    assert json.loads((tmp_path / "report.json").read_text())["warnings"][0] == says
    for name in ("rows.csv", "sizes.csv"):
        assert {one["caveat"] for one in records(tmp_path / name)} == {says}
    assert {file.name for file in tmp_path.iterdir()} == FORMS | PICTURES
    figure = plots.figure_of(shared, [advise(shared, "weak")], "efficiency", note=says)
    assert figure.legends[0].get_title().get_text() == says


def test_what_was_not_measured_says_so() -> None:
    of = size("weak", 1)
    bare = replace(found(of, 0.1), energy_j=None, interface=None, all_reduces=(), versions={})
    view = StudyView(name="s", config=inat(), rows=[replace(row(of, 0.1), found=bare)])
    text = to_markdown(document(view, [advise(view, "weak")]))
    assert "not measured" in text
    assert "not known" in text


def test_without_matplotlib_the_page_says_how_to_get_it(
    view: StudyView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files = write_report(tmp_path, without(view, 1, 2))
    assert {file.name for file in files} == FORMS
    page = Page((tmp_path / "report.html").read_text())
    assert "pip install 'hrdc-hpc[report]'" in page.text
    assert "img" not in page.tags


def test_a_page_without_pictures_is_whole(view: StudyView) -> None:
    assert Page(to_html("a < b", document(view, []), {})).text.count("a < b") == 1


def test_neither_torch_nor_matplotlib_nor_scipy_is_loaded_to_tell() -> None:
    code = (
        "import sys; from hrdc_hpc.scaling.report import write;"
        " heavy = {'torch', 'matplotlib', 'scipy', 'submitit'} & set(sys.modules); sys.exit(', '.join(heavy) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
