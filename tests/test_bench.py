"""The benchmarks measure what they say: times, memory, operations, shares, and the tables made from them."""

from __future__ import annotations

import json
import mmap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from amg.geometry import Size
from tests import parity, reference_amg
from tests.bench import (
    __main__,
    against_pipeline,
    against_reference,
    ceiling,
    cores,
    flops,
    gemm,
    library,
    memory,
    photos,
    precision,
    results,
    same_masks,
    tables,
)
from tests.bench.agreement import Agreement, agree, over_all, record
from tests.bench.children import TUNED, Measured, measure
from tests.bench.options import Options
from tests.parity import Parity

COFFEE = reference_amg.PHOTOS / "coffee.jpg"  # 600 x 400
SIZE = (40, 60)


def told(**changed: Any) -> Options:
    given = {
        "photo": COFFEE,
        "photos": reference_amg.PHOTOS,
        "weights": Path("unused.pt"),
        "settings": {},
        "threads": 2,
        "repeats": 3,
        "reference_records": None,
    }
    return Options(**(given | changed))


def measured(seconds: float, result: Any = None, *, peak_mb: float = 1000.0) -> Measured:
    return Measured(
        seconds=[seconds],
        peak_mb=peak_mb,
        loaded_mb=500.0,
        warm_up_mb=50.0,
        peak_above_mb=peak_mb - 500.0,
        high_water_reset=True,
        result=result,
    )


def square(x: int, y: int, side: int) -> np.ndarray[Any, Any]:
    mask = np.zeros(SIZE, np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def masks(count: int = 3) -> list[reference_amg.Record]:
    """Records with every field that the comparison looks at."""
    found = []
    for k, (x, y, side) in enumerate([(2, 2, 10), (30, 5, 20), (20, 28, 9)][:count]):
        more = {"area": side**2, "bbox": [x, y, side, side], "stability_score": 0.97, "point_coords": [[x + 1, y + 1]]}
        found.append(record(square(x, y, side), 1 - k / 100) | more | {"crop_box": [0, 0, SIZE[1], SIZE[0]]})
    return found


def test_the_pages_say_what_was_measured() -> None:
    assert tables.main(["--check"]) == 0, "run: make bench-tables"


def test_every_call_is_timed_and_the_most_memory_is_known() -> None:
    started: list[float] = []

    def work() -> str:
        started.append(time.perf_counter())
        with mmap.mmap(-1, 256 * 2**20) as block:  # from the system, whatever the heap has left of other tests
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            return str(block[0])

    found = measure(lambda: work, warm_up=lambda: None, repeats=2, to_json=lambda result: [result])
    assert len(started) == len(found.seconds) == 2
    assert found.result == ["1"]
    assert found.peak_mb >= found.loaded_mb
    if found.high_water_reset:
        assert 250 <= found.peak_above_mb <= 300


def test_the_middle_call_counts_and_of_two_the_slower() -> None:
    assert Measured([3.0, 1.0, 2.0], 0, 0, 0, 0, True).middle == 2.0
    assert Measured([1.0, 2.0], 0, 0, 0, 0, True).middle == 2.0


@pytest.mark.parametrize(
    ("before", "after", "ours", "again", "passed"),
    [(10, 10, 3, 3, True), (10, 40, 3, 3, False), (10, 10, 2, 2, False), (10, 10, 3, 2, False)],
)
def test_a_row_is_passed_only_when_it_is_faster_and_the_masks_are_the_same_both_times(
    before: float, after: float, ours: int, again: int, passed: bool
) -> None:
    row = against_reference.summarize(
        measured(before, masks(ours)),
        measured(200, masks(), peak_mb=3000),
        measured(after, masks(again)),
        told(),
        bar=15.0,
    )
    assert row["passed"] == passed
    assert row["speedup"] == pytest.approx(200 / ((before + after) / 2))
    assert row["memory_ratio"] == pytest.approx(2500 / 500)
    assert row["size"] == [400, 600]
    assert json.loads(json.dumps(row, default=reference_amg.plain)) == row


def test_the_reference_is_measured_at_its_fastest_batch_with_a_tuned_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 9.0, 2: 7.0, 4: 6.0, 8: 5.0, 16: 8.0}
    asked: list[tuple[str, Any, Any]] = []

    def run_side(side: str, job: dict[str, Any], environment: Any = None) -> Measured:
        asked.append((side, job["settings"], environment))
        batch = job["settings"].get("points_per_batch")
        return measured(seconds[batch] if side == "reference" else 0.5, masks())

    monkeypatch.setattr(against_reference, "run_side", run_side)
    row = against_reference.tuned_row(told(settings={"points_per_side": 24}))
    searched, (before, theirs, after) = asked[:5], asked[5:]
    assert [settings for _, settings, _ in searched] == [
        {"points_per_side": 8, "points_per_batch": batch} for batch in (1, 2, 4, 8, 16)
    ]
    assert all(environment == TUNED for _, _, environment in [*searched, theirs])
    assert theirs[:2] == ("reference", {"points_per_side": 24, "points_per_batch": 8})
    assert before == after
    assert before[:2] == ("ours", {"points_per_side": 24})
    assert not set(before[2]) & set(TUNED)
    assert (row["best_batch"], row["passed"], row["reference_environment"]) == (8, True, TUNED)
    assert any("MALLOC_TRIM_THRESHOLD_=4294967296" in line for line in against_reference.lines(row))


