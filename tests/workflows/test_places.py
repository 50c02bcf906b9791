"""Models whose tokens are no complete grid, from capture over the file to the page."""

import json

import torch
from transformers import VideoMAEConfig, VideoMAEModel

import attnprobe as ap
from attnprobe.store import MapWriter, open_maps
from attnprobe.workflows.measure import examine
from tests.capturing.test_scattered import KEEP, PIXELS, Encoder
from tests.store.capturing import plan_for


def stored(model, pixels, path):
    capturing = ap.capture(model, pixels, ("weights", "effective"), tokens=True)
    (batch,) = capturing.batches()
    with MapWriter(path, plan_for(batch), keep_shards=True) as writer:
        for positions in writer.pending():
            writer.append([maps.images(positions.start, positions.stop) for maps in batch])
        return writer.close(capturing.certificate.to_dict())


def test_the_distances_and_the_page_of_a_masked_encoder_are_of_the_patches_that_it_kept(tmp_path):
    model = Encoder(lambda x: x[:, KEEP], behind=("reg_tokens",)).eval()
    path = stored(model, PIXELS, tmp_path / "maps.h5")
    with open_maps(path) as reader:
        assert reader.maps().grid.positions == (-1, *KEEP, -1, -1, -1, -1)
    examined = examine(path, name="masked")
    direct = ap.measure(ap.capture(model, PIXELS, "weights"), ["attention_distance"])["attention_distance"]
    found = examined.measurements["attention_distance"]
    torch.testing.assert_close(torch.from_numpy(found.mean), torch.from_numpy(direct.mean), rtol=5e-3, atol=0)
    page, data = ap.write_report([examined], tmp_path, ("html", "json"))
    assert "16 of 8 x 8 patches of 8 x 8 px + cls, reg0" in page.read_text()
    assert f'"absent":{[n for n in range(69) if n > 4 and n - 5 not in KEEP]}'.replace(" ", "") in page.read_text()
    assert json.loads(data.read_text())["runs"][0]["grid"]["positions"][1:17] == KEEP


def test_a_video_is_measured_without_distances_and_its_certificate_says_why(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = VideoMAEModel(VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, tubelet_size=2, **sizes)).eval()
    clips = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    examined = examine(stored(model, clips, tmp_path / "maps.h5"), name="video")
    names = {m.metric for m in examined.measurements.values()}
    assert "layer_similarity" in names and "attention_distance" not in names
    places = examined.certificate["located"]["places"]
    assert {place["status"] for place in places.values()} == {"unknown"} and all(p["reason"] for p in places.values())
    assert all(path.exists() for path in ap.write_report([examined], tmp_path, ("html", "json", "csv", "md")))
