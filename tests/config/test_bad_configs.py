"""Every way in which a config can be wrong, with its message."""

from __future__ import annotations

import pytest

from hrdc_hpc.config.load import ConfigError, loads

pytestmark = pytest.mark.usefixtures("components")


def problems(text: str, *overrides: str) -> list[str]:
    """Return the problems of a config called inat.yaml."""
    with pytest.raises(ConfigError) as caught:
        loads(text, "inat.yaml", overrides)
    return caught.value.problems


LR = "optim.lr: must be a number above 0; got"
FLIP = "data.flip: must be true or false; got"
EPOCHS = "optim.epochs: must be a whole number above 0; got"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: fast", f"{LR} 'fast'"),
        ("lr: no", f"{LR} no (a YAML word for false)"),
        ("lr: true", f"{LR} true"),
        ("lr: '0.1'", f"{LR} the text '0.1'; remove the quotes"),
        ("lr: 'fast'", f"{LR} the text 'fast'"),
        ("lr: 010", f"{LR} 010; write it without the leading 0, which makes it octal to some readers of YAML"),
        ("lr: 0x10", f"{LR} 0x10"),
        ("lr: 1:30", f"{LR} 1:30; write one plain number in the field's unit"),
        ("lr: 2024-01-31", f"{LR} 2024-01-31"),
        ("lr: -0.1", f"{LR} -0.1"),
        ("lr: 0", f"{LR} 0"),
        ("lr: .nan", f"{LR} .nan; it must be finite"),
        ("lr: nan", f"{LR} nan; it must be finite"),
        ("lr: .inf", f"{LR} .inf; it must be finite"),
        ("lr: 1e999", f"{LR} 1e999; it must be finite"),
        ("lr:", f"{LR} nothing"),
        ("lr: ~", f"{LR} ~"),
        ("lr: [1, 2]", f"{LR} a list of 2"),
        ("lr: {a: 1}", f"{LR} a mapping"),
        ("nesterov: 1", "optim.nesterov: must be true or false; got 1"),
        ("nesterov: 'true'", "optim.nesterov: must be true or false; got the text 'true'; remove the quotes"),
        ("nesterov: y", "optim.nesterov: must be true or false; got 'y'"),
        ("ema_decay: 1", "optim.ema_decay: must be a number above 0 and below 1, or null; got 1"),
        (
            "ema_decay: None",
            "optim.ema_decay: must be a number above 0 and below 1, or null; got 'None'; write null for none,"
            " or quote it"
            " if it is a name",
        ),
        ("learning_rate: 1", "optim.learning_rate: unknown key. Did you mean 'lr'?"),
        ("LR: 1", "optim.LR: unknown key. Did you mean 'lr'?"),
        ("weight-decay: 1", "optim.weight-decay: unknown key. Did you mean 'weight_decay'?"),
        ("batch_size: 1", "optim.batch_size: unknown key. Did you mean 'global_batch' or 'lr_batch'?"),
        ("crop_scale: 1", "optim.crop_scale: unknown key. Did you mean 'data.crop_scale'?"),
        (
            "zzz: 1",
            "optim.zzz: unknown key. Known: accumulation, clip_norm, ema_decay, epochs, global_batch, lr, lr_batch,"
            " momentum, nesterov, schedule, warmup_epochs, weight_decay, weight_decay_on",
        ),
        ("epochs: 5", "optim.epochs: duplicate key, first on line 7; keep one"),
        ("schedule: cosin", "optim.schedule: no 'cosin' among schedules. Did you mean 'cosine'? Known: cosine, step"),
        ("schedule: no_component", "optim.schedule: no 'no_component' among schedules. Known: cosine, step"),
        ("schedule: [cosine]", "optim.schedule: must be one of the schedules cosine, step; got a list of 1"),
        ("schedule:", "optim.schedule: must be one of the schedules cosine, step; got nothing"),
        ("schedule: {name: }", "optim.schedule: must be one of the schedules cosine, step; got nothing"),
        ("schedule: {peak: 1}", "optim.schedule.peak: unknown key. Known: none"),
        ("schedule: step", "optim.schedule.milestones: missing; must be a list, each a whole number above 0"),
        ("schedule: {name: step, milestones: [5, 3]}", "optim.schedule: milestones must rise; got [5, 3]"),
        (
            "schedule: {name: step, milestones: [1.5]}",
            "optim.schedule.milestones[0]: must be a whole number above 0; got 1.5",
        ),
        (
            "schedule: {name: step, milestones: 3}",
            "optim.schedule.milestones: must be a list, each a whole number above 0; got 3",
        ),
        ("warmup_epochs: 10", "optim.warmup_epochs: must be below epochs (10), which it is part of; got 10.0"),
        ("accumulation: 64", "optim.accumulation: must be at most global_batch (32), or pieces are empty; got 64"),
        ("momentum: 1.0", "optim.momentum: must be a number of at least 0 and below 1; got 1.0"),
        (
            "lr: !!python/name:os.system x",
            "optim.lr: the YAML tag !!python/name:os.system is not allowed; write the value alone",
        ),
        ("? [a, b]\n  : 1", "optim: a key must be a word, not a list or a mapping"),
        ("<<: 5", "optim: << takes a mapping, such as *name of an anchor"),
    ],
)
def test_line_of_a_section(run_yaml: str, line: str, message: str) -> None:
    assert f"inat.yaml:9: {message}" in problems(f"{run_yaml}  {line}\n")


