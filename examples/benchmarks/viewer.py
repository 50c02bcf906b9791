"""How fast does `attnprobe view` show the first picture of a large file, and how much memory does it take?

    python examples/benchmarks/viewer.py [--gigabytes 10] [--folder /tmp] [--keep]

Writes a maps file of that size (softmax maps of noise, 16 blocks, 12 heads, 197 tokens), starts the command as a user
would, and times from its start: the address, the page, the first map; then the maps of all blocks, a query moved, and
maps of images all over the file. Memory is the largest resident set of the serving process. With Playwright and
Chromium, also the time until a browser has drawn the first map. Elapsed time; the file is in the page cache or not
as the machine has it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

LAYERS, HEADS, SIDE = 16, 12, 14


def write(path: Path, gigabytes: float) -> None:
    """A file of about that size: the maps of one image, turned by one head from image to image."""
    import torch

    from attnprobe.core.maps import AttentionMaps, TokenGrid
    from attnprobe.store import CapturePlan, MapWriter

    grid = TokenGrid(SIDE, SIDE)
    generator = torch.Generator().manual_seed(0)
    maps = (3 * torch.randn(LAYERS, HEADS, grid.n_tokens, grid.n_tokens, generator=generator)).softmax(-1)
    n_images = round(gigabytes * 1e9 / 10.8e6)
    plan = CapturePlan(image_ids=tuple(f"val/{i:06}.jpg" for i in range(n_images)), model="noise")
    with MapWriter(path, plan, overwrite=True) as writer:
        for shard in writer.pending():
            for i in shard:
                writer.append([AttentionMaps(maps.roll(i, 1)[None], (plan.image_ids[i],), grid)])
        writer.close({})
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {n_images} images")


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as reply:
        return reply.read()


def row(image: int, layer: int, query: int) -> str:
    return f"row?run=0&stage=0&site=0&image={image}&layer={layer}&query={query}"


def measure(path: Path) -> None:
    start = time.perf_counter()

    def lap(what: str) -> None:
        print(f"{time.perf_counter() - start:6.2f} s  {what}")

    with subprocess.Popen(
        [sys.executable, "-m", "attnprobe", "view", str(path), "--no-browser"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            lap("address")
            fetch(url)
            fetch(f"{url}images?words=&first=0")
            lap("page and list of images")
            fetch(url + row(0, LAYERS - 1, 0))
            lap("first map")
            for layer in range(LAYERS):
                fetch(url + row(0, layer, 0))
            lap("maps of all blocks")
            start = time.perf_counter()
            for layer in range(LAYERS):
                fetch(url + row(0, layer, 99))
            lap("the query moved")
            n_images = json.loads(fetch(f"{url}images?words=&first=0"))["total"]
            start = time.perf_counter()
            for i in range(20):
                fetch(url + row(i * (n_images - 1) // 19, i % LAYERS, 5))
            lap("20 maps all over the file")
            start = time.perf_counter()
            fetch(f"{url}images?words=777&first=0")
            lap("a search")
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0])  # kB
            print(f"{peak / 1e3:6.0f} MB resident at most")
        finally:
            process.terminate()


def browse(path: Path) -> None:
    """From the start of the command to a map on the screen; the browser is there already."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    if chromium is None:
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        page = browser.new_page()
        start = time.perf_counter()
        command = [sys.executable, "-m", "attnprobe", "view", str(path), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            page.goto(process.stdout.readline().strip())
            page.wait_for_selector(".panel[data-block]")
            print(f"{time.perf_counter() - start:6.2f} s  first map in a browser")
            page.wait_for_selector("#explorer[data-drawn]")
            print(f"{time.perf_counter() - start:6.2f} s  every block and head in a browser")
            process.terminate()
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    parser.add_argument("--keep", action="store_true", help="leave the file, and use it if it is there")
    options = parser.parse_args()
    file = options.folder / f"viewer-{options.gigabytes:g}GB.h5"
    if not file.exists():
        write(file, options.gigabytes)
    measure(file)
    browse(file)
    if not options.keep:
        file.unlink()
