"""What happens to a run when something goes wrong around it: it resumes to the bit, or one line says what is wrong."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
from own_process import PATHS
from PIL import Image
from short_training import STEPS, error_of, run, settings_for, states_equal, train_in_a_process

import ssd.training.run as training
from ssd.data.reading import ImageReadError
from ssd.data.shapes import write_shapes
from ssd.networks.ssd300 import SSD300
from ssd.training.run import train
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint

KILLS = int(os.environ.get("SSD_TEST_KILLS", "2"))  # 20 take three minutes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path / "shapes", 7, 3)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, one_thread):
    """The folder of a run of these settings, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    start = time.monotonic()
    run(settings_for(write_shapes(folder / "shapes", 7, 3)), folder / "run")
    return folder / "run", time.monotonic() - start


def ends_like(out, unbroken):
    """Asserts that two runs, on data in other folders, left the same files, with the same weights and history."""
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in unbroken.iterdir())
    for name in ("last.pt", "best.pt"):
        states = [load_checkpoint(folder / name) | {"settings": None, "seconds": None} for folder in (out, unbroken)]
        assert states_equal(*states), name


@pytest.fixture
def context():
    if sys.platform == "win32":
        pytest.skip("Windows has no fork server")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["matplotlib.figure", "ssd.training.run"])
    return context