def test_these_lines_have_one_problem_each(run_yaml: str) -> None:
    for line in ("lr: fast", "lr: .nan", "schedule: cosin", "warmup_epochs: 10", "epochs: 5"):
        assert len(problems(f"{run_yaml}  {line}\n")) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 10", "epochs: 10.0", f"7: {EPOCHS} 10.0; write 10"),
        ("epochs: 10", "epochs: 1e1", f"7: {EPOCHS} 1e1; write 10"),
        ("epochs: 10", "epochs: 2.5", f"7: {EPOCHS} 2.5"),
        ("epochs: 10", "epochs: 0", f"7: {EPOCHS} 0"),
        ("epochs: 10", "epochs: yes", f"7: {EPOCHS} yes (a YAML word for true)"),
        ("  epochs: 10\n", "", "6: optim.epochs: missing; must be a whole number above 0"),
        ("optim:\n  epochs: 10\n  global_batch: 32\n", "", "1: optim: missing; a section with at least epochs,"
         " global_batch"),
        ("method: twin\n", "", "1: method: missing; must be one of the methods plain, twin, two_losses"),
        ("name: first_run\n", "", "1: name: missing; must be a name of letters, digits, '.', '_' and '-' that"
         " begins with a"
         " letter or digit"),
        ("first_run", "a/b", "1: name: must be a name of letters, digits, '.', '_' and '-' that begins with a"
         " letter or digit;"
         " got 'a/b'"),
        ("first_run", "", "1: name: must be a name of letters, digits, '.', '_' and '-' that begins with a"
         " letter or digit;"
         " got nothing"),
        ("method: twin", "method: twins",
         "5: method: no 'twins' among methods. Did you mean 'twin'? Known: plain, twin, two_losses"),
        ("method: twin", "method: ../twin", "5: method: no '../twin' among methods. Did you mean 'twin'? Known:"
         " plain, twin,"
         " two_losses"),
        ("method: twin", "method: {loss: soft}",
         "5: method: must be one of the methods plain, twin, two_losses; the key 'name' is missing"),
        ("method: twin", "method: two_losses", "5: method.first: missing; must be one of the losses hard, soft"),
        ("method: twin", "method:\n  name: twin\n  loss:\n    name: soft\n    gama: 1",
         "9: method.loss.gama: unknown key. Did you mean 'gamma'?"),
        ("method: twin", "method:\n  name: twin\n  loss: {name: sotf, gamma: 1}",
         "7: method.loss: no 'sotf' among losses. Did you mean 'soft'? Known: hard, soft"),
        ("method: twin", "method:\n  name: twin\n  more:\n  - soft\n  - name: hard\n    power: 0",
         "10: method.more[1].power: must be a whole number above 0; got 0"),
        ("method: twin", "method: {name: twin, weighting: cubic}",
         "5: method.weighting: must be one of parabola, equal; got 'cubic'"),
        ("method: twin", "weighting: equal\nmethod: twin", "5: weighting: unknown key. Did you mean"
         " 'method.weighting'?"),
        ("optim:", "optim: 5\nunused:", "6: optim: must be a mapping with keys among accumulation, clip_norm,"
         " ema_decay, epochs, global_batch, lr, lr_batch, momentum, nesterov, schedule, warmup_epochs, weight_decay,"
         " weight_decay_on; got 5"),
        ("dataset: toy", "dataset: {name: toy, cut: 2}", "3: data.dataset.cut: must be one of auto, 1; got 2"),
        ("dataset: toy", "dataset: {name: toy, title: none}",
         "3: data.dataset.title: must be text, or null; got 'none'; write null for none, or quote it if it is a name"),
        ("dataset: toy", "dataset: {name: toy, root: [a]}", "3: data.dataset.root: must be a path; got a list of 1"),
        ("dataset: toy", "dataset: {name: toy, root: ~no_such_user/a}",
         "3: data.dataset.root: must be a path; got '~no_such_user/a'; there is no such user; write ./~ for a"
         " folder whose"
         " name begins with ~"),
        ("dataset: toy", "dataset: toy\n  flip: 1", f"4: {FLIP} 1"),
        ("dataset: toy", "dataset: toy\n  flip: 0.0", f"4: {FLIP} 0.0"),
        ("dataset: toy", "dataset: toy\n  flip: maybe", f"4: {FLIP} 'maybe'"),
        ("dataset: toy", "dataset: toy\n  mean: [1, 2]", "4: data.mean: must be a list of 3, each a number; got"
         " a list of 2"),
        ("dataset: toy", "dataset: toy\n  mean: [1,\n    2,\n    x]", "6: data.mean[2]: must be a number; got 'x'"),
        ("dataset: toy", "dataset: toy\n  std: [1, 2, 0]", "4: data.std[2]: must be a number above 0; got 0"),
        ("dataset: toy", "dataset: toy\n  crop_scale: 1", "4: data.crop_scale: must be a list of 2, each a"
         " number above 0 and"
         " at most 1; got 1"),
        ("dataset: toy", "dataset: toy\n  crop_scale: [.5, 1.5]",
         "4: data.crop_scale[1]: must be a number above 0 and at most 1; got 1.5"),
        ("dataset: toy", "dataset: toy\n  crop_scale: [1, .5]", "4: data.crop_scale: must go from low to high;"
         " got [1.0, 0.5]"),
        ("dataset: toy", "dataset: toy\n  crop_ratio: [2, .5]", "4: data.crop_ratio: must go from low to high;"
         " got [2.0, 0.5]"),
        ("dataset: toy", "dataset: toy\n  image_size: 300",
         "4: data.eval_resize: must be at least image_size (300), which is cut out of it; got 256"),
        ("dataset: toy", "dataset: toy\n  eval_resize: 200\n  image_size: 224",
         "4: data.eval_resize: must be at least image_size (224), which is cut out of it; got 200"),
        ("dataset: toy", "dataset: toy\n  image_size: 32\n  crop: padded\n  crop_padding: 32",
         "6: data.crop_padding: must be below image_size (32), or crops may show nothing but the border; got 32"),
        ("dataset: toy", "dataset: toy\n  levels:\n    last_under: 120",
         "5: data.levels.last_under: must be at most first_over + 1 (101), or a class falls into two groups; got 120"),
        ("dataset: toy", "dataset: toy\n  shots: {by: rank}",
         "4: data.shots.ranks: is needed with by: rank, such as [3, 4, 3]"),
        ("dataset: toy", "dataset: toy\n  shots: {ranks: [3, 4, 3]}",
         "4: data.shots.ranks: goes with by: rank; got by: images"),
        ("dataset: toy", "dataset: toy\n  shots: {by: ranks}", "4: data.shots.by: must be one of images, rank;"
         " got 'ranks'"),
        ("dataset: toy", "dataset: toy\n  loader:\n    hardware: 0.65\ncompute: {deterministic: true}",
         "5: data.loader.hardware: must be 0 or 1 with compute.deterministic: true, or pixels depend on the batch;"
         " got 0.65"),
        ("dataset: toy", "dataset: toy\n  loader: {hardware: 1.5}",
         "4: data.loader.hardware: must be a number of at least 0 and at most 1; got 1.5"),
        ("dataset: toy", "dataset: toy\n  colour_jitter: {brightness: -1}",
         "4: data.colour_jitter.brightness: must be a number of at least 0; got -1"),
        ("name:", "cluster: {time_min: 1}\nname:", "1: cluster.signal_delay_s: must be below time_min (60 s); got 90"),
        ("name:", "cluster:\n  time_min: 24h\nname:", "2: cluster.time_min: must be a whole number above 0; got '24h'"),
        ("name:", "cluster:\n  sbatch: {--mem: 4G}\nname:", "2: cluster.sbatch: write options without dashes in"
         " front; got"
         " '--mem'"),
        ("name:", "cluster:\n  sbatch: [mem]\nname:",
         "2: cluster.sbatch: must be a mapping of names to text or a whole number or true or false; got a list of 1"),
        ("name:", "cluster:\n  sbatch:\n    mem: [4]\nname:",
         "3: cluster.sbatch.mem: must be text or a whole number or true or false; got a list of 1"),
        ("name:", "cluster:\n  setup: module load cuda\nname:",
         "2: cluster.setup: must be a list, each text; got 'module load cuda'"),
        ("name:", "seed: &a [*a]\nname:", "1: seed[0]: the YAML alias contains itself; write the values out"),
    ],
)  # fmt: skip
def test_changed_line(run_yaml: str, old: str, new: str, message: str) -> None:
    assert f"inat.yaml:{message}" in problems(run_yaml.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\n  b: 1\n", "inat.yaml:2: YAML syntax: mapping values are not allowed here (quote a text that"
         " has ': ' in it, and"
         " check the indentation)"),
        ("name: a\nb: [1, 2\n", "inat.yaml:3: YAML syntax: expected ',' or ']', but got '<stream end>', while"
         " parsing a flow"
         " sequence"),
        ("name: a\ndata:\n\tlr: 1\n", "inat.yaml:3: YAML syntax: found character '\\t' that cannot start any"
         " token, while"
         " scanning for the next token (indent with spaces, not with tabs)"),
        ("name: *a\n", "inat.yaml:1: YAML syntax: found undefined alias 'a'"),
        ("name: a\n---\nname: b\n", "inat.yaml:2: YAML syntax: but found another document, expected a single"
         " document in the"
         " stream"),
        ("name: a\nb: \x00\n", "inat.yaml:2: YAML syntax: the character '\\x00' is not allowed; remove it"),
        ("[" * 1200, "inat.yaml:1: YAML syntax: nested too deeply"),
        ("- a\n", "inat.yaml:1: must be a mapping of keys to values, such as 'name: first_run'"),
        ("# nothing\n\nfirst_run\n", "inat.yaml:3: must be a mapping of keys to values, such as 'name: first_run'"),
    ],
)  # fmt: skip
def test_not_yaml(text: str, message: str) -> None:
    assert problems(text) == [message]