def test_masks_that_are_not_the_same_to_the_pixel_are_counted_by_their_overlap() -> None:
    ours = [record(square(2, 2, 10), 0.9), record(square(30, 5, 20), 0.9), record(square(2, 28, 6), 0.9)]
    moved = square(30, 5, 20)
    moved[5, 30:40] = False  # 390 of 400 pixels
    theirs = [record(moved, 0.9), record(square(2, 2, 10), 0.9), record(square(4, 28, 6), 0.9)]
    found = agree(ours, theirs)
    assert (found.ours, found.theirs, found.matched) == (3, 3, 2)
    assert found.worst_iou == pytest.approx(390 / 400)
    assert found.f1 == pytest.approx(2 / 3)
    assert agree([], []).f1 == 1.0
    assert over_all([found, agree(ours, [])]) == Agreement(6, 3, 2, found.worst_iou)


def test_operations_are_those_of_the_published_models() -> None:
    """77.5 and 972 GFLOP for the encoders, 3.62 for a point: counted by hand from the papers' models before."""
    tiny = flops.count("vit_t")
    assert tiny.encode / 1e9 == pytest.approx(77.5, abs=0.1)
    assert tiny.plain_point / 1e9 == pytest.approx(3.62, abs=0.01)
    assert 0.8 < tiny.point / 1e9 < 0.95
    assert tiny.logit_bytes == 3 * 256 * 256 * 4


def test_padding_that_is_left_out_is_not_counted() -> None:
    square, upright = flops.count("vit_t"), flops.count("vit_t", Size(1800, 1200))
    assert square.plain_point == upright.plain_point
    drawn = 2 * 64 * (256 * 99 + 4 * 128 * 64 + 16 * 32 * 3)  # of one line of image tokens
    assert square.point - upright.point == (64 - 44) * drawn
    assert 4e9 < square.encode - upright.encode < 5e9


def test_the_passes_products_are_counted_from_their_shapes() -> None:
    shape = flops.FactorShape(
        places=4096, drawn=3072, heads=8, tokens=7, channels=128, upscaled=256, inner=64, outer=32
    )
    assert shape.factors == 49
    answers = 12 * 7 * 128  # twelve products of a prompt's 7 tokens with 128 rows of the image
    first = 105 * 49 + 56 * 49
    second = 56 * 49 + 154 * 49 + 105 * 49 + 56 * 98
    draw = 256 * 99 + 4 * 128 * 64 + 16 * 32 * 3
    assert shape.flops() == 2 * (4096 * (answers + first + second) + 3072 * draw)


def counted() -> flops.Counted:
    return flops.Counted(
        encode=70 * 10**9,
        share=5 * 10**9,
        point=10**9,
        plain_point=4 * 10**9,
        tile_bytes=30 * 10**6,
        factor_bytes=2 * 10**6,
        logit_bytes=10**6,
    )


def test_a_stage_s_share_is_its_operations_at_the_ceiling_over_its_seconds() -> None:
    options = told(settings={"points_per_side": 10, "points_per_batch": 8})
    row = ceiling.summarize(
        4.0, {"encode": 1.5, "prompt": 2.0, "draw": 0.25}, counted(), {"slow": 50.0, "fast": 100.0}, options
    )
    assert row["ceiling_gflops"] == 100
    assert row["stages"]["encode"]["share"] == pytest.approx(75 / 100 / 1.5)
    assert row["stages"]["prompt"]["share"] == pytest.approx(100 / 100 / 2)
    assert row["stages"]["prompt"]["gigabytes"] == pytest.approx(13 * 0.03 + 100 * 0.005 + 100 * 0.001)
    assert row["share"] == pytest.approx(175 / 100 / 4)
    assert row["outside_stages_seconds"] == pytest.approx(0.25)
    assert row["passed"]


