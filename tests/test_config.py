"""Settings: the round trip through YAML, overrides, and one clear line for everything that cannot be used."""

import dataclasses

import pytest
import yaml

from irnet.config import Config, dump, from_dict, load, override, shipped, small, validate
from irnet.errors import InputError


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def altered() -> Config:
    """Every field away from its default."""
    config = Config()
    for section in vars(config).values():
        for field in dataclasses.fields(section):
            old = getattr(section, field.name)
            other = {bool: lambda v: not v, int: lambda v: v + 3, float: lambda v: v / 3 + 1e-7}
            other |= {str: lambda v: v + "ä: #1", list: lambda v: [*v, 9]}
            setattr(section, field.name, other[type(old)](old))
    return config


@pytest.mark.parametrize("config", [Config(), small(), altered()], ids=["default", "small", "altered"])
def test_round_trip(config, tmp_path):
    assert load(write(tmp_path, dump(config))) == config
    assert from_dict(dataclasses.asdict(config), "here") == config


def test_what_a_file_leaves_out_is_as_in_the_base(tmp_path):
    path = write(tmp_path, "model:\n  iterations: 5\ntrain:\n  lr: 5e-4\n")
    config = load(path)
    assert (config.model.iterations, config.train.lr) == (5, 5e-4)
    config.model.iterations, config.train.lr = Config().model.iterations, Config().train.lr
    assert config == Config()
    assert load(path, small()).model.hidden == small().model.hidden != Config().model.hidden
    assert load(write(tmp_path, "# nothing\n")) == Config()


def test_configs_share_nothing():
    first = Config()
    first.train.lr_steps.append(1)
    first.model.iterations = 9
    assert Config().train.lr_steps == [200_000, 280_000] and Config().model.iterations == 3