def test_an_empty_file_is_told_what_a_run_needs() -> None:
    assert [line.partition(" missing")[0] for line in problems("")] == [
        f"inat.yaml:1: {key}:" for key in ("name", "data", "model", "method", "optim")
    ]


def test_aliases_that_multiply_are_refused(run_yaml: str) -> None:
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 9))
    assert any("stands for more than 100000 values; write the values out" in line for line in problems(bomb))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=fast", "optim.lr: must be a number above 0; got 'fast'"),
        ("optim.lr=no", "optim.lr: must be a number above 0; got no (a YAML word for false)"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key. Did you mean 'lr'?"),
        ("learning_rate=1", "learning_rate: unknown key. Did you mean 'optim.lr'?"),
        ("gamma=1", "gamma: unknown key. Did you mean 'method.loss.gamma'?"),
        ("method.loss.gamm=1", "method.loss.gamm: unknown key. Did you mean 'gamma'?"),
        ("method=plane", "method: no 'plane' among methods. Did you mean 'plain'? Known: plain, twin, two_losses"),
        ("seed.x=3", "seed: must be a whole number of at least 0; got a mapping"),
        ("optim.epochs.x=3", "optim.epochs: must be a whole number above 0; got a mapping"),
        ("data.mean.0=1", "data.mean.0: set the list whole, such as data.mean=[...]"),
        ("optim.warmup_epochs=20", "optim.warmup_epochs: must be below epochs (10), which it is part of; got 20.0"),
        ("optim.lr=[1", "YAML syntax: expected ',' or ']', but got '<stream end>', while parsing a flow sequence"),
        ("optim.lr={a: 1, a: 2}", "a: duplicate key; keep one"),
        ("optim.lr", "must read key=value, such as optim.lr=0.2"),
        ("=1", "must read key=value, such as optim.lr=0.2"),
        ("optim..lr=1", "must read key=value, such as optim.lr=0.2"),
    ],
)
def test_override(run_yaml: str, override: str, message: str) -> None:
    text = run_yaml.replace("  dataset: toy\n", "  dataset: toy\n  mean: [0.5, 0.5, 0.5]\n")
    assert f"override '{override}': {message}" in problems(text, override)
