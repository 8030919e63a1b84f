"""What a run says when it cannot go on, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.metrics import read_metrics

from faulty import train_at_once, train_but_rank_1_fails
from ranks import Ranks
from runs import differing, final_state, make_run

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("finished"), digits, "finished")
    Ranks(run, 1).finish()
    return run


def reopened(finished: Path, parent: Path, *overrides: str) -> Path:
    """A copy of a finished run that has its last steps still to do, under a changed config."""
    run = parent / "reopened"
    shutil.copytree(finished, run)
    shutil.rmtree(checkpoint.list_checkpoints(run / "checkpoints")[-1])
    (run / "report" / "summary.json").unlink()
    config = loads((run / "config.yaml").read_text(), "config.yaml", list(overrides))
    (run / "config.yaml").write_text(to_yaml(config))
    return run


def test_semantic_change_is_refused_with_the_difference(finished: Path, tmp_path: Path) -> None:
    run = reopened(finished, tmp_path, "optim.lr=0.2", "method.loss.gamma=0.3")
    ranks = Ranks(run, 1)
    assert ranks.wait() != [0]
    log = ranks.logs()
    assert "optim.lr: 0.1 in the checkpoint, 0.2 now" in log
    assert "method.loss.gamma: 0.1 in the checkpoint, 0.3 now" in log
    assert "checkpoint.accept_changes=true" in log


def test_operational_change_is_accepted(finished: Path, tmp_path: Path) -> None:
    run = reopened(finished, tmp_path, "log.every_steps=2", "data.loader.prefetch=4", "checkpoint.asynchronous=false")
    Ranks(run, 1).finish()
    assert differing(final_state(finished), final_state(run)) == []


def test_changed_data_set_is_refused(finished: Path, tmp_path: Path, digits: Path) -> None:
    other = tmp_path / "other_digits"
    shutil.copytree(digits, other)
    images = sorted(other.rglob("train/0/*.jpg"))
    shutil.copyfile(images[1], images[0])
    run = reopened(finished, tmp_path, f'data.dataset.root="{other}"')
    ranks = Ranks(run, 1)
    assert ranks.wait() != [0]
    assert "the data set: fingerprint" in ranks.logs()


def test_another_precision_is_refused_though_the_config_is_the_same(finished: Path, tmp_path: Path) -> None:
    run = reopened(finished, tmp_path)
    manifests = [path / "manifest.json" for path in checkpoint.list_checkpoints(run / "checkpoints")]
    assert all('"precision": "fp32"' in manifest.read_text() for manifest in manifests)
    state = checkpoint.load(manifests[-1].parent)
    told = checkpoint.look(manifests[-1].parent).about
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    checkpoint.save(
        run / "checkpoints", state["step"], state, {**told, "precision": "fp16"}, lease_check=lambda: None, keep_last=1
    )
    ranks = Ranks(run, 1)
    assert ranks.wait() != [0]
    assert "compute.precision: fp16 in the checkpoint, fp32 on this device" in ranks.logs()


def test_accepted_changes_start_what_was_not_there(finished: Path, tmp_path: Path) -> None:
    accepted = "checkpoint.accept_changes=true"
    run = reopened(finished, tmp_path, "compute.precision=fp16", "optim.ema_decay=0.5", accepted)
    Ranks(run, 1).finish()
    assert "scaler" in final_state(run)


def test_diverged_run_ends_with_what_to_do(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "diverges", "optim.lr=1e30", "optim.epochs=20", "optim.warmup_epochs=0")
    ranks = Ranks(run, 2)
    assert 0 not in ranks.wait()
    assert "ValueError: step" in ranks.logs()
    assert "lower optim.lr" in ranks.logs()
    assert RunFolder(run).summary() is None


def test_gpus_were_asked_for_but_none_is_there(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "no-gpu", "compute.device=auto", "cluster.gpus_per_node=1")
    ranks = Ranks(run, 1, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert ranks.wait() != [0]
    assert "no CUDA-capable device is visible, though cluster.gpus_per_node is 1" in ranks.logs()


def test_failing_rank_is_named_in_the_record(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "rank-1-fails")
    ranks = Ranks(run, 2, target=train_but_rank_1_fails)
    assert 0 not in ranks.wait(60)
    Ranks(run, 2).finish()
    assert "rank 1 failed: OSError: the disk of rank 1 is gone" in read_attempts(RunFolder(run))[1]["previous_end"]


def test_peers_do_not_wait_for_a_rank_0_that_was_refused(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "held")
    lease = Lease.acquire(RunFolder(run))
    ranks = Ranks(run, 2, target=train_at_once)
    assert 0 not in ranks.wait(30)
    assert "rank 0 did not start" in ranks.logs()
    lease.release()


def test_more_pieces_than_images(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "pieces", "optim.accumulation=20")
    ranks = Ranks(run, 2)
    assert 0 not in ranks.wait()
    assert "optim.accumulation: 20 pieces, but a rank's share of a step is 16 images" in ranks.logs()


def test_global_batch_larger_than_the_data_set(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "too-large", "optim.global_batch=500")
    ranks = Ranks(run, 1)
    assert ranks.wait() != [0]
    log = ranks.logs()
    assert "500" in log
    assert "global_batch" in log


@pytest.fixture
def folder_of_images(tmp_path: Path, digits: Path) -> Path:
    """A data set in class folders with one truncated image, 'train/0/cut.jpg'."""
    root = tmp_path / "photographs"
    for split in ("train", "val"):
        (source,) = digits.rglob(split)
        for label in "012":
            (root / split / label).mkdir(parents=True)
            for image in sorted((source / label).iterdir())[:16]:
                shutil.copyfile(image, root / split / label / image.name)
    whole = sorted((root / "train" / "0").iterdir())[0]
    (root / "train" / "0" / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    return root


def test_truncated_image_stops_the_run_and_is_named(folder_of_images: Path, tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "stops", f"data.dataset={{name: image_folder, root: '{folder_of_images}'}}")
    ranks = Ranks(run, 1)
    assert ranks.wait() != [0]
    log = ranks.logs()
    assert "train/0/cut.jpg" in log
    assert "on_bad_image" in log


def test_truncated_image_is_skipped_and_counted(folder_of_images: Path, tmp_path: Path, digits: Path) -> None:
    dataset = f"data.dataset={{name: image_folder, root: '{folder_of_images}'}}"
    run = make_run(tmp_path, digits, "skips", dataset, "data.on_bad_image=skip")
    ranks = Ranks(run, 2)
    ranks.finish()
    assert "1 files of the train split are left out" in ranks.logs()
    (left_out,) = [r for r in read_metrics(RunFolder(run)) if r["kind"] == "left_out"]
    assert left_out["numbers"] == {"train": 1, "val": 0}
    assert "train/0/cut.jpg" in left_out["files"]["train"][0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs root and permission to mount a small tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_full_while_saving_keeps_the_last_good_checkpoint(small_disk: Path, tmp_path: Path, digits: Path) -> None:
    straight = make_run(tmp_path, digits, "straight")
    Ranks(straight, 2).finish()
    run = make_run(small_disk, digits, "full", "checkpoint.keep_last=50")
    ballast = small_disk / "ballast"
    size = sum(f.stat().st_size for f in checkpoint.list_checkpoints(straight / "checkpoints")[-1].iterdir())
    ballast.write_bytes(b"x" * (6 * 2**20 - int(2.6 * size) - 400_000))
    ranks = Ranks(run, 2)
    codes = ranks.wait()
    assert 0 not in codes[:1]
    log = ranks.logs()
    good = checkpoint.list_checkpoints(run / "checkpoints")
    assert good
    assert "bytes are free there" in log
    assert "Make room, or keep fewer with checkpoint.keep_last" in log
    assert f"Last good checkpoint: {good[-1]}" in log
    assert all(checkpoint.problem(path) is None for path in good)
    assert not [path for path in (run / "checkpoints").glob(".tmp*") if path.is_dir() and any(path.iterdir())]
    ballast.unlink()
    ranks = Ranks(run, 2)
    ranks.finish()
    assert len(read_attempts(RunFolder(run))) == 2
    assert differing(final_state(straight), final_state(run)) == []
