"""Progress of ingest: the terminal, metrics.jsonl and Prometheus show the counts of the workers."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import ray

from pairloom.pipelines.engine.counters import Collector, Counts, Report
from pairloom.pipelines.engine.progress import CountedProgress, Meter
from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.storage import storage
from tests.support.http_server import TestServer
from tests.support.ingest_builder import make_recipe, url_rows, url_source, write_csv


def test_ingest_writes_its_metrics(
    tmp_path: Path, image_server: TestServer, ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{index}.jpg" for index in range(14)] + ["none.jpg", "none2.jpg", "page.jpg"]
    table = write_csv(tmp_path / "urls.csv", url_rows(image_server, names))
    with caplog.at_level(logging.INFO, "pairloom"):
        folder = ingest(make_recipe(tmp_path, url_source(table)))
    line = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["rows"], line["images"], line["shards_done"], line["shards_total"]) == (17, 14, 3, 3)
    assert line["dropped"] == {"http_not_found": 2, "not_an_image": 1}
    assert line["bytes"] > 14 * 1000
    shown = next(text for text in caplog.messages if text.startswith("ingest: 3 of 3 shards"))
    assert "82.4% kept, http_not_found 11.8%, not_an_image 5.9%" in shown


def test_a_shard_that_is_tried_again_counts_once() -> None:
    totals = Collector("test")
    totals.update(0, Counts(50, 40, 400, Counter(timeout=10)))
    totals.update(0, Counts(5, 5, 50))  # the second attempt begins
    totals.update(1, Counts(7, 7, 70))
    totals.update(0, Counts(60, 48, 480, Counter(timeout=12)))
    assert totals.totals() == Counts(67, 55, 550, Counter(timeout=12))


@pytest.mark.slow
def test_prometheus_sees_the_same(ray_session: None) -> None:
    """Metrics from the port that Ray reports to Prometheus."""
    collector = ray.remote(num_cpus=0)(Collector).remote("scraped")
    report = Report(collector, 0)
    threads = [
        threading.Thread(
            target=lambda: [report.note_image(10) for _ in range(50)]  # type: ignore[func-returns-value]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.note_drop("timeout")
    report.flush()
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while len(found) < 4 and time.monotonic() < deadline:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = [line for line in text.splitlines() if 'step="scraped"' in line]
        found = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
        assert all('reason="timeout"' in line for line in lines if "dropped" in line)
        time.sleep(0.5)
    ray.kill(collector)
    assert found == {"ray_pairloom_rows_total": 101, "ray_pairloom_images_total": 100,
                     "ray_pairloom_bytes_total": 1000, "ray_pairloom_dropped_total": 1}  # fmt: skip


def test_rates_are_those_of_the_last_half_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    counts = Counts()
    shown = CountedProgress("ingest", 10, 0, Meter(20_000, str(tmp_path / "metrics.jsonl"), lambda _: counts))
    for rows_per_s in (100, 1):  # a minute fast, then a minute slow
        for _ in range(60):
            now += 1
            counts = Counts(counts.rows + rows_per_s, counts.images, counts.num_bytes)
            shown.refresh()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["rows_per_s"] == pytest.approx(1, rel=0.1)
    assert line["seconds_left"] == pytest.approx((20_000 - line["rows"]) / line["rows_per_s"], rel=0.01)


def test_metrics_that_cannot_be_written_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    shown = CountedProgress("ingest", 1, 0, Meter(None, str(tmp_path / "file/metrics.jsonl"), lambda _: None))
    shown.close()
    assert "metrics could not be written: cannot write" in caplog.text
    url = f"memory://{tmp_path.name}/metrics.jsonl"
    for _ in range(2):
        CountedProgress("ingest", 1, 0, Meter(None, url, lambda _: Counts(1, 1, 1))).close()
    assert len(storage.read_text(url).splitlines()) == 2, "a second run appends"
