"""What does the attention of a Hugging Face model look like? Any of its vision models, with fused attention, too.

    python examples/hugging_face.py [facebook/dinov2-small] [--images FOLDER] [-o hf-maps.h5]

Without a name, a small DINOv2 with random weights, which needs no network. On the command line the same is
`attnprobe capture hf:facebook/dinov2-small --data FOLDER` and `attnprobe report`.
"""

import argparse

import transformers

import attnprobe as ap

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("name", nargs="?", help="a name on the hub, or a folder written by save_pretrained")
parser.add_argument("--images", default="fractals:10", help="a folder, or any other data set's name")
options = parser.parse_args()

if options.name:
    model = transformers.AutoModel.from_pretrained(options.name)
else:
    config = transformers.Dinov2Config(hidden_size=96, num_hidden_layers=6, num_attention_heads=6, image_size=112)
    model = transformers.Dinov2Model(config)

images = ap.load_images(options.images, "val", spec=ap.input_spec(model), limit=16)
captured = ap.capture(model, images)
print(captured.certificate)
for name, measured in ap.measure(captured, ["similar_blocks", "row_entropy", "head_divergence"]).items():
    print(name, measured)
