"""How long does it take to list a million images, and how much memory?

    python examples/benchmarks/listing.py [--images 1000000] [--classes 1000] [--folder /dev/shm]

Makes empty files (hard links of one per class) in a temporary folder, lists them in a fresh process as `capture` does
before it decodes the first, and once more from the list that a process of a job leaves for the others. Printed are
seconds of wall clock and of the process, and the peak of resident memory beyond what the libraries take. The goals are
60 s and 500 MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make(root: Path, images: int, classes: int) -> None:
    """`images` files of some bytes each, in folders of classes."""
    for k in range(classes):
        folder = root / f"n{k:08d}"
        folder.mkdir()
        first = folder / f"n{k:08d}_0000000.JPEG"
        first.write_bytes(b"no image")
        for number in range(1, images // classes):
            (folder / f"n{k:08d}_{number:07d}.JPEG").hardlink_to(first)


def peak() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def listed(root: Path, kept: Path) -> None:
    """Print what listing took, as JSON; by a fresh process."""
    from attnprobe.core.images import InputSpec
    from attnprobe.data.image_files import Reading, load_files
    from attnprobe.data.shared_list import Shared

    load_files(str(root / "n00000000"), spec=InputSpec(), limit=1, reading=Reading(scan=False))  # imports everything
    before, begun, cpu = peak(), time.perf_counter(), time.process_time()
    source = load_files(str(root), spec=InputSpec(), reading=Reading(scan=False, shared=Shared(kept, "")))
    took = {"s": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "MB": peak() - before}
    print(json.dumps({"n": len(source), "libraries": before, **took}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the files are made; the system's temporary folder if absent")
    parser.add_argument("--list", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        listed(*options.list)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root, kept = Path(folder) / "images", Path(folder) / "images.list"
        root.mkdir()
        begun = time.perf_counter()
        make(root, options.images, options.classes)
        print(f"{options.images} files made in {time.perf_counter() - begun:.0f} s")
        for how in ("listed", "read from the list"):
            command = [sys.executable, __file__, "--list", str(root), str(kept)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"{found['n']} {how}: {found['s']:.1f} s ({found['cpu']:.1f} of CPU), {found['MB']:.0f} MB beyond the "
                f"{found['libraries']:.0f} of libraries"
            )
        print(f"the list has {kept.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