def test_crops_and_their_points_count_in_the_operations() -> None:
    settings = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "points_per_batch": 64}
    work = ceiling.operations(counted(), told(settings=settings))
    assert work["encode"]["gflop"] == 5 * 75
    assert work["prompt"]["gflop"] == 64 + 4 * 16
    assert work["prompt"]["gigabytes"] == pytest.approx(5 * 0.03 + 128 * 0.005 + 128 * 0.001)


def test_the_ceiling_is_measured_by_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SIDES", (64,))
    import torch

    threads = torch.get_num_threads()
    try:
        rates = gemm.rates(2)
    finally:
        torch.set_num_threads(threads)
    assert {"pytorch", "pytorch, a thread a core"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())


class Process:
    """A command whose processor time goes up with every look at it, its children's too."""

    def __init__(self) -> None:
        self.looks = 0

    def cpu_times(self) -> Any:
        self.looks += 1
        return SimpleNamespace(user=3.0 * self.looks, system=0.5 * self.looks, children_user=1.0, children_system=0.0)

    def children(self, *, recursive: bool) -> list[Any]:
        assert recursive
        return [SimpleNamespace(cpu_times=lambda: (0.25 * self.looks, 0.25 * self.looks, 9.0, 9.0))]


def test_utilisation_is_between_the_first_and_the_last_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter([10.0, 12.0, 14.5])
    monkeypatch.setattr(cores.time, "perf_counter", lambda: next(clock))
    images = [{"event": "image", "key": f"{n}.jpg", "status": "ok", "masks": 3, "seconds": 2.0} for n in range(3)]
    log = [json.dumps(event) + "\n" for event in ({"event": "start"}, *images, {"event": "finish"})]
    moments, statuses = cores.watch([*log[:2], "a library said something\n", *log[2:]], Process())  # type: ignore[arg-type]
    assert [moment.processor_seconds for moment in moments] == [5.0, 9.0, 13.0]
    summary = {"wall_seconds": 30.0, "seconds": {"prompt": 4.0}, "peak_memory_mb": 1000.0}
    row = cores.summarize(moments, statuses, 3, summary, told())
    assert row["utilisation"] == pytest.approx(8.0 / (4.5 * 2))
    assert row["seconds_an_image"] == pytest.approx(2.25)
    assert not row["passed"]
    faster = [cores.Moment(10.0, 5.0), cores.Moment(14.0, 12.5)]
    assert cores.summarize(faster, ["ok", "ok"], 2, summary, told())["passed"]
    assert not cores.summarize(faster, ["ok", "crash"], 2, summary, told())["passed"]


def test_images_are_enlarged_in_their_proportions(tmp_path: Path) -> None:
    size = memory.enlarge(COFFEE, tmp_path / "in" / "large.jpg", 3)
    with PIL.Image.open(tmp_path / "in" / "large.jpg") as image:
        assert [image.height, image.width] == size
    assert size[0] * size[1] == pytest.approx(3e6, rel=1e-3)
    assert size[1] / size[0] == pytest.approx(600 / 400, rel=1e-3)


def test_settings_reach_the_command_under_their_own_names() -> None:
    assert memory.sets({"points_per_side": 16, "point_grids": None}) == [
        "--set", "generate.points_per_side=16", "--set", "generate.point_grids=null",
    ]  # fmt: skip


def test_the_reference_is_asked_once_for_each_photo_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(reference_amg, "run_reference", lambda _, pixels, given: asked.append(given) or masks())
    for settings in ({}, {}, {"points_per_side": 16}):
        options = told(settings=settings, reference_records=tmp_path / "kept")
        records, seconds = same_masks.reference_records(None, COFFEE, options)
        assert records == masks()
        assert seconds >= 0
    assert asked == [{}, {"points_per_side": 16}]
    same_masks.reference_records(None, COFFEE, told())
    assert len(asked) == 3


def run_of(name: str, *, ours: int, identical: float, min_iou: float = 1.0) -> parity.Run:
    same: dict[str, Any] = dict.fromkeys(Parity.__slots__, 0)
    found = {"pixels": 1000, "ours": ours, "reference": 10, "matched": ours, "min_iou": min_iou}
    return parity.Run(name, {}, Parity(**(same | found | {"identical_share": identical})), 1.0, 2.0)


