"""What sentences the records of a device give."""

import pytest

from irnet_bench.findings import findings, sentences
from tests.irnet_bench.made_up import device, record


def test_findings_take_the_fastest_peer_of_the_same_run():
    found = device(
        record(seconds=1e-3),
        record(implementation="grid_sample", seconds=3e-3),
        record(implementation="torch.compile", seconds=2e-3),
        record(implementation="plain PyTorch", seconds=1.5e-3, run="r2"),
        record(implementation="PyG RGCNConv", status="skipped", reason="not installed"),
        record(implementation="matrix product", peer=True, seconds=5e-4),
        record(implementation="reference", seconds=1e-5),
        record(mode="forward"),
        record(mode="forward", implementation="grid_sample", seconds=1.02e-3),
    )
    assert [(f.mode, f.peer, f.ratio, f.met) for f in findings(found)] == [
        ("forward", "grid_sample", "≈ 1.02 x faster", False),
        ("step", "torch.compile", "2.00 x faster", True),
    ]
    told = sentences(found)
    assert told[0].startswith(f"On {found.name}, irnet is faster than the fastest peer in 1 of 2 cases")
    assert told[1].endswith("is missed by crop_resize float32 forward (≈ 1.02 x faster than grid_sample).")
    text = "crop_resize float32 (cpp): forward ≈ 1.02 x faster than grid_sample, step (both) 2.00 x faster than "
    assert told[2:] == [
        f"{text}torch.compile.",
        "matrix product: a yardstick, no peer, for it does the operator's own products alone.",
    ]


@pytest.mark.parametrize(
    ("seconds", "met"), [(1.2e-3, True), (1.05e-3, False), (1e-3, False), (0.8e-3, False)], ids=str
)
def test_a_bar_is_met_where_irnet_is_faster_beyond_the_spread(seconds, met):
    found = device(record(), record(implementation="grid_sample", seconds=seconds))
    assert [f.met for f in findings(found)] == [met]
    assert ("missed" in " ".join(sentences(found))) is not met


def test_no_finding_of_what_failed_or_stands_alone():
    failed = [record(status="oom"), record(implementation="grid_sample")]
    for records in (failed, [record()], [record(implementation="grid_sample")]):
        assert findings(device(*records)) == [] == sentences(device(*records))
