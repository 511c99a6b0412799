"""Write the golden files, once for each set of weights: what is written here must be read for ever.

python -m tests.golden.write                  # of embedded weights that have none yet
python -m tests.golden.write --overwrite      # of all that can be named, in place of those that are there
"""

from __future__ import annotations

import json
import sys

from model import Codec, Zoo
from tests.golden.files import FOLDER, INDEX, write


def main(arguments: list[str]) -> None:
    if arguments not in ([], ["--overwrite"]):
        sys.exit(__doc__)
    there = sorted(FOLDER.glob("*.tcm")) if not arguments else []
    kept = json.loads((FOLDER / INDEX).read_text()) if there else []
    written = {one["fingerprint"] for one in kept}
    new = [entry for entry in Zoo().entries() if entry.embedded and entry.info.fingerprint not in written]
    if not new:
        sys.exit(
            f"{len(there)} golden files are in {FOLDER}. Files like them may be in use: a version that no longer reads "
            "them breaks the promise of docs/bitstream.md. To write them anew all the same: --overwrite"
        )
    for path in set(FOLDER.glob("*.tcm")) - set(there):
        path.unlink()
    index = write(FOLDER, (Codec.load(entry, "cpu") for entry in new), kept)
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.tcm")}
    for one in index:
        print(f"{one['name']}: {sizes[one['name']]:,} bytes, {one['psnr']:.2f} dB, {one['streams']} streams")
    print(f"{len(sizes)} files, {sum(sizes.values()):,} bytes, and {INDEX}")
    if max(sizes.values()) > 200_000 or sum(sizes.values()) > 600_000:
        sys.exit("that is more than a repository should carry: 200 kB a file, 600 kB together")


if __name__ == "__main__":
    main(sys.argv[1:])