def test_parity_wants_all_counts_every_overlap_and_nearly_all_run_lengths() -> None:
    good = same_masks.summarize([run_of("a", ours=10, identical=1.0), run_of("b", ours=10, identical=1.0)], told())
    assert (good["passed"], good["identical"], good["same_count"], good["masks"]) == (True, 1.0, 2, 20)
    few = same_masks.summarize([run_of("a", ours=10, identical=1.0), run_of("b", ours=10, identical=0.9)], told())
    assert (few["passed"], few["identical"], few["problems"]) == (False, 0.95, {})
    for name, broken in (("count", {"ours": 9}), ("overlap", {"ours": 10, "min_iou": 0.99})):
        row = same_masks.summarize([run_of(name, identical=1.0, **broken)], told())
        assert not row["passed"]
        assert list(row["problems"]) == [name]
    assert not same_masks.summarize([], told())["passed"]


def test_a_large_photo_may_differ_as_far_as_the_reference_does_from_itself() -> None:
    def passed(ours: parity.Run, itself: parity.Run) -> bool:
        return same_masks.held_against_itself(ours.parity, itself.parity, told(), (1200, 1800))["passed"]

    exact, rounded = run_of("a", ours=10, identical=1.0), run_of("a", ours=10, identical=0.9)
    assert passed(rounded, rounded)
    assert passed(exact, rounded)
    assert not passed(rounded, exact)
    assert not passed(run_of("a", ours=9, identical=1.0), exact)
    assert not passed(run_of("a", ours=10, identical=1.0, min_iou=0.99), exact)
    assert passed(run_of("a", ours=10, identical=1.0, min_iou=0.99), run_of("a", ours=10, identical=1.0, min_iou=0.98))


def photo_source(**changed: Any) -> photos.Source:
    given = {
        "name": "x",
        "package": "p==1",
        "member": "p/x.png",
        "size_bytes": 4,
        "sha256": "",
        "shows": "",
        "author": "",
    }
    return photos.Source(**(given | {"licence": "CC0", "stated": ""} | changed))


def test_a_photo_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "p-1.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("p/x.png", b"abcd")
    found = SimpleNamespace(file="p-1.whl", url="", index="", size_bytes=None, sha256=None)
    monkeypatch.setattr(photos, "find_archive", lambda *_: found)
    monkeypatch.setattr(photos, "load_archive", lambda _, target, **__: target.write_bytes(packed.read_bytes()))
    digest = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
    right = photo_source(sha256=digest)
    assert photos.members("p==1", [right]) == [(right, b"abcd")]
    with pytest.raises(SystemExit, match=f"has sha256 {digest}, wanted 00"):
        photos.members("p==1", [photo_source(sha256="00")])


def test_photos_are_kept_as_they_are_unless_they_are_large_or_not_rgb(tmp_path: Path) -> None:
    photos.put(COFFEE.read_bytes(), tmp_path, "coffee")
    assert (tmp_path / "coffee.jpg").read_bytes() == COFFEE.read_bytes()
    photos.put((reference_amg.PHOTOS / "studio.jpg").read_bytes(), tmp_path, "studio")
    with PIL.Image.open(tmp_path / "studio.png") as studio:
        assert photos.MOST_PIXELS * 0.99 < studio.width * studio.height <= photos.MOST_PIXELS
    grey = tmp_path / "grey-in.png"
    PIL.Image.new("L", (20, 10), 77).save(grey)
    photos.put(grey.read_bytes(), tmp_path, "grey")
    with PIL.Image.open(tmp_path / "grey.png") as image:
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (77, 77, 77))


def test_there_are_twenty_photos_and_each_has_a_licence() -> None:
    names = [path.stem for path in reference_amg.PHOTOS.glob("*.jpg")] + [source.name for source in photos.SOURCES]
    assert len(names) == len(set(names)) == 20
    assert all(f"| {source.licence} |" in photos.listing(photos.SOURCES) for source in photos.SOURCES)
    assert all(source.licence and source.author and len(source.sha256) == 64 for source in photos.SOURCES)


def test_the_library_s_outputs_are_compared_by_their_range() -> None:
    theirs = np.array([0.0, 10.0])
    assert library.difference(theirs + np.array([0.0, 0.5]), theirs) == pytest.approx(0.05)


