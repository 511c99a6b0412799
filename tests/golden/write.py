"""Write the golden files, once for each set of weights: what is written here must be read for ever.

python -m tests.golden.write --add          # of embedded weights that have none yet
python -m tests.golden.write --overwrite    # of all embedded weights but earlier ones, in place of those that are there
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from model import Codec, Zoo
from tests.golden.files import FOLDER, INDEX, write


def main(arguments: list[str]) -> None:
    if arguments not in ([], ["--add"], ["--overwrite"]):
        sys.exit(__doc__)
    there = json.loads((FOLDER / INDEX).read_text()) if (FOLDER / INDEX).exists() else []
    if there and not arguments:
        sys.exit(
            f"{len(there)} golden files are in {FOLDER}. Files like them may be in use: a version that no longer reads "
            "them breaks the promise of docs/bitstream.md. Of weights that have none yet: --add. To write them anew "
            "all the same: --overwrite"
        )
    known = {one["fingerprint"] for one in there} if arguments == ["--add"] else set()
    with tempfile.TemporaryDirectory() as nothing:  # a user's models go before embedded ones
        entries = [entry for entry in Zoo(Path(nothing)).entries() if entry.info.fingerprint not in known]
    if not entries:
        sys.exit("every embedded model has its golden files")
    rewritten = {entry.info.fingerprint for entry in entries}
    kept = [one for one in there if one["fingerprint"] not in rewritten]
    for one in there:
        if one not in kept:
            (FOLDER / one["name"]).unlink()
    index = write(FOLDER, (Codec.load(entry, "cpu") for entry in entries), kept)
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.tcm")}
    written = index[len(kept) :]
    for one in written:
        print(f"{one['name']}: {sizes[one['name']]:,} bytes, {one['psnr']:.2f} dB, {one['streams']} streams")
    new = [sizes[one["name"]] for one in written]
    print(f"{len(new)} files, {sum(new):,} bytes, and {INDEX}, beside {len(kept)} of earlier weights")
    if max(sizes.values()) > 200_000 or sum(new) > 500_000:
        sys.exit("that is more than a repository should carry: 200 kB a file, 500 kB for new weights together")


if __name__ == "__main__":
    main(sys.argv[1:])