def get(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.lr", "5e-4", 5e-4),
        ("train.lr", "1", 1.0),
        ("train.lr", 2, 2.0),
        ("train.lr", "0.25", 0.25),
        ("train.steps", "12", 12),
        ("train.steps", "320_000", 320_000),
        ("train.lr_steps", "[1, 2]", [1, 2]),
        ("train.lr_steps", "[]", []),
        ("train.lr_steps", [3], [3]),
        ("train.cosine", "true", True),
        ("train.cosine", "off", False),
        ("train.cosine", True, True),
        ("data.root", "5", "5"),
        ("data.root", "true", "true"),
        ("data.root", "a: b", "a: b"),
        ("model.variant", "nonsense", "nonsense"),  # a string all right; `validate` says the rest
    ],
)
def test_override(key, value, expected):
    config = Config()
    override(config, key, value)
    assert get(config, key) == expected and type(get(config, key)) is type(get(Config(), key))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("train.steps", "many", "int"),
        ("train.steps", "1.5", "int"),
        ("train.steps", 1.0, "int"),
        ("train.steps", True, "int"),
        ("train.steps", "true", "int"),
        ("train.steps", "", "int"),
        ("train.steps", "[1", "int"),
        ("train.steps", None, "int"),
        ("train.lr", "fast", "float"),
        ("train.lr", "true", "float"),
        ("train.lr", True, "float"),
        ("train.lr", [1.0], "float"),
        ("train.lr", 10**400, "float"),
        ("train.cosine", "1", "bool"),
        ("train.cosine", 1, "bool"),
        ("train.cosine", "maybe", "bool"),
        ("train.lr_steps", "5", "list"),
        ("train.lr_steps", "[1.5]", "list"),
        ("train.lr_steps", "[a]", "list"),
        ("train.lr_steps", [True], "list"),
        ("data.root", 5, "str"),
        ("data.root", None, "str"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key, value, wanted):
    config = Config()
    with pytest.raises(InputError) as error:
        override(config, key, value, "file.yaml")
    default = get(Config(), key)
    assert str(error.value) == f"file.yaml: {key} wants a value of type {wanted}; the default is {default!r}"
    assert config == Config()


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("model.iteration", "did you mean model.iterations?"),
        ("modle.iterations", "did you mean model.iterations?"),
        ("train.batchsize", "did you mean train.batch_size?"),
        ("iterations", "did you mean model.iterations?"),
        ("learning_rate.is.unheard.of" * 3, "see irnet/config.py"),
        ("model", "did you mean model."),
        ("model.", "did you mean model."),
        ("", "see irnet/config.py"),
        (".", "see irnet/config.py"),
        ("model.iterations.more", "did you mean model.iterations?"),
        ("__class__.model", "did you mean"),
        ("model.__class__", "did you mean model."),
    ],
)
def test_an_unknown_key_names_the_nearest(key, cure):
    with pytest.raises(InputError) as error:
        override(Config(), key, "1")
    assert str(error.value).startswith(f"command line: unknown config key {key!r}; {cure}")


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("model: [", "is not valid YAML"),
        ("model:\n\t- 1", "is not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"model: \xff\xfe", "is not valid YAML"),
        ("- 1\n- 2", "does not hold sections"),
        ("5", "does not hold sections"),
        ("model: 5", "does not hold sections"),
        ("model:\n  iterations: [1]", "model.iterations wants a value of type int"),
        ("model:\n  itertions: 2", "did you mean model.iterations?"),
        ("optim:\n  lr: 2", "unknown config key 'optim.lr'; did you mean train.lr?"),
        ("1:\n  2: 3", "unknown config key '1.2'"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text, trouble, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and trouble in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="readable YAML file"):
            load(path)


@pytest.mark.parametrize("config", [Config(), small()], ids=["default", "small"])
def test_the_presets_are_valid(config):
    validate(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.variant", "both"),
        ("model.backbone", "resnet18"),
        ("model.assignment", "max"),
        ("model.region_start", "one"),
        ("data.name", "imagenet"),
        ("train.optimizer", "lion"),
        ("train.amp", "fp8"),
        ("model.backbone_channels", 1),
        ("model.iterations", 0),
        ("model.patch_size", 1),
        ("model.memory_channels", 0),
        ("model.memory_size", 0),
        ("model.gate_channels", 3),
        ("model.gate_channels", -1),
        ("model.hidden", 0),
        ("model.graph_channels", 0),
        ("model.graph_layers", 0),
        ("model.bandwidth", 0.0),
        ("model.bandwidth", float("nan")),
        ("loss.memory", -1.0),
        ("loss.final", float("inf")),
        ("loss.beta", 0.0),
        ("loss.beta", 1.5),
        ("loss.beta", float("nan")),
        ("data.short_side", -1),
        ("data.long_side", -1),
        ("data.max_regions", -1),
        ("train.steps", -1),
        ("train.batch_size", 0),
        ("train.grad_accum_steps", 0),
        ("train.lr", -0.1),
        ("train.lr", float("nan")),
        ("train.warmup_steps", -1),
        ("train.momentum", -0.5),
        ("train.weight_decay", -1.0),
        ("train.clip_norm", float("nan")),
        ("train.workers", -1),
        ("train.checkpoint_every", 0),
        ("train.eval_every", -1),
        ("train.log_every", 0),
        ("train.limit_batches", -1),
    ],
)
def test_validate_names_what_makes_no_sense(key, value):
    config = small()
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(InputError) as error:
        validate(config, "config.yaml")
    assert str(error.value).startswith(f"config.yaml: {key} is {value!r}; ")


def test_validate_wants_equal_parts():
    config = small()
    config.train.batch_size, config.train.grad_accum_steps = 6, 4
    with pytest.raises(InputError, match=r"train.batch_size 6 cannot be split into 4 equal parts"):
        validate(config)
    config.train.grad_accum_steps = 3
    validate(config)


@pytest.mark.parametrize("gates", [0, 1, 64])
def test_gates_are_one_or_as_many_as_channels(gates):
    config = small()
    config.model.gate_channels = gates
    validate(config)