def all_rows() -> dict[str, dict[str, Any]]:
    """One of each, as they are saved."""
    ours, theirs = measured(2.0, masks()), measured(100.0, masks())
    row = against_reference.summarize(ours, theirs, ours, told(), bar=10.0) | {
        "reference_environment": {},
        "settings": {},
    }
    tuned = row | {
        "best_batch": 4,
        "search_grid": 8,
        "search_seconds": {1: 3.0, 16: 2.0},
        "reference_environment": TUNED,
    }
    image = {"size": [3, 4], "peak_gb": 1.25, "masks": 7, "seconds": 1.0, "ok": True}
    moments = [cores.Moment(0.0, 0.0), cores.Moment(10.0, 19.0)]
    labeled = [precision.Labeled(masks(count), 0.5, 2.5) for count in (3, 2)]
    photo = precision.compared(*labeled)
    worse = run_of("a", ours=10, identical=0.875).parity
    call = {"our_seconds": 1.0, "their_seconds": 4.0, "speedup": 4.0, "bar": 3.0, "difference": 1e-6}
    rows = {
        "reference": row,
        "tuned": tuned,
        "sa1b": row,
        "pipeline": against_pipeline.summarize(ours, theirs, ours, told()) | {"settings": {}},
        "memory": {"images": {"100": image, "12": image}, "bars_gb": {"12": 1.5, "100": 2.0}},
        "ceiling": ceiling.summarize(2.0, {"encode": 1.0, "draw": 0.5}, counted(), {"pytorch": 300.0}, told()),
        "cores": cores.summarize(
            moments, ["ok", "ok"], 2, {"wall_seconds": 1.0, "seconds": {}, "peak_memory_mb": 1234.0}, told()
        ),
        "parity": same_masks.summarize([run_of("a", ours=10, identical=1.0)], told()),
        "itself": same_masks.held_against_itself(
            run_of("a", ours=10, identical=1.0).parity, worse, told(), (1200, 1800)
        ),
        "precision": precision.summarize({"a.jpg": photo}, {"fast": "bfloat16", "parity": "float32"}, told()),
        "library": {"calls": {"encoder": call, "masks": call}, "points": 64},
    }
    return json.loads(
        json.dumps({name: results.finished(name, each, 2) for name, each in rows.items()}, default=reference_amg.plain)
    )


def test_every_table_holds_what_was_measured() -> None:
    rows = all_rows()
    assert set(rows) == {*__main__.ROWS, "library"}
    page = "".join(
        f"<!-- measured: {name} -->\nof before\n<!-- end -->\n" for name in tables.TABLES if not name.startswith("gpu-")
    )
    filled = tables.filled(page, rows)
    assert "of before" not in filled
    assert "not measured" not in filled.lower()
    for said in (
        "50.0x",
        "4: the fastest",
        "1.25 GB",
        "95.0%",
        "87.5%",
        "1234 MB",
        "100.0%",
        "4.00x",
        "0.8000",
        "50x as fast",
    ):
        assert said in filled, said
    assert filled.index("12 megapixels") < filled.index("100 megapixels")
    assert tables.filled(filled, rows) == filled
    assert tables.filled(filled, {}).lower().count("not measured") == 4 * 6 + 8


def test_a_stale_page_is_said_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- measured: memory -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "PAGES", (page,))
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "performance.json")
    assert tables.main(["--check"]) == 1
    assert "page.md does not say what performance.json and gpu.json say" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    results.save({"memory": all_rows()["memory"]}, tables.RESULTS)
    assert tables.main(["--check"]) == 1
    assert tables.main(["--cheque"]) == 2


def test_results_are_put_beside_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "performance.json"
    results.save({"a": {"x": 1}, "b": {"x": 2}}, path)
    results.save({"b": {"x": 3}}, path)
    assert results.read(path) == {"a": {"x": 1}, "b": {"x": 3}}
    results.save({"c": {}}, None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["performance.json"]


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["--rows", "memory,speed"])
    assert "there is no row speed; rows: reference, tuned" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_photo_goes_through_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PIL.Image.open(COFFEE) as image:
        image.resize((150, 100)).save(tmp_path / "small.jpg")
    arguments = ["--photo", str(tmp_path / "small.jpg"), "--set", "points_per_side=2", "--repeats", "1"]
    status = __main__.main(["--rows", "reference,ceiling", *arguments, "--save", str(tmp_path / "found.json")])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == results.read(tmp_path / "found.json")
    assert document["reference"]["parity_problems"] == []
    assert document["reference"]["reference"]["peak_mb"] > document["reference"]["reference"]["loaded_mb"] > 100
    assert 0 < document["ceiling"]["share"] < 1
    assert status == (0 if all(row["passed"] for row in document.values()) else 1)
