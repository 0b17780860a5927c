"""What is told of a machine: whether others take its cores."""

from types import SimpleNamespace

import pytest
import torch

from irnet_bench import machine


@pytest.mark.parametrize(
    ("device", "cores", "threads", "taken", "warns"),
    [
        ("cpu", 16, 8, 8.0, False),
        ("cpu", 16, 8, 8.5, True),
        ("cpu", 2, 4, 0.2, False),
        ("cpu", 2, 4, 0.3, True),
        ("cuda", 16, 16, 15.0, False),
        ("cuda", 16, 16, 15.5, True),
    ],
)
def test_a_machine_is_loaded_where_the_timed_threads_have_no_core_each(
    monkeypatch, caplog, device, cores, threads, taken, warns
):
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: range(cores))
    assert machine.warn_if_loaded(torch.device(device), {"others": taken}) == warns == bool(caplog.text)


def test_what_others_take_is_what_our_cores_do_but_for_our_own_work(monkeypatch):
    clocks = {"process_time": iter([7.0, 7.1]), "perf_counter": iter([50.0, 50.2])}
    monkeypatch.setattr(machine, "time", SimpleNamespace(**{n: lambda n=n: next(clocks[n]) for n in clocks}))
    monkeypatch.setattr(machine, "psutil", SimpleNamespace(cpu_percent=lambda seconds, percpu: [90.0, 50.0, 100.0]))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 2})
    assert machine.others() == 1.4


def test_without_psutil_the_load_stands_for_what_others_take(monkeypatch, cpu):
    monkeypatch.setattr(machine, "psutil", None)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (3.5, 1.0, 1.0))
    assert machine.condition(cpu) == {"clocks": {}, "load": 3.5, "others": 3.5}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n", "AMD EPYC, family 25, model 17"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "aarch64"),
    ],
)
def test_a_processor_is_known_by_family_and_model_where_the_kernel_tells_them(monkeypatch, text, name):
    monkeypatch.setattr(machine.Path, "read_text", lambda path: text)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.processor_model() == name