def test_dump_is_plain_yaml():
    values = yaml.safe_load(dump(small()))
    assert list(values) == ["model", "loss", "data", "train"]
    assert values["train"]["lr_steps"] == [] and values["data"]["name"] == "scenes"


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [
        ("train.seed", -1, "2^63 - 1"),
        ("train.seed", 2**63, "2^63 - 1"),
        ("train.seed", 10**4000, "2^63 - 1"),
        ("train.batch_size", 2**31, "at most 2,147,483,647"),
        ("train.steps", 10**4000, "at most 2,147,483,647"),
        ("train.steps", -(10**4000), "at least 0"),
        ("train.lr_steps", [5, 10**30], "steps from 0"),
        ("train.lr_steps", [-1], "steps from 0"),
        ("train.workers", 1025, "at most 1,024"),
        ("model.graph_layers", 10**6, "at most 1,000"),
        ("model.iterations", 10**6, "at most 1,000"),
        ("model.patch_size", 2 * 10**9, "at most 1,000"),
        ("model.hidden", 10**12, "at most 2,147,483,647"),
        ("model.bandwidth", 1e300, "above 0"),
        ("train.lr", 1e300, "at most 3"),
        ("train.weight_decay", 1e39, "at most 3"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_numbers_beyond_what_can_be_held(key, value, cure):
    config = small()
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(InputError) as error:
        validate(config, "config.yaml")
    assert str(error.value).startswith(f"config.yaml: {key} ") and cure in str(error.value)
    assert len(str(error.value)) < 200


def test_seed_of_63_bits():
    config = small()
    config.train.seed = 2**63 - 1
    validate(config)


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: 1e-3, lr: 1e-4}",
        "train:\n  steps: 1\n  lr: 0.1\n  steps: 2\n",
        "train: {steps: 1}\nmodel: {}\ntrain: {lr: 1}\n",
        "train: {steps: 1, 'steps': 2}",
    ],
)
def test_key_given_twice(text, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"'(lr|steps|train)' is given twice") as error:
        load(path)
    assert str(path) in str(error.value)


def test_merged_keys_may_be_given_anew(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("train: &base {lr: 0.5, steps: 1}\nloss: {}\n")
    assert load(path).train.lr == 0.5
    path.write_text("model: {}\ntrain:\n  <<: {lr: 0.5, steps: 1}\n  steps: 2\n")
    assert (load(path).train.lr, load(path).train.steps) == (0.5, 2)


@pytest.mark.parametrize(
    "text",
    [
        "train: {steps: 2024-13-45}",
        f"train: {{steps: {'9' * 5000}}}",
        "[" * 5000,
        "train: {lr: &a [*a]}",
        "? [1]\n: 2\n",
    ],
    ids=["date", "digits", "depth", "cycle", "key"],
)
def test_yaml_that_python_cannot_hold(text, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"my.yaml: "):
        load(path)
    with pytest.raises(InputError, match="wants a value of type int"):
        override(small(), "train.steps", text)


def test_the_papers_runs_ship():
    """Sizes and steps as the authors' README and res50-lg.yml have them; Visual Genome's are COCO's."""
    assert list(shipped()) == ["ade20k", "ade20k-lg", "coco", "vg"]
    runs = {name: load(name) for name in shipped()}
    for name, run in runs.items():
        validate(run, name)
        assert (run.model.backbone, run.model.backbone_weights, run.model.variant) == ("resnet101", "resnet101", "full")
        assert run.data.name == name.removesuffix("-lg") and (run.train.lr, run.train.batch_size) == (5e-4, 1)
        sides = (800, 1200) if name.endswith("-lg") else (600, 1000)
        assert (run.data.short_side, run.data.long_side) == sides and run.data.min_count == 5
        ade = run.data.name == "ade20k"
        assert (run.train.lr_steps, run.train.steps) == (([280_000], 320_000) if ade else ([320_000, 560_000], 720_000))


def test_a_file_outranks_a_shipped_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()  # as a data set's folder may well be called
    assert load("coco").train.steps == 720_000
    (tmp_path / "vg").write_text("train:\n  steps: 7\n")
    assert load("vg").train.steps == 7
    with pytest.raises(InputError, match=r"nothing.yaml: No such file .* one of ade20k, ade20k-lg, coco, vg"):
        load("nothing.yaml")