@pytest.mark.parametrize(("save_every", "saved"), [(1e-5, 1), (0, None)])
def test_a_run_killed_in_its_first_epoch_goes_on_from_its_last_checkpoint(
    context, settings, tmp_path, unbroken, save_every, saved
):
    process = context.Process(target=train_in_a_process, args=(tmp_path / "run", settings, save_every, None, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = tmp_path / "run" / "last.pt"
    assert (load_checkpoint(last)["step"] if last.exists() else None) == saved
    run(settings, tmp_path / "run", resume="auto", save_every=save_every)
    ends_like(tmp_path / "run", unbroken[0])


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(context, settings, tmp_path, unbroken):
    moments, out, kills = random.Random(KILLS), tmp_path / "0", 0
    while True:
        begun = context.Event()
        process = context.Process(target=train_in_a_process, args=(out, settings, 1e-5, begun))
        process.start()
        begun.wait()
        process.join(moments.uniform(0, unbroken[1]) if kills < KILLS else None)
        process.kill()
        process.join()
        for name in ("last.pt", "best.pt"):
            if (out / name).exists():
                load_checkpoint(out / name)
        if (out / "curve.png").exists():
            Image.open(out / "curve.png").load()
        if process.exitcode == 0:
            ends_like(out, unbroken[0])
            if kills == KILLS:
                return
            out = tmp_path / str(kills)
        else:
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            assert kills <= KILLS


def test_a_run_killed_during_its_first_validation_is_resumed(settings, tmp_path, monkeypatch, unbroken):
    class Killed(BaseException):
        pass

    def die(self, path, **extra):
        save(self, path, **extra)
        if path.name == "best.pt":
            raise Killed

    save = training._Run.save
    monkeypatch.setattr(training._Run, "save", die)
    with pytest.raises(Killed):
        run(settings, tmp_path / "run")
    monkeypatch.undo()
    run(None, tmp_path / "run", resume=True)
    ends_like(tmp_path / "run", unbroken[0])


def test_leftovers_of_a_killed_run_are_removed(settings, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    names = {".last.pt.123.tmp", ".best.pt.9.tmp", ".curve.png.77.tmp", ".other.pt.5.tmp", "mine.tmp"}
    for name in names:
        (out / name).touch()
    run(settings, out)
    assert {path.name for path in out.iterdir()} & names == {".other.pt.5.tmp", "mine.tmp"}


def test_a_killed_worker_costs_no_step(settings, tmp_path, at_step, unbroken):
    at_step(5, lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))
    with pytest.raises(ChildProcessError, match=r"process that reads pictures was killed; .*fewer --workers"):
        run(settings, tmp_path / "run", workers=1)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 5
    run(None, tmp_path / "run", resume=True)
    ends_like(tmp_path / "run", unbroken[0])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_picture_can_be_replaced(settings, shapes, tmp_path, at_step, capsys, split, unbroken):
    """Of validation too, which a resumed run then does first."""
    names = (shapes / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    victims = [shapes / "JPEGImages" / f"{name}.jpg" for name in names]
    whole = [victim.read_bytes() for victim in victims]

    def damage():
        for victim, content in zip(victims, whole, strict=True):
            victim.write_bytes(content[: len(content) // 3])

    at_step(2, damage)
    with pytest.raises(ImageReadError, match=r"^\S*\.jpg: cannot decode the picture"):
        run(settings, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == (2 if split == "train" else 3)
    damage()
    line = error_of(capsys, "train", "--resume", "--out", tmp_path / "run", "--device", "cpu", "--workers", 1)
    assert "cannot decode the picture" in line
    for victim, content in zip(victims, whole, strict=True):
        victim.write_bytes(content)
    run(None, tmp_path / "run", resume=True)
    ends_like(tmp_path / "run", unbroken[0])


def test_a_write_that_fails_leaves_the_last_checkpoint(settings, tmp_path, at_step, capsys, unbroken):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1])))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*run/(last|best)\.pt'"):
            run(settings, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 3
    assert not list((tmp_path / "run").glob("*.tmp"))
    run(None, tmp_path / "run", resume=True)
    ends_like(tmp_path / "run", unbroken[0])


CRAMPED = """
import shutil, sys
from pathlib import Path
from ssd.cli import main

data, disk, kept = map(Path, sys.argv[1:])
train = ["train", str(data), "--split", "train", "--val-split", "test", "--network", "ssd300", "--width", "0.01",
         "--batch-norm", "--batch-size", "2", "--epochs", "3", "--lr", "1e-3", "--warmup", "2", "--eval-every", "1",
         "--device", "cpu", "--workers", "2"]
print(main([*train, "--out", str(disk / "read_only" / "run")]))
print(main([*train, "--out", str(disk / "full" / "run")]))
shutil.copytree(disk / "full" / "run", kept)
"""


def test_a_full_disk_a_read_only_one_and_little_shared_memory(settings, shapes, tmp_path, unbroken):
    """Of which the last is no error."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    for name in ("full", "read_only"):
        (disk / name).mkdir(parents=True)
    size = sum((unbroken[0] / name).stat().st_size for name in ("last.pt", "best.pt"))
    mounts = f"""mount -t tmpfs -o size=1m tmpfs /dev/shm && mount -t tmpfs -o ro tmpfs {disk}/read_only &&
        mount -t tmpfs -o size={size + 100_000} tmpfs {disk}/full && echo mounted && exec "$@" """
    command = ["unshare", "-m", "sh", "-c", mounts, "sh", sys.executable, "-c", CRAMPED, shapes, disk, kept]
    env = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=100)
    if "mounted" not in done.stdout:
        pytest.skip(f"mounts of its own are not permitted here: {done.stderr}")
    assert done.stdout.split()[-1] == "2", done
    errors = [line for line in done.stderr.splitlines() if line.startswith("ssd train: error: ")]
    assert "nothing can be written to the folder" in errors[0]
    assert "No space left on device" in errors[1]
    assert "Traceback" not in done.stderr
    assert load_checkpoint(kept / "last.pt")["step"] in (3, 6)
    run(None, kept, resume=True)
    ends_like(kept, unbroken[0])


def test_a_run_is_resumed_from_another_working_directory(settings, shapes, tmp_path, at_step, monkeypatch, unbroken):
    monkeypatch.chdir(tmp_path)
    at_step(3, partial(os.kill, os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(replace(settings, data=(shapes.name,), val_data=(shapes.name,)), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(None, tmp_path / "run", resume=True) == load_checkpoint(unbroken[0] / "last.pt")["history"]


def test_what_cannot_be_resumed_is_named(settings, tmp_path, capsys):
    out = tmp_path / "run"
    run(replace(settings, epochs=1), out)
    shutil.copy(out / "best.pt", out / "last.pt")
    line = error_of(capsys, "train", "--resume", "--out", out)
    assert f"{out}/last.pt: cannot be resumed, because it has no optimizer, history" in line
    save_checkpoint(out / "last.pt", SSD300(3, width=0.01), ["a", "b"])
    assert "it has no settings, step" in error_of(capsys, "train", "--resume", "--out", out)


def test_a_device_that_holds_no_data_is_named(shapes, tmp_path, capsys):
    line = error_of(capsys, "train", shapes, "--out", tmp_path / "run", "--device", "meta")
    assert line == "ssd train: error: device 'meta' cannot be used: it holds no data"


@pytest.mark.parametrize("more", [["--batch-size", 1], ["--batch-size", 2, "--accumulate", 2]])
def test_batch_normalisation_of_one_picture_is_named(shapes, tmp_path, capsys, more):
    narrow = ["--network", "ssd300", "--width", 0.01, "--batch-norm"]
    line = error_of(capsys, "train", shapes, "--out", tmp_path / "run", *narrow, *more)
    assert "batch normalisation needs at least 2 pictures at once, but " in line


def test_too_few_pictures_are_named(shapes, tmp_path, capsys):
    write_shapes(tmp_path / "two", 2, 0)
    line = error_of(capsys, "train", tmp_path / "two", "--out", tmp_path / "run", "--network", "ssdlite320")
    assert "an epoch has only 1 picture: add pictures, or hold out none (held_out 0)" in line


def test_best_is_the_last_network_where_no_map_can_be_measured(settings, shapes, tmp_path, capsys):
    bare = write_shapes(tmp_path / "bare", 1, 2)
    for file in (bare / "Annotations").iterdir():
        file.write_text(re.sub("<object>.*</object>", "", file.read_text(), flags=re.DOTALL))
    settings = replace(settings, val_data=(str(bare),))
    train(settings, tmp_path / "run", device="cpu", workers=0)
    assert load_checkpoint(tmp_path / "run" / "best.pt")["step"] == STEPS
    assert capsys.readouterr().out.count("the pictures held out have no objects") == 1
