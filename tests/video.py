"""A video whose frames tell their number: WebM (VP8), made by vpxenc from pixels made here.

Each frame carries a band of eight fields, white for the one bits of its number, over noise that gives the
file its size. So a test sees which frame a browser really shows, and seeking has to fetch bytes that aren't
there yet. Its law: knows pixels and the encoder's command line, nothing of the server or the browser.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

WIDTH, HEIGHT, BAND = 448, 256, 64
RATE = 10
"""Frames a second; each tenth is a key frame."""
SECONDS = 24

READ_NUMBER = f"""(video => {{
    const canvas = document.createElement("canvas");
    canvas.width = {WIDTH}; canvas.height = {HEIGHT};
    const drawing = canvas.getContext("2d");
    drawing.drawImage(video, 0, 0);
    let number = 0;
    for (let bit = 0; bit < 8; bit++) {{
        const x = (bit + 0.5) * {WIDTH // 8};
        if (drawing.getImageData(x, {BAND // 2}, 1, 1).data[1] > 127) number |= 1 << bit;
    }}
    return number;
}})"""
"""JavaScript: a function from a video element to the number of the frame that it shows."""


def make_video(path: Path) -> None:
    """Write the video: SECONDS long, about 10 MB."""
    command = shutil.which("vpxenc")
    assert command is not None, "there is no vpxenc: scripts/test installs it (apt-get install vpx-tools)"
    size = ("-w", str(WIDTH), "-h", str(HEIGHT), f"--fps={RATE}/1", "--timebase=1/1000")
    effort = ("--codec=vp8", "--rt", "--cpu-used=16", "--threads=1", "--passes=1", f"--kf-max-dist={RATE}")
    rate = ("--end-usage=cbr", "--target-bitrate=3500", "--max-q=63", "--min-q=10")
    with subprocess.Popen(
        [command, *size, *effort, *rate, "-q", "-o", str(path), "-"], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        for frame in _frames():
            process.stdin.write(frame)
    assert process.returncode == 0, f"vpxenc: exit status {process.returncode}"


def _frames() -> Iterator[bytes]:
    """Raw I420 frames."""
    noise = random.Random(7).randbytes(WIDTH * HEIGHT * 3)
    grey = bytes([128]) * (WIDTH * HEIGHT // 2)
    for number in range(RATE * SECONDS):
        line = b"".join(bytes([235 if number >> bit & 1 else 16]) * (WIDTH // 8) for bit in range(8))
        start = random.Random(number).randrange(WIDTH * HEIGHT)
        yield line * BAND + noise[start : start + WIDTH * (HEIGHT - BAND)] + grey
