"""What leaves a GPU is what was there. On a CPU the same calls are made; streams and pinned memory do nothing there."""

from dataclasses import replace

import pytest
import torch

from attnprobe.core.maps import Outcome
from attnprobe.store import MapWriter, offload, open_maps, writer
from tests.store.capturing import plan_for

DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.getfixturevalue("gpu") if request.param == "gpu" else torch.device("cpu")


@pytest.fixture
def two_sites(ten_maps, device):
    """Maps at two sites with all that may come beside them, on the device."""
    tokens, vectors = torch.rand(10, 3, 7, 4).to(device), torch.rand(10, 3, 2, 7, 4).to(device)
    factors = torch.rand(10, 3, 2, 7, 5).to(device), torch.rand(10, 3, 2, 7, 5).to(device)
    said = ten_maps.outcome
    outcome = Outcome(said.labels.to(device), said.prediction.to(device), said.probability.to(device))
    beside = {"tokens": tokens, "value_vectors": vectors, "factors": factors, "outcome": outcome}
    weights = replace(ten_maps, values=ten_maps.values.to(device), is_effective=False, **beside)
    return [weights, replace(weights, values=-weights.values, site="effective", is_effective=True, stochastic=False)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_everything_arrives_in_the_type_of_the_file_and_what_is_shared_once(two_sites, dtype):
    on_its_way = offload.Offloaded(two_sites, dtype)
    arrived = on_its_way.arrived()
    for before, after in zip(two_sites, arrived, strict=True):
        pairs = [(before.values, after.values), (before.tokens, after.tokens)]
        pairs += [(before.value_vectors, after.value_vectors), *zip(before.factors, after.factors, strict=True)]
        assert all(torch.equal(x.to(dtype).cpu(), y) for x, y in pairs)
        assert torch.equal(before.outcome.prediction.cpu(), after.outcome.prediction)
        assert (after.site, after.image_ids, after.is_effective) == (before.site, before.image_ids, before.is_effective)
    assert arrived[0].tokens is arrived[1].tokens and not on_its_way._originals


@pytest.fixture
def batches(ten_maps, device, monkeypatch):
    """Two batches on the device, and a list of what happened when; a CPU passes for a device that copies by itself."""
    happened = []

    class Noted(offload.Offloaded):
        def __init__(self, maps, dtype):
            self.first = maps[0].image_ids[0]
            happened.append(f"{self.first} sent")
            super().__init__(maps, dtype)

        def arrived(self):
            maps = super().arrived()
            happened.append(f"{self.first} arrived")
            return maps

    monkeypatch.setattr(writer, "Offloaded", Noted)
    monkeypatch.setattr(writer, "copies_by_itself", lambda _device: True)
    there = replace(ten_maps, values=ten_maps.values.to(device))
    return [there.images(0, 4), there.images(4, 10)], happened


def test_batches_are_sent_by_the_caller_and_stored_in_order(tmp_path, ten_maps, small_shards, batches):
    parts, happened = batches
    with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as maps_writer:
        for part in parts:
            maps_writer.append([part])
    with open_maps(tmp_path / "maps.h5") as reader:
        assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
    assert happened == ["image0 sent", "image0 arrived", "image4 sent", "image4 arrived"]


def test_a_copy_that_fails_is_told_to_the_caller_and_costs_no_finished_shard(
    tmp_path, ten_maps, small_shards, batches, monkeypatch
):
    (first, second), _ = batches
    path = tmp_path / "maps.h5"
    with pytest.raises(RuntimeError, match="the copy failed"), MapWriter(path, plan_for([ten_maps])) as maps_writer:
        maps_writer.append([first])
        maps_writer.pending()
        monkeypatch.setattr(writer.Offloaded, "arrived", fail)
        maps_writer.append([second])
        maps_writer.close({})
    with open_maps(path.with_suffix(".parts"), allow_partial=True) as reader:
        assert torch.equal(reader.maps().values, ten_maps.values[:4].bfloat16().float())


def fail(_self):
    raise RuntimeError("the copy failed")
